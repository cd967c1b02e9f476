"""What each stage does: models and text in, a model or a result out, in the stage's own folder."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, assert_never

from torch import manual_seed

from potstill.benchmarking.session import measure
from potstill.compression import build_student, narrowing
from potstill.compression.narrowing import widths_of
from potstill.compression.students import student_shape
from potstill.context import Context
from potstill.evaluation_stages import chosen_models, run_evaluate
from potstill.export_stages import run_export
from potstill.models import loading as model_folders
from potstill.models import save_model
from potstill.pruning_stages import run_prune
from potstill.quantization_stages import run_quantize
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
from potstill.reporting import write_card, write_report
from potstill.storage.files import write_json
from potstill.training_stages import run_distill, run_finetune
from potstill.vocabulary_stages import run_trim_vocabulary


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
            result, writes = _make_student(stage, folder, context)
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
            result, writes = _report(stage, context), {}
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


def _make_student(
    stage: MakeStudent, folder: Path, context: Context
) -> tuple[dict[str, Any], dict[str, str]]:
    teacher = context.open(stage.teacher)
    manual_seed(context.seed)  # of a student that starts at random
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        shape = student_shape(teacher.model, stage)
        sample = None
        if shape.widths.hidden != teacher.model.config.hidden_size:
            side = context.cut_as(stage.teacher).training_side
            sample = [side[i].tolist() for i in range(min(len(side), narrowing.TEXTS))]
        student = build_student(teacher.model, stage, shape, sample)
    context.reporter.say(f"{stage.writes}: {shape.why}")
    notes = [str(warning.message) for warning in caught if warning.category is UserWarning]
    for note in notes:
        context.reporter.say(f"note: {note}")
    save_model(model_folders.with_model(teacher, student, stage.writes), folder / "model")
    depth = teacher.model.config.num_hidden_layers
    result = {
        "teacher_layers": depth,
        "layers": shape.layers,
        "widths": asdict(shape.widths),
        "teacher_widths": asdict(widths_of(teacher.model.config)),
        "chosen": shape.why,
        "initialise": stage.initialise,
        "rule": stage.layers if isinstance(stage.layers, str) else "list",
        "from_type": teacher.model.config.model_type,
        "to_type": student.config.model_type,
        "parameters": {
            "teacher": teacher.model.num_parameters(),
            "student": student.num_parameters(),
        },
        "warnings": notes,
    }
    return result, {stage.writes: "model"}


def _report(stage: Report, context: Context) -> dict[str, Any]:
    return {"report": os.path.relpath(write_results(context.run, stage), context.run)}


def has_results(run: Path) -> bool:
    """Whether all is there that `write_results` writes."""
    published = run / "model"
    wanted = [run / "metrics.json", run / "report.html"]
    wanted += [published / "README.md"] if published.is_dir() else []
    return all(path.is_file() for path in wanted)


def write_results(run: Path, settings: Report) -> Path:
    """metrics.json, report.html and the published model's card; returns the report's path."""
    path = write_report(run, settings)
    published = run / "model"
    if published.is_dir():
        write_card(run, published, settings)
    return path
