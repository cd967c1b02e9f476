"""Run the stages that make models as plain functions: files and folders in, a folder out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from potstill.evaluation.scoring import Text, corpus_of, task_for
from potstill.models import task_of
from potstill.pipeline.context import Context, Reporter, Silent
from potstill.pipeline.fingerprints import inputs_digest, stage_digest
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
    Stage,
    Task,
    TaskData,
    Training,
    TrimVocabulary,
    checked,
)
from potstill.storage import RunFolder
from potstill.storage.onnx_files import GRAPH, ONNX, QUANTIZED, is_onnx
from potstill.storage.places import Folder
from potstill.storage.run_folder import drop_checkpoints


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
        student, teacher: Model folders of one task, with the same tokenizer.
        text: Files (paths or globs) or a Corpus; for a teacher with a task's head its TaskData.
        output: A folder for log, checkpoints and the trained model.
        training: The settings of the training.
        objectives: The losses; None means those of `triple_loss`.
        in_batch: For sentence encoders: how texts of a batch are compared; see recipe.InBatch.
        masking: For masked LM: how tokens are masked; see recipe.Masking.
        cache: For tasks with labels: run the teacher once per example; see recipe.Distill.
        seed: The seed of data order, masking, dropout and new weights.

    Returns:
        The trained student's folder, `output`/model.

    Raises:
        ValueError: The input is wrong.
        TrainingFailed, Interrupted: See `potstill.training`.
    """
    task = task_for(teacher, text)
    stage = Distill(
        objectives=list(objectives) if objectives is not None else triple_loss(task),
        in_batch=in_batch or InBatch(),
        masking=masking or Masking(),
        cache=cache,
        training=training,
    )
    models = {"teacher": Path(teacher), "student": Path(student)}
    return _Call(task, models, text, output, seed).run(stage)


def triple_loss(task: Task | str) -> list[Objective]:
    """Return the losses of the shipped recipes of a task.

    The weights are the paper's 5 soft (T = 2) : 2 hard : 1 cosine (Sanh et al. 2019), without the
    cosine for classification; 1 : 0.1 : 20 for sentence encoders (both measured: docs/ablation.md).
    Values have squared differences from the teacher's and from the data's, and the cosine.
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
        model: A model folder.
        text: Files or a Corpus for masked LM; a TaskData for the other tasks.
        output: A folder for log, checkpoints and the trained model.
        training: The settings of the training.
        task: Any task but sentence_embedding.
        train: "all" trains all weights, "head" those of the head.
        masking: For masked LM: how tokens are masked; see recipe.Masking.
        seed: The seed of data order, masking, dropout and new weights.
        reporter: Receives progress updates; None means nobody does.

    Returns:
        The trained model's folder, `output`/model.

    Raises:
        ValueError: The input is wrong.
        TrainingFailed, Interrupted: See `potstill.training`.
    """
    stage = Finetune.model_validate(
        {"train": train, "masking": masking or Masking(), "training": training}
    )
    models = {"teacher": Path(model)}
    return _Call(Task(task), models, text, output, seed, reporter).run(stage)


def export(
    model: Folder,
    text: Text,
    output: Folder,
    *,
    tolerance: float = 1e-4,
    prune: GraphPruning | None = None,
    seed: int = 1,
) -> Path:
    """Write a model as an ONNX graph, and refuse a graph whose outputs differ from the model's.

    Args:
        model: A model folder.
        text: Real text to compare the two on: files or a Corpus; a TaskData for tasks with labels.
        output: A folder for the result (each corner's difference) and the exported model.
        tolerance: The largest difference of outputs, relative to the largest of them.
        prune: Heads and FFN units to remove from the graph; the folder's weights stay whole.
        seed: The seed that draws texts.

    Returns:
        `output`/model/onnx/model.onnx, in a copy of the model's folder.

    Raises:
        ValueError: The input is wrong.
        ParityFailed: The graph's outputs differ from the model's; no graph is left.
    """
    stage = Export(model="teacher", tolerance=tolerance, prune=prune)
    return _Call.on(model, text, output, seed).run(stage) / ONNX / GRAPH


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
    """Remove the least important parts of a model; recover with `distill` (see docs/pruning.md).

    Args:
        model: A model folder.
        text: Files (paths or globs) or a Corpus; for a model with a task's head its TaskData. What
            pruning costs is measured on the held-out part.
        output: A folder for result.json and the pruned model.
        ffn: The intermediate (FFN) size that stays: a number, or a fraction between 0 and 1; None
            means all.
        layers: How many layers stay; None means all.
        width: The hidden size that stays; heads keep their size, so fewer of them stay. None means
            all.
        directions: What a width is made of: channels as they are, or principal components of the
            hidden states; None means channels.
        importance: "taylor" reads training texts, "magnitude" the weights alone.
        texts: How many training texts taylor reads; None means 512.
        seed: The seed that draws texts.

    Returns:
        The pruned model's folder, `output`/model.

    Raises:
        ValueError: The input is wrong.
    """
    settings = {"ffn": ffn, "layers": layers, "width": width, "importance": importance}
    optional = {"directions": directions, "texts": texts}
    given = {key: value for key, value in optional.items() if value is not None}
    stage = checked(Prune, {"model": "teacher", **settings, **given})
    return _Call.on(model, text, output, seed).run(stage)


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
    """Trim a model's vocabulary to the subword tokens that a text uses; see docs/vocabulary.md.

    Args:
        model: A model folder.
        text: Files (paths or globs) or a Corpus, whose held-out part the coverage is measured on;
            for a model with a task's head also its TaskData.
        output: A folder for result.json (with the coverage) and the trimmed model.
        min_count: How often a token must occur in the text.
        size: The vocabulary size at most, with the tokens that are always kept; None means all
            that `min_count` keeps.
        keep: Tokens, or words with all of their tokens, that are kept in any case.
        seed: The seed that decides what is held out.

    Returns:
        The trimmed model's folder, `output`/model.

    Raises:
        ValueError: The input is wrong.
    """
    stage = TrimVocabulary(model="teacher", min_count=min_count, size=size, keep=list(keep))
    return _Call.on(model, text, output, seed).run(stage)


def quantize(
    graph: Folder,
    text: Text,
    output: Folder,
    *,
    settings: Quantize | None = None,
    seed: int = 1,
) -> Path:
    """Quantize an exported model: int8, 4-bit weights or float16.

    Args:
        graph: FOLDER/onnx/NAME.onnx, in float.
        text: Real text to calibrate and to score on: files or a Corpus; a TaskData for tasks with
            labels.
        output: A folder for the result (layers, sizes, speed) and the quantized model.
        settings: See recipe.Quantize, whose `model` and `writes` are not read; None means dynamic
            int8.
        seed: The seed that decides what is held out.

    Returns:
        `output`/model/onnx/model_quantized.onnx, in a copy of the model's folder.

    Raises:
        ValueError: The input is wrong.
        QuantizationFailed: A budget or a speed that was asked for is missed.
    """
    names = {"model": "teacher", "writes": Quantize().writes}
    stage = (settings or Quantize()).model_copy(update=names)
    return _Call.on(graph, text, output, seed).run(stage) / ONNX / QUANTIZED


@dataclass(frozen=True)
class _Call:
    """Hold what one stage is called on; the folder of the output is the stage's own."""

    task: Task
    models: dict[str, Path]
    text: Text
    output: Folder
    seed: int
    reporter: Reporter | None = None

    @staticmethod
    def on(model: Folder, text: Text, output: Folder, seed: int) -> _Call:
        """Return a call on one model, whose task is its own."""
        return _Call(task_of(model), {"teacher": Path(model)}, text, output, seed)

    def run(self, stage: Stage) -> Path:
        """Run the stage, unless it is done already; return the folder of its model."""
        problem = self._unreadable(stage) or stage.unfit(self.task)
        if problem is not None:
            raise ValueError(problem)
        settings = corpus_of(self.text, self.models.values(), self.task)
        run = RunFolder(Path(self.output))
        given = [self.models[name] for name in sorted(self.models)]
        fingerprint = stage_digest(inputs_digest(self.task, self.seed, settings, given), stage)
        reporter = self.reporter or Silent()
        context = Context(self.task, self.seed, settings, run.path, self.models, reporter)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"output: {run.path} can't be used ({error.strerror}). Choose another folder."
            ) from None
        with run.lock():
            done = run.done(run.path)
            if done is None or done["fingerprint"] != fingerprint:
                start = time.perf_counter()
                writes = run_stage(stage, run.path, context, fingerprint)
                run.finish(run.path, fingerprint, writes, {}, time.perf_counter() - start)
            drop_checkpoints(run.path)
        return run.path / "model"

    def _unreadable(self, stage: Stage) -> str | None:
        """Explain why the stage can't read the models or the text; None if it can."""
        graph = next((path for path in self.models.values() if is_onnx(path)), None)
        if graph is not None and not stage.reads_onnx:
            return (
                f"{graph} is an ONNX file and can't be changed. Name the model folder that it was "
                "exported from."
            )
        labeled = isinstance(self.text, TaskData)
        if labeled and self.task.reads_text:
            return f"text: {self.task} reads text without labels. Give files or a Corpus."
        if not labeled and not self.task.reads_text and stage.needs_labels:
            return f"text: {self.task} reads labeled examples. Give a TaskData."
        return None
