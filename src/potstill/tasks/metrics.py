"""Compute scores of tasks, each as a formula of sums over items.

A metric is what each item adds (its statistics) and a formula of their means. A bootstrap only
changes the items' weights, so a score that is not a mean of items (F1, a correlation) has an
interval, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats
from sklearn.feature_extraction.text import TfidfVectorizer

from potstill.data.sequences import E
from potstill.recipe import Task

Array = np.ndarray

# Temperatures at which the report shows one distribution.
TEMPERATURES = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Scored:
    """Hold one model's answers by one metric.

    Attributes:
        items_NS: What each of N items adds.
        formula: Means [... x S] -> score [...].
    """

    items_NS: Array
    formula: Callable[[Array], Array]

    @property
    def value(self) -> float:
        return float(self.formula(self.items_NS.mean(axis=0)))


@dataclass(frozen=True, eq=False)
class Case(Generic[E]):
    """Hold the examples that answers are scored on.

    Attributes:
        labels: Names, in the order of the outputs.
        train: What trivial baselines learn from; None: there is nothing.
        own: Model -> `test` tokenized by the model's own tokenizer, where that is another.
    """

    task: Task
    labels: Sequence[str]
    test: E
    train: E | None = None
    own: Mapping[str, E] = field(default_factory=dict)

    def first(self, most: int) -> Self:
        """Keep only the first `most` examples to score."""
        own = {name: examples.first(most) for name, examples in self.own.items()}
        return replace(self, test=self.test.first(most), own=own)


def best_constant(
    classes: int, count: int, scores: Callable[[Array], Mapping[str, Scored]]
) -> dict[str, float]:
    """Return the best score of always giving the same label, by metric.

    `scores` scores outputs [count x classes].
    """
    each = [scores(np.tile(one, (count, 1))) for one in np.eye(classes)]
    return {name: max(scored[name].value for scored in each) for name in each[0]}


# --- labels ---------------------------------------------------------------------------------------


def accuracy(gold_N: Array, predicted_N: Array) -> Scored:
    """Return the fraction of items whose label is right."""
    return mean((gold_N == predicted_N).astype(float))


def f1(gold_N: Array, predicted_N: Array) -> Scored:
    """Return F1 of the label 1, as GLUE does for MRPC and QQP: 2 tp / (2 tp + fp + fn)."""
    return micro_f1(gold_N[:, None] == 1, predicted_N[:, None] == 1)


def macro_f1(gold_N: Array, predicted_N: Array, classes: int) -> Scored:
    """Return the mean F1 over classes; a class that is neither gold nor predicted counts 0."""
    return Scored(_by_class(gold_N, predicted_N, classes), _macro_f1)


def matthews(gold_N: Array, predicted_N: Array, classes: int) -> Scored:
    """Return Matthews' correlation, CoLA's score; 0 where gold or prediction never varies.

    For more than two classes it is R_K (Gorodkin 2004).
    """
    return Scored(_by_class(gold_N, predicted_N, classes), _matthews)


def micro_f1(gold_NC: Array, predicted_NC: Array) -> Scored:
    """Return F1 over all (item, label) pairs of multi-label answers (bool)."""
    parts = [gold_NC & predicted_NC, gold_NC, predicted_NC]
    return Scored(np.stack([part.sum(axis=1) for part in parts], axis=1).astype(float), _f1)


def multi_label_macro_f1(gold_NC: Array, predicted_NC: Array) -> Scored:
    """Return the mean F1 over labels of multi-label answers (bool)."""
    parts = [gold_NC & predicted_NC, gold_NC, predicted_NC]
    return Scored(np.concatenate(parts, axis=1).astype(float), _macro_f1)


def exact_match(gold_NC: Array, predicted_NC: Array) -> Scored:
    """Return the fraction of items with exactly the right labels."""
    return mean((gold_NC == predicted_NC).all(axis=1).astype(float))


# --- entities and answers -------------------------------------------------------------------------


def overlap(counts_N3: Array) -> dict[str, Scored]:
    """Return F1, precision and recall of entities, from counts of right, gold, predicted ones."""
    items = counts_N3.astype(float)
    return {
        "f1": Scored(items, _f1),
        "precision": Scored(items, lambda m: _ratio(m[..., 0], m[..., 2])),
        "recall": Scored(items, lambda m: _ratio(m[..., 0], m[..., 1])),
    }


def ratio(counts_N2: Array) -> Scored:
    """Return the fraction of right parts over all items; counts are right parts, and all parts."""
    return Scored(counts_N2.astype(float), lambda m: _ratio(m[..., 0], m[..., 1]))


def mean(values_N: Array) -> Scored:
    """Return the mean of the items' own values."""
    return Scored(values_N[:, None].astype(float), lambda means: means[..., 0])


# --- values ---------------------------------------------------------------------------------------


def pearson(gold_N: Array, predicted_N: Array) -> Scored:
    """Return Pearson's correlation; 0 where either never varies."""
    x, y = gold_N - gold_N.mean(), predicted_N - predicted_N.mean()
    return Scored(np.stack([x, y, x * x, y * y, x * y], axis=1), _correlation)


def spearman(gold_N: Array, predicted_N: Array) -> Scored:
    """Return Pearson's correlation of the ranks; tied items share the mean of theirs.

    Resamples keep the ranks that items have among all items.
    """
    return pearson(stats.rankdata(gold_N), stats.rankdata(predicted_N))


def mse(gold_N: Array, predicted_N: Array) -> Scored:
    """Return the mean squared error: lower is better."""
    return mean((gold_N - predicted_N) ** 2)


# --- formulas -------------------------------------------------------------------------------------


def _by_class(gold_N: Array, predicted_N: Array, classes: int) -> Array:
    """Return [N x 3 classes]: both, gold, predicted."""
    every = np.arange(classes)
    gold_NC, predicted_NC = gold_N[:, None] == every, predicted_N[:, None] == every
    return np.concatenate([gold_NC & predicted_NC, gold_NC, predicted_NC], axis=1).astype(float)


def _f1(means: Array) -> Array:
    """Return the harmonic mean of precision and recall, from both, gold, predicted."""
    return _ratio(2 * means[..., 0], means[..., 1] + means[..., 2])


def _macro_f1(means: Array) -> Array:
    both, gold, predicted = np.split(means, 3, axis=-1)
    found: Array = _ratio(2 * both, gold + predicted).mean(axis=-1)
    return found


def _matthews(means: Array) -> Array:
    both, gold, predicted = np.split(means, 3, axis=-1)
    right, chance = both.sum(-1), (gold * predicted).sum(-1)
    spread = (1 - (gold**2).sum(-1)) * (1 - (predicted**2).sum(-1))
    # the frequencies of a constant add up to 1, except for rounding
    return _ratio(right - chance, np.sqrt(np.where(spread < 1e-12, 0, spread)))


def _correlation(means: Array) -> Array:
    x, y, xx, yy, xy = (means[..., number] for number in range(5))
    spread = (xx - x * x) * (yy - y * y)
    return _ratio(xy - x * y, np.sqrt(np.clip(spread, 0, None)))


def _ratio(above: Any, below: Any) -> Array:
    """Return above / below, and 0 where below is 0."""
    above, below = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    found: Array = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return found


def has_words(texts: Sequence[str]) -> bool:
    """Check whether scikit-learn finds a word in any text: at least two letters or digits."""
    words = TfidfVectorizer().build_analyzer()
    return any(words(text) for text in texts)


# --- distributions --------------------------------------------------------------------------------


def softmax(logits: ArrayLike, temperature: float) -> Array:
    """Return softmax(logits / temperature) along the last axis."""
    probabilities: Array = special.softmax(np.asarray(logits) / temperature, axis=-1)
    return probabilities


def agreement(outputs_NC: Array, base_NC: Array) -> dict[str, float]:
    """Compute how alike the labels are that two models give, right or wrong."""
    log_s, log_t = special.log_softmax(outputs_NC, axis=1), special.log_softmax(base_NC, axis=1)
    kl_N = (np.exp(log_t) * (log_t - log_s)).sum(axis=1)
    same_N = outputs_NC.argmax(axis=1) == base_NC.argmax(axis=1)
    return {"top1": float(same_N.mean()), "kl": float(kl_N.mean())}


def differing(
    base_NC: Array, other_NC: Array, labels: Sequence[str], most: int
) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
    """Yield rows to which two models give different labels, and both labels, the surest first."""
    p_t, p_s = softmax(base_NC, 1.0), softmax(other_NC, 1.0)
    top_t, top_s = base_NC.argmax(axis=1), other_NC.argmax(axis=1)
    rows = np.flatnonzero(top_t != top_s)
    sure_N = np.minimum(p_t.max(axis=1), p_s.max(axis=1))
    for n in rows[np.argsort(-sure_N[rows], kind="stable")][:most].tolist():
        first = {"top": labels[int(top_t[n])], "p": float(p_t[n].max())}
        yield n, first, {"top": labels[int(top_s[n])], "p": float(p_s[n].max())}


def softened(
    text: str, candidates: Sequence[str], base_C: Array, student_C: Array, shown: Array
) -> dict[str, Any]:
    """Return one text's distribution at several temperatures, and the student's, for result.json.

    `candidates` are the names of the `shown` ones among the C classes, whose logits are given.
    """
    shares = {f"{t:g}": softmax(base_C, t)[shown].tolist() for t in TEMPERATURES}
    return {
        "text": text,
        "candidates": candidates,
        "temperatures": shares,
        "student": {"1": softmax(student_C, 1.0)[shown].tolist()},
    }
