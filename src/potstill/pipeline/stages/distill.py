"""Train a student to follow its teachers."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.nn import Module

from potstill.data.batches import plan_steps
from potstill.models import LoadedModel
from potstill.models.devices import own_device
from potstill.objectives.pairing import check_pair
from potstill.pipeline.context import Context, Done, TokenizedText
from potstill.pipeline.outlook import Outline, Outlook, check_text_length
from potstill.pipeline.stages.train import Lesson, check_masking, check_training, opened
from potstill.recipe import Distill, Task
from potstill.training import preflight
from potstill.training.distributed import as_first, wait_for_all
from potstill.training.preflight import Findings
from potstill.training.teacher_cache import (
    Answers,
    Asking,
    reads_hidden,
    reads_vectors,
    teacher_answers,
    why_live,
    why_too_large,
)

VERSION = 2


def check(stage: Distill, outlook: Outlook) -> Outline:
    recipe = outlook.recipe
    teachers = tuple(outlook.model(teacher.model) for teacher in stage.teachers)
    student = outlook.model(stage.model, untrained_head=recipe.task.head is not None)
    group = None
    if recipe.task == Task.SENTENCE_EMBEDDING:
        group = stage.in_batch.group or stage.training.batch_size
    check_training(stage.training, outlook, (*teachers, student), group)
    for teacher in teachers:
        check_pair(student, teacher, stage.objectives)
    check_masking(stage.masking, outlook, student)
    return Outline(stage, student, teachers)


def check_ahead(stage: Distill, context: Context, names: Collection[str]) -> None:
    """Check the teachers that are now what they will be when the stage runs.

    Raises:
        ValueError: A teacher would teach nonsense; see preflight.
    """
    for name in dict.fromkeys(teacher.model for teacher in stage.teachers):
        if context.task.head is not None and name in names:
            text = context.text_for(name)
            _checked(name, context.open(name), text)


def run(stage: Distill, folder: Path, context: Context, fingerprint: str) -> Done:
    text, head = context.text_for(stage.model), context.task.head is not None
    weights: dict[str, float] = {}
    for teacher in stage.teachers:
        weights[teacher.model] = weights.get(teacher.model, 0.0) + teacher.weight
    teachers = {name: opened(name, context) for name in weights}
    for name, loaded in teachers.items():
        check_text_length(context.text_settings, loaded)
        if head and context.is_main:
            _checked(name, loaded, text)
    answers = _answers(stage, teachers, text)
    known: dict[str, Any] = {}

    def check_student(student: LoadedModel) -> None:
        for loaded in teachers.values():
            check_pair(student, loaded, stage.objectives)
        if head and context.is_main and not known:
            known.update(_checked_start(student, teachers, text))

    lesson = Lesson(
        stage,
        context,
        text,
        fingerprint,
        stage.objectives,
        stage.in_batch,
        [(loaded, weights[name], answers.get(name)) for name, loaded in teachers.items()],
        untrained_head=head,  # a student that was distilled in pretraining has none for the task
        check=check_student,
    )
    result, writes = lesson.train(folder)
    return {**result, **known}, writes


def _checked(name: str, teacher: LoadedModel, text: TokenizedText) -> Findings:
    """Check a teacher's outputs on held-out examples; what was found is kept and reported once."""
    context = text.context
    folder, examples, task = context.models[name], text.examples, context.task
    if folder not in context.checked:
        if task.head != "spans":
            preflight.check_tokens(teacher, examples.dev, context.data_settings.max_length)
        Module.to(teacher.model, own_device())
        found = preflight.check_teacher(teacher, name, examples.dev, examples.labels)
        if task == Task.CLASSIFICATION:
            metric = context.data_settings.metric or task.metric
            found |= preflight.check_balance(examples.train, examples.labels, metric)
        context.note(*found.warnings)
        context.checked[folder] = found
    return context.checked[folder]


def _checked_start(
    student: LoadedModel, teachers: Mapping[str, LoadedModel], text: TokenizedText
) -> dict[str, Any]:
    """Return what is known before the training, for result.json."""
    context, dev = text.context, text.examples.dev
    if context.task.head != "spans":
        preflight.check_tokens(student, dev, context.data_settings.max_length)
    warnings: dict[str, None] = {}
    numbers = {}
    for name, teacher in teachers.items():
        known = _checked(name, teacher, text)
        start = preflight.check_start(student, teacher, name, dev)
        context.note(*start.warnings)
        context.reporter.say(preflight.sentence_of(name, start.numbers))
        warnings |= dict.fromkeys([*known.warnings, *start.warnings])
        numbers[name] = known.numbers | {"student": start.numbers}
    return {"preflight": numbers, "warnings": list(warnings)}


def _answers(
    stage: Distill, teachers: Mapping[str, LoadedModel], text: TokenizedText
) -> dict[str, Answers]:
    """Return the cached outputs of teachers for all examples; empty where teachers are live."""
    context, settings = text.context, stage.training
    if context.task == Task.MASKED_LM:
        return {}
    training_side, dev, _ = text.sides(True)
    steps, _ = plan_steps(training_side.lengths, settings, context.seed)
    epochs = stage.repeats * steps / -(-len(training_side) // settings.batch_size)
    cache = context.cache.parent / "teachers"
    hidden = context.task == Task.SENTENCE_EMBEDDING and reads_hidden(stage.objectives)
    why = why_live(stage, context.task, epochs)
    if why is None and hidden and stage.cache == "auto":
        tokens = int(training_side.lengths.sum(dtype=np.int64) + dev.lengths.sum(dtype=np.int64))
        wide = sum(loaded.model.config.hidden_size for loaded in teachers.values())
        why = as_first(why_too_large(2 * tokens * wide, cache))
    context.reporter.say(
        "the teacher runs once for each example, and its outputs are cached"
        if why is None
        else f"the teacher runs for every batch: {why}"
    )
    if why is not None:
        return {}
    if not context.is_main:
        wait_for_all()  # until the first process has asked
    found = {}
    told = context.reporter.say, context.reporter.progress
    vectors = context.task == Task.SENTENCE_EMBEDDING or reads_vectors(stage.objectives)
    asked = Asking([training_side, dev], vectors, hidden, *told)
    for name, loaded in teachers.items():
        Module.to(loaded.model, own_device())
        found[name] = teacher_answers(loaded, context.models[name], asked, cache)
    if context.is_main and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        wait_for_all()
    return found
