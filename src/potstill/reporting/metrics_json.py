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
    """`build_metrics` of results that have been read."""
    evaluation, benchmark = results.evaluation, results.benchmark
    models = {}
    for name in results.names:
        measured = benchmark.get("models", {}).get(name, {})
        entry: dict[str, Any] = {}
        if "parameters" in measured or name in results.counted:
            entry["parameters"] = measured.get("parameters", results.counted.get(name))
        keys = (
            *("weight_bytes", "latency_ms", "throughput_per_s", "peak_memory_bytes"),
            *("folder_bytes", "load_s", "multiply_adds"),
        )
        graphs = results.exported | results.quantized
        weighed = {key: graphs[name][key] for key in keys[:1] if name in graphs}
        entry |= weighed | {key: measured[key] for key in keys if key in measured}
        if name in evaluation.get("models", {}):
            scores = evaluation["models"][name]
            entry["scores"] = {
                task: _with_seeds(found, evaluation) for task, found in scores.items()
            }
        models[name] = entry
    comparisons = {}
    for name in results.names:
        ratios = benchmark.get("ratios", {}).get(name, {})
        entry = {}
        if name in evaluation.get("retention", {}):
            kept = evaluation["retention"][name]
            entry["retention"] = {}
            for key, share in kept.items():  # a task's first score is the one it is judged by
                entry["retention"].setdefault(key.partition(".")[0], share)
            entry["retention_by_score"] = kept
            intervals = evaluation.get("intervals", {}).get(name)
            entry |= {"retention_intervals": intervals} if intervals else {}
        if ratios:
            entry["speedup"] = {n: speed["median"] for n, speed in ratios["speedup"].items()}
            entry["size_ratio"] = ratios["size_ratio"]
        if entry and name != results.baseline:
            comparisons[name] = entry
    settings = {
        "recipe": results.recipe.get("name"),
        "task": evaluation.get("task") or results.recipe.get("task"),
        "seed": results.recipe.get("seed"),
        "baseline": results.baseline,
        "records": evaluation.get("records"),
        "metric": evaluation.get("metric"),
        **{key: benchmark.get(key) for key in ("threads", "batch", "rounds", "repeats")},
        **{key: benchmark.get(key) for key in ("throughput_batch", "throughput_length")},
        "noisy": benchmark.get("noise", {}).get("noisy"),
    }
    known = {key: value for key, value in settings.items() if value is not None}
    references = {k: v for k, v in evaluation.get("references", {}).items() if v}
    found = {
        "references": references,
        "differences": evaluation.get("differences"),
        "findings": results.findings,  # what a reader must not miss, in sentences
    }
    if results.suite is not None:
        parts = ("suite", "partial", "partial_reasons", "baseline", "models", "retention")
        found["suite"] = {key: results.suite[key] for key in parts}
    cleaned: dict[str, Any] = finite(
        {
            **{"models": models, "comparisons": comparisons, "settings": known},
            **{key: value for key, value in found.items() if value},
        }
    )
    return cleaned


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
