"""What a run's numbers say, for people: the verdict, and the rows of the comparison table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from potstill.reporting.metrics_json import finite
from potstill.reporting.results import Results
from potstill.tasks.score_names import label_of


def is_unsure(ratio: Mapping[str, Any]) -> bool:
    """Whether a benchmark could not tell faster from slower."""
    return ratio.get("verdict") == "can't tell"


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A number as it is shown, its exact value, and what stands small beside it."""

    value: float | None
    text: str
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the comparison: a cell for each column that has a value."""

    group: str
    label: str
    cells: dict[str, Cell]


def comparison_rows(results: Results, metrics: Mapping[str, Any]) -> list[Row]:
    """The rows of the comparison table; columns are the names of models and references."""
    rows = [
        *_measurements(results, metrics),
        *_scores(results, metrics),
        *_differences(results),
        *_ratios(results, metrics),
    ]
    return [row for row in rows if row.cells]


def _measurements(results: Results, metrics: Mapping[str, Any]) -> Iterator[Row]:
    models, settings = metrics["models"], metrics["settings"]

    def row(group: str, label: str, key: str, scale: float = 1.0) -> Row:
        found = {name: model[key] for name, model in models.items() if model.get(key) is not None}
        cells = {name: Cell(value, number(value / scale)) for name, value in found.items()}
        return Row(group, label, cells)

    yield row("Size", "Parameters (millions)", "parameters", 1e6)
    yield row("Size", "Weights (MB)", "weight_bytes", 1e6)
    for length, counts in _by_length(models, "multiply_adds").items():
        cells = {n: Cell(count, number(count / 1e6)) for n, count in counts.items()}
        yield Row("Size", f"Multiply-adds of one text of {length} tokens (millions)", cells)
    threads = settings.get("threads", 1)
    group = f"Speed on {threads} thread{'s' if threads != 1 else ''}"
    for length, found in _by_length(models, "latency_ms").items():
        cells = {name: _latency_cell(points) for name, points in found.items()}
        yield Row(group, f"Latency of one text of {length} tokens (ms)", cells)
    shape = (
        f"{settings.get('throughput_batch')} texts of {settings.get('throughput_length')} tokens"
    )
    yield row(group, f"Throughput, {shape} at once (texts/s)", "throughput_per_s")
    timed = results.benchmark.get("pass")
    if timed:
        cells = {n: _pass_cell(one) for n, one in timed["models"].items() if n in models}
        yield Row(group, f"A pass over {timed['texts']:,} texts, one at a time (s)", cells)
    yield row(group, "Time to load (s)", "load_s")
    yield row(group, "Peak memory of the process (MB)", "peak_memory_bytes", 1e6)


def _by_length(models: Mapping[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """Tokens of a text, from the fewest -> model -> what was measured of it there."""
    lengths = {length for model in models.values() for length in model.get(key, {})}
    found: dict[str, dict[str, Any]] = {length: {} for length in sorted(lengths, key=int)}
    for name, model in models.items():
        for length, value in model.get(key, {}).items():
            if value is not None:
                found[length][name] = value
    return found


def _pass_cell(found: Mapping[str, Any]) -> Cell:
    low, high = found["interval"]
    return Cell(found["seconds"], number(found["seconds"]), _span(low, high, 2))


def _latency_cell(points: Mapping[str, float]) -> Cell:
    rest = [f"{name} {number(value)}" for name, value in points.items() if name != "p50"]
    return Cell(points["p50"], number(points["p50"]), ", ".join(rest))


def _scores(results: Results, metrics: Mapping[str, Any]) -> Iterator[Row]:
    columns = {
        name: flat_scores(model.get("scores", {})) for name, model in metrics["models"].items()
    }
    references = results.evaluation.get("references", {})
    columns |= {name: flat_scores(finite(scores)) for name, scores in references.items()}
    records = metrics["settings"].get("records")
    group = f"Scores on {records:,} held-out records" if records else "Scores"
    for key in dict.fromkeys(key for scores in columns.values() for key in scores):
        cells = {name: score_cell(scores[key]) for name, scores in columns.items() if key in scores}
        for name, scores in metrics["models"].items():
            task, _, metric = key.partition(".")
            seeds = scores.get("scores", {}).get(task, {}).get("seeds")
            if len(seeds or []) > 1 and metric == metrics["settings"].get("metric"):
                spread = f"{_span(min(seeds), max(seeds), 3)}, {len(seeds)} seeds"
                cells[name] = replace(cells[name], note=spread)
        yield Row(group, label_of(key), cells)


def _differences(results: Results) -> Iterator[Row]:
    """What the student scores above its twin and above trivial means."""
    cells = {}
    scores = results.evaluation.get("models", {}).get(results.student, {})
    for name, told in results.evaluation.get("differences", {}).items():
        bounds = told["interval"]
        note = "" if bounds is None else f"{bounds[0]:+.3f} to {bounds[1]:+.3f}"
        cells[name] = Cell(told["difference"], f"{told['difference']:+.3f}", note)
        parts = (part for part, found in scores.items() if told["metric"] in found)
        label = label_of(f"{next(parts, results.evaluation['task'])}.{told['metric']}")
    if cells:
        yield Row("The student, less each other", label, cells)


def _ratios(results: Results, metrics: Mapping[str, Any]) -> Iterator[Row]:
    compared = metrics["comparisons"]
    group = f"Against {'the teacher' if results.baseline == 'teacher' else results.baseline}"
    intervals = results.evaluation.get("intervals", {})
    for key in dict.fromkeys(
        key for entry in compared.values() for key in entry.get("retention_by_score", {})
    ):
        cells = {}
        for name, entry in compared.items():
            value = entry.get("retention_by_score", {}).get(key)
            if value is not None:
                interval = intervals.get(name, {}).get(key)
                note = "" if interval is None else _span(100 * interval[0], 100 * interval[1], 1)
                cells[name] = Cell(value, f"{value:.1%}", note)
        yield Row(group, f"Kept: {label_of(key)}", cells)
    measured = results.benchmark.get("ratios", {})
    speeds = {length: None for entry in compared.values() for length in entry.get("speedup", {})}
    for length in sorted(speeds, key=int):
        cells = {
            name: _speed_cell(measured[name]["speedup"][length])
            for name, entry in compared.items()
            if length in entry.get("speedup", {})
        }
        yield Row(group, f"Speedup at {length} tokens", cells)
    cells = {
        name: _speed_cell(measured[name]["throughput"]) for name in compared if name in measured
    }
    yield Row(group, "Throughput, times as high", cells)
    passes = results.benchmark.get("pass", {}).get("ratios", {})
    cells = {name: _speed_cell(passes[name]) for name in compared if name in passes}
    yield Row(group, "Speedup of the pass over texts", cells)
    cells = {
        name: Cell(entry["size_ratio"], f"{entry['size_ratio']:.2f}")
        for name, entry in compared.items()
        if "size_ratio" in entry
    }
    yield Row(group, "Weights, share of the bytes", cells)


def _speed_cell(speed: Mapping[str, Any]) -> Cell:
    text = f"{speed['median']:.2f}\N{MULTIPLICATION SIGN}"
    note = _span(speed["low"], speed["high"], 2)
    return Cell(speed["median"], text, f"{note}, can't tell" if is_unsure(speed) else note)


def _span(low: float, high: float, digits: int) -> str:
    return f"{low:.{digits}f}\N{EN DASH}{high:.{digits}f}"


def flat_scores(scores: Mapping[str, Any]) -> dict[str, float | None]:
    """`{task: {metric: value}}` as `{"task.metric": value}`, without lists (values by seed)."""
    return {
        f"{task}.{metric}": value
        for task, found in scores.items()
        for metric, value in found.items()
        if not isinstance(value, list)
    }


def score_cell(value: float | None) -> Cell:
    if value is None:
        return Cell(None, "not finite")
    return Cell(value, f"{value:.3f}" if abs(value) < 10 else number(value))


def number(value: float) -> str:
    """Three significant digits, no exponent: 22.7, 0.0512, 1,234."""
    if not math.isfinite(value):
        return "not finite"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    rounded = abs(float(f"{value:.2e}"))  # 9.996 is 10.0, not 10.00
    digits = 2 - math.floor(math.log10(rounded)) if rounded else 0
    return f"{value:.{max(digits, 0)}f}"
