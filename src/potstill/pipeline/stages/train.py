"""The stages that train: what of a model, on what, after which teachers, how often."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch.nn import Module

from potstill.data import Masker, make_masker
from potstill.models import LoadedModel, save_model
from potstill.pipeline.context import Context, Outlook, check_length, sides_of
from potstill.recipe import (
    Distill,
    Finetune,
    InBatch,
    Masking,
    Objective,
    Task,
    TaskData,
    Training,
)
from potstill.storage.files import read_json, write_json
from potstill.storage.run_folder import drop_checkpoints, sync_below
from potstill.tasks.heads import Reading
from potstill.tasks.labels import check_labels
from potstill.tasks.scoring import task_score
from potstill.training import Job, Trainee, train
from potstill.training.distributed import check_processes
from potstill.training.job import Progress
from potstill.training.log import check_trackers
from potstill.training.teacher_cache import Answers
from potstill.training.teachers import CachedTeacher, LiveTeacher


def opened(name: str, context: Context, untrained_head: bool = False) -> LoadedModel:
    """A model that is trained or learnt from, whose labels are the run's."""
    loaded = context.open(name, untrained_head=untrained_head)
    if context.task.head is not None:
        check_labels(loaded, context.examples.labels)
    return loaded


def train_repeats(
    stage: Finetune | Distill,
    folder: Path,
    context: Context,
    once: Callable[[Path, int], dict[str, Any]],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Train as often as the stage says; what is finished of an interrupted stage is kept."""
    names = stage.models_written
    if len(names) == 1:
        return once(folder, context.seed), {names[0]: "model"}
    results = []
    for number in range(1, len(names) + 1):
        own = folder / f"repeat-{number}"
        seed = context.seed + number - 1
        context.reporter.say(f"training {number} of {len(names)}, seed {seed}")
        own.mkdir(exist_ok=True)
        if not _is_finished(own, folder):
            result = {"seed": seed, **once(own, seed)}
            if context.is_main:
                sync_below(own)
                write_json(own / "result.json", result)
                drop_checkpoints(own)  # of as many trainings they would fill a disk
        if context.is_main:
            results.append(read_json(own / "result.json"))
    if context.is_main:  # the first one's model and log stand where those of a single one do
        for name in ("model", "log.jsonl"):
            if (folder / "repeat-1" / name).exists():  # else moved before the stage was stopped
                (folder / "repeat-1" / name).replace(folder / name)
    first = results[0] if results else {}
    writes = {name: f"repeat-{number}/model" for number, name in enumerate(names, start=1)}
    return {**first, "repeats": results}, {**writes, names[0]: "model"}


def _is_finished(repeat: Path, folder: Path) -> bool:
    """Whether a repeat of a stage that was stopped is done, wherever the first one's model is."""
    if not (repeat / "result.json").is_file():
        return False
    # in this order: the first process may be moving it while another one looks
    here = (repeat / "model").is_dir()
    return here or (repeat.name == "repeat-1" and (folder / "model").is_dir())


def train_once(
    loaded: LoadedModel,
    teachers: Sequence[tuple[LoadedModel, float, Answers | None]],
    objectives: Sequence[Objective],
    in_batch: InBatch,
    stage: Finetune | Distill,
    masker: Masker | None,
    folder: Path,
    seed: int,
    fingerprint: str,
    context: Context,
) -> dict[str, Any]:
    settings = stage.training
    check_length(context.text_settings, loaded)
    train_side, heldout, told = sides_of(context, bool(teachers))
    if len(heldout) == 0 and (settings.keep == "best" or settings.patience is not None):
        raise ValueError(
            "training.keep: best and training.patience judge by held-out text, and none is left: "
            "raise corpus.heldout or leave them out"
        )
    # An objective without weight would cost its share of the time for nothing.
    weighted = [objective for objective in objectives if objective.weight > 0]
    reading = Reading.of(loaded.task, weighted, in_batch, settings.batch_size)
    asked = [
        LiveTeacher(teacher, reading, weight)
        if answers is None
        else CachedTeacher(teacher, answers, weight)
        for teacher, weight, answers in teachers
    ]
    trainee = Trainee(loaded, asked, reading, settings.chunk_size, seed)
    if loaded.task.head or any(each.reads == "layers" for each in weighted):
        trainee.freeze_unreached()
    job = Job(
        trainee=trainee,
        train=train_side,
        heldout=heldout,
        masker=masker,
        pad_id=int(loaded.tokenizer.pad_token_id or 0),
        settings=settings,
        seed=seed,
        folder=folder,
        fingerprint=fingerprint,
        score=_scorer(loaded, context),
        progress=lambda state: context.reporter.progress(_fraction(state), _note(state)),
        say=context.reporter.say,
    )
    result = train(job)
    Module.to(loaded.model, "cpu")
    if context.is_main:
        save_model(loaded, folder / "model")
    return {
        **{key: value for key, value in asdict(result).items() if key != "resumed_from"},
        "objectives": [objective.model_dump() for objective in weighted],
        "projections": [
            f"{label.partition('_')[2]} ({weight.shape[0]} x {weight.shape[1]})"
            for label, weight in trainee.projections.items()
        ],
        **({"teachers": "cached" if teachers[0][2] else "live"} if teachers else {}),
        **told,
    }


def _scorer(loaded: LoadedModel, context: Context) -> Callable[[], float] | None:
    """The task's metric on the examples that a checkpoint is chosen by; None without one."""
    if context.task.head is None:
        return None
    assert isinstance(context.text_settings, TaskData)
    metric = context.text_settings.metric or context.task.metric
    dev, labels = context.examples.dev, context.examples.labels
    return lambda: task_score(loaded, dev, labels, metric)


def _fraction(state: Progress) -> float:
    return min(state.tokens / max(state.total_tokens, 1), 1.0)


def _note(state: Progress) -> str:
    loss = "" if state.loss is None else f", loss {state.loss:.4f}"
    return f"step {state.step} of {state.steps}{loss}"


def check_training(
    training: Training, outlook: Outlook, models: Sequence[LoadedModel], group: int | None = None
) -> None:
    """Check what a training asks for, without weights.

    Args:
        models: the teachers, and last what is trained: a teacher's user knows it by name.
        group: texts that are compared with each other; None: they are not.

    Raises:
        ValueError: a model has other labels or too few positions, a tracker is not installed, the
            layers can't be computed again, or the batch can't be split among the processes.
    """
    if outlook.labels is not None:
        for loaded in models:
            check_labels(loaded, outlook.labels)
    for loaded in models:
        check_length(outlook.recipe.text, loaded)
    check_trackers(training.trackers)
    if training.gradient_checkpointing:
        _check_checkpointing(models[-1])
    check_processes(training, int(os.environ.get("WORLD_SIZE", "1")), group)


def check_masking(masking: Masking, outlook: Outlook, loaded: LoadedModel) -> None:
    """Check that a model's tokens can be masked as a masked-LM training asks.

    Raises:
        ValueError: see `data.make_masker`.
    """
    if outlook.recipe.task == Task.MASKED_LM:
        any_counts = np.ones(max(loaded.tokenizer.get_vocab().values()) + 1, dtype=np.int64)
        make_masker(masking, loaded.tokenizer, any_counts)


def _check_checkpointing(loaded: LoadedModel) -> None:
    if not loaded.model.supports_gradient_checkpointing:
        raise ValueError(
            f"training.gradient_checkpointing: {type(loaded.model).__name__} of transformers can't "
            "compute its layers again; leave it out, or set a smaller micro_batch_size instead"
        )
