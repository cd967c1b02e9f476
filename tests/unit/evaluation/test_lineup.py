"""Who is compared with whom, and what is found, worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill.evaluation.lineup import Lineup, counted
from potstill.evaluation.retention import not_beaten, resampled
from potstill.tasks.metrics import mean

NAMES = ["student", "teacher", "plain"]


def lineup(**parts: str | None) -> Lineup:
    """The student was trained twice."""
    models = {name: [Path(name)] for name in NAMES}
    models["student"].append(Path("student-2"))
    return Lineup(models, "teacher", 3, **parts)


def means(items: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: [{"mrr": mean(values)}] for name, values in items.items()}


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
    beside = lineup(student="student", twin="plain")
    runs, references = means(items), means({"tfidf": other})
    found = beside.compare(runs, references, {}, "s.mrr", {})["differences"]
    assert list(found) == ["plain", "tfidf"]
    for name, values in (("plain", items["plain"]), ("tfidf", other)):
        assert found[name]["difference"] == pytest.approx((items["student"] - values).mean())
        assert (found[name]["score"], found[name]["metric"]) == ("s.mrr", "mrr")
        [drawn] = resampled([mean(items["student"] - values)], 3)
        assert found[name]["interval"] == pytest.approx(np.percentile(drawn, [2.5, 97.5]))
    assert beside.compare(runs, references, {}, None, {})["differences"] == {}


def test_retention_is_of_the_baseline() -> None:
    ones = np.array([1.0] * 30 + [0.0] * 10)
    halves = np.array([1.0] * 15 + [0.0] * 25)
    runs = means({"teacher": ones, "student": halves, "plain": ones})
    found = lineup().compare(runs, {}, {"s.mrr": 0.1}, None, {})
    assert found["retention"] == {"student": {"s.mrr": 0.5}, "plain": {"s.mrr": 1.0}}
    assert found["intervals"]["plain"]["s.mrr"] == [1.0, 1.0]
    above = lineup().compare(runs, {}, {"s.mrr": 0.9}, None, {})
    assert above["retention"] == {"student": {}, "plain": {}}


def test_what_a_comparison_leaves_in_a_result() -> None:
    runs = means({"teacher": np.ones(40), "student": np.zeros(40), "plain": np.ones(40)})
    beside = lineup(student="student", twin="plain")
    found = beside.compare(runs, means({"unigram": np.zeros(40) - 1}), {"s.mrr": 0.1}, "s.mrr", {})
    assert list(found) == ["retention", "intervals", "twin", "differences", "findings"]
    assert found == {
        "retention": {"student": {"s.mrr": 0.0}, "plain": {"s.mrr": 1.0}},
        "intervals": {"student": {"s.mrr": [0.0, 0.0]}, "plain": {"s.mrr": [1.0, 1.0]}},
        "twin": "plain",
        "differences": {
            "plain": {
                **{"score": "s.mrr", "metric": "mrr"},
                **{"difference": -1.0, "interval": pytest.approx([-1.0, -1.0])},
            },
            "unigram": {
                **{"score": "s.mrr", "metric": "mrr"},
                **{"difference": 1.0, "interval": pytest.approx([1.0, 1.0])},
            },
        },
        "findings": ["student does not beat plain, trained without distillation (MRR)"],
    }
    assert lineup().compare(runs, {}, {}, None, {})["twin"] is None


def test_findings_say_what_is_not_beaten() -> None:
    runs = means({"teacher": np.ones(40), "student": np.zeros(40), "plain": np.ones(40)})
    below = means({"unigram": np.zeros(40) - 1})
    said = {"unigram": "the commonest token"}
    beside = lineup(student="student", twin="plain")
    assert beside.compare(runs, below, {}, "s.mrr", said)["findings"] == [
        "student does not beat plain, trained without distillation (MRR)"
    ]
    equal = means({"unigram": np.zeros(40)})
    assert "does not beat the commonest token (MRR)" in " ".join(
        beside.compare(runs, equal, {}, "s.mrr", said)["findings"]
    )


def test_a_lower_loss_is_better() -> None:
    told: dict[str, Any] = {"metric": "mse", "difference": -0.3, "interval": [-0.4, -0.2]}
    said = {"unigram": "the commonest token"}
    assert not_beaten({"unigram": told}, "plain", said) == []
    assert not_beaten({"unigram": {**told, "metric": "top1"}}, "plain", said) == [
        "plain does not beat the commonest token (top-1 accuracy)"
    ]


def test_progress_is_the_share_of_all_texts() -> None:
    seen: list[float] = []
    advance = counted(8, seen.append)
    for count in (2, 4, 2):
        advance(count)
    assert seen == [0.25, 0.75, 1.0]
