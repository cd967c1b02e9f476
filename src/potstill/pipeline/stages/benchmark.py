"""The stage that measures size and speed."""

from __future__ import annotations

from potstill.models import LoadedModel
from potstill.models.families import position_limit
from potstill.recipe import Benchmark, Quantize


def check_lengths(stage: Benchmark | Quantize, model: LoadedModel) -> None:
    positions = position_limit(model.model.config)
    whose = "teacher" if isinstance(stage, Benchmark) else "model"
    asked = {"lengths": max(stage.lengths)}
    if isinstance(stage, Benchmark):
        asked["throughput_length"] = stage.throughput_length or 0
        asked["pass_over.max_length"] = (stage.pass_over and stage.pass_over.max_length) or 0
    for key, longest in asked.items():
        if longest > positions:
            raise ValueError(
                f"{stage.kind}.{key}: {longest} tokens are more than the {positions} "
                f"positions of the {whose}: ask for {positions} at most"
            )
