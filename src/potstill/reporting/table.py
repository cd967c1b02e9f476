"""Make the rows of the comparison, for page, card and terminal; a new row is added here alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from potstill.reporting.metrics_json import Metrics
from potstill.reporting.results import Results, said
from potstill.tasks.score_names import label_of

TIMES, DASH = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """Hold a number as it is shown, its exact value, and the note beside it."""

    value: float | None
    text: str
    note: str = ""


@dataclass(frozen=True)
class Row:
    """Hold a line of a table: a cell for each column that has a value."""

    group: str
    label: str
    cells: dict[str, Cell]


def comparison_rows(results: Results, metrics: Metrics, *, full: bool = False) -> list[Row]:
    """Return the rows of the comparison; their columns are the names of models and references.

    Args:
        full: Whether what only the terminal shows is among them: the values of all seeds, the
            intervals of latencies, the size of folders, and each size of a batch.
    """
    rows = [
        *_size(metrics, full),
        *_speed(results, metrics, full),
        *_scores(results, metrics, full),
        *_differences(results),
        *_ratios(results, metrics, full),
    ]
    return [row for row in rows if row.cells]


def columns_of(results: Results) -> dict[str, str]:
    """Return the columns of the comparison and their heads: models, then what takes no model."""
    references = results.evaluation.get("references", {})
    return {name: name for name in results.names} | {name: label_of(name) for name in references}


def side_by_side(
    tables: Sequence[Sequence[Row]], columns: Sequence[str | None]
) -> list[dict[str, Any]]:
    """Return the rows of several tables beside each other, of each table one column.

    Returns:
        Rows with `group`, `measure` and `cells`, one for each table: None where it has none.
    """
    found = [{(row.group, row.label): row.cells for row in rows} for rows in tables]
    keys = dict.fromkeys(key for rows in found for key in rows)
    order = list(dict.fromkeys(group for group, _ in keys))
    shown = []
    for group, measure in sorted(keys, key=lambda key: order.index(key[0])):
        pairs = zip(found, columns, strict=True)
        cells = [rows.get((group, measure), {}).get(str(name)) for rows, name in pairs]
        if any(cells):
            told = [None if cell is None else asdict(cell) for cell in cells]
            shown.append({"group": group, "measure": measure, "cells": told})
    return shown


# --- what was measured ----------------------------------------------------------------------------


def _row(
    group: str, label: str, found: Mapping[str, Any], shown: Callable[[Any], Cell] | float = 1.0
) -> Row:
    """Make a row of what each column has; numbers are divided by `shown` where that is a number."""
    cell = shown if callable(shown) else lambda value: Cell(value, number(value / shown))
    return Row(group, label, {name: cell(x) for name, x in found.items() if x is not None})


def _size(metrics: Metrics, full: bool) -> Iterator[Row]:
    models = metrics["models"]
    yield _row("Size", "Parameters (millions)", each(models, "parameters"), 1e6)
    yield _row("Size", "Weights (MB)", each(models, "weight_bytes"), 1e6)
    if full:
        yield _row("Size", "All files (MB)", each(models, "folder_bytes"), 1e6)
    for length, counts in by_number(models, "multiply_adds").items():
        yield _row("Size", f"Multiply-adds of one text of {length} tokens (millions)", counts, 1e6)


def _speed(results: Results, metrics: Metrics, full: bool) -> Iterator[Row]:
    models, settings = metrics["models"], metrics["settings"]
    measured = results.benchmark.get("models", {})
    threads = settings.get("threads", 1)
    group = f"Speed on {threads} thread{'s' if threads != 1 else ''}"
    spans = by_number(measured, "latency_intervals_ms") if full else {}
    for length, found in by_number(models, "latency_ms").items():
        row = _row(group, f"Latency of one text of {length} tokens (ms)", found, _latency_cell)
        for name, span in spans.get(length, {}).items():
            cell = row.cells[name]
            row.cells[name] = replace(cell, note=f"{span_of(span['p50'], 2)}, {cell.note}")
        yield row
    shape = f"texts of {settings.get('throughput_length')} tokens at once (texts/s)"
    rates = {str(settings.get("throughput_batch")): each(models, "throughput_per_s")}
    for batch, found in (rates | _other_batches(results, measured, full)).items():
        yield _row(group, f"Throughput, {batch} {shape}", found)
    timed = results.benchmark.get("pass", {})
    passes = {name: one for name, one in timed.get("models", {}).items() if name in models}
    yield _row(
        *(group, f"A pass over {timed.get('texts', 0):,} texts, one at a time (s)", passes),
        lambda one: Cell(one["seconds"], number(one["seconds"]), span_of(one["interval"], 2)),
    )
    if full:
        yield _row(
            *(group, "Tokens of that pass", each(passes, "tokens")),
            lambda tokens: Cell(tokens, f"{tokens:,}"),
        )
    yield _row(group, "Time to load (s)", each(models, "load_s"))
    yield _row(group, "Peak memory of the process (MB)", each(models, "peak_memory_bytes"), 1e6)


def each(models: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Return the value under a key by model."""
    return {name: model.get(key) for name, model in models.items()}


def by_number(models: Mapping[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """Return number of tokens or texts, smallest first -> model -> what was measured there."""
    numbers = {number for model in models.values() for number in model.get(key, {})}
    return {
        n: {name: model[key][n] for name, model in models.items() if n in model.get(key, {})}
        for n in sorted(numbers, key=int)
    }


def _other_batches(
    results: Results, measured: Mapping[str, Any], full: bool
) -> dict[str, dict[str, Any]]:
    """Return what was measured with other batch sizes than the one in the report."""
    told = str(results.benchmark.get("throughput_batch"))
    found = by_number(measured, "throughput_by_batch") if full else {}
    return {batch: values for batch, values in found.items() if batch != told}


def _latency_cell(points: Mapping[str, float]) -> Cell:
    rest = [f"{name} {number(value)}" for name, value in points.items() if name != "p50"]
    return Cell(points["p50"], number(points["p50"]), ", ".join(rest))


def _scores(results: Results, metrics: Metrics, full: bool) -> Iterator[Row]:
    models = {name: model.get("scores", {}) for name, model in metrics["models"].items()}
    columns = {
        name: flat_scores(scores)
        for name, scores in {**models, **metrics.get("references", {})}.items()
    }
    records = metrics["settings"].get("records")
    whose = "held-out records" if results.recipe else "records"
    group = f"Scores on {records:,} {whose}" if records else "Scores"
    for key in dict.fromkeys(key for scores in columns.values() for key in scores):
        cells = {name: score_cell(scores[key]) for name, scores in columns.items() if key in scores}
        task, _, metric = key.partition(".")
        for name, scores in models.items():
            seeds = scores.get(task, {}).get("seeds") or []
            if len(seeds) > 1 and metric == metrics["settings"].get("metric"):
                spread = f"{span_of((min(seeds), max(seeds)), 3)}, {len(seeds)} seeds"
                values = ", ".join(f"{seed:.3f}" for seed in seeds)
                cells[name] = replace(cells[name], note=values if full else spread)
        yield Row(group, label_of(key), cells)


def _differences(results: Results) -> Iterator[Row]:
    """Compare the student with its twin and with trivial baselines."""
    evaluation, cells, label = results.evaluation, dict[str, Cell](), ""
    scores = evaluation.get("models", {}).get(str(results.student), {})
    for name, told in evaluation.get("differences", {}).items():
        bounds = told["interval"]
        note = "" if bounds is None else f"{bounds[0]:+.3f} to {bounds[1]:+.3f}"
        cells[name] = Cell(told["difference"], f"{told['difference']:+.3f}", note)
        parts = (part for part, found in scores.items() if told["metric"] in found)
        label = label_of(f"{next(parts, evaluation['task'])}.{told['metric']}")
    yield Row("The student, less each other", label, cells)


def _ratios(results: Results, metrics: Metrics, full: bool) -> Iterator[Row]:
    compared, benchmark = metrics["comparisons"], results.benchmark
    group = f"Against {said(results.baseline)}"
    for key, shares in retentions(results, metrics).items():
        yield _row(group, f"Kept: {label_of(key)}", shares, _share_cell)
    ratios = {n: benchmark["ratios"][n] for n in compared if n in benchmark.get("ratios", {})}
    for length, found in by_number(ratios, "speedup").items():
        yield _row(group, f"Speedup at {length} tokens", found, _speed_cell)
    yield _row(group, "Throughput, times as high", each(ratios, "throughput"), _speed_cell)
    for batch, found in _other_batches(results, ratios, full).items():
        yield _row(group, f"Throughput with batches of {batch}, times as high", found, _speed_cell)
    passes = benchmark.get("pass", {}).get("ratios", {})
    cells = {name: passes.get(name) for name in compared}
    yield _row(group, "Speedup of the pass over texts", cells, _speed_cell)
    yield _row(
        *(group, "Weights, share of the bytes", each(compared, "size_ratio")),
        lambda ratio: Cell(ratio, f"{ratio:.2f}"),
    )


Share = tuple[float, Sequence[float] | None]  # what is kept of a score, and its interval


def retentions(results: Results, metrics: Metrics) -> dict[str, dict[str, Share]]:
    """Return the retention of the baseline's scores: score -> model -> share and interval."""
    found: dict[str, dict[str, Share]] = {}
    for name, compared in metrics["comparisons"].items():
        spans = results.evaluation.get("intervals", {}).get(name, {})
        for key, share in compared.get("retention_by_score", {}).items():
            if share is not None:
                found.setdefault(key, {})[name] = share, spans.get(key)
    return found


def _share_cell(share: Share) -> Cell:
    value, span = share
    note = "" if span is None else span_of([100 * end for end in span], 1)
    return Cell(value, f"{value:.1%}", note)


def _speed_cell(speed: Mapping[str, Any]) -> Cell:
    note = span_of((speed["low"], speed["high"]), 2)
    unsure = ", can't tell" if is_unsure(speed) else ""
    return Cell(speed["median"], f"{speed['median']:.2f}{TIMES}", f"{note}{unsure}")


def is_unsure(ratio: Mapping[str, Any]) -> bool:
    """Return whether a benchmark could not tell faster from slower."""
    return ratio.get("verdict") == "can't tell"


# --- numbers --------------------------------------------------------------------------------------


def span_of(ends: Sequence[float], digits: int) -> str:
    """Return an interval, or the least and the greatest, with this many decimals."""
    return DASH.join(f"{end:.{digits}f}" for end in ends)


def flat_scores(scores: Mapping[str, Any]) -> dict[str, float | None]:
    """Return `{task: {metric: value}}` as `{"task.metric": value}`, without the values by seed."""
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


def millions(count: float, unit: str = "M") -> str:
    """Return a count, or bytes, in millions."""
    return f"{number(count / 1e6)} {unit}"


def number(value: float) -> str:
    """Return three significant digits, no exponent: 22.7, 0.0512, 1,234."""
    if not math.isfinite(value):
        return "not finite"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    rounded = abs(float(f"{value:.2e}"))  # 9.996 is 10.0, not 10.00
    digits = 2 - math.floor(math.log10(rounded)) if rounded else 0
    return f"{value:.{max(digits, 0)}f}"
