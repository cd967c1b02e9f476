"""Potstill turns a large text encoder into a small, fast one and measures its score retention.

Everything is imported on first use, so that `import potstill` and `potstill --help` stay quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill._lazy import lazily

if TYPE_CHECKING:
    from potstill.benchmarking import benchmark
    from potstill.compression import make_student
    from potstill.evaluation import evaluate
    from potstill.pipeline import (
        distill,
        export,
        finetune,
        prune,
        quantize,
        run,
        trim_vocabulary,
    )
    from potstill.suites import evaluate_suite
    from potstill.tasks import predict

__all__ = [
    "benchmark",
    "distill",
    "evaluate",
    "evaluate_suite",
    "export",
    "finetune",
    "make_student",
    "predict",
    "prune",
    "quantize",
    "run",
    "trim_vocabulary",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "benchmarking": ("benchmark",),
        "compression": ("make_student",),
        "evaluation": ("evaluate",),
        "pipeline": (
            "distill",
            "export",
            "finetune",
            "prune",
            "quantize",
            "run",
            "trim_vocabulary",
        ),
        "suites": ("evaluate_suite",),
        "tasks": ("predict",),
    },
)
