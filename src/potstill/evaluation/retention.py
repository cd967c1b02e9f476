"""What a model retains of a baseline's score, and how sure that is.

A bootstrap weighs the items anew, so a score that is no mean of items (F1, a correlation) has an
interval all the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from potstill.tasks.metrics import Array, Scored
from potstill.tasks.score_names import metric_name

# --- retention ------------------------------------------------------------------------------------


def rank_retentions(
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


RESAMPLES = 2000
_BLOCK = 20_000_000  # weights that exist at a time


def resampled(scored: Sequence[Scored], seed: int) -> Array:
    """Scores [len(scored) x RESAMPLES] of resamples of the items, the same ones for all.

    The bootstrap of Efron 1979: a resample draws as many items as there are, with replacement.
    """
    count = len(scored[0].items_NS)
    assert all(len(one.items_NS) == count for one in scored), "the same items"
    rng = np.random.default_rng(seed)
    found: list[list[Array]] = [[] for _ in scored]
    block = max(1, min(RESAMPLES, _BLOCK // count))
    for start in range(0, RESAMPLES, block):
        rows = min(block, RESAMPLES - start)
        weights_RN = rng.multinomial(count, np.full(count, 1 / count), size=rows) / count
        for values, one in zip(found, scored, strict=True):
            values.append(one.formula(weights_RN @ one.items_NS))
    return np.array([np.concatenate(values) for values in found])


def interval(values_R: Array) -> list[float] | None:
    """The middle 95% of resamples; None where one of them has no value."""
    if not np.isfinite(values_R).all():
        return None
    low, high = np.percentile(values_R, [2.5, 97.5])
    return [float(low), float(high)]


Runs = Sequence[Mapping[str, Scored]]  # of one model, a mapping of scores for each training


def mean_score(runs: Runs, metric: str) -> float:
    """The mean of a model's trainings."""
    return float(np.mean([found[metric].value for found in runs]))


def mean_resampled(models: Sequence[Runs], metric: str, seed: int) -> list[Array]:
    """Of each model, the mean score of its trainings in each resample of the items."""
    flat = [found[metric] for runs in models for found in runs]
    drawn = iter(resampled(flat, seed))
    return [np.mean([next(drawn) for _ in runs], axis=0) for runs in models]


def retentions(
    scored: Mapping[str, Runs], baseline: str, guesses: Mapping[str, float], prefix: str, seed: int
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, list[float]]]]:
    """model -> score -> share of the baseline's, and its 95% interval.

    Of scores where the baseline is above guessing beyond doubt: the lower end of its own interval
    is above 0 and above what guessing scores.

    Args:
        guesses: metric -> what guessing scores, of the metrics that are wanted, in order.
        prefix: of a score's name, before the metric's.
    """
    others = [name for name in scored if name != baseline]
    ratios: dict[str, dict[str, float]] = {name: {} for name in others}
    intervals: dict[str, dict[str, list[float]]] = {}
    for metric, guess in guesses.items():
        drawn = mean_resampled([scored[name] for name in (baseline, *others)], metric, seed)
        sure = interval(drawn[0])
        if sure is None or sure[0] <= max(guess, 0.0):
            continue
        for name, values_R in zip(others, drawn[1:], strict=True):
            key = f"{prefix}.{metric}"
            ratios[name][key] = mean_score(scored[name], metric) / mean_score(
                scored[baseline], metric
            )
            with np.errstate(divide="ignore", invalid="ignore"):  # a resample may score 0
                found = interval(values_R / drawn[0])
            if found is not None:
                intervals.setdefault(name, {})[key] = found
    return ratios, intervals
