"""Compute percentiles and ratios of raw timings, with their intervals and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NOISY_WALL_OVER_CPU = 1.2  # one thread of an idle machine computes nearly all of the wall time
RESAMPLES = 2000
PERCENTILES = {"p50": 50, "p95": 95, "p99": 99}


def latency_percentiles(rounds_ms: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return p50, p95 and p99 (ms, linear interpolation) over all samples of all rounds."""
    values = np.percentile(np.concatenate(rounds_ms), list(PERCENTILES.values()))
    return {name: round(float(v), 4) for name, v in zip(PERCENTILES, values, strict=True)}


def latency_intervals(rounds_ms: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Return 95% CIs by name, [low, high] in ms, from a seeded percentile bootstrap.

    Whole rounds are drawn, not samples: a round's samples share what the machine did then.
    """
    count, ranks = len(rounds_ms), list(PERCENTILES.values())
    drawn_SR = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    pooled = (np.concatenate([rounds_ms[i] for i in row]) for row in drawn_SR)
    found_SP = [np.percentile(samples, ranks) for samples in pooled]
    low_P, high_P = np.percentile(found_SP, [2.5, 97.5], axis=0)
    ends = zip(PERCENTILES, low_P, high_P, strict=True)
    return {name: [round(float(low), 4), round(float(high), 4)] for name, low, high in ends}


def ratio_with_interval(ratios_R: Sequence[float]) -> dict[str, float]:
    """Return the median of one ratio per round and its 95% CI (percentile bootstrap)."""
    ratios = np.asarray(ratios_R, dtype=float)
    drawn_SR = np.random.default_rng(0).integers(0, len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn_SR], axis=1), [2.5, 97.5])
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}


def wall_over_cpu(wall_s: float, cpu_s: float, threads: int) -> float | None:
    """Return wall over CPU time: about 1 on an idle machine; None at several threads."""
    return wall_s / cpu_s if threads == 1 and cpu_s > 0 else None


def verdict(
    ratio: Mapping[str, float], over_cpu: float | None, cpu_time: Mapping[str, float] | None
) -> str:
    """Judge a ratio in which more is faster by its interval, as result.json has it.

    An interval that holds 1 decides nothing. On a noisy machine the ratio of CPU times has to agree
    with that of wall times, since CPU time does not count waiting for other work.

    Args:
        ratio: With its interval, as `ratio_with_interval` returns it.
        over_cpu: The result of `wall_over_cpu`.
        cpu_time: The same ratio of CPU times, with its interval; None where they say nothing.
    """
    noisy = over_cpu is not None and over_cpu > NOISY_WALL_OVER_CPU
    judged = [ratio, cpu_time] if noisy and cpu_time is not None else [ratio]
    if all(one["low"] > 1 for one in judged):
        return "faster"
    return "slower" if all(one["high"] < 1 for one in judged) else "can't tell"


def judge_noise(
    wall_s: float, cpu_s: float, threads: int, ratios: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Report whether the machine was too busy for the numbers to be trusted.

    Wall time far above CPU time means that other work ran. A speed-up whose interval holds both
    0.95 and 1.05 is neither faster nor slower.

    Args:
        wall_s, cpu_s: Sums over all timed passes.
        threads: Threads of each process.
        ratios: Name -> its `speedup` by length.
    """
    over_cpu = wall_over_cpu(wall_s, cpu_s, threads)
    reasons = []
    if over_cpu is not None and over_cpu > NOISY_WALL_OVER_CPU:
        reasons.append(
            f"the timed passes took {over_cpu:.2f} times their CPU time, so other work was using "
            "the processor"
        )
    for name, ratio in ratios.items():
        reasons += [
            f"the speed-up of {name} at {length} tokens lies anywhere between {speed['low']:.2f} "
            f"and {speed['high']:.2f}"
            for length, speed in ratio["speedup"].items()
            if speed["low"] <= 0.95 and speed["high"] >= 1.05
        ]
    message = f"Noisy machine: {'; '.join(reasons)}. Measure again when it is idle."
    return {
        "wall_over_cpu": None if over_cpu is None else round(over_cpu, 4),
        "noisy": bool(reasons),
        "message": message if reasons else None,
    }
