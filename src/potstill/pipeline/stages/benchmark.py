"""The stage that measures size and speed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.benchmarking.session import benchmark
from potstill.benchmarking.texts import read_texts
from potstill.models import LoadedModel
from potstill.models.families import position_limit
from potstill.pipeline.context import Context, Outline, Outlook, chosen_models
from potstill.recipe import Benchmark

VERSION = 2


def check(stage: Benchmark, outlook: Outlook) -> Outline:
    asked = {
        "lengths": max(stage.lengths),
        "throughput_length": stage.throughput_length or 0,
        "pass_over.max_length": (stage.pass_over and stage.pass_over.max_length) or 0,
    }
    teacher = outlook.model("teacher", untrained_head=True)
    check_lengths({f"benchmark.{key}": n for key, n in asked.items()}, teacher, "teacher")
    if stage.pass_over is not None:
        read_texts(stage.pass_over.model_copy(update={"max_texts": 1}))
    return Outline(stage)


def check_lengths(asked: Mapping[str, int], model: LoadedModel, whose: str) -> None:
    """Refuse lengths that a model has no positions for.

    Args:
        asked: a key of the recipe -> the tokens that it asks for.

    Raises:
        ValueError: the first one that is too long.
    """
    positions = position_limit(model.model.config)
    for key, longest in asked.items():
        if longest > positions:
            raise ValueError(
                f"{key}: {longest} tokens are more than the {positions} positions of the {whose}: "
                f"ask for {positions} at most"
            )


def run(
    stage: Benchmark, folder: Path, context: Context, fingerprint: str
) -> tuple[dict[str, Any], dict[str, str]]:
    chosen = chosen_models(stage.models, stage.baseline, context)
    return benchmark(chosen, stage, context.reporter.progress), {}
