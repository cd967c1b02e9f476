"""The only training loop, and what it is made of.

A `Job` says what is trained on what; `loop.py` trains it on accelerate. Student and objectives are
one module (`trainee.py`), teachers are asked live or once (`teachers.py`, `teacher_cache.py`), and
what would teach nonsense is found before (`preflight.py`). Checkpoints are verified, never pickled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill._lazy import lazily

if TYPE_CHECKING:
    from potstill.training.job import Job
    from potstill.training.loop import train
    from potstill.training.trainee import Trainee

__all__ = [
    "Job",
    "Trainee",
    "train",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "job": ("Job",),
        "loop": ("train",),
        "trainee": ("Trainee",),
    },
)
