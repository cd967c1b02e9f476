"""The stage that trains a student to follow its teachers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import manual_seed
from torch.nn import Module

from potstill.data import Examples
from potstill.data.batches import plan_steps
from potstill.models import LoadedModel
from potstill.models.devices import own_device
from potstill.objectives.pairing import check_pair
from potstill.pipeline.context import Context, Outline, Outlook, check_length, sides_of
from potstill.pipeline.stages.train import (
    check_masking,
    check_training,
    opened,
    train_once,
    train_repeats,
)
from potstill.recipe import Distill, Stage, Task, TaskData
from potstill.training import preflight
from potstill.training.distributed import wait_for_all
from potstill.training.preflight import Findings
from potstill.training.teacher_cache import (
    Answers,
    Asking,
    reads_vectors,
    teacher_answers,
    why_live,
)
from potstill.training.trainee import freeze

VERSION = 2


def check(stage: Distill, outlook: Outlook) -> Outline:
    recipe = outlook.recipe
    teachers = tuple(outlook.model(teacher.model) for teacher in stage.teachers)
    new_head = recipe.task.head is not None
    student = outlook.model(stage.model, untrained_head=new_head)
    group = None
    if recipe.task == Task.SENTENCE_EMBEDDING:
        group = stage.in_batch.group or stage.training.batch_size
    check_training(stage.training, outlook, (*teachers, student), group)
    for teacher in teachers:
        check_pair(student, teacher, stage.objectives)
    check_masking(stage.masking, outlook, student)
    return Outline(stage, student, teachers)


def run(
    stage: Distill, folder: Path, context: Context, fingerprint: str
) -> tuple[dict[str, Any], dict[str, str]]:
    context = context.cut_as(stage.model)
    weights: dict[str, float] = {}
    for teacher in stage.teachers:
        weights[teacher.model] = weights.get(teacher.model, 0.0) + teacher.weight
    teachers = {name: opened(name, context) for name in weights}
    for name, loaded in teachers.items():
        check_length(context.text_settings, loaded)
        if context.task.head and context.is_main:
            _checked(name, loaded, context)
    masker = context.masker(stage.masking) if context.task == Task.MASKED_LM else None
    answers = _answers(stage, teachers, context)
    weighted = [(loaded, weights[name], answers.get(name)) for name, loaded in teachers.items()]
    known: dict[str, Any] = {}

    def once(folder: Path, seed: int) -> dict[str, Any]:
        manual_seed(seed)  # of a new head's weights
        # a student that was distilled in pretraining has no head for the task yet
        student = opened(stage.model, context, untrained_head=context.task.head is not None)
        for loaded in teachers.values():
            check_pair(student, loaded, stage.objectives)
        if not known:
            known.update(_checked_start(student, teachers, context))
        freeze(stage, student)
        settings = stage.objectives, stage.in_batch, stage
        return train_once(student, weighted, *settings, masker, folder, seed, fingerprint, context)

    result, writes = train_repeats(stage, folder, context, once)
    return {**result, **known}, writes


def check_teachers(stages: Sequence[Stage], context: Context) -> None:
    """Check the teachers of later distillations that are now what they will be then.

    Raises:
        ValueError: one that would teach nonsense; see preflight.
    """
    if context.task.head is None:
        return
    written: set[str] = set()
    for stage in stages:
        for teacher in stage.teachers if isinstance(stage, Distill) else ():
            if teacher.model in context.models and teacher.model not in written:
                own = context.cut_as(teacher.model)
                _checked(teacher.model, own.open(teacher.model), own)
        written.update(stage.models_written)


def _checked(name: str, teacher: LoadedModel, context: Context) -> Findings:
    """What its answers to held-out examples say of a teacher; found once, told once."""
    folder, data = context.models[name], context.text_settings
    if folder not in context.checked:
        assert isinstance(data, TaskData)
        examples, task = context.examples, context.task
        if task.head != "spans":
            preflight.check_tokens(teacher, examples.dev, data.max_length)
        Module.to(teacher.model, own_device())
        found = preflight.check_teacher(teacher, name, examples.dev, examples.labels)
        if task == Task.CLASSIFICATION:
            metric = data.metric or task.metric
            found |= preflight.check_balance(examples.train, examples.labels, metric)
        for warning in found.warnings:
            context.reporter.say(f"note: {warning}")
        context.checked[folder] = found
    return context.checked[folder]


def _checked_start(
    student: LoadedModel, teachers: Mapping[str, LoadedModel], context: Context
) -> dict[str, Any]:
    """What is known before a distillation's training, for result.json; {} without a task's head."""
    task, data = context.task, context.text_settings
    if task.head is None or not context.is_main:
        return {}
    assert isinstance(data, TaskData)
    examples = context.examples
    if task.head != "spans":
        preflight.check_tokens(student, examples.dev, data.max_length)
    warnings: dict[str, None] = {}
    numbers = {}
    for name, teacher in teachers.items():
        known = _checked(name, teacher, context)
        start = preflight.check_start(student, teacher, name, examples.dev)
        for warning in start.warnings:
            context.reporter.say(f"note: {warning}")
        context.reporter.say(preflight.sentence_of(name, start.numbers))
        warnings |= dict.fromkeys([*known.warnings, *start.warnings])
        numbers[name] = known.numbers | {"student": start.numbers}
    return {"preflight": numbers, "warnings": list(warnings)}


def _answers(
    stage: Distill, teachers: Mapping[str, LoadedModel], context: Context
) -> dict[str, Answers]:
    """What teachers say about all examples, kept on disk; none where they are asked anew."""
    if context.task.head is None:
        return {}
    train_side, dev, _ = sides_of(context, True)
    assert isinstance(train_side, Examples)
    assert isinstance(dev, Examples)
    limits = {key: getattr(stage.training, key) for key in ("epochs", "max_steps", "max_tokens")}
    size = stage.training.batch_size
    steps, _ = plan_steps(train_side.lengths, size, context.seed, **limits)
    epochs = stage.repeats * steps / -(-len(train_side) // size)
    why = why_live(stage, context.task, epochs)
    context.reporter.say(
        "the teacher is asked once for each example, and its answers are kept"
        if why is None
        else f"the teacher is asked anew for every batch: {why}"
    )
    if why is not None:
        return {}
    if not context.is_main:
        wait_for_all()  # until the first process has asked
    found, cache = {}, context.cache.parent / "teachers"
    told = context.reporter.say, context.reporter.progress
    asked = Asking([train_side, dev], reads_vectors(stage.objectives), *told)
    for name, loaded in teachers.items():
        Module.to(loaded.model, own_device())
        found[name] = teacher_answers(loaded, context.models[name], asked, cache)
    if context.is_main and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        wait_for_all()
    return found
