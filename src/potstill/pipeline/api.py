"""Stages that make models as plain functions: files and folders in, a folder out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from potstill.evaluation.scoring import Text, corpus_of, task_for
from potstill.models import task_of
from potstill.pipeline.context import Context, Reporter, Silent
from potstill.pipeline.fingerprints import inputs_digest, stage_digest
from potstill.pipeline.runner import rebuild
from potstill.pipeline.stages.stage import run_stage
from potstill.recipe import (
    Distill,
    Export,
    Finetune,
    GoldMse,
    GraphPruning,
    HardTargets,
    HiddenCosine,
    InBatch,
    LogitsMse,
    Masking,
    Objective,
    Prune,
    Quantize,
    SoftTargets,
    Task,
    TaskData,
    Training,
    TrimVocabulary,
    checked,
    unfit,
)
from potstill.storage import RunFolder, cache_folder
from potstill.storage.onnx_files import GRAPH, ONNX, QUANTIZED, is_onnx
from potstill.storage.places import Folder
from potstill.storage.run_folder import drop_checkpoints

_Alone = (
    Distill | Finetune | Prune | TrimVocabulary | Export | Quantize
)  # stages that are functions here


def distill(
    student: Folder,
    teacher: Folder,
    text: Text,
    output: Folder,
    *,
    training: Training,
    objectives: Sequence[Objective] | None = None,
    in_batch: InBatch | None = None,
    masking: Masking | None = None,
    cache: Literal["auto", True, False] = "auto",
    seed: int = 1,
) -> Path:
    """Train a student to follow a teacher; the same call again resumes, or finds it done.

    Args:
        student, teacher: model folders of one task, with the same tokenizer.
        text: files (paths or globs) or a Corpus; for a teacher with a task's head its TaskData.
        output: a folder for log, checkpoints and the trained model.
        objectives: None: see `triple_loss`.
        cache: of a task with labels: ask the teacher once for each example; see recipe.Distill.

    Returns:
        The trained student's folder, `output`/model.

    Raises:
        ValueError: bad input. TrainingFailed, Interrupted: see training.
    """
    task = task_for(teacher, text)
    stage = Distill(
        objectives=list(objectives) if objectives is not None else triple_loss(task),
        in_batch=in_batch or InBatch(),
        masking=masking or Masking(),
        cache=cache,
        training=training,
    )
    return _one_stage(
        stage, task, {"teacher": Path(teacher), "student": Path(student)}, text, output, seed
    )


def triple_loss(task: Task | str) -> list[Objective]:
    """The losses of the shipped recipes of a task.

    The paper's 5 soft (T = 2) : 2 hard : 1 cosine (Sanh et al. 2019), of classification without the
    cosine; of sentence encoders 1 : 0.1 : 20 (both measured: docs/ablation.md); of values squared
    differences from the teacher's and from the data's, and the cosine.
    """
    task = Task(task)
    if task == Task.SENTENCE_EMBEDDING:
        hard = HardTargets(weight=0.1, target="teacher")
        return [SoftTargets(), hard, HiddenCosine(weight=20.0)]
    if not task.has_distribution:
        return [LogitsMse(), GoldMse(), HiddenCosine()]
    own: list[Objective] = [SoftTargets(weight=5.0), HardTargets(weight=2.0)]
    return own if task == Task.CLASSIFICATION else [*own, HiddenCosine()]


def finetune(
    model: Folder,
    text: Text,
    output: Folder,
    *,
    training: Training,
    task: Task | str = Task.MASKED_LM,
    train: str = "all",
    masking: Masking | None = None,
    seed: int = 1,
    reporter: Reporter | None = None,
) -> Path:
    """Train a model on a task without a teacher, for example to give a headless encoder a head.

    Args:
        text: files or a Corpus for masked LM; of the other tasks their TaskData.
        task: not sentence_embedding.
        train: "all" weights, or the "head" alone.
        reporter: is told how far it is.

    Returns:
        The trained model's folder, `output`/model.

    Raises:
        ValueError: bad input. TrainingFailed, Interrupted: see training.
    """
    stage = Finetune.model_validate(
        {"train": train, "masking": masking or Masking(), "training": training}
    )
    models = {"teacher": Path(model)}
    return _one_stage(stage, Task(task), models, text, output, seed, reporter)


def export(
    model: Folder,
    text: Text,
    output: Folder,
    *,
    tolerance: float = 1e-4,
    prune: GraphPruning | None = None,
    seed: int = 1,
) -> Path:
    """Write a model as an ONNX graph, unless it answers otherwise than the model does.

    Args:
        model: a model folder.
        text: real text to compare the two on: files or a Corpus; of tasks with labels a TaskData.
        output: a folder for the result (each corner's difference) and the exported model.
        tolerance: the largest difference of outputs, relative to the largest of them.
        prune: heads and inner units that leave the graph; the folder's weights stay whole.

    Returns:
        `output`/model/onnx/model.onnx, in a copy of the model's folder.

    Raises:
        ValueError: bad input. ParityFailed: the graph answers otherwise; there is none then.
    """
    stage = Export(model="teacher", tolerance=tolerance, prune=prune)
    folder = _one_stage(stage, task_of(model), {"teacher": Path(model)}, text, output, seed)
    return folder / ONNX / GRAPH


def prune(
    model: Folder,
    text: Text,
    output: Folder,
    *,
    ffn: int | float | None = None,
    layers: int | None = None,
    width: int | None = None,
    directions: Literal["channels", "components"] | None = None,
    importance: Literal["taylor", "magnitude"] = "taylor",
    texts: int | None = None,
    seed: int = 1,
) -> Path:
    """Cut what matters least out of a model; see docs/pruning.md. Recover with `distill`.

    Args:
        model: a model folder.
        text: files (paths or globs) or a Corpus; for a model with a task's head its TaskData. Its
            held-out part tells what pruning costs.
        output: a folder for result.json and the pruned model.
        ffn: inner units of each layer's FFN that stay: a number, or a share between 0 and 1.
        layers: how many layers stay.
        width: hidden size that stays; heads keep theirs, so fewer of them stay.
        directions: what a width is of: channels as they are, or principal components of the hidden
            states; None: channels.
        importance: "taylor" reads training texts, "magnitude" the weights alone.
        texts: training texts that taylor reads; None: 512.

    Returns:
        The pruned model's folder, `output`/model.

    Raises:
        ValueError: bad input.
    """
    settings = {"ffn": ffn, "layers": layers, "width": width, "importance": importance}
    optional = {"directions": directions, "texts": texts}
    given = {key: value for key, value in optional.items() if value is not None}
    stage = checked(Prune, {"model": "teacher", **settings, **given})
    return _one_stage(stage, task_of(model), {"teacher": Path(model)}, text, output, seed)


def trim_vocabulary(
    model: Folder,
    text: Text,
    output: Folder,
    *,
    min_count: int = 1,
    size: int | None = None,
    keep: Sequence[str] = (),
    seed: int = 1,
) -> Path:
    """Cut a model's vocabulary to the word pieces that a text uses; see docs/vocabulary.md.

    Args:
        text: files (paths or globs) or a Corpus, whose held-out part the coverage is measured on;
            for a model with a task's head also its TaskData.
        output: a folder for result.json (with the coverage) and the trimmed model.
        min_count: how often a piece must stand in the text.
        size: pieces at most, those that are kept in any case included.
        keep: tokens, or words whose pieces, that are kept whatever the text says.

    Returns:
        The trimmed model's folder, `output`/model.

    Raises:
        ValueError: bad input.
    """
    stage = TrimVocabulary(model="teacher", min_count=min_count, size=size, keep=list(keep))
    return _one_stage(stage, task_of(model), {"teacher": Path(model)}, text, output, seed)


def quantize(
    graph: Folder,
    text: Text,
    output: Folder,
    *,
    settings: Quantize | None = None,
    seed: int = 1,
) -> Path:
    """Write an exported model with smaller numbers: int8, 4-bit weights or float16.

    Args:
        graph: FOLDER/onnx/NAME.onnx, in float.
        text: real text to calibrate and to score on: files or a Corpus; of tasks with labels a
            TaskData.
        output: a folder for the result (layers, sizes, speed) and the quantised model.
        settings: see recipe.Quantize, whose `model` and `writes` are not read; None: dynamic int8.

    Returns:
        `output`/model/onnx/model_quantized.onnx, in a copy of the model's folder.

    Raises:
        ValueError: bad input. QuantizationFailed: a budget or a speed that was asked for is missed.
    """
    names = {"model": "teacher", "writes": Quantize().writes}
    stage = (settings or Quantize()).model_copy(update=names)
    folder = _one_stage(stage, task_of(graph), {"teacher": Path(graph)}, text, output, seed)
    return folder / ONNX / QUANTIZED


def rebuild_report(run: Folder) -> Path:
    """Write metrics.json, report.html and the model card of a run folder anew.

    Raises:
        ValueError: not a run folder.
    """
    return rebuild(Path(run))


def _one_stage(
    stage: _Alone,
    task: Task,
    models: dict[str, Path],
    text: Text,
    output: Folder,
    seed: int,
    reporter: Reporter | None = None,
) -> Path:
    """One stage in a folder of its own; one that is done already is found done."""
    graph = next((path for path in models.values() if is_onnx(path)), None)
    if graph is not None and not stage.reads_onnx:
        raise ValueError(
            f"{graph} is an ONNX file and can't be changed any more: name the model folder that it "
            "was exported from"
        )
    problem = unfit(stage, task) or _unfit_text(stage, task, text)
    if problem is not None:
        raise ValueError(problem)
    corpus, run = corpus_of(text, models.values(), task), RunFolder(Path(output))
    given = [models[name] for name in sorted(models)]
    fingerprint = stage_digest(inputs_digest(task, seed, corpus, given), stage)
    context = Context(
        task=task,
        seed=seed,
        text_settings=corpus,
        run=run.path,
        cache=cache_folder() / "tokens",
        models=models,
        reporter=reporter or Silent(),
    )
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{run.path} can't be used ({error.strerror}): choose another output"
        ) from None
    with run.lock():
        done = run.done(run.path)
        if done is None or done["fingerprint"] != fingerprint:
            start = time.perf_counter()
            writes = run_stage(stage, run.path, context, fingerprint)
            run.finish(run.path, fingerprint, writes, {}, time.perf_counter() - start)
        drop_checkpoints(run.path)
    return run.path / "model"


def _unfit_text(stage: _Alone, task: Task, text: Text) -> str | None:
    """Why a stage can't read a text, or None; pieces are counted in any."""
    plain, labelled = task.reads_text, isinstance(text, TaskData)
    if isinstance(stage, TrimVocabulary):
        wrong = plain and labelled
        return f"text: {task} reads text as it is: give files or a Corpus" if wrong else None
    if plain != labelled:
        return None
    return f"text: {task} reads {'text as it is' if plain else 'a TaskData'}"
