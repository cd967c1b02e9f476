"""Public suites of tasks: models fine-tuned on the same tasks, and what was kept.

`catalog.py` has GLUE, IMDb and SQuAD as data, `data.py` their files as examples, `trials.py` one
model on one task with one seed, `runner.py` all of them together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill._lazy import lazily

if TYPE_CHECKING:
    from potstill.suites.runner import evaluate_suite

__all__ = [
    "evaluate_suite",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "runner": ("evaluate_suite",),
    },
)
