"""What follows from raw timings: percentiles, ratios, their intervals, and what they can't tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NOISY_WALL_OVER_CPU = 1.2  # one thread of an idle machine computes nearly all of the wall time
RESAMPLES = 2000
PERCENTILES = {"p50": 50, "p95": 95, "p99": 99}


def latency_percentiles(rounds_ms: Sequence[Sequence[float]]) -> dict[str, float]:
    """p50, p95 and p99 (ms, linear interpolation) over all samples of all rounds."""
    values = np.percentile(_pooled(rounds_ms), list(PERCENTILES.values()))
    return {name: round(float(v), 4) for name, v in zip(PERCENTILES, values, strict=True)}


def latency_intervals(rounds_ms: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """95% intervals of the same (percentile bootstrap, seeded): name -> [low, high] in ms.

    Whole rounds are drawn, not samples: those of one round share what the machine did then.
    """
    parts = [np.asarray(part, dtype=float) for part in rounds_ms]
    drawn_SR = np.random.default_rng(0).integers(len(parts), size=(RESAMPLES, len(parts)))
    ranks = list(PERCENTILES.values())
    found_SP = np.array(
        [np.percentile(_pooled([parts[i] for i in row]), ranks) for row in drawn_SR]
    )
    low_P, high_P = np.percentile(found_SP, [2.5, 97.5], axis=0)
    ends = zip(PERCENTILES, low_P, high_P, strict=True)
    return {name: [round(float(low), 4), round(float(high), 4)] for name, low, high in ends}


def ratio_with_interval(ratios_R: Sequence[float]) -> dict[str, float]:
    """Median of one ratio a round and its 95% interval (percentile bootstrap, seeded)."""
    ratios = np.asarray(ratios_R, dtype=float)
    drawn_SR = np.random.default_rng(0).integers(0, len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn_SR], axis=1), [2.5, 97.5])
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}


def wall_over_cpu(wall_s: float, cpu_s: float, threads: int) -> float | None:
    """About 1 at one thread when nothing else runs; at several threads it says nothing: None."""
    return wall_s / cpu_s if threads == 1 and cpu_s > 0 else None


def verdict(
    ratio: Mapping[str, float], over_cpu: float | None, cpu_time: Mapping[str, float] | None
) -> str:
    """ "faster", "slower" or "can't tell" of a ratio in which more is faster.

    An interval that holds 1 tells neither. On a noisy machine the ratio of CPU times has to say the
    same as that of wall times, since waiting for other work is no part of it.

    Args:
        over_cpu: see `wall_over_cpu`.
        cpu_time: the same ratio of CPU times, with its interval; None where they say nothing.
    """
    noisy = over_cpu is not None and over_cpu > NOISY_WALL_OVER_CPU
    judged = [ratio, cpu_time] if noisy and cpu_time is not None else [ratio]
    if all(one["low"] > 1 for one in judged):
        return "faster"
    return "slower" if all(one["high"] < 1 for one in judged) else "can't tell"


def judge_noise(
    wall_s: float, cpu_s: float, threads: int, ratios: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Say whether the machine was too busy for the numbers to be trusted.

    Wall time far above CPU time means that something else ran. An interval of a speedup that holds
    both 0.95 and 1.05 tells neither faster nor slower.
    """
    over_cpu = wall_over_cpu(wall_s, cpu_s, threads)
    reasons = []
    if over_cpu is not None and over_cpu > NOISY_WALL_OVER_CPU:
        reasons.append(
            f"the timed passes took {over_cpu:.2f} times their CPU time, "
            "so other work was using the processor"
        )
    for name, ratio in ratios.items():
        reasons += [
            f"the speedup of {name} at {length} tokens lies anywhere "
            f"between {speed['low']:.2f} and {speed['high']:.2f}"
            for length, speed in ratio["speedup"].items()
            if speed["low"] <= 0.95 and speed["high"] >= 1.05
        ]
    message = f"Noisy machine: {'; '.join(reasons)}. Measure again when it is idle."
    return {
        "wall_over_cpu": None if over_cpu is None else round(over_cpu, 4),
        "noisy": bool(reasons),
        "message": message if reasons else None,
    }


def _pooled(rounds: Sequence[Sequence[float] | np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(part, dtype=float) for part in rounds])
