"""A recipe carried out, stage by stage.

`runner.py` skips what is done and runs again what changed (`fingerprints.py`); `rehearsal.py` goes
through all stages without weights first, and `plan` tells what they cost. What a stage does is in
`stages`, a file a kind. `api.py` has the same stages as plain functions.
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
