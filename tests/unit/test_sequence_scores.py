"""What the report shows of labels and values: which examples, and in which order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from potstill.sequence_scores import label_examples, multi_label_examples, value_examples


def sides(gold: Any) -> Any:
    return SimpleNamespace(texts=[(f"text {n}",) for n in range(len(gold))], gold=np.array(gold))


def logits(*probabilities: float) -> np.ndarray:
    """Of two labels, the second one with this probability."""
    return np.array([[0.0, np.log(p / (1 - p))] for p in probabilities])


def test_labels_the_surest_first() -> None:
    base, other = logits(0.9, 0.6, 0.8, 0.95), logits(0.2, 0.3, 0.9, 0.01)
    found = label_examples(base, other, sides([1, 0, 1, 1]), ["no", "yes"], 2)
    # how sure the less sure of both is: 0.8, 0.6, (agree), 0.95
    assert [example["query"] for example in found] == ["text 3", "text 0"]
    assert found[1]["expected"] == "yes"
    assert found[1]["teacher"] == {"top": "yes", "p": pytest.approx(0.9)}
    assert found[1]["student"] == {"top": "no", "p": pytest.approx(0.8)}


def test_many_labels_the_surest_first() -> None:
    base = np.array([[3.0, -1.0], [2.0, 2.0]])
    other = np.array([[-2.0, -4.0], [1.0, -0.5]])
    found = multi_label_examples(base, other, sides([[1, 0], [0, 1]]), ["a", "b"], 9)
    assert [example["query"] for example in found] == ["a? text 0", "b? text 1"]
    # sigmoid(3) = 0.9526, sigmoid(-2) = 0.1192
    assert found[0]["teacher"] == {"top": "given", "p": pytest.approx(0.9526, abs=1e-4)}
    assert found[0]["student"] == {"top": "not given", "p": pytest.approx(0.1192, abs=1e-4)}
    assert [example["expected"] for example in found] == ["given", "given"]


def test_values_the_most_different_first() -> None:
    base, other = np.array([[1.0], [2.0], [3.0]]), np.array([[1.5], [2.0], [1.0]])
    found = value_examples(base, other, sides([1.25, 2.0, 2.5]), 9)
    assert [example["query"] for example in found] == ["text 2", "text 0"]
    assert found[0] == {
        "query": "text 2",
        "expected": "2.500",
        "teacher": {"top": "3.000"},
        "student": {"top": "1.000"},
    }
