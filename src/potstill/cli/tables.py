"""Results as tables for the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from potstill.reporting.suites import average_labels, shown_metrics
from potstill.tasks.score_names import metric_name, short_name


def metrics_table(path: Path) -> Table:
    """The comparison of a run's metrics.json, a column a model, what takes no model last."""
    metrics = json.loads(path.read_text(encoding="utf-8"))
    comparisons = metrics["comparisons"]
    scores = {name: model.get("scores", {}) for name, model in metrics["models"].items()}
    scores |= metrics.get("references", {})
    models = {name: metrics["models"].get(name, {}) for name in scores}
    table = _columns(models)
    _row(table, "parameters", models, lambda m: _amount(m["parameters"]))
    _row(table, "weights", models, lambda m: _amount(m["weight_bytes"]) + "B")
    lengths = sorted({n for m in models.values() for n in m.get("latency_ms", {})}, key=int)
    for length in lengths:
        _row(
            table,
            f"ms at {length} tokens, p50",
            models,
            lambda m, n=length: f"{m['latency_ms'][n]['p50']:.2f}",
        )
    _row(table, "texts a second", models, lambda m: f"{m['throughput_per_s']:.1f}")
    _score_rows(table, scores)
    less = {name: metrics.get("differences", {}).get(name, {}) for name in models}
    _row(table, "student less it", less, lambda d: f"{d['difference']:+.3f}")
    for side, label in enumerate(("  95% from", "  to")):
        _row(table, label, less, lambda d, n=side: f"{d['interval'][n]:+.3f}")
    for length in lengths:
        _row(
            table,
            f"times as fast at {length}",
            {name: comparisons.get(name, {}) for name in models},
            lambda c, n=length: f"{c['speedup'][n]:.2f}",
        )
    kept = {name: comparisons.get(name, {}).get("retention_by_score", {}) for name in models}
    for key in dict.fromkeys(key for values in kept.values() for key in values):
        _row(table, f"kept, {short_name(key)}", kept, lambda r, k=key: f"{r[k]:.1%}")
    return table


def evaluation_table(result: Mapping[str, Any]) -> Table:
    """An evaluation result, a column a model, references last; what is kept, with its interval."""
    references = result.get("references", {})
    models = {**result["models"], **{name: found for name, found in references.items() if found}}
    table = _columns(models)
    _score_rows(table, models)
    shares, ends = result.get("retention", {}), result.get("intervals", {})
    for key in dict.fromkeys(key for values in shares.values() for key in values):
        _row(
            *(table, f"kept, {short_name(key)}", {name: name for name in models}),
            lambda name, k=key: _with_ends(shares[name][k], ends[name][k]),
        )
    return table


def _with_ends(share: float, ends: Sequence[float]) -> str:
    low, high = ends
    return f"{share:.1%} ({low:.1%} to {high:.1%})"


def benchmark_table(result: Mapping[str, Any]) -> Table:
    """A benchmark result, a column a model."""
    models, ratios = result["models"], result["ratios"]
    against = {name: ratios.get(name, {}) for name in models}
    table = _columns(models)
    _row(table, "parameters", models, lambda m: _amount(m["parameters"]))
    _row(table, "weights", models, lambda m: _amount(m["weight_bytes"]) + "B")
    _row(table, "folder", models, lambda m: _amount(m["folder_bytes"]) + "B")
    _row(table, "time to load", models, lambda m: f"{m['load_s']:.2f} s")
    _row(table, "peak memory", models, lambda m: f"{m['peak_memory_bytes'] / 1e6:.0f} MB")
    for n in next(iter(models.values()))["latency_ms"]:
        counts = {name: model.get("multiply_adds", {}) for name, model in models.items()}
        _row(table, f"multiply-adds, {n} tokens", counts, lambda c, n=n: _amount(c[n]))
        for point in ("p50", "p95", "p99"):
            label = f"ms at {n} tokens, {point}"
            _row(table, label, models, lambda m, n=n, p=point: _latency(m, n, p))
        _row(table, f"times as fast at {n}", against, lambda r, n=n: _times(r["speedup"][n]))
    if not any("throughput_by_batch" in model for model in models.values()):
        _row(table, "texts a second", models, lambda m: f"{m['throughput_per_s']:.1f}")
    for n in next(iter(models.values())).get("throughput_by_batch", {}):
        several = f"batches of {n}"
        _row(
            *(table, f"texts a second, {several}", models),
            lambda m, n=n: f"{m['throughput_by_batch'][n]:.1f}",
        )
        _row(
            *(table, f"times as fast, {several}", against),
            lambda r, n=n: _times(r["throughput_by_batch"][n]),
        )
    _pass_rows(table, result)
    return table


def benchmark_notes(result: Mapping[str, Any]) -> list[str]:
    """How a benchmark was measured, in sentences, and what has to be known of it."""
    threads = "1 thread" if result["threads"] == 1 else f"{result['threads']} threads"
    batches = f"batches of texts of {result['throughput_length']} tokens"
    lines = [
        f"{threads} a process; latency at batch 1, {result['rounds']} interleaved rounds of "
        f"{result['repeats']}; {batches}; ratios to {result['baseline']}, in parentheses 95% "
        "intervals"
    ]
    if "pass" in result:
        timed = result["pass"]
        cut = ", ".join(f"{m['cut']} of {n}" for n, m in timed["models"].items() if m["cut"])
        lines.append(
            f"passes over {timed['texts']} texts of {timed['over']}, one at a time, cut at "
            f"{timed['max_length']} tokens ({cut or 'none was longer'}), tokenising left out"
        )
    return lines


def _pass_rows(table: Table, result: Mapping[str, Any]) -> None:
    if "pass" not in result:
        return
    timed = result["pass"]
    label = f"a pass over {timed['texts']} texts"
    _row(
        *(table, label, timed["models"]),
        lambda m: f"{m['seconds']:.2f} s ({m['interval'][0]:.2f} to {m['interval'][1]:.2f})",
    )
    _row(table, "tokens in it", timed["models"], lambda m: f"{m['tokens']:,}")
    _row(
        *(table, "times as fast, the pass"),
        {name: timed["ratios"].get(name, {}) for name in timed["models"]},
        _times,
    )


def _latency(model: Mapping[str, Any], length: str, point: str) -> str:
    shown = f"{model['latency_ms'][length][point]:.2f}"
    intervals = model.get("latency_intervals_ms")
    if intervals is None or point != "p50":  # the others' are in the files
        return shown
    low, high = intervals[length][point]
    return f"{shown} ({low:.2f} to {high:.2f})"


def _times(ratio: Mapping[str, Any]) -> str:
    shown = "{median:.2f} ({low:.2f} to {high:.2f})".format(**ratio)
    unclear = ratio.get("verdict") == "can't tell"
    return f"{shown}, can't tell" if unclear else shown


def suite_table(result: Mapping[str, Any]) -> Table:
    """A suite's result, times 100: a row a score, the median of seeds and in brackets their range,
    and for each model but the baseline the share that it keeps.
    """
    models, tasks, kept = result["models"], result["tasks"], result["retention"]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("PARTIAL" if result["partial"] else "")
    for name in models:
        table.add_column(Text(name), justify="right", overflow="fold")
    for name in kept:
        table.add_column(Text(f"{name} kept"), justify="right", overflow="fold")
    for task, told in tasks.items():
        for metric in shown_metrics(told):
            label = f"{told['title']} {metric_name(metric)}"
            cells = [_range(model["tasks"][task][metric]) for model in models.values()]
            shares = [own["tasks"][task][metric] for own in kept.values()]
            cells += [_kept(share, told["small"]) for share in shares]
            table.add_row(*map(Text, (label, *cells)))
    if len(tasks) > 1:
        _average_rows(table, result)
    return table


def _average_rows(table: Table, result: Mapping[str, Any]) -> None:
    models, kept = result["models"].values(), result["retention"].values()
    *averages, retained = average_labels(result).items()
    for key, label in averages:
        cells = [f"{100 * model['average'][key]:.1f}" for model in models]
        cells += [_kept(own["overall"][key], False) for own in kept]
        table.add_row(*map(Text, (label, *cells)), style="bold")
    key, label = retained
    shares = [_kept(own["overall"][key], False) for own in kept]
    table.add_row(*map(Text, (label, *("" for _ in models), *shares)))


def _range(values: Mapping[str, Any]) -> str:
    shown = f"{100 * values['median']:.1f}"
    if len(values["all"]) == 1:
        return shown
    return f"{shown} ({100 * values['min']:.1f} to {100 * values['max']:.1f})"


def _kept(share: float | None, small: bool) -> str:
    return "none" if share is None else f"{share:.1%}" + (" (too small a set)" if small else "")


def runs_table(found: Mapping[str, Any]) -> Table:
    """Runs side by side, a column a run: the students, what was made of them, what differs."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for run in found["runs"]:
        table.add_column(Text(run["name"]), justify="right", overflow="fold")
    for part in found["tables"]:
        names = [name or "" for name in part["models"]]
        table.add_row(*map(Text, (part["role"], *names)), style="bold")
        for row in part["rows"]:
            table.add_row(*map(Text, (row["measure"], *map(_cell, row["cells"]))))
    if found["differences"]:
        table.add_row(Text("In the recipes"), style="bold")
    for key, values in found["differences"].items():
        shown = ["-" if value is None else str(value) for value in values]
        table.add_row(*map(Text, (key, *shown)))
    return table


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    return f"{cell['text']} ({cell['note']})" if cell["note"] else str(cell["text"])


def _amount(number: float) -> str:
    if number >= 1e9:
        return f"{number / 1e9:.1f} G"
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.1f} k"


def _columns(models: Mapping[str, Any]) -> Table:
    # a single space between columns, and whole labels: the rest is for numbers
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("", no_wrap=True, overflow="fold")
    for name in models:
        table.add_column(Text(name), justify="right", overflow="fold")
    return table


def _score_rows(table: Table, scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    keys = dict.fromkeys(
        (task, metric)
        for tasks in scores.values()
        for task, values in tasks.items()
        for metric, value in values.items()
        if isinstance(value, (int, float))
    )
    for task, metric in keys:
        _row(
            table,
            short_name(f"{task}.{metric}"),
            scores,
            lambda s, t=task, m=metric: f"{s[t][m]:.3f}",
        )
    for task in dict.fromkeys(task for task, _ in keys):
        _row(table, "of each seed", scores, lambda s, t=task: _several(s[t]["seeds"]))


def _several(values: Sequence[float]) -> str:
    return "\n".join(f"{value:.3f}" for value in values) if len(values) > 1 else ""


def _row(table: Table, label: str, models: Mapping[str, Any], show: Any) -> None:
    """One row; a model that lacks the value gets an empty cell, a row of none is left out."""
    cells = []
    for model in models.values():
        try:
            cells.append(show(model))
        except (KeyError, TypeError):
            cells.append("")
    if any(cells):  # names of models and metrics may hold brackets, which are no markup
        table.add_row(*map(Text, (label, *cells)))
