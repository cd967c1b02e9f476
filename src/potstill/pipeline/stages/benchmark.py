"""Measure size and speed."""

from __future__ import annotations

from pathlib import Path

from potstill.benchmarking.session import benchmark
from potstill.benchmarking.texts import read_texts
from potstill.pipeline.context import Context, Done
from potstill.pipeline.outlook import Outline, Outlook, check_length
from potstill.recipe import Benchmark

VERSION = 2


def check(stage: Benchmark, outlook: Outlook) -> Outline:
    asked = {
        "lengths": max(stage.lengths),
        "throughput_length": stage.throughput_length or 0,
        "pass_over.max_length": (stage.pass_over and stage.pass_over.max_length) or 0,
    }
    teacher = outlook.model("teacher", untrained_head=True)
    for key, tokens in asked.items():
        check_length(f"benchmark.{key}", tokens, teacher)
    if stage.pass_over is not None:
        read_texts(stage.pass_over.model_copy(update={"max_texts": 1}))
    return Outline(stage)


def run(stage: Benchmark, folder: Path, context: Context, fingerprint: str) -> Done:
    chosen = context.compared(stage.models, stage.baseline)
    return benchmark(chosen, stage, context.reporter.progress), {}
