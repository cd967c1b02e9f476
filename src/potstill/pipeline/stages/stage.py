"""What each stage does: models and text in, a model or a result out, in the stage's own folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_never

from potstill.benchmarking.session import measure
from potstill.pipeline.context import Context, chosen_models
from potstill.pipeline.stages.distill import run_distill
from potstill.pipeline.stages.evaluate import run_evaluate
from potstill.pipeline.stages.export import run_export
from potstill.pipeline.stages.finetune import run_finetune
from potstill.pipeline.stages.make_student import run_make_student
from potstill.pipeline.stages.prune import run_prune
from potstill.pipeline.stages.quantize import run_quantize
from potstill.pipeline.stages.report import run_report
from potstill.pipeline.stages.trim_vocabulary import run_trim_vocabulary
from potstill.recipe import (
    Benchmark,
    Distill,
    Evaluate,
    Export,
    Finetune,
    MakeStudent,
    Prune,
    Quantize,
    Report,
    Stage,
    TrimVocabulary,
)
from potstill.storage.files import write_json

# Raise a stage's number when what it does changes: finished stages of older runs then run again.
STAGE_VERSIONS = {
    "finetune": 2,
    "make_student": 1,
    "distill": 2,
    "prune": 1,
    "export": 1,
    "trim_vocabulary": 1,
    "quantize": 1,
    "evaluate": 3,
    "benchmark": 2,
    "report": 1,
}


def run_stage(stage: Stage, folder: Path, context: Context, fingerprint: str) -> dict[str, str]:
    """Run one stage into its folder, which has a result.json afterwards.

    Args:
        stage: What to do.
        folder: Where the stage writes; it exists.
        context: What the stages of the run share.
        fingerprint: Names what the stage does; a training resumes from checkpoints that carry it.

    Returns:
        name -> path below the folder, of the model it wrote (empty if none).
    """
    match stage:
        case MakeStudent():
            result, writes = run_make_student(stage, folder, context)
        case Finetune():
            result, writes = run_finetune(stage, folder, context, fingerprint)
        case Distill():
            result, writes = run_distill(stage, folder, context, fingerprint)
        case Prune() | TrimVocabulary() | Export() | Quantize():
            result, writes = _compress(stage, folder, context)
        case Evaluate():
            result, writes = run_evaluate(stage, context), {}
        case Benchmark():
            chosen = chosen_models(stage.models, stage.baseline, context)
            result, writes = measure(chosen, stage, context.reporter.progress), {}
        case Report():
            result, writes = run_report(stage, context), {}
        case _:
            assert_never(stage)
    if context.is_main:
        write_json(folder / "result.json", result)
    return writes


def _compress(
    stage: Prune | TrimVocabulary | Export | Quantize, folder: Path, context: Context
) -> tuple[dict[str, Any], dict[str, str]]:
    match stage:
        case Prune():
            return run_prune(stage, folder, context)
        case TrimVocabulary():
            return run_trim_vocabulary(stage, folder, context)
        case Export():
            return run_export(stage, folder, context)
        case Quantize():
            return run_quantize(stage, folder, context)
        case _:
            assert_never(stage)


def trains(stage: Stage) -> bool:
    """Whether all processes of a distributed run take part; the first alone does other stages."""
    return isinstance(stage, (Finetune, Distill))
