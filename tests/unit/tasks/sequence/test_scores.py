"""What no model answers, and where two models differ, against counts by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score
from tiny_labels import examples

from potstill.data import Examples
from potstill.recipe import Task
from potstill.tasks.kinds import kind_of
from potstill.tasks.metrics import Case
from potstill.tasks.sequence.scores import commonest_labels


def given(task: Task, gold: np.ndarray) -> Examples:
    return replace(examples(task, len(gold)), gold=gold)


def shown_by(
    task: Task, base: np.ndarray, other: np.ndarray, side: Examples, labels: list[str], most: int
) -> list[Any]:
    return kind_of(task).show(base, other, Case(task, labels, side), most)


def references(task: Task, train: Examples, test: Examples) -> set[str]:
    return set(kind_of(task).references(Case(task, ["x", "y"], test, train), 1))


def test_the_constant_answer_of_several_labels_is_the_best_there_is() -> None:
    """No set of labels, given to every example, scores more on the examples it was chosen by."""
    rng = np.random.default_rng(0)
    gold = (rng.random((50, 4)) < [0.45, 0.1, 0.3, 0.02]).astype(int)
    side = given(Task.MULTI_LABEL, gold)
    found = commonest_labels(gold)
    scores = [
        f1_score(gold, np.tile([c in chosen for c in range(4)], (50, 1)), average="micro")
        for count in range(1, 5)
        for chosen in combinations(range(4), count)
    ]
    assert f1_score(gold, np.tile(found, (50, 1)), average="micro") == pytest.approx(max(scores))
    assert 0 < found.sum() < 4
    case = Case(Task.MULTI_LABEL, list("abcd"), side, side)
    answer = kind_of(Task.MULTI_LABEL).references(case, 1)["majority"]["micro_f1"]
    assert answer.value == pytest.approx(max(scores))


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.MULTI_LABEL, Task.REGRESSION])
def test_texts_without_a_word_have_no_tfidf(task: Task) -> None:
    gold = np.array([[1, 0], [0, 1]] * 2) if task == "multi_label" else np.array([0, 1] * 2)
    wordless = replace(given(task, gold), texts=[("?",), ("a",), ("!",), ("b c",)])
    assert references(task, wordless, wordless) == {"majority"}
    with_words = replace(wordless, texts=[("?",), ("oak",), ("!",), ("still",)])
    assert references(task, with_words, wordless) == {"majority", "tfidf"}


def test_labels_the_surest_first() -> None:
    # of two labels, the second one with these probabilities
    base, other = (
        np.array([[0.0, np.log(p / (1 - p))] for p in shares])
        for shares in ((0.9, 0.6, 0.8, 0.95), (0.2, 0.3, 0.9, 0.01))
    )
    side = given(Task.CLASSIFICATION, np.array([1, 0, 1, 1]))
    shown = shown_by(Task.CLASSIFICATION, base, other, side, ["no", "yes"], 2)
    # how sure the less sure of both is: 0.8, 0.6, (agree), 0.95
    assert [each["query"] for each in shown] == ["3", "0"]
    assert shown[1] == {
        "query": "0",
        "expected": "yes",
        "teacher": {"top": "yes", "p": pytest.approx(0.9)},
        "student": {"top": "no", "p": pytest.approx(0.8)},
    }


def test_labels_that_one_model_alone_gives_the_surest_first() -> None:
    base = np.array([[3.0, -1.0], [2.0, 2.0], [-4.0, 1.0]])
    other = np.array([[-2.0, -1.0], [2.0, -1.0], [3.0, 1.0]])
    side = given(Task.MULTI_LABEL, np.array([[1, 0], [0, 0], [0, 1]]))
    shown = shown_by(Task.MULTI_LABEL, base, other, side, ["a", "b"], 50)
    # less sure of the two: 3, 2 and 1 away from undecided
    assert [each["query"] for each in shown] == ["2", "0", "1"]
    assert shown[0] == {
        "query": "2",
        "expected": "not a",
        "teacher": {"top": "not a", "p": pytest.approx(1 / (1 + np.exp(-4.0)))},
        "student": {"top": "a", "p": pytest.approx(1 / (1 + np.exp(-3.0)))},
    }
    assert (shown[2]["expected"], shown[2]["teacher"]["top"]) == ("not b", "b")
    assert len(shown_by(Task.MULTI_LABEL, base, other, side, ["a", "b"], 2)) == 2


@pytest.mark.parametrize("task", [Task.REGRESSION, Task.SENTENCE_SIMILARITY])
def test_values_that_are_furthest_apart_come_first(task: Task) -> None:
    base, other = np.array([[0.0], [1.0], [2.0]]), np.array([[0.25], [3.0], [1.0]])
    side = given(task, np.array([0.0, 1.5, 2.0], dtype=np.float32))
    shown = shown_by(task, base, other, side, ["value"], 2)
    assert shown == [
        {
            "query": "1",
            "expected": "1.500",
            "teacher": {"top": "1.000"},
            "student": {"top": "3.000"},
        },
        {
            "query": "2",
            "expected": "2.000",
            "teacher": {"top": "2.000"},
            "student": {"top": "1.000"},
        },
    ]
