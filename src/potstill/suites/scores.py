"""A suite's scores: medians over seeds, averages over tasks, shares of the baseline's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from potstill.suites.catalog import SuiteTask

Trials = Sequence[Mapping[str, Any]]  # of one model and task, a score.json for each seed
_SCORE = "score"


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The median of a model's seeds, the least and the greatest, and all of them in order."""
    return {
        "median": float(np.median(values)),
        "min": min(values),
        "max": max(values),
        "all": list(values),
    }


def task_result(task: SuiteTask, trials: Trials) -> dict[str, dict[str, Any]]:
    """Each metric over seeds; `score` is the mean of a task's metrics, as GLUE has it.

    The median is of each seed's own score, not the mean of the metrics' medians.
    """
    found = {name: spread([one["scores"][name] for one in trials]) for name in task.scores}
    means = [float(np.mean([one["scores"][name] for name in task.scores])) for one in trials]
    return {**found, _SCORE: spread(means)}


def is_above_constant(task: SuiteTask, trials: Trials) -> dict[str, bool]:
    """Whether a model scores more than any constant answer does, beyond doubt, by each metric.

    That is where the lower end of a score's 95% interval, the median of the seeds', is above it;
    the task's own score is where all its metrics are.
    """
    found = {}
    for name in task.scores:
        low = float(np.median([one["low"][name] for one in trials]))
        found[name] = low > max(trials[0]["constant"][name], 0.0)
    return {**found, _SCORE: all(found.values())}


def averages(medians: Mapping[str, float]) -> dict[str, float | None]:
    """The mean of tasks' scores, with and without WNLI; None of no task.

    Most leave WNLI out: few models are above its commonest label (Devlin et al. 2019, section 4.1).
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
    """A model's medians as shares of the baseline's.

    Args:
        own, base: task -> `task_result`, of the model and of the baseline.
        sure: task -> `is_above_constant` of the baseline.

    Returns:
        `tasks`: task -> metric -> share, None where the baseline is not sure to be above a constant
        answer. `overall`: of the averages, `all` and `without_wnli` as papers print them, which
        hold what both models have by chance; `above_constant` of the tasks alone where the baseline
        is above.
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
    """A model's part of a suite's result."""
    return {"tasks": dict(tasks), "average": averages(_medians(tasks))}


def _share(own: float | None, base: float | None) -> float | None:
    return None if own is None or base is None or base <= 0 else own / base
