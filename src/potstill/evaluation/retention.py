"""What a model retains of a baseline's score, and how sure that is: the one bootstrap.

A bootstrap weighs the items anew, so a score that is no mean of items (F1, a correlation) has an
interval all the same. The items, and so the resamples of a seed, are the same for all models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from potstill.tasks.metrics import Array, Scored
from potstill.tasks.results import Difference, Shares, Spans
from potstill.tasks.score_names import is_loss, metric_name

RESAMPLES = 2000
_BLOCK = 20_000_000  # weights that exist at a time

Runs = Sequence[Mapping[str, Scored]]  # of one model, a mapping of scores for each training


def resampled(scored: Sequence[Scored], seed: int) -> Array:
    """Scores [len(scored) x RESAMPLES] of resamples of the items, the same ones for all.

    The bootstrap of Efron 1979: a resample draws as many items as there are, with replacement.
    A single item has no resamples: NaN.
    """
    count = len(scored[0].items_NS)
    assert all(len(one.items_NS) == count for one in scored), "the same items"
    found = np.full((len(scored), RESAMPLES), np.nan)
    rng = np.random.default_rng(seed)
    block = max(1, min(RESAMPLES, _BLOCK // count))
    for start in range(0, RESAMPLES if count > 1 else 0, block):
        rows = slice(start, min(start + block, RESAMPLES))
        shares_N, size = np.full(count, 1 / count), rows.stop - start
        weights_RN = rng.multinomial(count, shares_N, size=size) / count
        for values_R, one in zip(found, scored, strict=True):
            values_R[rows] = one.formula(weights_RN @ one.items_NS)
    return found


def interval(values_R: Array) -> list[float] | None:
    """The middle 95% of resamples; None where one of them has no value."""
    if not np.isfinite(values_R).all():
        return None
    low, high = np.percentile(values_R, [2.5, 97.5])
    return [float(low), float(high)]


def values_of(found: Mapping[str, Scored]) -> dict[str, float]:
    """The value of each score."""
    return {metric: scored.value for metric, scored in found.items()}


def mean_score(runs: Runs, metric: str) -> float:
    """The mean of a model's trainings."""
    return float(np.mean([found[metric].value for found in runs]))


def mean_resampled(
    models: Mapping[str, Runs], metrics: Collection[str], seed: int
) -> dict[str, dict[str, Array]]:
    """metric -> model -> the mean score of its trainings in each resample of the items."""
    flat = [found[metric] for metric in metrics for runs in models.values() for found in runs]
    drawn = iter(resampled(flat, seed)) if flat else iter(())
    return {
        metric: {
            name: np.mean([next(drawn) for _ in runs], axis=0) for name, runs in models.items()
        }
        for metric in metrics
    }


def retentions(
    models: Mapping[str, Runs], baseline: str, chance: Mapping[str, float], seed: int
) -> tuple[Shares, Spans]:
    """model -> score -> share of the baseline's, and its 95% interval.

    Near chance a ratio says nothing: a student that guesses keeps all of a teacher that guesses.
    So a score has a retention only where the baseline is above guessing beyond doubt: the lower end
    of its own interval is above 0 and above what guessing scores.

    Args:
        models: name -> its trainings' scores by metric.
        chance: score, such as `retrieval.mrr` -> what guessing scores, of the scores that are
            wanted, in order; losses have no retention. Guessing a rank among P passages evenly has
            the mean reciprocal rank H(P) / P, where H(P) = 1 + 1/2 + ... + 1/P, and recall@1 1 / P;
            always naming the commonest label or token has its share.

    Returns:
        Both without scores that have none; a ratio without an interval has a resample in which the
        baseline scores 0.
    """
    others = [name for name in models if name != baseline]
    ratios: Shares = {name: {} for name in others if chance}
    intervals: Spans = {}
    metrics = {score: score.rpartition(".")[2] for score in chance}
    drawn = mean_resampled(models, metrics.values(), seed) if others else {}
    for score, metric in metrics.items() if others else ():
        base_R, base = drawn[metric][baseline], mean_score(models[baseline], metric)
        sure = interval(base_R)
        if sure is None or sure[0] <= max(chance[score], 0.0):
            continue
        for name in others:
            ratios[name][score] = mean_score(models[name], metric) / base
            with np.errstate(divide="ignore", invalid="ignore"):  # a resample may score 0
                found = interval(drawn[metric][name] / base_R)
            if found is not None:
                intervals.setdefault(name, {})[score] = found
    return ratios, intervals


def differences(
    score: str, models: Mapping[str, Runs], student: str, seed: int
) -> dict[str, Difference]:
    """A student's score less each other's, with the paired 95% interval (bootstrap of the items).

    Args:
        score: its name, such as `retrieval.mrr`, or a task's metric.
        models: student and others -> their trainings' scores by metric.

    Returns:
        other -> `score` if it is more than the metric, `metric`, `difference`, and `interval`, null
        for a single item.
    """
    part, _, metric = score.rpartition(".")
    drawn, mine = (
        mean_resampled(models, [metric], seed)[metric],
        mean_score(models[student], metric),
    )
    found: dict[str, Difference] = {}
    for name, runs in models.items():
        if name != student:
            found[name] = {"score": score} if part else {}
            found[name] |= {
                "metric": metric,
                "difference": mine - mean_score(runs, metric),
                "interval": interval(drawn[student] - drawn[name]),
            }
    return found


def not_beaten(
    differences: Mapping[str, Difference], student: str, said: Mapping[str, str]
) -> list[str]:
    """What a reader must not miss: what a student does not beat, or not beyond doubt, in sentences.

    Args:
        said: other -> what it is called; of those that are not there the plain twin is meant.
    """
    found = []
    for name, told in differences.items():
        other, bounds = said.get(name, f"{name}, trained without a teacher"), told["interval"]
        sign = -1 if is_loss(told["metric"]) else 1
        if sign * told["difference"] <= 0:
            found.append(f"{student} does not beat {other} ({metric_name(told['metric'])})")
        elif bounds is None or min(sign * bounds[0], sign * bounds[1]) <= 0:
            found.append(
                f"{student} is above {other}, but not beyond doubt: the 95% interval of the "
                f"difference in {metric_name(told['metric'])} includes 0"
            )
    return found
