"""Scores, their retention, and how sure one can be of it; numpy, scipy and scikit-learn only.

Q queries, P passages, N items, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Array = NDArray[Any]

# Of the distribution that the report shows softened.
TEMPERATURES = (0.5, 1.0, 2.0, 4.0)
RESAMPLES = 2000  # of the bootstrap

# --- retrieval ------------------------------------------------------------------------------------


def target_ranks(scores_QP: Array, target_Q: Array) -> Array:
    """Rank of each query's right passage, from 1: how many passages do not score strictly lower.

    Ties count against the model, and so does NaN, so that a collapsed model, to which all passages
    look alike, ranks last and not first.
    """
    target_scores_Q1 = np.take_along_axis(scores_QP, np.asarray(target_Q)[:, None], axis=1)
    ranks: Array = scores_QP.shape[1] - (scores_QP < target_scores_Q1).sum(axis=1)
    return ranks


def mean_reciprocal_rank(ranks_Q: Array) -> float:
    """Mean of 1 / rank; ranks count from 1."""
    return float(np.mean(1.0 / ranks_Q))


def recall_at_k(ranks_Q: Array, k: int) -> float:
    """Share of queries whose right passage is among the first k."""
    return float(np.mean(ranks_Q <= k))


def tfidf_retrieval(queries: Sequence[str], passages: Sequence[str]) -> Array:
    """scores_QP: cosine of TF-IDF vectors; document frequencies are counted on the passages.

    Raises:
        ValueError: (from scikit-learn) no passage has a word.
    """
    vectorizer = TfidfVectorizer(sublinear_tf=True)
    passages_PV = vectorizer.fit_transform(passages)
    scores: Array = (vectorizer.transform(queries) @ passages_PV.T).toarray()
    return scores


# --- embeddings -----------------------------------------------------------------------------------


def similarity_correlation(a_ND: Array, b_ND: Array) -> float:
    """Pearson correlation of two spaces' cosine similarities over all pairs of distinct texts.

    It says how far the relations between embeddings are preserved; the two may differ in width.
    0 where one space is collapsed (all its similarities are alike) and no correlation is defined.
    """
    assert len(a_ND) == len(b_ND) >= 3, "the same three texts at least, in both spaces"
    pairs = ~np.tri(len(a_ND), dtype=bool)  # the upper triangle, diagonal excluded
    a, b = _cosines(a_ND)[pairs], _cosines(b_ND)[pairs]
    if min(a.std(), b.std()) < 1e-9:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _cosines(vectors_ND: Array) -> Array:
    vectors = np.asarray(vectors_ND, dtype=np.float64)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines: Array = unit @ unit.T
    return cosines


# --- probes ---------------------------------------------------------------------------------------


def probe_correct(features_ND: Array, labels_N: Array, folds: int = 5, *, seed: int) -> Array:
    """Whether a linear probe gets each item right while the item is held out: correct_N, bool.

    Logistic regression on features standardised with the training folds' statistics, in shuffled,
    stratified cross-validation; the mean is the accuracy.

    Raises:
        ValueError: too few items of a label to cross-validate.
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return _cross_validated(probe, features_ND, labels_N, folds, seed)


def tfidf_probe(texts: Sequence[str], labels_N: Array, folds: int = 5, *, seed: int) -> Array:
    """`probe_correct` on TF-IDF vectors instead of features, fitted on the training folds alone.

    Raises:
        ValueError: too few items of a label to cross-validate.
    """
    probe = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=1000))
    return _cross_validated(probe, np.array(texts, dtype=object), labels_N, folds, seed)


def _cross_validated(probe: Any, inputs: Array, labels_N: Array, folds: int, seed: int) -> Array:
    counts = sorted(np.unique(labels_N, return_counts=True)[1].tolist(), reverse=True)
    if len(counts) < 2 or counts[0] < folds or counts[1] < 2:
        raise ValueError(
            f"a linear probe in {folds} folds needs {folds} records of one label and 2 of another; "
            f"the commonest labels have {' and '.join(map(str, counts[:2])) or 'no'} records"
        )
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # a label rarer than the folds is merely absent from some of them
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        correct: Array = cross_val_predict(probe, inputs, labels_N, cv=splits) == labels_N
    return correct


# --- distributions --------------------------------------------------------------------------------


def softmax(logits: ArrayLike, temperature: float) -> Array:
    """softmax(logits / temperature) along the last axis."""
    probabilities: Array = special.softmax(np.asarray(logits) / temperature, axis=-1)
    return probabilities


# --- retention ------------------------------------------------------------------------------------


def retentions(
    items: Mapping[str, Mapping[str, Array]], baseline: str, seed: int
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, list[float]]]]:
    """Retention of each score by each model but the baseline, and its 95% interval.

    Args:
        items: score -> model -> one value for each item, the same items in the same order; a score
            is their mean, the higher the better. Losses have no retention.

    Returns:
        model -> score -> model's mean / baseline's mean; model -> score -> [low, high]. A score of
        which the baseline has nothing is left out, and so is an interval that can't be told.
    """
    ratios: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, list[float]]] = {}
    for score, by_model in items.items():
        base_N = by_model[baseline]
        for name, values_N in by_model.items():
            if name == baseline or np.mean(base_N) <= 0:
                continue
            ratios.setdefault(name, {})[score] = float(np.mean(values_N) / np.mean(base_N))
            interval = retention_interval(values_N, base_N, seed)
            if interval is not None:
                intervals.setdefault(name, {})[score] = list(interval)
    return ratios, intervals


def retention_interval(student_N: Array, teacher_N: Array, seed: int) -> tuple[float, float] | None:
    """95% interval of mean(student) / mean(teacher): percentile bootstrap (Efron 1979) of pairs.

    None for a single item, and where a resample holds no success of the teacher, so that the
    ratio has no bound.
    """
    assert len(student_N) == len(teacher_N), "the same items"
    if len(student_N) < 2:
        return None
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # told by the None
        result = stats.bootstrap(
            (student_N, teacher_N),
            _ratio_of_means,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            # bounds the memory at 10 million values however many items there are
            batch=max(1, 10_000_000 // len(student_N)),
            confidence_level=0.95,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    if not np.isfinite(result.bootstrap_distribution).all():
        return None
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _ratio_of_means(student: Array, teacher: Array, axis: int = -1) -> Any:
    return np.mean(student, axis=axis) / np.mean(teacher, axis=axis)
