"""Scores, their retention, and how sure one can be of it; numpy, scipy and scikit-learn only.

Q queries, P passages, N items, D width. What there is for each pair of texts exists in blocks of
rows only, so that memory grows with the number of texts and not with its square.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from potstill.tasks.metrics import Array
from potstill.tasks.score_names import metric_name

RESAMPLES = 2000  # of the bootstrap
BLOCK = 2_000_000  # scores of pairs of texts that exist at a time

Block = tuple[slice, Array]  # rows of a matrix of scores, and the scores there


# --- retrieval ------------------------------------------------------------------------------------


def target_ranks(scores_QP: Array, target_Q: Array) -> Array:
    """Rank of each query's right passage, from 1: how many passages do not score strictly lower.

    Ties count against the model, and so does NaN, so that a collapsed model, to which all passages
    look alike, ranks last and not first.
    """
    target_scores_Q1 = np.take_along_axis(scores_QP, np.asarray(target_Q)[:, None], axis=1)
    ranks: Array = scores_QP.shape[1] - (scores_QP < target_scores_Q1).sum(axis=1)
    return ranks


def own_ranks(blocks: Iterator[Block]) -> tuple[Array, Array]:
    """ranks_Q and tops_Q of all queries, of which the i-th belongs to the i-th passage: the rank of
    its passage (see `target_ranks`), and the number of the passage that scores highest.
    """
    ranks, tops = [], []
    for rows, scores_BP in blocks:
        ranks.append(target_ranks(scores_BP, np.arange(rows.start, rows.stop)))
        tops.append(scores_BP.argmax(axis=1))
    return np.concatenate(ranks), np.concatenate(tops)


def cosine_blocks(queries_QD: Array, passages_PD: Array) -> Iterator[Block]:
    """Cosine similarities of queries (rows) and passages, in the vectors' own precision."""
    queries, passages = unit_rows(queries_QD), unit_rows(passages_PD)
    for rows in _row_blocks(len(queries), len(passages)):
        yield rows, queries[rows] @ passages.T


def unit_rows(vectors_ND: Array) -> Array:
    """Each row divided by its Euclidean norm; a row of zeros stays one."""
    norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit: Array = vectors_ND / np.maximum(norms_N1, 1e-12)
    return unit


def _row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Consecutive rows of a matrix, at most BLOCK values at a time but a row at least."""
    height = max(1, BLOCK // max(1, columns))
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))


def mean_reciprocal_rank(ranks_Q: Array) -> float:
    """Mean of 1 / rank; ranks count from 1."""
    return float(np.mean(1.0 / ranks_Q))


def recall_at_k(ranks_Q: Array, k: int) -> float:
    """Share of queries whose right passage is among the first k."""
    return float(np.mean(ranks_Q <= k))


def tfidf_retrieval(queries: Sequence[str], passages: Sequence[str]) -> Iterator[Block]:
    """Cosines of TF-IDF vectors of queries (rows) and passages; document frequencies are counted
    on the passages.

    Raises:
        ValueError: (from scikit-learn) no passage has a word.
    """
    vectorizer = TfidfVectorizer(sublinear_tf=True)
    passages_VP = vectorizer.fit_transform(passages).T
    queries_QV = vectorizer.transform(queries)
    for rows in _row_blocks(len(queries), len(passages)):
        yield rows, (queries_QV[rows] @ passages_VP).toarray()


# --- embeddings -----------------------------------------------------------------------------------


def similarity_correlation(a_ND: Array, b_ND: Array) -> float:
    """Pearson correlation of two spaces' cosine similarities over all pairs of distinct texts.

    It says how far the relations between embeddings are preserved; the two may differ in width.
    0 where one space is collapsed (all its similarities are alike) and no correlation is defined.
    """
    assert len(a_ND) == len(b_ND) >= 3, "the same three texts at least, in both spaces"
    spaces = [unit_rows(np.asarray(vectors_ND, dtype=np.float64)) for vectors_ND in (a_ND, b_ND)]
    # Means and co-moments of what was seen, to which each block adds its own: Chan, Golub and
    # LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
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


def check_labels(labels_N: Array, folds: int = 5) -> None:
    """Refuse labels that `probe_correct` and `tfidf_probe` would refuse.

    Raises:
        ValueError: too few items of a label to cross-validate.
    """
    counts = sorted(np.unique(labels_N, return_counts=True)[1].tolist(), reverse=True)
    if len(counts) < 2 or counts[0] < folds or counts[1] < 2:
        raise ValueError(
            f"a linear probe in {folds} folds needs {folds} records of one label and 2 of another; "
            f"the commonest labels have {' and '.join(map(str, counts[:2])) or 'no'} records"
        )


def _cross_validated(probe: Any, inputs: Array, labels_N: Array, folds: int, seed: int) -> Array:
    check_labels(labels_N, folds)
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # a label rarer than the folds is merely absent from some of them
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        correct: Array = cross_val_predict(probe, inputs, labels_N, cv=splits) == labels_N
    return correct


# --- retention ------------------------------------------------------------------------------------


def retentions(
    items: Mapping[str, Mapping[str, Array]],
    baseline: str,
    seed: int,
    chance: Mapping[str, float],
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, list[float]]]]:
    """Retention of each score by each model but the baseline, and its 95% interval.

    Near chance a ratio says nothing: a student that guesses keeps all of a teacher that guesses.
    So a score has a retention only where the baseline is better than chance beyond doubt, that is
    where the lower end of its own 95% bootstrap interval (see `mean_interval`) is above chance.

    Args:
        items: score -> model -> one value for each item, the same items in the same order; a score
            is their mean, the higher the better. Losses have no retention.
        chance: score -> what guessing scores, for each score of `items`. Guessing a rank among P
            passages evenly has the mean reciprocal rank H(P) / P, where H(P) = 1 + 1/2 + ... + 1/P,
            and recall@1 1 / P; always naming the commonest label or token has its share.

    Returns:
        model -> score -> model's mean / baseline's mean, empty for a model where no score of the
        baseline is above chance; model -> score -> [low, high], without intervals that can't be
        told.
    """
    ratios: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, list[float]]] = {}
    for score, by_model in items.items():
        base_N = by_model[baseline]
        others = {name: values_N for name, values_N in by_model.items() if name != baseline}
        for name in others:
            ratios.setdefault(name, {})
        base_interval = mean_interval(base_N, seed) if others else None
        if base_interval is None or base_interval[0] <= chance[score]:
            continue
        for name, values_N in others.items():
            ratios[name][score] = float(np.mean(values_N) / np.mean(base_N))
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
    return _bootstrapped((student_N, teacher_N), _ratio_of_means, seed)


def mean_interval(values_N: Array, seed: int) -> tuple[float, float] | None:
    """95% interval of a mean: percentile bootstrap, of the very resamples of the items that
    `retention_interval` draws. None for a single item.
    """
    return _bootstrapped((values_N,), np.mean, seed)


def differences(
    score: str, items: Mapping[str, Array], student: str, seed: int
) -> dict[str, dict[str, Any]]:
    """A student's score less each other's, with the paired 95% interval (bootstrap of the items).

    Args:
        score: its name, such as `retrieval.mrr`.
        items: student and others -> one value for each item, the same items in the same order.

    Returns:
        other -> `score`, `metric` (the score's last part), `difference`, and `interval`, null for a
        single item.
    """
    mine_N = items[student]
    found = {}
    for name, values_N in items.items():
        if name != student:
            bounds = mean_interval(mine_N - values_N, seed)
            found[name] = {
                "score": score,
                "metric": score.partition(".")[2],
                "difference": float(np.mean(mine_N) - np.mean(values_N)),
                "interval": None if bounds is None else list(bounds),
            }
    return found


def not_beaten(
    differences: Mapping[str, Mapping[str, Any]],
    student: str,
    said: Mapping[str, str],
    sign: int = 1,
) -> list[str]:
    """What a reader must not miss: what a student does not beat, or not beyond doubt, in sentences.

    Args:
        differences: as `differences` gives them.
        said: other -> what it is called; of those that are not there the plain twin is meant.
        sign: -1 for a loss.
    """
    found = []
    for name, told in differences.items():
        other, bounds = said.get(name, f"{name}, trained without a teacher"), told["interval"]
        if sign * told["difference"] <= 0:
            found.append(f"{student} does not beat {other} ({metric_name(told['metric'])})")
        elif bounds is None or min(sign * bounds[0], sign * bounds[1]) <= 0:
            found.append(
                f"{student} is above {other}, but not beyond doubt: the 95% interval of the "
                f"difference in {metric_name(told['metric'])} includes 0"
            )
    return found


def _bootstrapped(
    samples: Sequence[Array], statistic: Callable[..., Any], seed: int
) -> tuple[float, float] | None:
    count = len(samples[0])
    if count < 2:
        return None
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # told by the None
        result = stats.bootstrap(
            samples,
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            # bounds the memory at 10 million values however many items there are
            batch=max(1, 10_000_000 // count),
            confidence_level=0.95,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    if not np.isfinite(result.bootstrap_distribution).all():
        return None
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _ratio_of_means(student: Array, teacher: Array, axis: int = -1) -> Any:
    return np.mean(student, axis=axis) / np.mean(teacher, axis=axis)
