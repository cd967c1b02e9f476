"""A suite's result as rows, for the report and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.tasks.score_names import metric_name

_SUITES = {"glue": "GLUE", "imdb": "IMDb", "squad": "SQuAD 1.1", "squad2": "SQuAD 2.0"}
ScoreRow = tuple[
    str, list[tuple[str, str]]
]  # label, and of each model the score and what is told of it


def suite_rows(found: Mapping[str, Any]) -> dict[str, Any]:
    """A row a score of suite.json, times 100: the median of the seeds, their range, what is kept.

    Returns:
        `title`, `partial` (the reasons, none for a whole suite), `notes`, `models`, `rows`.
    """
    rows: list[ScoreRow] = []
    for task, told in found["tasks"].items():
        small = ", a small set" if told["small"] else ""
        for metric in shown_metrics(told):
            cells = [_cell(found, name, task, metric) for name in found["models"]]
            rows.append((f"{told['title']}, {metric_name(metric)}{small}", cells))
    if len(found["tasks"]) > 1:
        rows += _averages(found)
    return {
        "title": _SUITES.get(found["suite"], found["suite"]),
        "partial": found["partial_reasons"] if found["partial"] else [],
        "notes": found.get("notes", []),
        "models": list(found["models"]),
        "rows": rows,
    }


def shown_metrics(task: Mapping[str, Any]) -> list[str]:
    """The metrics of a task in suite.json, and their mean where there are several."""
    metrics: list[str] = task["metrics"]
    return metrics if len(metrics) == 1 else [*metrics, "score"]


def average_labels(found: Mapping[str, Any]) -> dict[str, str]:
    """Key of `average` and `overall` in suite.json -> its name; the last one is a share alone."""
    labels = {"all": f"average of {len(found['tasks'])} tasks"}
    if "wnli" in found["tasks"]:
        labels["without_wnli"] = "average without WNLI"
    return {**labels, "above_constant": "where there is retention"}


def side_by_side(
    runs: Mapping[str, Mapping[str, Any] | None],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Suites of several runs, a column a run: of each the model that is compared with a baseline.

    Args:
        runs: a run's name -> its suite.json, None where it has none.

    Returns:
        Tables as `run_comparison.compare_runs` gives them, and what of them can't be compared.
    """
    names = {run: _compared(found) for run, found in runs.items()}
    tables, warnings = [], []
    for suite in dict.fromkeys(found["suite"] for found in runs.values() if found is not None):
        own = {run: f if f is not None and f["suite"] == suite else None for run, f in runs.items()}
        told = {run: suite_rows(found) for run, found in own.items() if found is not None}
        title = next(iter(told.values()))["title"]
        labels = dict.fromkeys(label for table in told.values() for label, _ in table["rows"])
        rows = [
            {
                "group": "Fine-tuned on each task, times 100",
                "measure": label,
                "cells": [_compared_cell(told.get(run), names[run], label) for run in runs],
            }
            for label in labels
        ]
        models = [names[run] if run in told else None for run in runs]
        tables.append({"role": title, "models": models, "rows": rows})
        warnings += [
            f"{title} of {run} is a quick look: {'; '.join(table['partial'])}."
            for run, table in told.items()
            if table["partial"]
        ]
        done = [found["settings"] for found in own.values() if found and "settings" in found]
        if any(_how(settings) != _how(done[0]) for settings in done):
            warnings.append(
                f"{title} was measured with other examples, trainings or seeds in each run, so its "
                "scores can't be compared."
            )
    return tables, warnings


def _compared(found: Mapping[str, Any] | None) -> str | None:
    return None if found is None else next(iter(found["retention"]), found["baseline"])


def _compared_cell(
    table: Mapping[str, Any] | None, name: str | None, label: str
) -> dict[str, Any] | None:
    cells = dict(table["rows"]).get(label) if table is not None else None
    if table is None or cells is None:
        return None
    text, note = cells[table["models"].index(name)]
    return {"value": float(text) if text else None, "text": text, "note": note}


def _how(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be the same for scores to be compared; not how many threads it took."""
    return {key: value for key, value in settings.items() if key != "threads"}


def _cell(found: Mapping[str, Any], name: str, task: str, metric: str) -> tuple[str, str]:
    score = found["models"][name]["tasks"][task][metric]
    notes = []
    if len(score["all"]) > 1:
        notes.append(f"{100 * score['min']:.1f}\N{EN DASH}{100 * score['max']:.1f}")
    share = found["retention"].get(name, {}).get("tasks", {}).get(task, {}).get(metric)
    if share is not None:
        notes.append(f"{share:.1%} kept")
    return f"{100 * score['median']:.1f}", ", ".join(notes)


def _averages(found: Mapping[str, Any]) -> list[ScoreRow]:
    rows = []
    for key, label in average_labels(found).items():
        cells = []
        for name, model in found["models"].items():
            average = model["average"].get(key)  # the last one is a share alone
            share = found["retention"].get(name, {}).get("overall", {}).get(key)
            note = "" if share is None else f"{share:.1%} kept"
            cells.append(("" if average is None else f"{100 * average:.1f}", note))
        rows.append((label[0].upper() + label[1:], cells))
    return rows
