"""Compare models with a baseline.

Models are scored on labeled examples (`tasks.py`), as sentence encoders (`embeddings.py`,
`pairs.py`) or as masked LMs (`masked_lm.py`). `lineup.py` names who is compared with whom,
`retention.py` computes score retention and its confidence intervals, and `scoring.py` does all of
it on the user's own files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill._lazy import lazily

if TYPE_CHECKING:
    from potstill.evaluation.embeddings import evaluate_embeddings
    from potstill.evaluation.masked_lm import evaluate_masked_lm
    from potstill.evaluation.scoring import evaluate
    from potstill.evaluation.tasks import evaluate_task

__all__ = ["evaluate", "evaluate_embeddings", "evaluate_masked_lm", "evaluate_task"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "embeddings": ("evaluate_embeddings",),
        "masked_lm": ("evaluate_masked_lm",),
        "scoring": ("evaluate",),
        "tasks": ("evaluate_task",),
    },
)
