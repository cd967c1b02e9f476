"""`python -m potstill`, for torchrun and accelerate launch."""

from potstill.cli.entry import main

main()
