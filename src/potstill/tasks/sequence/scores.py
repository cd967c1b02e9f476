"""Decode labels of texts, and answer with TF-IDF or the most frequent labels alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import confusion_matrix
from sklearn.pipeline import make_pipeline

from potstill.data import Examples
from potstill.tasks import metrics
from potstill.tasks.rows import Names


@dataclass(frozen=True)
class Chosen:
    """Hold a text's labels, most likely first, with their probabilities (T = 1).

    Of multi-label each is the label's own, whatever the others are.
    """

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]


def chosen(shares_NC: np.ndarray, names: Names) -> list[Chosen]:
    """Return each text's labels by their probabilities."""
    found = []
    for shares_C in shares_NC:
        order = np.argsort(-shares_C, kind="stable")
        ordered = tuple(names[number] for number in order)
        found.append(Chosen(ordered, tuple(shares_C[order].tolist())))
    return found


def tfidf_answers(
    train: Examples,
    test: Examples,
    model: Any,
    answers: Callable[[Any, list[str]], np.ndarray],
) -> np.ndarray | None:
    """Return the answers of a linear model on TF-IDF, [N x C]; None where no text has a word."""
    texts, asked = ([" \n ".join(one) for one in side.texts] for side in (train, test))
    if not metrics.has_words(texts):
        return None
    features = TfidfVectorizer(sublinear_tf=True, min_df=1, ngram_range=(1, 2))
    return answers(make_pipeline(features, model).fit(texts, train.gold), asked)


def tfidf_cosines(first: Sequence[str], second: Sequence[str]) -> np.ndarray:
    """Return the cosine of each pair's TF-IDF vectors [N], with the idf of these texts."""
    vectorizer = TfidfVectorizer(sublinear_tf=True).fit([*first, *second])
    both = [vectorizer.transform(texts) for texts in (first, second)]
    return np.asarray(both[0].multiply(both[1]).sum(axis=1)).ravel()


def commonest_labels(gold_NC: np.ndarray) -> np.ndarray:
    """Return the most frequent labels whose micro F1 for every example is best: bool [C]."""
    order = np.argsort(-gold_NC.sum(axis=0), kind="stable")
    right = gold_NC.sum(axis=0)[order].cumsum()
    f1 = 2 * right / (len(gold_NC) * np.arange(1, len(order) + 1) + right[-1])
    chosen = np.zeros(len(order), dtype=bool)
    chosen[order[: int(f1.argmax()) + 1]] = True
    return chosen


def confusion(outputs_NC: np.ndarray, test: Examples) -> list[list[int]]:
    """Count examples of each label (rows) that were given each label (columns)."""
    classes = range(outputs_NC.shape[1])
    counts: list[list[int]] = confusion_matrix(
        test.gold, outputs_NC.argmax(axis=1), labels=classes
    ).tolist()
    return counts


def softened(base: np.ndarray, other: np.ndarray, test: Examples, labels: Names) -> dict[str, Any]:
    """Return one example's distribution over the labels at several temperatures."""
    most_N = metrics.softmax(base, 1.0).max(axis=1)
    chosen = int(np.abs(most_N - 0.7).argmin())  # sure, yet not so sure that nothing is to be seen
    shown = np.argsort(-base[chosen], kind="stable")[:8]
    text, names = " | ".join(test.texts[chosen]), [labels[number] for number in shown]
    return metrics.softened(text, names, base[chosen], other[chosen], shown)
