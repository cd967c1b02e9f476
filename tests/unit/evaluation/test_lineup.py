"""Who is compared with whom, and the common part of a result, worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill.evaluation import retention
from potstill.evaluation.lineup import Compared, Lineup

NAMES = ["student", "teacher", "plain"]


def lineup(**parts: str | None) -> Lineup:
    """The student was trained twice."""
    models = {name: [Path(name)] for name in NAMES}
    models["student"].append(Path("student-2"))
    return Lineup(models, "teacher", 3, **parts)


def compared(differences: dict[str, Any], **others: Any) -> Compared:
    return Compared(
        task="masked_lm",
        records=7,
        models={"teacher": {}},
        references={"unigram": {}},
        retention={"student": {}},
        intervals={},
        differences=differences,
        said={"unigram": "the commonest token"},
        softened=None,
        examples=[{"query": "oak"}],
        **others,
    )


def test_the_baseline_comes_first() -> None:
    assert lineup().order == ["teacher", "student", "plain"]
    first = {"teacher": Path("teacher"), "student": Path("student"), "plain": Path("plain")}
    assert lineup().folders == first
    assert list(lineup().folders) == list(first)


def test_the_student_is_the_one_named_or_the_last() -> None:
    assert lineup(student="student").shown == "student"
    assert lineup().shown == "plain"
    # the last of the others, wherever the baseline stands
    both = {"student": [Path("s")], "teacher": [Path("t")]}
    assert Lineup(both, "teacher", 1).shown == "student"
    assert Lineup({"teacher": [Path("t")]}, "teacher", 1).shown == "teacher"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({}, ["plain"]),
        ({"student": "student"}, ["student"]),
        ({"student": "student", "twin": "plain"}, ["student", "plain"]),
        ({"student": "plain", "twin": "plain"}, ["plain"]),
        ({"twin": "plain"}, ["plain"]),
    ],
)
def test_a_student_is_not_compared_with_itself(parts: dict[str, str], expected: list[str]) -> None:
    assert lineup(**parts).compared == expected


@pytest.mark.parametrize("part", ["student", "twin"])
def test_every_part_is_played_by_a_model_that_is_there(part: str) -> None:
    with pytest.raises(AssertionError, match="no model nobody"):
        lineup(**{part: "nobody"})


def test_the_baseline_is_one_of_the_models() -> None:
    with pytest.raises(AssertionError, match="no model teacher"):
        Lineup({"student": [Path("s")]}, "teacher", 1)


def test_differences_are_from_the_twin_and_then_the_references() -> None:
    rng = np.random.default_rng(0)
    items = {name: rng.random(40) for name in NAMES}
    other = rng.random(40)
    found = lineup(student="student", twin="plain").differences("s.mrr", items, {"tfidf": other})
    assert list(found) == ["plain", "tfidf"]
    for name, values in (("plain", items["plain"]), ("tfidf", other)):
        assert found[name]["difference"] == pytest.approx((items["student"] - values).mean())
        assert (found[name]["score"], found[name]["metric"]) == ("s.mrr", "mrr")
        low, high = found[name]["interval"]
        assert (low, high) == retention.mean_interval(items["student"] - values, 3)


def test_retention_is_of_the_baseline() -> None:
    ones = np.array([1.0] * 30 + [0.0] * 10)
    halves = np.array([1.0] * 15 + [0.0] * 25)
    items = {"s.mrr": {"teacher": ones, "student": halves, "plain": ones}}
    kept, intervals = lineup().rank_retentions(items, {"s.mrr": 0.1})
    assert kept == {"student": {"s.mrr": 0.5}, "plain": {"s.mrr": 1.0}}
    assert intervals["plain"]["s.mrr"] == [1.0, 1.0]
    above, _ = lineup().rank_retentions(items, {"s.mrr": 0.9})
    assert above == {"student": {}, "plain": {}}


def test_the_common_part_of_a_result() -> None:
    differences = {
        "plain": {"metric": "top1", "difference": -0.1, "interval": [-0.2, 0.1]},
        "unigram": {"metric": "top1", "difference": 0.3, "interval": [0.2, 0.4]},
    }
    found = lineup(student="student", twin="plain").result(compared(differences))
    assert found == {
        "task": "masked_lm",
        "records": 7,
        "baseline": "teacher",
        "models": {"teacher": {}},
        "references": {"unigram": {}},
        "retention": {"student": {}},
        "intervals": {},
        "twin": "plain",
        "differences": differences,
        "findings": ["student does not beat plain, trained without a teacher (top-1 accuracy)"],
        "softened": None,
        "examples": [{"query": "oak"}],
    }
    assert lineup().result(compared({}))["twin"] is None


def test_a_lower_loss_is_better() -> None:
    differences = {"unigram": {"metric": "mse", "difference": -0.3, "interval": [-0.4, -0.2]}}
    assert lineup().result(compared(differences, is_loss=True))["findings"] == []
    assert lineup().result(compared(differences))["findings"] == [
        "plain does not beat the commonest token (mean squared error)"
    ]
