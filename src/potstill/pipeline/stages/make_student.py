"""Make a student from its teacher's layers."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import manual_seed

from potstill.compression import narrowing
from potstill.compression.parts import Encoder
from potstill.compression.students import Surgery
from potstill.models import save_model
from potstill.models.loading import with_model
from potstill.pipeline.context import Context, Done
from potstill.pipeline.outlook import Outline, Outlook
from potstill.recipe import MakeStudent

VERSION = 1


def check(stage: MakeStudent, outlook: Outlook) -> Outline:
    with outlook.named():  # the stage's keys may stand in a block at the top
        teacher = outlook.model(stage.teacher)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the stage itself reports them
            surgery = Surgery(Encoder(teacher.model, teacher.family), stage)
            shape = surgery.shape()
            student = surgery.build(shape)
    made = replace(teacher, model=student, name=stage.writes)
    return Outline(stage, made, (teacher,), shape.why)


def run(stage: MakeStudent, folder: Path, context: Context, fingerprint: str) -> Done:
    teacher = context.open(stage.teacher)
    encoder = Encoder(teacher.model, teacher.family)
    manual_seed(context.seed)  # for a student that starts at random
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        surgery = Surgery(encoder, stage)
        shape, sample = surgery.shape(), None
        if shape.widths.hidden != teacher.model.config.hidden_size:
            side = context.text_for(stage.teacher).training_side
            sample = [side[i].tolist() for i in range(min(len(side), narrowing.TEXTS))]
        student = surgery.build(shape, sample)
    context.reporter.say(f"{stage.writes}: {shape.why}")
    notes = [str(warning.message) for warning in caught if warning.category is UserWarning]
    context.note(*notes)
    save_model(with_model(teacher, student, stage.writes), folder / "model")
    result = {
        "teacher_layers": teacher.model.config.num_hidden_layers,
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
