"""The stages that train: what of a model, on what, after which teachers, how often."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import manual_seed
from torch.nn import Module

from potstill.context import Context
from potstill.data import Examples, Masker, Tokens
from potstill.data.batches import plan_steps
from potstill.models import LoadedModel, save_model
from potstill.models.devices import own_device
from potstill.models.families import position_limit
from potstill.objectives.pairing import check_pair
from potstill.recipe import (
    VALUE_TASKS,
    Corpus,
    Distill,
    Finetune,
    GoldMse,
    HardTargets,
    InBatch,
    InnerObjective,
    Objective,
    Stage,
    TaskData,
    row_of,
    stage_writes,
)
from potstill.storage.files import read_json, write_json
from potstill.storage.run_folder import drop_checkpoints, sync_below
from potstill.tasks.heads import Reading
from potstill.tasks.labels import check_labels
from potstill.tasks.scoring import task_score
from potstill.training import Job, Trainee, preflight, train
from potstill.training.distributed import wait_for_all
from potstill.training.job import Progress
from potstill.training.preflight import Findings
from potstill.training.sparsity import Sparsifier, zeros_by_layer
from potstill.training.teacher_cache import Answers, reads_vectors, teacher_answers, why_live
from potstill.training.teachers import CachedTeacher, LiveTeacher
from potstill.training.trainee import freeze


def run_finetune(
    stage: Finetune, folder: Path, context: Context, fingerprint: str
) -> tuple[dict[str, Any], dict[str, str]]:
    context = context.cut_as(stage.model)

    def once(folder: Path, seed: int) -> dict[str, Any]:
        manual_seed(seed)  # of a new head's weights
        loaded = _opened(stage.model, context, untrained_head=True)
        freeze(stage, loaded)
        settings = [gold], InBatch(), stage
        return _train(loaded, [], *settings, masker, folder, seed, fingerprint, context)

    gold: Objective = (
        GoldMse() if context.task in VALUE_TASKS else HardTargets(weight=1.0, target="gold")
    )
    masker = context.masker(stage.masking) if context.task == "masked_lm" else None
    return _repeated(stage, folder, context, once)


def run_distill(
    stage: Distill, folder: Path, context: Context, fingerprint: str
) -> tuple[dict[str, Any], dict[str, str]]:
    context = context.cut_as(stage.model)
    weights: dict[str, float] = {}
    for teacher in stage.teachers:
        weights[teacher.model] = weights.get(teacher.model, 0.0) + teacher.weight
    teachers = {name: _opened(name, context) for name in weights}
    for name, loaded in teachers.items():
        check_length(context.text_settings, loaded)
        if row_of(context.task) and context.is_main:
            _checked(name, loaded, context)
    masker = context.masker(stage.masking) if context.task == "masked_lm" else None
    answers = _answers(stage, teachers, context)
    weighted = [(loaded, weights[name], answers.get(name)) for name, loaded in teachers.items()]
    known: dict[str, Any] = {}

    def once(folder: Path, seed: int) -> dict[str, Any]:
        manual_seed(seed)  # of a new head's weights
        # a student that was distilled in pretraining has no head for the task yet
        student = _opened(stage.model, context, untrained_head=row_of(context.task) is not None)
        for loaded in teachers.values():
            check_pair(student, loaded, stage.objectives)
        if not known:
            known.update(_checked_start(student, teachers, context))
        freeze(stage, student)
        settings = stage.objectives, stage.in_batch, stage
        return _train(student, weighted, *settings, masker, folder, seed, fingerprint, context)

    result, writes = _repeated(stage, folder, context, once)
    return {**result, **known}, writes


def _opened(name: str, context: Context, untrained_head: bool = False) -> LoadedModel:
    """A model that is trained or learnt from, whose labels are the run's."""
    loaded = context.open(name, untrained_head=untrained_head)
    if row_of(context.task) is not None:
        check_labels(loaded, context.examples.labels)
    return loaded


def check_teachers(stages: Sequence[Stage], context: Context) -> None:
    """Check the teachers of later distillations that are now what they will be then.

    Raises:
        ValueError: one that would teach nonsense; see preflight.
    """
    if row_of(context.task) is None:
        return
    written: set[str] = set()
    for stage in stages:
        for teacher in stage.teachers if isinstance(stage, Distill) else ():
            if teacher.model in context.models and teacher.model not in written:
                own = context.cut_as(teacher.model)
                _checked(teacher.model, own.open(teacher.model), own)
        written.update(stage_writes(stage))


def _checked(name: str, teacher: LoadedModel, context: Context) -> Findings:
    """What its answers to held-out examples say of a teacher; found once, told once."""
    folder, data = context.models[name], context.text_settings
    if folder not in context.checked:
        assert isinstance(data, TaskData)
        examples, row = context.examples, row_of(context.task)
        assert row is not None
        if row.head != "spans":
            preflight.check_tokens(teacher, examples.dev, data.max_length)
        Module.to(teacher.model, own_device())
        found = preflight.check_teacher(teacher, name, examples.dev, examples.labels)
        if row.task == "classification":
            metric = data.metric or row.metric
            found |= preflight.check_balance(examples.train, examples.labels, metric)
        for warning in found.warnings:
            context.reporter.say(f"note: {warning}")
        context.checked[folder] = found
    return context.checked[folder]


def _checked_start(
    student: LoadedModel, teachers: Mapping[str, LoadedModel], context: Context
) -> dict[str, Any]:
    """What is known before a distillation's training, for result.json; {} without a task's head."""
    row, data = row_of(context.task), context.text_settings
    if row is None or not context.is_main:
        return {}
    assert isinstance(data, TaskData)
    examples = context.examples
    if row.head != "spans":
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
    if row_of(context.task) is None:
        return {}
    train_side, dev, _ = _sides(context, True)
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
    found = {}
    for name, loaded in teachers.items():
        Module.to(loaded.model, own_device())
        found[name] = teacher_answers(
            loaded,
            context.models[name],
            [train_side, dev],
            context.cache.parent / "teachers",
            vectors=reads_vectors(stage.objectives),
            say=context.reporter.say,
            progress=context.reporter.progress,
        )
    if context.is_main and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        wait_for_all()
    return found


def _repeated(
    stage: Finetune | Distill,
    folder: Path,
    context: Context,
    once: Callable[[Path, int], dict[str, Any]],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Train as often as the stage says; what is finished of an interrupted stage is kept."""
    names = stage_writes(stage)
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


def check_length(text: Corpus | TaskData, loaded: LoadedModel) -> None:
    """Refuse sequences that a model has no positions for.

    Raises:
        ValueError: max_length is too large.
    """
    positions = position_limit(loaded.model.config)
    if text.max_length > positions:
        key = "corpus" if isinstance(text, Corpus) else "data"
        raise ValueError(
            f"{key}.max_length: {text.max_length} tokens are more than the {positions} "
            f"positions of {loaded.name}: set {positions} at most"
        )


def _train(
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
    train_side, heldout, told = _sides(context, bool(teachers))
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
    if row_of(loaded.task) or any(isinstance(each, InnerObjective) for each in weighted):
        trainee.freeze_unreached()
    if stage.sparsity is not None:
        trainee.sparsify(stage.sparsity)
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
    thinned = {}
    if trainee.sparsifier is not None:
        thinned = _thinned(trainee.sparsifier, loaded, stage.writes or stage.model, context)
    if context.is_main:
        save_model(loaded, folder / "model")
    return {
        **{key: value for key, value in asdict(result).items() if key != "resumed_from"},
        "objectives": [objective.model_dump() for objective in weighted],
        "projections": [
            f"{label.partition('_')[2]} ({weight.shape[0]} x {weight.shape[1]})"
            for label, weight in trainee.projections.items()
        ],
        **thinned,
        **({"teachers": "cached" if teachers[0][2] else "live"} if teachers else {}),
        **told,
    }


def _thinned(
    sparsifier: Sparsifier, loaded: LoadedModel, name: str, context: Context
) -> dict[str, Any]:
    """The zeros that a training made, now in the weights themselves, for result.json."""
    sparsifier.remove()
    layers = zeros_by_layer(loaded.model)
    finding = (
        f"{sum(layers) / len(layers):.1%} of the weights in the layers of {name} are zeros "
        f"({sparsifier.settings.method} pruning, for study): it is neither faster nor smaller for "
        "it, for dense hardware multiplies by zeros and files hold them"
    )
    context.reporter.say(f"note: {finding}")
    told = {**sparsifier.settings.model_dump(), "zeros_by_layer": layers}
    return {"sparsity": told, "findings": [finding]}


def _sides(
    context: Context, taught: bool
) -> tuple[Tokens | Examples, Tokens | Examples, dict[str, Any]]:
    """What is trained on, what is judged by, and what result.json tells of the data."""
    if isinstance(context.text_settings, Corpus):
        corpus = context.corpus
        told = {"corpus": {"counts": corpus.counts, "warnings": corpus.warnings}}
        return corpus.train, corpus.heldout, told
    found = context.examples
    train_side = found.train
    if taught and found.unlabelled is not None:
        train_side = train_side + found.unlabelled
    told = {"data": {"counts": found.counts, "warnings": found.warnings, "labels": found.labels}}
    return train_side, replace(found.dev, numbered_from=len(train_side)), told


def _scorer(loaded: LoadedModel, context: Context) -> Callable[[], float] | None:
    """The task's metric on the examples that a checkpoint is chosen by; None without one."""
    row = row_of(context.task)
    if row is None:
        return None
    assert isinstance(context.text_settings, TaskData)
    metric = context.text_settings.metric or row.metric
    dev, labels = context.examples.dev, context.examples.labels
    return lambda: task_score(loaded, dev, labels, metric)


def _fraction(state: Progress) -> float:
    return min(state.tokens / max(state.total_tokens, 1), 1.0)


def _note(state: Progress) -> str:
    loss = "" if state.loss is None else f", loss {state.loss:.4f}"
    return f"step {state.step} of {state.steps}{loss}"
