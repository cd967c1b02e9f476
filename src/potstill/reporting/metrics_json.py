"""metrics.json: what a run measured, by model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from potstill.reporting.results import Results, read_results


def build_metrics(run: Path) -> dict[str, Any]:
    """metrics.json of a run: `models`, `comparisons` against the baseline, `settings`.

    `references` are the scores of what takes no model, `differences` the student's score less that
    of its twin and of each of those, with a paired 95% interval. The last evaluate and the last
    benchmark stage count. What was not measured is left out; a number that is not finite is null.
    Retention is that of the evaluate stage: none for losses.

    Raises:
        ValueError: as `read_results`.
    """
    return metrics_of(read_results(run))


def metrics_of(results: Results) -> dict[str, Any]:
    """Return `build_metrics` of results that have been read."""
    evaluation = results.evaluation
    compared = {name: _against(results, name) for name in results.names if name != results.baseline}
    found = {
        "references": {k: v for k, v in evaluation.get("references", {}).items() if v},
        "differences": evaluation.get("differences"),
        "findings": results.findings,  # what a reader must not miss, in sentences
    }
    if results.suite is not None:
        parts = ("suite", "partial", "partial_reasons", "baseline", "models", "retention")
        found["suite"] = {key: results.suite[key] for key in parts}
    cleaned: dict[str, Any] = finite(
        {
            "models": {name: _measured(results, name) for name in results.names},
            "comparisons": {name: entry for name, entry in compared.items() if entry},
            "settings": _settings(results),
            **{key: value for key, value in found.items() if value},
        }
    )
    return cleaned


def _measured(results: Results, name: str) -> dict[str, Any]:
    """What was measured of a model."""
    measured = results.benchmark.get("models", {}).get(name, {})
    entry: dict[str, Any] = {}
    if "parameters" in measured or name in results.counted:
        entry["parameters"] = measured.get("parameters", results.counted.get(name))
    keys = (
        *("weight_bytes", "latency_ms", "throughput_per_s", "peak_memory_bytes"),
        *("folder_bytes", "load_s", "multiply_adds"),
    )
    if name in results.graphs:
        entry["weight_bytes"] = results.graphs[name]["weight_bytes"]
    entry |= {key: measured[key] for key in keys if key in measured}
    if name in results.evaluation.get("models", {}):
        scores = results.evaluation["models"][name]
        entry["scores"] = {
            task: _with_seeds(found, results.evaluation) for task, found in scores.items()
        }
    return entry


def _against(results: Results, name: str) -> dict[str, Any]:
    """What a model keeps of the baseline, and its size and speed against that."""
    evaluation, entry = results.evaluation, dict[str, Any]()
    if name in evaluation.get("retention", {}):
        kept = evaluation["retention"][name]
        entry["retention"] = {}
        for key, share in kept.items():  # a task's first score is the one it is judged by
            entry["retention"].setdefault(key.partition(".")[0], share)
        entry["retention_by_score"] = kept
        intervals = evaluation.get("intervals", {}).get(name)
        entry |= {"retention_intervals": intervals} if intervals else {}
    if ratios := results.benchmark.get("ratios", {}).get(name):
        entry["speedup"] = {n: speed["median"] for n, speed in ratios["speedup"].items()}
        entry["size_ratio"] = ratios["size_ratio"]
    return entry


def _settings(results: Results) -> dict[str, Any]:
    evaluation, benchmark, recipe = results.evaluation, results.benchmark, results.recipe
    keys = ("threads", "batch", "rounds", "repeats", "throughput_batch", "throughput_length")
    settings = {
        "recipe": recipe.get("name"),
        "task": evaluation.get("task") or recipe.get("task"),
        "seed": recipe.get("seed"),
        "baseline": results.baseline,
        "records": evaluation.get("records"),
        "metric": evaluation.get("metric"),
        **{key: benchmark.get(key) for key in keys},
        "noisy": benchmark.get("noise", {}).get("noisy"),
    }
    return {key: value for key, value in settings.items() if value is not None}


def _with_seeds(scores: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, Any]:
    """A task's scores with `seeds`, the values of each training: of one training, one value.

    They are of the metric that the evaluation names, or else of the task's first.
    """
    metric = evaluation.get("metric")
    first = metric if metric in scores else next(iter(scores), None)
    return scores if first is None or "seeds" in scores else scores | {"seeds": [scores[first]]}


def finite(value: Any) -> Any:
    """The same tree with null for what JSON can't say: NaN and infinities."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
