"""Show results as tables of the terminal, with the report's rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import Any

from rich.table import Table
from rich.text import Text

from potstill.reporting.metrics_json import metrics_of
from potstill.reporting.results import Results, StageResult
from potstill.reporting.suites import suite_rows
from potstill.reporting.table import DASH, Cell, columns_of, comparison_rows

LABEL = 20  # characters of a line of a label: seven models fit beside it in a terminal of 80


def result_table(kind: str, result: Mapping[str, Any]) -> Table:
    """Return the table of what a stage of this kind found outside a run."""
    return run_table(
        Results(Path(), [StageResult(kind, kind, {}, dict(result), Path())], {}, "", {})
    )


def run_table(results: Results) -> Table:
    """Return a run's comparison, one column per model; what takes no model comes last."""
    rows = comparison_rows(results, metrics_of(results), full=True)
    columns = columns_of(results)
    table = _table("", columns.values())
    for group, members in groupby(rows, key=lambda row: row.group):
        table.add_row(_label(group), style="bold")
        for row in members:
            _add(table, row.label, [row.cells.get(name) for name in columns])
    return table


def benchmark_notes(result: Mapping[str, Any]) -> list[str]:
    """Return how a benchmark was measured, in sentences."""
    threads = "1 thread" if result["threads"] == 1 else f"{result['threads']} threads"
    lines = [
        f"Each process uses {threads}. Latency is measured at batch size 1 in {result['rounds']} "
        f"interleaved rounds of {result['repeats']} passes, throughput with texts of "
        f"{result['throughput_length']} tokens. Ratios are relative to {result['baseline']}; "
        "parentheses hold 95% confidence intervals."
    ]
    if "pass" in result:
        timed = result["pass"]
        cut = ", ".join(f"{m['cut']} for {n}" for n, m in timed["models"].items() if m["cut"])
        lines.append(
            f"Passes over {timed['texts']:,} texts of {timed['over']} take one text at a time, "
            f"without tokenization. Texts are truncated at {timed['max_length']} tokens "
            f"({cut or 'none is longer'})."
        )
    return lines


def suite_table(result: Mapping[str, Any]) -> Table:
    """Return a suite's result, times 100: the median of seeds, their range, retention."""
    found = suite_rows(result)
    table = _table("PARTIAL" if found["partial"] else "", found["models"])
    for row in found["rows"]:
        _add(table, row.label, list(row.cells.values()))
    return table


def runs_table(found: Mapping[str, Any]) -> Table:
    """Return runs side by side, one column per run: their students, last artifacts and recipes."""
    table = _table("", [run["name"] for run in found["runs"]])
    for part in found["tables"]:
        names = [name or "" for name in part["models"]]
        table.add_row(*map(Text, (part["role"], *names)), style="bold")
        for row in part["rows"]:
            _add(table, row["measure"], [cell and Cell(**cell) for cell in row["cells"]])
    if found["differences"]:
        table.add_row(Text("In the recipes"), style="bold")
    for key, values in found["differences"].items():
        shown = ["-" if value is None else str(value) for value in values]
        table.add_row(*map(Text, (key, *shown)))
    return table


def _table(corner: str, heads: Iterable[str]) -> Table:
    # a single space between columns: the rest is for numbers
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column(corner, no_wrap=True)
    for head in heads:
        table.add_column(Text(head), justify="right", overflow="fold")
    return table


def _add(table: Table, label: str, cells: Sequence[Cell | None]) -> None:
    """Add a row; names may hold brackets, which are not markup."""
    table.add_row(_label(label), *(Text("" if cell is None else _shown(cell)) for cell in cells))


def _label(text: str) -> Text:
    return Text(fill(text, LABEL, break_on_hyphens=False))


def _shown(cell: Cell) -> str:
    note = cell.note.replace(DASH, " to ")
    return f"{cell.text}\n({note})" if cell.text and note else cell.text or note
