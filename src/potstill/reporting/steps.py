"""Tabulate what each step from the teacher to the last artifact contributed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from potstill.reporting.metrics_json import Metrics
from potstill.reporting.phrases import step_note
from potstill.reporting.results import Results, StageResult
from potstill.reporting.table import TIMES, Cell, millions
from potstill.reporting.verdict import headline_retention
from potstill.tasks.score_names import label_of


@dataclass(frozen=True)
class Step:
    """Hold one step of the way from the teacher to what is shipped.

    Attributes:
        cells: A value for each column, its note the change since the last step that has one.
    """

    name: str
    what: str
    cells: list[Cell]


@dataclass(frozen=True)
class Steps:
    """Hold the steps in order, the baseline first, and the heads of their columns."""

    heads: list[str]
    rows: list[Step]


# key, head, how a value is shown, and the change from the value before
_Column = tuple[str, str, Callable[[float], str], Callable[[float, float], str]]


def _percent(now: float, before: float) -> str:
    return f"{now / before - 1:+.0%}" if before and round(now / before, 2) != 1 else ""


def _times(now: float, before: float = 1.0) -> str:
    return f"{now / before:.2f}{TIMES}" if before else ""


def _points(now: float, before: float) -> str:
    return f"{100 * (now - before):+.1f} points"


def steps_of(results: Results, metrics: Metrics) -> Steps | None:
    """Return what each step on the way to the run's last artifact contributed; None: there was no
    way.

    Changes are to the step before it that was measured: a ratio of ratios to the baseline, whose
    own interval is not known.
    """
    if not results.chain:
        return None
    key, _ = headline_retention(metrics, str(results.student))
    way = [(results.baseline, list[StageResult]()), *results.chain]
    values = [_values(results, metrics, name, key) for name, _ in way]
    known = {name for found in values for name in found}
    lengths = sorted((name for name in known if name.isdigit()), key=int)
    columns: list[_Column] = [
        ("parameters", "Parameters", millions, _percent),
        ("weight_bytes", "Weights", lambda x: millions(x, "MB"), _percent),
        *((length, f"Speed, {length} tokens", _times, _times) for length in lengths),
        ("kept", f"Kept: {label_of(key)}", lambda x: f"{x:.1%}", _points),
    ]
    columns = [column for column in columns if column[0] in {*known, "parameters"}]
    rows, before = list[Step](), dict[str, float]()
    for (name, stages), found in zip(way, values, strict=True):
        cells = []
        for column, _, shown, change in columns:
            now, then = found.get(column), before.get(column)
            note = "" if now is None or then is None else change(now, then)
            text = "" if now is None else shown(now)
            cells.append(Cell(now, text, note.replace("-", "\N{MINUS SIGN}")))
        rows.append(Step(name, "; ".join(map(step_note, stages)) or "the start", cells))
        before |= found
    return Steps([head for _, head, *_ in columns], rows)


def _values(results: Results, metrics: Metrics, name: str, key: str) -> dict[str, float]:
    """Return parameters, bytes and retention of a model, and its speed-ups by length."""
    entry, compared = metrics["models"].get(name, {}), metrics["comparisons"].get(name, {})
    found = {
        "parameters": entry.get("parameters", results.counted.get(name)),
        "weight_bytes": entry.get("weight_bytes"),
        "kept": compared.get("retention_by_score", {}).get(key),
        **compared.get("speedup", {}),
    }
    if name == results.baseline:
        found |= dict.fromkeys([*entry.get("latency_ms", {}), *(["kept"] if key else [])], 1.0)
    return {what: value for what, value in found.items() if value is not None}
