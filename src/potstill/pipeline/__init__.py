"""Run recipes, stage by stage.

`runner.py` skips what is done and runs again what changed (`fingerprints.py`). `rehearsal.py`
checks all stages without weights first (`outlook.py`), and `plan` estimates what they cost.
`stages` has a file per kind of stage, `context.py` what they share. `api.py` has the same stages as
functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill._lazy import lazily

if TYPE_CHECKING:
    from potstill.pipeline.api import distill, export, finetune, prune, quantize, trim_vocabulary
    from potstill.pipeline.context import Reporter, Silent
    from potstill.pipeline.runner import run

__all__ = [
    "Reporter",
    "Silent",
    "distill",
    "export",
    "finetune",
    "prune",
    "quantize",
    "run",
    "trim_vocabulary",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "api": (
            "distill",
            "export",
            "finetune",
            "prune",
            "quantize",
            "trim_vocabulary",
        ),
        "context": (
            "Reporter",
            "Silent",
        ),
        "runner": ("run",),
    },
)
