"""The stage that makes a student out of its teacher's layers."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import manual_seed

from potstill.compression import narrowing
from potstill.compression.parts import Encoder
from potstill.compression.students import Surgery
from potstill.models import LoadedModel, save_model
from potstill.models import loading as model_folders
from potstill.pipeline.context import Context, Outline, Outlook
from potstill.recipe import MakeStudent

VERSION = 1


def check(stage: MakeStudent, outlook: Outlook) -> Outline:
    with outlook.named():  # its keys may stand in a block at the top
        return _outlined(stage, outlook.model(stage.teacher))


def _outlined(stage: MakeStudent, teacher: LoadedModel) -> Outline:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the stage itself passes them on
        surgery = Surgery(Encoder(teacher.model, teacher.family), stage)
        shape = surgery.shape()
        student = surgery.build(shape)
    made = replace(teacher, model=student, name=stage.writes)
    return Outline(stage, made, (teacher,), shape.why)


def run(
    stage: MakeStudent, folder: Path, context: Context, fingerprint: str
) -> tuple[dict[str, Any], dict[str, str]]:
    teacher = context.open(stage.teacher)
    encoder = Encoder(teacher.model, teacher.family)
    manual_seed(context.seed)  # of a student that starts at random
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        surgery = Surgery(encoder, stage)
        shape, sample = surgery.shape(), None
        if shape.widths.hidden != teacher.model.config.hidden_size:
            side = context.cut_as(stage.teacher).training_side
            sample = [side[i].tolist() for i in range(min(len(side), narrowing.TEXTS))]
        student = surgery.build(shape, sample)
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
        "teacher_widths": asdict(encoder.widths),
        "chosen": shape.why,
        "initialise": stage.initialize,
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
