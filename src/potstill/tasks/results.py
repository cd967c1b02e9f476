"""Type what stages write to result.json, for its writers and its readers.

No key is required: readers also meet results of older runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

# part -> metric -> value; `seeds` has the values of each training
Scores = Mapping[str, Mapping[str, Any]]
Shares = dict[str, dict[str, float]]  # model -> part.metric -> ratio to the baseline's score
Spans = dict[str, dict[str, list[float]]]  # model -> part.metric -> [low, high]


class Difference(TypedDict, total=False):
    """Hold the student's score minus another's.

    Attributes:
        score: Its full name, such as `retrieval.mrr`; for a task with labels, `metric` alone.
        metric: The last part of the name.
        interval: The paired 95% confidence interval; None: there is none.
    """

    score: str
    metric: str
    difference: float
    interval: list[float] | None


class Evaluation(TypedDict, total=False):
    """Hold what an evaluation found.

    Attributes:
        records: Number of scored items.
        models, references: Model or trivial baseline -> scores.
        retention, intervals: Ratios to the baseline's scores; see `evaluation.retention`.
        twin: The student's baseline, trained without distillation.
        differences: Twin or reference -> the student's score minus its score.
        findings: Sentences about what the student does not beat.
        softened: One example's distribution at several temperatures.
        examples: What baseline and student answer differently.
        labels, metric, confusion: For a task with labels.
        masked_positions: For masked LM.
        warnings: What was wrong with the data.
    """

    task: str
    records: int
    masked_positions: int
    baseline: str
    labels: list[str]
    metric: str
    models: Mapping[str, Scores]
    references: Mapping[str, Scores]
    retention: Shares
    intervals: Spans
    twin: str | None
    differences: dict[str, Difference]
    findings: list[str]
    softened: Mapping[str, Any] | None
    confusion: dict[str, list[list[int]]] | None
    examples: Sequence[Mapping[str, Any]]
    warnings: list[str]


class Ratio(TypedDict, total=False):
    """Hold a ratio to the baseline: median over rounds, 95% confidence interval, verdict."""

    median: float
    low: float
    high: float
    verdict: str


class Ratios(TypedDict, total=False):
    """Hold a model's ratios to the baseline; keys are lengths or batch sizes."""

    speedup: dict[str, Ratio]
    throughput: Ratio
    throughput_by_batch: dict[str, Ratio]
    size_ratio: float
    parameter_ratio: float
    multiply_add_ratio: dict[str, float]


class Measured(TypedDict, total=False):
    """Hold a model's size, speed and memory; keys are lengths in tokens or batch sizes."""

    parameters: int
    multiply_adds: dict[str, int | None]
    weight_bytes: int
    folder_bytes: int
    load_s: float
    peak_memory_bytes: int
    latency_ms: dict[str, dict[str, float]]
    latency_intervals_ms: dict[str, dict[str, list[float]]]
    throughput_per_s: float
    throughput_by_batch: dict[str, float]


class Noise(TypedDict, total=False):
    """Hold whether the machine was too busy to trust the numbers, and why."""

    wall_over_cpu: float | None
    noisy: bool
    message: str | None


class Pass(TypedDict, total=False):
    """Hold a timed pass over texts."""

    over: str
    columns: list[str] | None
    texts: int
    max_length: int
    rounds: int
    models: dict[str, dict[str, Any]]
    ratios: dict[str, Ratio]
    raw_s: dict[str, list[float]]


# `pass` is a keyword of Python, which a class body can't declare.
_WithPass = TypedDict("_WithPass", {"pass": Pass}, total=False)


class Benchmarked(_WithPass, total=False):
    """Hold what a benchmark measured; `raw...` are its samples, `pass` a pass over texts."""

    threads: int
    batch: int
    throughput_batch: int
    throughput_length: int
    baseline: str
    rounds: int
    repeats: int
    models: dict[str, Measured]
    ratios: dict[str, Ratios]
    noise: Noise
    notes: list[str]
    raw: Mapping[str, Any]
    raw_cpu: Mapping[str, Any]
    raw_throughput_per_s: Mapping[str, Any]
    raw_throughput_by_batch: Mapping[str, Any]
