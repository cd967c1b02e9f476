"""Scores of tasks, each as a function of sums over items, so that intervals need no second pass.

A metric is what each item adds (its statistics) and a formula of their means. A bootstrap then only
weighs the items anew, and a score that is no mean of items (F1, a correlation) has an interval all
the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats
from sklearn.feature_extraction.text import TfidfVectorizer

from potstill.data.sequences import E
from potstill.recipe import Task

Array = np.ndarray

# Of the distribution that the report shows softened.
TEMPERATURES = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Scored:
    """One model's answers by one metric.

    Attributes:
        items_NS: what each of N items adds.
        formula: means [... x S] -> score [...].
    """

    items_NS: Array
    formula: Callable[[Array], Array]

    @property
    def value(self) -> float:
        return float(self.formula(self.items_NS.mean(axis=0)))


@dataclass(frozen=True, eq=False)
class Case(Generic[E]):
    """The examples that answers are scored on.

    Attributes:
        labels: names, in the order of the outputs.
        train: what trivial means learn from, where there is something.
        own: model -> `test` as its own tokenizer cuts the texts, where that is another one.
    """

    task: Task
    labels: Sequence[str]
    test: Examples
    train: Examples | None = None
    own: Mapping[str, Examples] = field(default_factory=dict)

    def first(self, most: int) -> Case:
        """The same with at most so many examples to score."""
        own = {name: examples.first(most) for name, examples in self.own.items()}
        return replace(self, test=self.test.first(most), own=own)


def best_constant(
    classes: int, count: int, scores: Callable[[Array], Mapping[str, Scored]]
) -> dict[str, float]:
    """The most that always giving one label scores, by metric.

    Args:
        count: how many outputs there are.
        scores: of outputs [count x classes].
    """
    each = [scores(np.tile(one, (count, 1))) for one in np.eye(classes)]
    return {name: max(scored[name].value for scored in each) for name in each[0]}


# --- labels ---------------------------------------------------------------------------------------


def accuracy(gold_N: Array, predicted_N: Array) -> Scored:
    """The share of items whose label is right."""
    return mean((gold_N == predicted_N).astype(float))


def f1(gold_N: Array, predicted_N: Array) -> Scored:
    """F1 of the label 1, as GLUE reports it for MRPC and QQP: 2 tp / (2 tp + fp + fn)."""
    return micro_f1(gold_N[:, None] == 1, predicted_N[:, None] == 1)


def macro_f1(gold_N: Array, predicted_N: Array, classes: int) -> Scored:
    """The mean over classes of F1; a class that is neither there nor predicted counts 0."""
    return Scored(_by_class(gold_N, predicted_N, classes), _macro_f1)


def matthews(gold_N: Array, predicted_N: Array, classes: int) -> Scored:
    """Matthews' correlation of gold and prediction, CoLA's score; 0 where either never varies.

    Of several classes R_K (Gorodkin 2004).
    """
    return Scored(_by_class(gold_N, predicted_N, classes), _matthews)


def micro_f1(gold_NC: Array, predicted_NC: Array) -> Scored:
    """F1 over all (item, label) pairs of multi-label answers (bool)."""
    parts = [gold_NC & predicted_NC, gold_NC, predicted_NC]
    return Scored(np.stack([part.sum(axis=1) for part in parts], axis=1).astype(float), _f1)


def multi_label_macro_f1(gold_NC: Array, predicted_NC: Array) -> Scored:
    """The mean over labels of F1 of multi-label answers (bool)."""
    parts = [gold_NC & predicted_NC, gold_NC, predicted_NC]
    return Scored(np.concatenate(parts, axis=1).astype(float), _macro_f1)


def exact_match(gold_NC: Array, predicted_NC: Array) -> Scored:
    """The share of items whose labels are all right, none too many."""
    return mean((gold_NC == predicted_NC).all(axis=1).astype(float))


# --- entities and answers -------------------------------------------------------------------------


def overlap(counts_N3: Array) -> dict[str, Scored]:
    """F1, precision and recall over all items' entities.

    Args:
        counts_N3: of each item, the entities that are right, those that are there, those that are
            given.
    """
    items = counts_N3.astype(float)
    return {
        "f1": Scored(items, _f1),
        "precision": Scored(items, lambda m: _ratio(m[..., 0], m[..., 2])),
        "recall": Scored(items, lambda m: _ratio(m[..., 0], m[..., 1])),
    }


def ratio(counts_N2: Array) -> Scored:
    """A share over all items' parts: those that are right, and how many there are."""
    return Scored(counts_N2.astype(float), lambda m: _ratio(m[..., 0], m[..., 1]))


def mean(values_N: Array) -> Scored:
    """A score that is the mean of the items' own."""
    return Scored(values_N[:, None].astype(float), lambda means: means[..., 0])


# --- values ---------------------------------------------------------------------------------------


def pearson(gold_N: Array, predicted_N: Array) -> Scored:
    """Pearson's correlation; 0 where either never varies."""
    x, y = gold_N - gold_N.mean(), predicted_N - predicted_N.mean()
    return Scored(np.stack([x, y, x * x, y * y, x * y], axis=1), _correlation)


def spearman(gold_N: Array, predicted_N: Array) -> Scored:
    """Pearson's correlation of the ranks, ties sharing theirs.

    Resamples keep the ranks that items have among all.
    """
    return pearson(stats.rankdata(gold_N), stats.rankdata(predicted_N))


def mse(gold_N: Array, predicted_N: Array) -> Scored:
    """Mean squared error: the lower the better."""
    return mean((gold_N - predicted_N) ** 2)


# --- formulas -------------------------------------------------------------------------------------


def _by_class(gold_N: Array, predicted_N: Array, classes: int) -> Array:
    """[N x 3 classes]: both, gold, predicted."""
    every = np.arange(classes)
    gold_NC, predicted_NC = gold_N[:, None] == every, predicted_N[:, None] == every
    return np.concatenate([gold_NC & predicted_NC, gold_NC, predicted_NC], axis=1).astype(float)


def _f1(means: Array) -> Array:
    """Of both, gold, given: the harmonic mean of precision and recall."""
    return _ratio(2 * means[..., 0], means[..., 1] + means[..., 2])


def _macro_f1(means: Array) -> Array:
    both, gold, predicted = np.split(means, 3, axis=-1)
    found: Array = _ratio(2 * both, gold + predicted).mean(axis=-1)
    return found


def _matthews(means: Array) -> Array:
    both, gold, predicted = np.split(means, 3, axis=-1)
    right, chance = both.sum(-1), (gold * predicted).sum(-1)
    spread = (1 - (gold**2).sum(-1)) * (1 - (predicted**2).sum(-1))
    # the shares of a constant add up to 1 but for rounding
    return _ratio(right - chance, np.sqrt(np.where(spread < 1e-12, 0, spread)))


def _correlation(means: Array) -> Array:
    x, y, xx, yy, xy = (means[..., number] for number in range(5))
    spread = (xx - x * x) * (yy - y * y)
    return _ratio(xy - x * y, np.sqrt(np.clip(spread, 0, None)))


def _ratio(above: Any, below: Any) -> Array:
    """above / below, and 0 where nothing is below."""
    above, below = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    found: Array = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return found


def has_words(texts: Sequence[str]) -> bool:
    """Whether scikit-learn finds a word in any of them: two letters or digits at least."""
    words = TfidfVectorizer().build_analyzer()
    return any(words(text) for text in texts)


# --- distributions --------------------------------------------------------------------------------


def softmax(logits: ArrayLike, temperature: float) -> Array:
    """softmax(logits / temperature) along the last axis."""
    probabilities: Array = special.softmax(np.asarray(logits) / temperature, axis=-1)
    return probabilities


def softened(
    text: str, candidates: Sequence[str], base_C: Array, student_C: Array, shown: Array
) -> dict[str, Any]:
    """One text's distribution at several temperatures, and the student's, as result.json has it.

    Args:
        candidates: names of the classes that are `shown`, by their numbers.
        base_C, student_C: logits of all classes.
    """
    shares = {f"{t:g}": softmax(base_C, t)[shown].tolist() for t in TEMPERATURES}
    return {
        "text": text,
        "candidates": candidates,
        "temperatures": shares,
        "student": {"1": softmax(student_C, 1.0)[shown].tolist()},
    }
