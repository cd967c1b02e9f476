"""Summarize a suite's scores: medians over seeds, averages over tasks, score retention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from potstill.suites.catalog import SuiteTask

Trials = Sequence[Mapping[str, Any]]  # one model and task, a score.json per seed
_SCORE = "score"


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return median, minimum and maximum of a model's seeds, and all of them in order."""
    return {
        "median": float(np.median(values)),
        "min": min(values),
        "max": max(values),
        "all": list(values),
    }


def task_result(task: SuiteTask, trials: Trials) -> dict[str, dict[str, Any]]:
    """Summarize each metric over seeds; `score` is the mean of a task's metrics, as in GLUE.

    Its median is that of the seeds' scores, not the mean of the metrics' medians.
    """
    found = {name: spread([one["scores"][name] for one in trials]) for name in task.scores}
    means = [float(np.mean([one["scores"][name] for name in task.scores])) for one in trials]
    return {**found, _SCORE: spread(means)}


def is_above_constant(task: SuiteTask, trials: Trials) -> dict[str, bool]:
    """Check by each metric whether a model is significantly better than any constant answer.

    It is where the lower bound of the score's 95% confidence interval (the median over seeds) is
    above the constant answer's score; for the task's own score all metrics have to be.
    """
    found = {}
    for name in task.scores:
        low = float(np.median([one["low"][name] for one in trials]))
        found[name] = low > max(trials[0]["constant"][name], 0.0)
    return {**found, _SCORE: all(found.values())}


def averages(medians: Mapping[str, float]) -> dict[str, float | None]:
    """Return the mean of tasks' scores, with and without WNLI; None if there is no task.

    Most papers omit WNLI: few models beat its majority class (Devlin et al. 2019, section 4.1).
    """
    others = [score for name, score in medians.items() if name != "wnli"]
    every = list(medians.values())
    return {
        "all": float(np.mean(every)) if every else None,
        "without_wnli": float(np.mean(others)) if others else None,
    }


def retention(
    own: Mapping[str, Mapping[str, Any]],
    base: Mapping[str, Mapping[str, Any]],
    sure: Mapping[str, Mapping[str, bool]],
) -> dict[str, Any]:
    """Divide a model's medians by the baseline's.

    Args:
        own: Task -> `task_result` of the model.
        base: Task -> `task_result` of the baseline.
        sure: Task -> `is_above_constant` of the baseline.

    Returns:
        `tasks`: task -> metric -> retention, None where the baseline is not significantly above a
        constant answer. `overall`: retention of the averages; `all` and `without_wnli` as in
        papers, with what both models score by chance, and `above_constant` over the tasks where
        the baseline is above.
    """
    tasks = {
        task: {
            name: (
                own[task][name]["median"] / base[task][name]["median"] if sure[task][name] else None
            )
            for name in base[task]
        }
        for task in base
    }
    kept = [task for task in base if sure[task][_SCORE]]
    mine, other = (averages(_medians(found)) for found in (own, base))
    above = [averages(_medians({task: found[task] for task in kept})) for found in (own, base)]
    overall = {name: _share(mine[name], other[name]) if kept else None for name in mine}
    overall["above_constant"] = _share(above[0]["all"], above[1]["all"])
    return {"tasks": tasks, "overall": overall}


def _medians(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {name: found[_SCORE]["median"] for name, found in tasks.items()}


def model_result(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a model's part of a suite's result."""
    return {"tasks": dict(tasks), "average": averages(_medians(tasks))}


def _share(own: float | None, base: float | None) -> float | None:
    return None if own is None or base is None or base <= 0 else own / base
