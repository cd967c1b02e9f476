"""Compute score retention and differences, with confidence intervals from one bootstrap.

A resample is a weight per item, so every score has an interval, a mean of items or not (F1, a
correlation). All models share the items, and so the resamples of a seed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from potstill.tasks.metrics import Array, Scored
from potstill.tasks.results import Difference, Shares, Spans
from potstill.tasks.score_names import is_loss, metric_name

RESAMPLES = 2000
_BLOCK = 20_000_000  # weights that exist at a time

Runs = Sequence[Mapping[str, Scored]]  # one model's scores by metric, a mapping per training


def resampled(scored: Sequence[Scored], seed: int) -> Array:
    """Return scores [len(scored) x RESAMPLES] of resamples of the items, the same for all.

    A resample draws N of the N items with replacement (Efron 1979). A single item has no
    resamples: its scores are NaN.
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
    """Return the middle 95% of the resamples' values; None if one of them is not finite."""
    if not np.isfinite(values_R).all():
        return None
    low, high = np.percentile(values_R, [2.5, 97.5])
    return [float(low), float(high)]


def values_of(found: Mapping[str, Scored]) -> dict[str, float]:
    """Return the value of each score."""
    return {metric: scored.value for metric, scored in found.items()}


def mean_score(runs: Runs, metric: str) -> float:
    """Return the mean over a model's trainings."""
    return float(np.mean([found[metric].value for found in runs]))


def mean_resampled(
    models: Mapping[str, Runs], metrics: Collection[str], seed: int
) -> dict[str, dict[str, Array]]:
    """Return metric -> model -> mean over its trainings in each resample of the items."""
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
    """Return model -> score -> ratio to the baseline's, and model -> score -> its 95% CI.

    Near chance a ratio means nothing: a student that guesses retains 100% of a teacher that
    guesses. A score has a retention only where the baseline is significantly better than guessing:
    the lower bound of its own interval is above 0 and above the score of guessing.

    Args:
        models: Name -> its trainings' scores by metric.
        chance: Score, such as `retrieval.mrr` -> the score of guessing, for the scores that are
            wanted, in order; losses have no retention. A uniformly random rank among P passages
            has the mean reciprocal rank H(P) / P, where H(P) = 1 + 1/2 + ... + 1/P, and recall@1
            1 / P; the majority class has its frequency.

    Returns:
        Both without the scores that have none; a ratio lacks an interval if the baseline scores 0
        in a resample.
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
    """Return the student's score minus each other's, with the paired 95% CI.

    Args:
        score: Names the score, such as `retrieval.mrr`, or a task's metric.
        models: Student and others -> their trainings' scores by metric.
    """
    part, _, metric = score.rpartition(".")
    drawn = mean_resampled(models, [metric], seed)[metric]
    mine = mean_score(models[student], metric)
    named: Difference = {"score": score} if part else {}
    return {
        name: {
            **named,
            "metric": metric,
            "difference": mine - mean_score(runs, metric),
            "interval": interval(drawn[student] - drawn[name]),
        }
        for name, runs in models.items()
        if name != student
    }


def not_beaten(
    differences: Mapping[str, Difference], student: str, said: Mapping[str, str]
) -> list[str]:
    """Report, in sentences, what the student does not beat, or not significantly.

    `said` has the others' names in a sentence; the one without is the twin.
    """
    found = []
    for name, told in differences.items():
        other, bounds = said.get(name, f"{name}, trained without distillation"), told["interval"]
        sign = -1 if is_loss(told["metric"]) else 1
        if sign * told["difference"] <= 0:
            found.append(f"{student} does not beat {other} ({metric_name(told['metric'])})")
        elif bounds is None or min(sign * bounds[0], sign * bounds[1]) <= 0:
            found.append(
                f"{student} scores better than {other}, but the difference is not statistically "
                f"significant: its 95% confidence interval ({metric_name(told['metric'])}) "
                "includes 0"
            )
    return found
