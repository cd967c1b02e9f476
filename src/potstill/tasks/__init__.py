"""Follow a label from a file's row to a score.

A folder a kind of head: `sequence` (one or two texts), `tokens` (words with tags), `spans` (answers
to questions); `kinds.py` is the one place that chooses among them. Files are read to rows with
their gold (`reading.py`), tokenized (`examples.py`), answered (`predictions.py`), scored
(`scoring.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill._lazy import lazily

if TYPE_CHECKING:
    from potstill.tasks.examples import TaskExamples, tokenize_task
    from potstill.tasks.predictions import predict
    from potstill.tasks.reading import TaskRows, read_for
    from potstill.tasks.scoring import task_scores

__all__ = ["TaskExamples", "TaskRows", "predict", "read_for", "task_scores", "tokenize_task"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "examples": ("TaskExamples", "tokenize_task"),
        "predictions": ("predict",),
        "reading": ("TaskRows", "read_for"),
        "scoring": ("task_scores",),
    },
)
