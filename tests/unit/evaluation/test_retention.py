"""Retention, intervals and differences against plain loops, formulas and results by hand."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import numpy as np
import pytest

from potstill.evaluation.retention import RESAMPLES, Runs, differences, retentions
from potstill.tasks import metrics
from potstill.tasks.metrics import Scored


def means(items: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Runs]:
    """metric -> model -> values of items, as models that were trained once."""
    names = list(next(iter(items.values())))
    return {
        name: [{metric: metrics.mean(values[name]) for metric, values in items.items()}]
        for name in names
    }


def ratio_interval(student_N: np.ndarray, teacher_N: np.ndarray) -> list[float] | None:
    runs = means({"top1": {"teacher": teacher_N, "student": student_N}})
    _, found = retentions(runs, "teacher", {"masked_lm.top1": 0.0}, 1)
    return found.get("student", {}).get("masked_lm.top1")


def percentile(values: list[float], share: float) -> float:
    """Linear between the two nearest of the sorted values."""
    ordered, place = sorted(values), share * (len(values) - 1)
    low = math.floor(place)
    return ordered[low] + (place - low) * (ordered[low + 1] - ordered[low])


def test_retention_and_differences_are_those_of_a_plain_loop() -> None:
    """Two trainings of the student; F1, which is no mean of items, and accuracy."""
    rng = np.random.default_rng(0)
    count, seed = 40, 5
    gold = [int(g) for g in rng.integers(0, 2, count)]
    chances = {"teacher": [0.1], "student": [0.2, 0.3], "plain": [0.4]}
    answers = {
        name: [[1 - g if rng.random() < wrong else g for g in gold] for wrong in each]
        for name, each in chances.items()
    }

    def scored(given: list[int]) -> dict[str, Scored]:
        both = np.array(gold), np.array(given)
        return {"accuracy": metrics.accuracy(*both), "f1": metrics.f1(*both)}

    runs = {name: [scored(given) for given in each] for name, each in answers.items()}

    def accuracy(given: list[int], counts: list[int]) -> float:
        return sum(c * (g == a) for c, g, a in zip(counts, gold, given, strict=True)) / count

    def f1(given: list[int], counts: list[int]) -> float:
        both = sum(c * g * a for c, g, a in zip(counts, gold, given, strict=True))
        either = sum(c * (g + a) for c, g, a in zip(counts, gold, given, strict=True))
        return 2 * both / either if either else 0.0

    drawn = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=RESAMPLES)
    for metric, formula in (("accuracy", accuracy), ("f1", f1)):

        def mean(name: str, counts: list[int], formula=formula) -> float:
            each = [formula(given, counts) for given in answers[name]]
            return sum(each) / len(each)

        value = {name: mean(name, [1] * count) for name in answers}
        draws = {name: [mean(name, counts) for counts in drawn.tolist()] for name in answers}
        kept, intervals = retentions(runs, "teacher", {f"classification.{metric}": 0.1}, seed)
        for name in ("student", "plain"):
            own = kept[name][f"classification.{metric}"]
            assert own == pytest.approx(value[name] / value["teacher"], abs=1e-12)
            ratios = [a / b for a, b in zip(draws[name], draws["teacher"], strict=True)]
            expected = [percentile(ratios, share) for share in (0.025, 0.975)]
            assert intervals[name][f"classification.{metric}"] == pytest.approx(expected, abs=1e-9)
        told = differences(metric, runs, "student", seed)
        assert list(told) == ["teacher", "plain"]
        for name, found in told.items():
            apart = [a - b for a, b in zip(draws["student"], draws[name], strict=True)]
            expected = [percentile(apart, share) for share in (0.025, 0.975)]
            assert found["difference"] == pytest.approx(value["student"] - value[name], abs=1e-12)
            assert found["interval"] == pytest.approx(expected, abs=1e-9)
            assert "score" not in found
            assert found["metric"] == metric


def test_retentions_by_hand() -> None:
    runs = means(
        {
            "mrr": {
                "teacher": np.array([1, 1, 0.5, 0.5]),
                "student": np.array([1, 0.5, 0.5, 0.25]),
                "plain": np.array([0.5, 0.5, 0.25, 0.25]),
            },
            "accuracy": {"teacher": np.zeros(4), "student": np.ones(4), "plain": np.ones(4)},
        }
    )
    chance = {"retrieval.mrr": 0.4, "topic_probe.accuracy": 0.0}
    retention, intervals = retentions(runs, "teacher", chance, 0)
    assert retention == {"student": {"retrieval.mrr": 0.75}, "plain": {"retrieval.mrr": 0.5}}
    # each item of the plain one is half the teacher's, so that every resample's ratio is 0.5
    assert intervals["plain"] == {"retrieval.mrr": [0.5, 0.5]}
    low, high = intervals["student"]["retrieval.mrr"]
    assert 0.5 <= low < 0.75 < high <= 1


def test_a_baseline_near_chance_has_no_retention() -> None:
    """60 of 100 right: the interval is 0.6 +- 1.96 * sqrt(0.6 * 0.4 / 100), so from 0.504."""
    runs = means({"top1": {"student": np.ones(100), "teacher": np.arange(100) < 60}})

    def kept(chance: float) -> tuple[dict[str, dict[str, float]], set[str]]:
        retention, intervals = retentions(runs, "teacher", {"top1": chance}, 0)
        return retention, set(intervals)

    assert kept(0.53) == ({"student": {}}, set())
    assert kept(0.47) == ({"student": {"top1": pytest.approx(1 / 0.6)}}, {"student"})
    alone = means({"top1": {"teacher": np.ones(100)}})
    assert retentions(alone, "teacher", {"top1": 0.0}, 0) == ({}, {})


def test_a_single_item_has_no_retention() -> None:
    runs = means({"top1": {"teacher": np.ones(1), "student": np.ones(1)}})
    assert retentions(runs, "teacher", {"top1": 0.0}, 0) == ({"student": {}}, {})
    assert differences("a.top1", runs, "student", 0) == {
        "teacher": {"score": "a.top1", "metric": "top1", "difference": 0.0, "interval": None}
    }


def test_an_interval_is_the_normal_one_and_of_the_same_resamples() -> None:
    values_N = np.random.default_rng(0).normal(3, 2, size=2000)
    runs = means({"top1": {"student": values_N, "nothing": np.zeros(2000)}})
    bounds = differences("top1", runs, "student", 1)["nothing"]["interval"]
    half = 1.96 * values_N.std() / np.sqrt(2000)
    assert bounds is not None
    assert bounds[0] == pytest.approx(values_N.mean() - half, abs=0.15 * half)
    assert bounds[1] == pytest.approx(values_N.mean() + half, abs=0.15 * half)
    # the ratio to a score that is always 1 is the score itself
    assert ratio_interval(values_N, np.ones(2000)) == pytest.approx(bounds, rel=1e-12)


def test_a_ratio_s_interval_agrees_with_the_delta_method() -> None:
    generator = np.random.default_rng(0)
    teacher_N = generator.uniform(0.5, 1, size=2000)
    student_N = 0.9 * teacher_N + generator.normal(0, 0.1, size=2000)
    bounds = ratio_interval(student_N, teacher_N)
    assert bounds == ratio_interval(student_N, teacher_N)
    ratio = student_N.mean() / teacher_N.mean()
    # the ratio's error is that of the residuals student - ratio * teacher (delta method); were
    # the items not resampled in pairs, the interval would be about twice as wide
    half = 1.96 * (student_N - ratio * teacher_N).std() / teacher_N.mean() / np.sqrt(2000)
    assert bounds is not None
    assert bounds[0] == pytest.approx(ratio - half, abs=0.15 * half)
    assert bounds[1] == pytest.approx(ratio + half, abs=0.15 * half)


def test_a_ratio_has_no_interval_where_the_teacher_may_have_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the None says it: nothing more on the user's terminal
        assert ratio_interval(np.ones(4), np.array([1.0, 0, 0, 0])) is None
        # above chance as a whole, yet a few of 2000 resamples hold the one failure four times
        runs = means({"top1": {"teacher": np.array([1.0, 1, 1, 0]), "student": np.ones(4)}})
        retention, intervals = retentions(runs, "teacher", {"top1": 0.0}, 0)
    assert retention == {"student": {"top1": pytest.approx(4 / 3)}}
    assert intervals == {}
