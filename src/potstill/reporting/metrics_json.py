"""Collect what a run measured, by model: metrics.json."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypedDict

from potstill.reporting.results import Results, read_results
from potstill.tasks.results import Difference, Measured, Scores


class ModelMetrics(Measured, total=False):
    """Hold what was measured of a model; `seeds` has the scores of each training."""

    scores: Scores


class Comparison(TypedDict, total=False):
    """Hold what a model retains of the baseline, by part and by part.score, and its speed-ups."""

    retention: dict[str, float]
    retention_by_score: dict[str, float]
    retention_intervals: dict[str, list[float]]
    speedup: dict[str, float]
    size_ratio: float


class Metrics(TypedDict, total=False):
    """Hold the content of metrics.json; see `build_metrics`."""

    models: dict[str, ModelMetrics]
    comparisons: dict[str, Comparison]
    settings: dict[str, Any]
    references: dict[str, Scores]
    differences: dict[str, Difference]
    findings: list[str]
    suite: dict[str, Any]


def build_metrics(run: Path) -> Metrics:
    """Return metrics.json of a run: `models`, `comparisons` against the baseline, `settings`.

    `references` are the scores of what takes no model, `differences` the student's score less that
    of its twin and of each of those, with a paired 95% interval. The last evaluate and the last
    benchmark stage count. What was not measured is left out; a number that is not finite is null.
    Retention is that of the evaluate stage: none for losses.

    Raises:
        ValueError: The folder has no finished stage, or a file is damaged.
    """
    return metrics_of(read_results(run))


def metrics_of(results: Results) -> Metrics:
    """Return `build_metrics` of results that have been read."""
    evaluation, suite = results.evaluation, results.suite or {}
    compared = {name: _against(results, name) for name in results.names if name != results.baseline}
    parts = ("suite", "partial", "partial_reasons", "baseline", "models", "retention")
    found = {
        "references": {k: v for k, v in evaluation.get("references", {}).items() if v},
        "differences": evaluation.get("differences"),
        "findings": results.findings,  # what a reader must not miss, in sentences
        "suite": {key: suite[key] for key in parts if suite},
    }
    cleaned: Metrics = finite(
        {
            "models": {name: _measured(results, name) for name in results.names},
            "comparisons": {name: entry for name, entry in compared.items() if entry},
            "settings": _settings(results),
            **{key: value for key, value in found.items() if value},
        }
    )
    return cleaned


def _measured(results: Results, name: str) -> dict[str, Any]:
    """Collect what was measured of a model, as `ModelMetrics`."""
    evaluation, measured = results.evaluation, results.benchmark.get("models", {}).get(name, {})
    entry: dict[str, Any] = {}
    if "parameters" in measured or name in results.counted:
        entry["parameters"] = measured.get("parameters", results.counted.get(name))
    if name in results.graphs:
        entry["weight_bytes"] = results.graphs[name]["weight_bytes"]
    keys = (
        *("weight_bytes", "latency_ms", "throughput_per_s", "peak_memory_bytes"),
        *("folder_bytes", "load_s", "multiply_adds"),
    )
    known: dict[str, Any] = {**measured}
    entry |= {key: known[key] for key in keys if key in known}
    if name in evaluation.get("models", {}):
        metric = evaluation.get("metric")
        entry["scores"] = {
            task: _with_seeds(dict(found), metric)
            for task, found in evaluation["models"][name].items()
        }
    return entry


def _with_seeds(scores: dict[str, Any], metric: str | None) -> dict[str, Any]:
    """Add `seeds` to a task's scores: the values of each training, here of the one there was.

    They are of the metric that the evaluation names, or else of the task's first.
    """
    first = metric if metric in scores else next(iter(scores), None)
    return scores if first is None or "seeds" in scores else scores | {"seeds": [scores[first]]}


def _against(results: Results, name: str) -> Comparison:
    """Compare a model with the baseline in score, size and speed."""
    evaluation, entry = results.evaluation, Comparison()
    if name in evaluation.get("retention", {}):
        kept = evaluation["retention"][name]
        entry["retention"] = {}
        for key, share in kept.items():  # a task's first score is the one it is judged by
            entry["retention"].setdefault(key.partition(".")[0], share)
        entry["retention_by_score"] = kept
        if intervals := evaluation.get("intervals", {}).get(name):
            entry["retention_intervals"] = intervals
    if ratios := results.benchmark.get("ratios", {}).get(name):
        entry["speedup"] = {n: speed["median"] for n, speed in ratios["speedup"].items()}
        entry["size_ratio"] = ratios["size_ratio"]
    return entry


def _settings(results: Results) -> dict[str, Any]:
    evaluation, recipe = results.evaluation, results.recipe
    measured: dict[str, Any] = {**results.benchmark}
    keys = ("threads", "batch", "rounds", "repeats", "throughput_batch", "throughput_length")
    settings = {
        "recipe": recipe.get("name"),
        "task": evaluation.get("task") or recipe.get("task"),
        "seed": recipe.get("seed"),
        "baseline": results.baseline,
        "records": evaluation.get("records"),
        "metric": evaluation.get("metric"),
        **{key: measured.get(key) for key in keys},
        "noisy": results.benchmark.get("noise", {}).get("noisy"),
    }
    return {key: value for key, value in settings.items() if value is not None}


def finite(value: Any) -> Any:
    """Return the same tree with null for what JSON can't say: NaN and infinities."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
