"""Stages that measure models: evaluate, benchmark and report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from potstill.recipe.config import Config, Name, StageConfig
from potstill.recipe.data import Masking, Source, Sources, TextColumns
from potstill.recipe.tasks import Task


class ScoredPairs(Config):
    """Pairs of texts whose similarity people have scored (STS), for sentence embeddings."""

    sources: Sources
    text: Annotated[list[str], Field(min_length=2, max_length=2)] = ["sentence1", "sentence2"]
    label: str = "score"
    on_bad_row: Literal["error", "skip"] = "error"


class Comparison(StageConfig):
    """Base of the stages that compare models with one of them."""

    reads_onnx: ClassVar[bool] = True

    models: list[Name] | None = None  # null: all models
    baseline: Name = "teacher"

    @property
    def reads(self) -> list[str]:
        return list(dict.fromkeys([*(self.models or []), self.baseline]))

    @property
    def reads_every_model(self) -> bool:
        return self.models is None

    @property
    def compared_with(self) -> str:
        return self.baseline


class Evaluate(Comparison):
    """Score models on held-out text against the first of them."""

    kind: Literal["evaluate"] = "evaluate"
    # Sentence embeddings: the columns of the held-out records that are a query, its passage and
    # its topic.
    query: str | None = None
    passage: str | None = None
    label: str | None = None
    pairs: ScoredPairs | None = None
    max_length: Annotated[int, Field(ge=8)] | None = None  # tokens; null: the model's own limit
    max_records: Annotated[int, Field(ge=2)] | None = None  # at most, from the first; null: all
    masking: Masking = Masking()  # masked LM

    @property
    def text_sources(self) -> Sequence[Source]:
        return self.pairs.sources if self.pairs is not None else []

    def unfit(self, task: Task) -> str | None:
        if self.pairs is not None and task != Task.SENTENCE_EMBEDDING:
            return f"pairs: {task} has no sentence vectors to compare. Omit it."
        return None


class TextPass(Config):
    """Time whole passes over real text at batch 1, every text once and in order."""

    sources: Sources
    columns: TextColumns = ["text"]
    # Tokens to which longer texts are truncated; null: 128, or the shortest of the models'
    # maximum sequence lengths.
    max_length: Annotated[int, Field(ge=3)] | None = None
    max_texts: Annotated[int, Field(ge=1)] | None = None  # at most, from the first; null: all
    rounds: Annotated[int, Field(ge=3)] = 3  # passes of each model


class Benchmark(Comparison):
    """Measure size and speed, each model in a process of its own, in interleaved rounds."""

    kind: Literal["benchmark"] = "benchmark"
    threads: Annotated[int, Field(ge=1)] = 1
    lengths: Annotated[list[Annotated[int, Field(ge=3)]], Field(min_length=1)] = [16, 128]
    rounds: Annotated[int, Field(ge=3)] = 10
    repeats: Annotated[int, Field(ge=1)] = 10  # timed passes per round and length
    throughput_batch: Annotated[int, Field(ge=1)] = 32
    # Further sizes of batches whose throughput is measured.
    batches: list[Annotated[int, Field(ge=1)]] = []
    throughput_length: Annotated[int, Field(ge=3)] | None = None  # tokens; null: the largest length
    pass_over: TextPass | None = None

    @property
    def text_sources(self) -> Sequence[Source]:
        return self.pass_over.sources if self.pass_over is not None else []


class Report(StageConfig):
    """Write metrics.json, report.html and the model card."""

    reads_onnx: ClassVar[bool] = True
    reports: ClassVar[bool] = True

    kind: Literal["report"] = "report"
    title: str | None = None
    examples: Annotated[int, Field(ge=0)] = 8
    language: str | None = None
    license: str | None = None
