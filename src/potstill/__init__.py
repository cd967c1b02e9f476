"""Potstill turns a large text encoder into a small, fast one and shows what was kept.

Everything is imported on first use, so that `import potstill` and `potstill --help` stay quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill.benchmarking.session import benchmark
    from potstill.compression.students import make_student
    from potstill.evaluation.scoring import evaluate
    from potstill.pipeline.api import distill, export, finetune, prune, quantize, trim_vocabulary
    from potstill.pipeline.runner import run
    from potstill.suites.runner import evaluate_suite
    from potstill.tasks.predictions import predict

_PLACES = {
    "make_student": "compression.students",
    "predict": "tasks.predictions",
    "run": "pipeline.runner",
    "benchmark": "benchmarking.session",
    "distill": "pipeline.api",
    "evaluate": "evaluation.scoring",
    "evaluate_suite": "suites.runner",
    "export": "pipeline.api",
    "finetune": "pipeline.api",
    "prune": "pipeline.api",
    "quantize": "pipeline.api",
    "trim_vocabulary": "pipeline.api",
}

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


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'potstill' has no attribute '{name}'")
    return getattr(import_module(f"potstill.{_PLACES[name]}"), name)
