"""`python -m potstill`, for torchrun and accelerate launch."""

from potstill.cli import main

main()
