"""Stages that measure models: evaluate, benchmark, report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from potstill.recipe.config import Config, Name
from potstill.recipe.data import Masking, Sources, as_names


class ScoredPairs(Config):
    """Sentence embeddings: pairs of texts that people have given a score of likeness (STS)."""

    sources: Sources
    text: Annotated[list[str], Field(min_length=2, max_length=2)] = ["sentence1", "sentence2"]
    label: str = "score"
    on_bad_row: Literal["error", "skip"] = "error"


class Evaluate(Config):
    """Score models on held-out text against the first of them."""

    kind: Literal["evaluate"] = "evaluate"
    models: list[Name] | None = None  # null: every model there is
    baseline: Name = "teacher"
    # Sentence embeddings: the columns of the held-out records that are a query, its passage and
    # its topic.
    query: str | None = None
    passage: str | None = None
    label: str | None = None
    pairs: ScoredPairs | None = None
    max_length: Annotated[int, Field(ge=8)] | None = None  # tokens; null: the model's own limit
    max_records: Annotated[int, Field(ge=2)] | None = None  # the first so many; null: all
    masking: Masking = Masking()  # masked LM


class TextPass(Config):
    """Time whole passes over real text at batch 1, every text once and in order."""

    sources: Sources
    # Two are read as a pair.
    columns: Annotated[list[str], Field(min_length=1, max_length=2), BeforeValidator(as_names)] = [
        "text"
    ]
    # Tokens at which texts are cut; null: 128, or the positions of the model that has fewest.
    max_length: Annotated[int, Field(ge=3)] | None = None
    max_texts: Annotated[int, Field(ge=1)] | None = None  # the first so many; null: all
    rounds: Annotated[int, Field(ge=3)] = 3  # passes of each model


class Benchmark(Config):
    """Measure size and speed, each model in a process of its own, in interleaved rounds."""

    kind: Literal["benchmark"] = "benchmark"
    models: list[Name] | None = None
    baseline: Name = "teacher"
    threads: Annotated[int, Field(ge=1)] = 1
    lengths: Annotated[list[Annotated[int, Field(ge=3)]], Field(min_length=1)] = [16, 128]
    rounds: Annotated[int, Field(ge=3)] = 10
    repeats: Annotated[int, Field(ge=1)] = 10  # timed passes a round and length
    throughput_batch: Annotated[int, Field(ge=1)] = 32
    # Further sizes of batches whose throughput is measured.
    batches: list[Annotated[int, Field(ge=1)]] = []
    throughput_length: Annotated[int, Field(ge=3)] | None = None  # tokens; null: the largest length
    pass_over: TextPass | None = None


class Report(Config):
    """Write metrics.json, report.html and the model card."""

    kind: Literal["report"] = "report"
    title: str | None = None
    examples: Annotated[int, Field(ge=0)] = 8
    language: str | None = None
    license: str | None = None
