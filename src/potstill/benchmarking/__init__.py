"""Measure size and speed, with a process for each model, in turns.

`session.py` starts a child per model (`process.py`, `worker.py`), times them in interleaved rounds
(`rounds.py`) and reports ratios with their intervals (`statistics.py`). torch counts the
multiply-adds (`multiply_adds.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill._lazy import lazily

if TYPE_CHECKING:
    from potstill.benchmarking.session import benchmark

__all__ = [
    "benchmark",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "session": ("benchmark",),
    },
)
