"""Turn a suite's result into rows, for the report, the model card and the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from potstill.reporting.table import Cell, Row, side_by_side, span_of
from potstill.tasks.score_names import metric_name

_SUITES = {"glue": "GLUE", "imdb": "IMDb", "squad": "SQuAD 1.1", "squad2": "SQuAD 2.0"}
GROUP = "Fine-tuned on each task, times 100"


def suite_rows(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return one row per score of suite.json, times 100: median and range of the seeds, retention.

    Returns:
        `title`, `partial` (the reasons, none for a whole suite), `notes`, `models`, `rows`.
    """
    return {
        "title": _SUITES.get(found["suite"], found["suite"]),
        "partial": found["partial_reasons"] if found["partial"] else [],
        "notes": found.get("notes", []),
        "models": list(found["models"]),
        "rows": [*_tasks(found), *(_averages(found) if len(found["tasks"]) > 1 else [])],
    }


def shown_metrics(task: Mapping[str, Any]) -> list[str]:
    """Return the metrics of a task in suite.json, and their mean where there are several."""
    metrics: list[str] = task["metrics"]
    return metrics if len(metrics) == 1 else [*metrics, "score"]


def _tasks(found: Mapping[str, Any]) -> Iterator[Row]:
    for task, told in found["tasks"].items():
        small = ", a small set" if told["small"] else ""
        for metric in shown_metrics(told):
            cells = {}
            for name, model in found["models"].items():
                score = model["tasks"][task][metric]
                kept = found["retention"].get(name, {}).get("tasks", {}).get(task, {}).get(metric)
                ends = span_of([100 * score["min"], 100 * score["max"]], 1)
                cells[name] = _cell(score["median"], ends if len(score["all"]) > 1 else "", kept)
            yield Row(GROUP, f"{told['title']}, {metric_name(metric)}{small}", cells)


def _averages(found: Mapping[str, Any]) -> Iterator[Row]:
    labels = {"all": f"Average of {len(found['tasks'])} tasks"}
    if "wnli" in found["tasks"]:
        labels["without_wnli"] = "Average without WNLI"
    for key, label in {**labels, "above_constant": "Where there is retention"}.items():
        cells = {}
        for name, model in found["models"].items():  # the last one is a share alone
            kept = found["retention"].get(name, {}).get("overall", {}).get(key)
            cells[name] = _cell(model["average"].get(key), "", kept)
        yield Row(GROUP, label, cells)


def _cell(score: float | None, spread: str, kept: float | None) -> Cell:
    notes = [spread] if spread else []
    notes += [] if kept is None else [f"{kept:.1%} kept"]
    text = "" if score is None else f"{100 * score:.1f}"
    return Cell(float(text) if text else None, text, ", ".join(notes))


def suites_of_runs(
    runs: Mapping[str, Mapping[str, Any] | None],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Set suites of several runs side by side, one column per run, with the model that is compared
    with a baseline.

    Args:
        runs: A run's name -> its suite.json, None where it has none.

    Returns:
        Tables as `run_comparison.compare_runs` gives them, and what of them can't be compared.
    """
    tables, warnings = [], []
    for suite in dict.fromkeys(found["suite"] for found in runs.values() if found is not None):
        own = {run: f if f is not None and f["suite"] == suite else None for run, f in runs.items()}
        told = {run: suite_rows(found) for run, found in own.items() if found is not None}
        title = next(iter(told.values()))["title"]
        models = [
            None if found is None else next(iter(found["retention"]), found["baseline"])
            for found in own.values()
        ]
        rows = side_by_side([told[run]["rows"] if run in told else [] for run in runs], models)
        tables.append({"role": title, "models": models, "rows": rows})
        warnings += [
            f"{title} of {run} is a quick look: {'; '.join(table['partial'])}."
            for run, table in told.items()
            if table["partial"]
        ]
        ways = [
            {key: value for key, value in found["settings"].items() if key != "threads"}
            for found in own.values()
            if found and "settings" in found
        ]
        if any(way != ways[0] for way in ways):
            warnings.append(
                f"{title} was measured with other examples, trainings or seeds in each run, so its "
                "scores can't be compared."
            )
    return tables, warnings
