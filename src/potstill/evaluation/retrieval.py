"""Rank passages, correlate spaces and probe vectors, with numpy, scipy and scikit-learn only.

Q queries, P passages, N items, D width. Scores of pairs of texts exist only in blocks of rows, so
that memory grows with the number of texts and not with its square.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from potstill.tasks.metrics import Array, Scored, mean

BLOCK = 2_000_000  # scores of pairs of texts that exist at a time
FOLDS = 5  # of a probe's cross-validation

Block = tuple[slice, Array]  # rows of a matrix of scores, and the scores there


# --- retrieval ------------------------------------------------------------------------------------


def target_ranks(scores_QP: Array, target_Q: Array) -> Array:
    """Return each query's rank of its right passage, from 1: how many do not score strictly lower.

    Ties and NaN count against the model, so that a collapsed model, to which all passages look
    alike, ranks last and not first.
    """
    target_scores_Q1 = np.take_along_axis(scores_QP, np.asarray(target_Q)[:, None], axis=1)
    ranks: Array = scores_QP.shape[1] - (scores_QP < target_scores_Q1).sum(axis=1)
    return ranks


def own_ranks(blocks: Iterator[Block]) -> tuple[Array, Array]:
    """Return the rank of each query's own passage, and the index of its highest-scoring passage.

    The i-th query belongs to the i-th passage; ranks as `target_ranks`.
    """
    ranks, tops = [], []
    for rows, scores_BP in blocks:
        ranks.append(target_ranks(scores_BP, np.arange(rows.start, rows.stop)))
        tops.append(scores_BP.argmax(axis=1))
    return np.concatenate(ranks), np.concatenate(tops)


def cosine_blocks(queries_QD: Array, passages_PD: Array) -> Iterator[Block]:
    """Yield cosine similarities of queries (rows) and passages, in the vectors' precision."""
    queries, passages = unit_rows(queries_QD), unit_rows(passages_PD)
    for rows in _row_blocks(len(queries), len(passages)):
        yield rows, queries[rows] @ passages.T


def unit_rows(vectors_ND: Array) -> Array:
    """Divide each row by its Euclidean norm; a row of zeros stays one."""
    norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit: Array = vectors_ND / np.maximum(norms_N1, 1e-12)
    return unit


def _row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Yield consecutive rows of a matrix, at most BLOCK values at a time but at least one row."""
    height = max(1, BLOCK // max(1, columns))
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))


def mean_reciprocal_rank(ranks_Q: Array) -> Scored:
    """Return the mean of 1 / rank; ranks count from 1."""
    return mean(1.0 / ranks_Q)


def recall_at_k(ranks_Q: Array, k: int) -> Scored:
    """Return the fraction of queries whose right passage is among the first k."""
    return mean(ranks_Q <= k)


def tfidf_retrieval(queries: Sequence[str], passages: Sequence[str]) -> Iterator[Block]:
    """Yield cosines of TF-IDF vectors of queries (rows) and passages, whose words have the idf."""
    vectorizer = TfidfVectorizer(sublinear_tf=True)
    passages_VP = vectorizer.fit_transform(passages).T
    queries_QV = vectorizer.transform(queries)
    for rows in _row_blocks(len(queries), len(passages)):
        yield rows, (queries_QV[rows] @ passages_VP).toarray()


# --- embeddings -----------------------------------------------------------------------------------


def similarity_correlation(a_ND: Array, b_ND: Array) -> float:
    """Return Pearson's correlation of two spaces' cosine similarities, over all pairs of texts.

    It measures how far relations between embeddings are preserved; the spaces may differ in width.
    It is 0 where one space is collapsed (all its similarities are equal).
    """
    assert len(a_ND) == len(b_ND) >= 3, "the same three texts at least, in both spaces"
    spaces = [unit_rows(np.asarray(vectors_ND, dtype=np.float64)) for vectors_ND in (a_ND, b_ND)]
    # Running means and co-moments: Chan, Golub and LeVeque 1979, "Updating formulae and a
    # pairwise algorithm for computing sample variances".
    count, means_2, moments_22 = 0, np.zeros(2), np.zeros((2, 2))
    for rows in _row_blocks(len(a_ND) - 1, len(a_ND)):
        after = rows.start + 1  # the upper triangle, diagonal excluded, has only later columns
        pairs = ~np.tri(rows.stop - rows.start, len(a_ND) - after, k=-1, dtype=bool)
        cosines_2M = np.stack([(unit[rows] @ unit[after:].T)[pairs] for unit in spaces])
        size = cosines_2M.shape[1]
        block_means_2 = cosines_2M.mean(axis=1)
        cosines_2M -= block_means_2[:, None]
        shift_2 = block_means_2 - means_2
        weight = count * size / (count + size)
        moments_22 += cosines_2M @ cosines_2M.T + weight * np.outer(shift_2, shift_2)
        means_2 += shift_2 * size / (count + size)
        count += size
    deviations_2 = np.sqrt(np.diag(moments_22) / count)
    if deviations_2.min() < 1e-9:
        return 0.0
    correlation = moments_22[0, 1] / count / deviations_2.prod()
    return float(np.clip(correlation, -1, 1))


# --- probes ---------------------------------------------------------------------------------------


def probe_correct(features_ND: Array, labels_N: Array, *, seed: int) -> Array:
    """Return whether a linear probe gets each held-out item right [N]; the mean is the accuracy.

    The probe is logistic regression on features standardized with the training folds' statistics,
    in shuffled, stratified cross-validation. Raises as `check_labels`.
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return _cross_validated(probe, features_ND, labels_N, seed)


def tfidf_probe(texts: Sequence[str], labels_N: Array, *, seed: int) -> Array:
    """Probe TF-IDF vectors, fitted on the training folds alone, as `probe_correct` does."""
    probe = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=1000))
    return _cross_validated(probe, np.array(texts, dtype=object), labels_N, seed)


def check_labels(labels_N: Array) -> None:
    """Refuse labels, one of which has too few items to cross-validate."""
    counts = sorted(np.unique(labels_N, return_counts=True)[1].tolist(), reverse=True)
    if len(counts) < 2 or counts[0] < FOLDS or counts[1] < 2:
        raise ValueError(
            "evaluate.label: the most frequent labels have "
            f"{' and '.join(map(str, counts[:2])) or 'no'} records, and a linear probe in {FOLDS} "
            f"folds needs {FOLDS} records of one label and 2 of another. Hold out more text, or "
            "remove evaluate.label."
        )


def _cross_validated(probe: Any, inputs: Array, labels_N: Array, seed: int) -> Array:
    check_labels(labels_N)
    splits = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # a label rarer than the folds is merely absent from some of them
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        correct: Array = cross_val_predict(probe, inputs, labels_N, cv=splits) == labels_N
    return correct
