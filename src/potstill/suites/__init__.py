"""Fine-tune models on the tasks of a public suite, and compare their scores with a baseline's.

`catalog.py` lists GLUE, IMDb and SQuAD as data, `data.py` reads their files as examples,
`trials.py` runs one model on one task with one seed, and `runner.py` runs all of them.
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
