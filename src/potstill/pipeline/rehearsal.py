"""A run without its weights: wrong models, columns and lengths show before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import assert_never

from potstill.benchmarking.texts import read_texts
from potstill.evaluation.masked_lm import check_vocabularies
from potstill.evaluation.pairs import read_pairs
from potstill.models import LoadedModel, load_config, load_model
from potstill.models.finite import check_stored
from potstill.pipeline.context import Outline, check_length
from potstill.pipeline.stages.benchmark import check_lengths
from potstill.pipeline.stages.evaluate import FIRST_RECORDS, check_columns_of, seen_columns
from potstill.pipeline.stages.export import outline_graph
from potstill.pipeline.stages.make_student import outline_student
from potstill.pipeline.stages.prune import outline_pruned
from potstill.pipeline.stages.train import check_training
from potstill.pipeline.stages.trim_vocabulary import cut_to_text, text_parts
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


def rehearse(recipe: Recipe, given: Mapping[str, Path]) -> list[Outline]:
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
            self.columns = seen_columns(recipe)
        else:
            teacher = load_config(given["teacher"])
            self.rows = read_for(recipe.task, recipe.data, teacher, recipe.seed)
            self.labels = self.rows.labels
        self.written: dict[str, LoadedModel] = {}
        self.opened: dict[tuple[str, Task, bool], LoadedModel] = {}

    def stage(self, number: int, stage: Stage) -> Outline:
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
            check_columns_of(where, scored, self.recipe, self.columns)
        if isinstance(stage, Benchmark) and stage.pass_over is not None:
            read_texts(stage.pass_over.model_copy(update={"max_texts": 1}))
        self.written |= {name: cast.model for name in stage_writes(stage) if cast.model}
        return cast

    def _cast(self, stage: Stage) -> Outline:
        task = self.recipe.task
        match stage:
            case Finetune():
                cast = Outline(stage, self._model(stage.model, task, untrained_head=True))
                check_training(stage, self.recipe, cast, self.labels)
                return cast
            case MakeStudent():
                teacher = self._model(stage.teacher, task)
                return outline_student(stage, teacher)
            case Distill():
                teachers = tuple(self._model(t.model, task) for t in stage.teachers)
                new_head = row_of(task) is not None
                cast = Outline(stage, self._model(stage.model, task, new_head), teachers)
                check_training(stage, self.recipe, cast, self.labels)
                return cast
            case Prune() | TrimVocabulary() | Export() | Quantize():
                return self._compressed(stage, self._model(stage.model, task))
            case Evaluate():
                self._check_models(stage, task)
            case Benchmark():
                check_lengths(stage, self._model("teacher", task, untrained_head=True))
            case Report():
                require_matplotlib()
            case _:
                assert_never(stage)
        return Outline(stage)

    def _compressed(
        self, stage: Prune | TrimVocabulary | Export | Quantize, loaded: LoadedModel
    ) -> Outline:
        match stage:
            case Prune():
                check_length(self.recipe.text, loaded)
                return outline_pruned(stage, loaded)
            case TrimVocabulary():
                return self._trimmed(stage, loaded)
            case Export() | Quantize():
                require_onnx()
                return outline_graph(stage, loaded)
            case _:
                assert_never(stage)

    def _check_models(self, stage: Evaluate, task: Task) -> None:
        names = [*(stage.models or [*self.given, *self.written]), stage.baseline]
        models = {name: self._model(name, task) for name in names}
        if task == "masked_lm":
            check_vocabularies(models, stage.baseline)

    def _trimmed(self, stage: TrimVocabulary, loaded: LoadedModel) -> Outline:
        """The first texts stand for all: which pieces are kept isn't known before all are read."""
        parts = text_parts(stage, self.recipe.text, self.rows, self.recipe.seed)
        name = stage.writes or stage.model
        cut = cut_to_text(stage, loaded, parts, name, most=FIRST_RECORDS)
        before = len(cut.pieces.names)
        most = before if stage.size is None else min(stage.size, before)
        why = f"the pieces that its text uses, {most:,} of {before:,} at most"
        return Outline(stage, cut.model, (loaded,), why)

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
