"""A run without its weights: wrong models, columns and lengths show before anything starts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import assert_never

import numpy as np
import torch

from potstill.benchmarking.texts import read_texts
from potstill.compression import build_student
from potstill.compression.students import student_shape
from potstill.data import make_masker, read_records
from potstill.data.sources import heldout_side
from potstill.evaluation.masked_lm import check_vocabularies
from potstill.evaluation.pairs import read_pairs
from potstill.evaluation_stages import with_passage
from potstill.export_stages import ALONE, check_shares
from potstill.models import LoadedModel, load_config, load_model
from potstill.models.families import position_limit
from potstill.models.finite import check_stored
from potstill.models.loading import with_model
from potstill.objectives.pairing import check_pair
from potstill.pruning_stages import blank, kept_of
from potstill.recipe import (
    Benchmark,
    Distill,
    Evaluate,
    Export,
    Finetune,
    MakeStudent,
    Prune,
    Quantize,
    Recipe,
    Report,
    Stage,
    Task,
    TrimVocabulary,
    row_of,
    scoring,
    stage_writes,
)
from potstill.reporting.figures import require_matplotlib
from potstill.storage.onnx_files import require_onnx
from potstill.tasks import TaskRows, read_for
from potstill.tasks.labels import check_labels
from potstill.training.distributed import check_processes
from potstill.training.log import check_trackers
from potstill.training_stages import check_length
from potstill.vocabulary_stages import cut_to_text, text_parts

_FIRST_RECORDS = 100  # what the columns of a corpus are judged by before it is read


@dataclass(frozen=True)
class Cast:
    """The models of one stage without their weights: shapes and names, on the meta device."""

    stage: Stage
    model: LoadedModel | None = None  # what it makes or trains
    teachers: tuple[LoadedModel, ...] = ()
    why: str = ""  # of a student's shape


def rehearse(recipe: Recipe, given: Mapping[str, Path]) -> list[Cast]:
    """Go through the stages without weights, so that mistakes show before anything starts.

    Nothing is written.

    Args:
        given: folders of the models that no stage writes, by name.

    Returns:
        One cast a stage, in order.

    Raises:
        ValueError: what a stage would find wrong with its models, columns or lengths; weights
            that are not finite.
    """
    rehearsal = _Rehearsal(recipe, given)
    casts = [rehearsal.stage(n, stage) for n, stage in enumerate(recipe.stages, start=1)]
    for folder in given.values():
        check_stored(folder)  # last, for it takes longest
    return casts


class _Rehearsal:
    def __init__(self, recipe: Recipe, given: Mapping[str, Path]) -> None:
        self.recipe, self.given = recipe, given
        self.columns: list[str] = []
        self.labels: list[str] | None = None
        self.rows: TaskRows | None = None
        if recipe.data is None:
            self.columns = _seen_columns(recipe)
        else:
            teacher = load_config(given["teacher"])
            self.rows = read_for(recipe.task, recipe.data, teacher, recipe.seed)
            self.labels = self.rows.labels
        self.written: dict[str, LoadedModel] = {}
        self.opened: dict[tuple[str, Task, bool], LoadedModel] = {}

    def stage(self, number: int, stage: Stage) -> Cast:
        try:
            cast = self._cast(stage)
        except ValueError as error:
            # make_student's keys may stand in a block at the top, too
            if isinstance(stage, (MakeStudent, Prune)):
                raise ValueError(f"stage {number} ({stage.kind}): {error}") from None
            raise
        scored = stage if isinstance(stage, Evaluate) else None
        if isinstance(stage, Quantize) and stage.max_drop is not None:
            scored = scoring(stage, [stage.model])
        if scored is not None and self.recipe.data is None:
            if scored.pairs is not None:
                read_pairs(scored.pairs)
            where = f"stage {number} ({stage.kind})"
            _check_heldout(where, scored, self.recipe, self.columns)
        if isinstance(stage, Benchmark) and stage.pass_over is not None:
            read_texts(stage.pass_over.model_copy(update={"max_texts": 1}))
        self.written |= {name: cast.model for name in stage_writes(stage) if cast.model}
        return cast

    def _cast(self, stage: Stage) -> Cast:
        task = self.recipe.task
        match stage:
            case Finetune():
                cast = Cast(stage, self._model(stage.model, task, untrained_head=True))
                _check_training(stage, self.recipe, cast, self.labels)
                return cast
            case MakeStudent():
                teacher = self._model(stage.teacher, task)
                return _student(stage, teacher)
            case Distill():
                teachers = tuple(self._model(t.model, task) for t in stage.teachers)
                new_head = row_of(task) is not None
                cast = Cast(stage, self._model(stage.model, task, new_head), teachers)
                _check_training(stage, self.recipe, cast, self.labels)
                return cast
            case Prune() | TrimVocabulary() | Export() | Quantize():
                return self._compressed(stage, self._model(stage.model, task))
            case Evaluate():
                self._check_models(stage, task)
            case Benchmark():
                _check_lengths(stage, self._model("teacher", task, untrained_head=True))
            case Report():
                require_matplotlib()
            case _:
                assert_never(stage)
        return Cast(stage)

    def _compressed(
        self, stage: Prune | TrimVocabulary | Export | Quantize, loaded: LoadedModel
    ) -> Cast:
        match stage:
            case Prune():
                check_length(self.recipe.text, loaded)
                return _pruned(stage, loaded)
            case TrimVocabulary():
                return self._trimmed(stage, loaded)
            case Export() | Quantize():
                require_onnx()
                return _graph(stage, loaded)
            case _:
                assert_never(stage)

    def _check_models(self, stage: Evaluate, task: Task) -> None:
        names = [*(stage.models or [*self.given, *self.written]), stage.baseline]
        models = {name: self._model(name, task) for name in names}
        if task == "masked_lm":
            check_vocabularies(models, stage.baseline)

    def _trimmed(self, stage: TrimVocabulary, loaded: LoadedModel) -> Cast:
        """The first texts stand for all: which pieces are kept isn't known before all are read."""
        parts = text_parts(stage, self.recipe.text, self.rows, self.recipe.seed)
        name = stage.writes or stage.model
        cut = cut_to_text(stage, loaded, parts, name, most=_FIRST_RECORDS)
        before = len(cut.pieces.names)
        most = before if stage.size is None else min(stage.size, before)
        why = f"the pieces that its text uses, {most:,} of {before:,} at most"
        return Cast(stage, cut.model, (loaded,), why)

    def _model(self, name: str, task: Task, untrained_head: bool = False) -> LoadedModel:
        if name in self.written:
            return self.written[name]
        key = name, task, untrained_head
        if key not in self.opened:
            self.opened[key] = load_model(
                self.given[name],
                task,
                untrained_head=untrained_head,
                weights=False,
                labels=self.labels,
            )
        return self.opened[key]


def _graph(stage: Export | Quantize, read: LoadedModel) -> Cast:
    if isinstance(stage, Quantize):
        _check_lengths(stage, read)
    elif stage.prune is not None:
        check_shares(stage.prune, read)
        return Cast(stage, read, why=f"{stage.model} pruned: {ALONE}")
    return Cast(stage, read)


def _student(stage: MakeStudent, teacher: LoadedModel) -> Cast:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the stage itself passes them on
        shape = student_shape(teacher.model, stage)
        student = build_student(teacher.model, stage, shape)
    made = replace(teacher, model=student, name=stage.writes)
    return Cast(stage, made, (teacher,), shape.why)


def _pruned(stage: Prune, loaded: LoadedModel) -> Cast:
    kept = kept_of(stage, loaded.model.config)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = blank(loaded.model, kept)
    widths = kept.widths
    why = (
        f"{kept.layers} layers of width {widths.hidden}, {widths.ffn:,} inner units, "
        f"{model.num_parameters() / 1e6:.3g} M parameters"
    )
    made = with_model(loaded, model, stage.writes or stage.model)
    return Cast(stage, made, (loaded,), why)


def _check_training(
    stage: Finetune | Distill, recipe: Recipe, cast: Cast, labels: Sequence[str] | None
) -> None:
    assert cast.model is not None
    if labels is not None:
        for loaded in (*cast.teachers, cast.model):
            check_labels(loaded, labels)
    for teacher in cast.teachers:  # first, for its user knows it by name
        check_length(recipe.text, teacher)
    check_length(recipe.text, cast.model)
    check_trackers(stage.training.trackers)
    if stage.training.gradient_checkpointing:
        _check_checkpointing(cast.model)
    group = None
    if isinstance(stage, Distill) and recipe.task == "sentence_embedding":
        group = stage.in_batch.group or stage.training.batch_size
    check_processes(stage.training, int(os.environ.get("WORLD_SIZE", "1")), group)
    if isinstance(stage, Distill):
        for teacher in cast.teachers:
            check_pair(cast.model, teacher, stage.objectives)
    if recipe.task == "masked_lm":
        tokenizer = cast.model.tokenizer
        any_counts = np.ones(max(tokenizer.get_vocab().values()) + 1, dtype=np.int64)
        make_masker(stage.masking, tokenizer, any_counts)


def _check_checkpointing(loaded: LoadedModel) -> None:
    if not loaded.model.supports_gradient_checkpointing:
        raise ValueError(
            f"training.gradient_checkpointing: {type(loaded.model).__name__} of transformers can't "
            "compute its layers again; leave it out, or set a smaller micro_batch_size instead"
        )


def _seen_columns(recipe: Recipe) -> list[str]:
    """Columns of the first records; fails as reading the corpus would."""
    corpus = recipe.corpus
    assert corpus is not None
    seen: dict[str, None] = {}
    for sources in (corpus.sources, corpus.heldout_sources):
        if sources is not None:
            seen = {}  # scores are on the held-out sources where there are some
            for record in islice(read_records(sources, corpus.columns), _FIRST_RECORDS):
                seen |= dict.fromkeys(record.columns)
                if corpus.heldout_sources is None:  # complains of a record without group_by
                    heldout_side(record, corpus.columns, corpus.group_by, corpus.heldout, 0)
    return list(seen)


def _check_heldout(where: str, stage: Evaluate, recipe: Recipe, columns: Sequence[str]) -> None:
    assert recipe.corpus is not None
    if recipe.corpus.heldout == 0 and recipe.corpus.heldout_sources is None:
        raise ValueError(
            f"{where}: no text is held out to evaluate on: raise corpus.heldout or give "
            "corpus.heldout_sources"
        )
    if recipe.task == "masked_lm":
        return
    passage = with_passage(stage, recipe.corpus).passage
    wanted = {"passage": passage, "query": stage.query, "label": stage.label}
    for key, name in wanted.items():
        if name is not None and name not in columns:
            raise ValueError(f"{where}: {key}: no column '{name}'; there are: {', '.join(columns)}")


def _check_lengths(stage: Benchmark | Quantize, model: LoadedModel) -> None:
    positions = position_limit(model.model.config)
    whose = "teacher" if isinstance(stage, Benchmark) else "model"
    asked = {"lengths": max(stage.lengths)}
    if isinstance(stage, Benchmark):
        asked["throughput_length"] = stage.throughput_length or 0
        asked["pass_over.max_length"] = (stage.pass_over and stage.pass_over.max_length) or 0
    for key, longest in asked.items():
        if longest > positions:
            raise ValueError(
                f"{stage.kind}.{key}: {longest} tokens are more than the {positions} "
                f"positions of the {whose}: ask for {positions} at most"
            )
