"""Medians, averages and shares of a suite, all computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from potstill.suites.catalog import suite_tasks
from potstill.suites.scores import (
    averages,
    is_above_constant,
    model_result,
    retention,
    spread,
    task_result,
)

[MRPC] = suite_tasks("glue", ["mrpc"])
[RTE] = suite_tasks("glue", ["rte"])


def trial(accuracy: float, f1: float, low: tuple[float, float] = (0.7, 0.83)) -> dict[str, Any]:
    return {
        "scores": {"accuracy": accuracy, "f1": f1},
        "low": dict(zip(("accuracy", "f1"), low, strict=True)),
        "constant": {"accuracy": 0.68, "f1": 0.81},
    }


def test_the_median_of_an_odd_and_of_an_even_number() -> None:
    assert spread([0.5, 0.9, 0.6]) == {
        "median": 0.6,
        "min": 0.5,
        "max": 0.9,
        "all": [0.5, 0.9, 0.6],
    }
    assert spread([0.5, 0.9, 0.6, 0.7])["median"] == pytest.approx(0.65)


def test_a_task_of_two_metrics_scores_their_mean() -> None:
    found = task_result(MRPC, [trial(0.8, 0.9), trial(0.7, 0.84), trial(0.82, 0.86)])
    assert found["accuracy"]["median"] == 0.8
    assert found["f1"]["median"] == 0.86
    # seeds score 0.85, 0.77 and 0.84: not the mean of the medians, which is 0.83
    assert found["score"]["all"] == pytest.approx([0.85, 0.77, 0.84])
    assert found["score"]["median"] == pytest.approx(0.84)


def test_above_a_constant_answer_by_each_metric() -> None:
    # lower ends of accuracy 0.70, 0.66, 0.69: the median 0.69 is above 0.68; of F1 0.80 is not
    trials = [trial(0.8, 0.9, low) for low in ((0.70, 0.83), (0.66, 0.79), (0.69, 0.80))]
    assert is_above_constant(MRPC, trials) == {"accuracy": True, "f1": False, "score": False}


def test_a_negative_correlation_is_not_above_a_constant_answer() -> None:
    [cola] = suite_tasks("glue", ["cola"])
    one = {"low": {"matthews": -0.1}, "constant": {"matthews": 0.0}}
    assert not is_above_constant(cola, [one])["score"]


def test_averages_with_and_without_wnli() -> None:
    # DistilBERT's row of Sanh et al. 2019, table 1, whose average is 77.0
    scores = {
        "cola": 51.3,
        "mnli": 82.2,
        "mrpc": 87.5,
        "qnli": 89.2,
        "qqp": 88.5,
        "rte": 59.9,
        "sst2": 91.3,
        "stsb": 86.9,
        "wnli": 56.3,
    }
    found = averages(scores)
    assert found["all"] == pytest.approx(693.1 / 9)
    assert found["all"] == pytest.approx(77.0, abs=0.05)
    assert found["without_wnli"] == pytest.approx(636.8 / 8)
    assert averages({}) == {"all": None, "without_wnli": None}
    assert averages({"wnli": 0.5}) == {"all": 0.5, "without_wnli": None}


def one(score: float) -> dict[str, Any]:
    return {"accuracy": {"median": score}, "score": {"median": score}}


def test_shares_of_the_baseline() -> None:
    own = {"qnli": one(0.8), "rte": one(0.54), "wnli": one(0.56)}
    base = {"qnli": one(0.9), "rte": one(0.6), "wnli": one(0.5)}
    sure = {name: {"accuracy": name != "wnli", "score": name != "wnli"} for name in base}
    found = retention(own, base, sure)
    assert found["tasks"]["qnli"] == pytest.approx({"accuracy": 8 / 9, "score": 8 / 9})
    assert found["tasks"]["wnli"] == {"accuracy": None, "score": None}
    assert found["overall"] == pytest.approx(
        {"all": 1.9 / 2.0, "without_wnli": 1.34 / 1.5, "above_constant": 1.34 / 1.5}
    )


def test_no_share_where_the_baseline_is_nowhere_above_a_constant_answer() -> None:
    scores, sure = {"rte": one(0.5)}, {"rte": {"accuracy": False, "score": False}}
    found = retention(scores, scores, sure)
    assert found == {
        "tasks": {"rte": {"accuracy": None, "score": None}},
        "overall": {"all": None, "without_wnli": None, "above_constant": None},
    }


def test_a_models_part() -> None:
    tasks = {"rte": one(0.6), "wnli": one(0.5)}
    assert model_result(tasks) == {
        "tasks": tasks,
        "average": {"all": pytest.approx(0.55), "without_wnli": pytest.approx(0.6)},
    }
