"""Numbers from raw timings, against hand counts and exact distributions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from potstill.benchmarking import statistics


def test_percentiles_pool_all_rounds():
    rounds = [[4.0, 1.0], [3.0], [2.0, 5.0]]
    # sorted 1..5: the middle is 3; 0.95 of 4 gaps is 3.8, so 4 + 0.8; 0.99 of them is 3.96
    expected = {"p50": 3.0, "p95": 4.8, "p99": 4.96}
    assert statistics.latency_percentiles(rounds) == expected


def test_intervals_of_percentiles_draw_whole_rounds():
    rounds = [[1.0, 1.0], [2.0, 2.0], [6.0, 6.0]]
    # All draws of three rounds out of three, each as likely: of 27, 7 have at least two rounds of
    # 1 (p50 is 1: 26%), 7 two of 6. Of single samples p50 could be 1.5 or 4; of rounds never.
    exact = {
        name: sorted(
            float(np.percentile([value for i in drawn for value in rounds[i]], rank))
            for drawn in itertools.product(range(3), repeat=3)
        )
        for name, rank in (("p50", 50), ("p95", 95), ("p99", 99))
    }
    assert set(exact["p50"]) == {1.0, 2.0, 6.0}
    found = statistics.latency_intervals(rounds)
    # the outermost value of each has a probability above 2.5% (at least 1 in 27), so it is the end
    assert found == {name: [values[0], values[-1]] for name, values in exact.items()}
    assert statistics.latency_intervals(rounds) == found


FASTER, SLOWER, UNCLEAR = (1.01, 1.3), (0.7, 0.99), (0.99, 1.3)


@pytest.mark.parametrize(
    ("wall", "over_cpu", "cpu", "expected"),
    [
        (FASTER, 1.0, UNCLEAR, "faster"),  # a quiet machine: wall time alone
        (SLOWER, 1.0, UNCLEAR, "slower"),
        (UNCLEAR, 1.0, FASTER, "can't tell"),
        ((1.0, 1.3), 1.0, FASTER, "can't tell"),
        (FASTER, None, None, "faster"),  # several threads: nothing is known of noise
        (FASTER, 1.19, UNCLEAR, "faster"),  # not above the limit: taken as it is
        (FASTER, 2.0, FASTER, "faster"),  # a noisy one: both
        (SLOWER, 2.0, SLOWER, "slower"),
        (FASTER, 2.0, UNCLEAR, "can't tell"),
        (FASTER, 2.0, SLOWER, "can't tell"),
        (UNCLEAR, 2.0, FASTER, "can't tell"),
    ],
)
def test_verdict(wall, over_cpu, cpu, expected):
    ratio, cpu_time = (
        None if ends is None else {"low": ends[0], "high": ends[1]} for ends in (wall, cpu)
    )
    assert statistics.verdict(ratio, over_cpu, cpu_time) == expected


def test_wall_over_cpu_says_nothing_of_several_threads():
    assert statistics.wall_over_cpu(3.0, 2.0, 1) == 1.5
    assert statistics.wall_over_cpu(3.0, 2.0, 2) is None


def test_interval_of_three_rounds_is_their_range():
    # The median of 3 draws is the smallest value with probability 7/27 > 2.5%, so the interval
    # spans all three values whatever the draws are.
    assert statistics.ratio_with_interval([2.0, 1.5, 1.8]) == {
        "median": 1.8,
        "low": 1.5,
        "high": 2.0,
    }


def test_interval_matches_the_exact_distribution_of_the_bootstrap_median():
    ratios = [1.0, 1.1, 1.3, 1.6, 2.0]
    medians = sorted(np.median(drawn) for drawn in itertools.product(ratios, repeat=5))
    shown = statistics.ratio_with_interval(ratios)
    # P(median = 1.0) = P(at least 3 of 5 draws are it) = 5.8%: above 2.5%, by symmetry above too
    assert medians.count(1.0) / len(medians) == pytest.approx(181 / 3125)
    assert (shown["low"], shown["median"], shown["high"]) == (1.0, 1.3, 2.0)
    # Seven values: the ends (at least 4 of 7 draws: 1.0%) fall outside the interval.
    narrower = statistics.ratio_with_interval([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6])
    assert (narrower["low"], narrower["median"], narrower["high"]) == (1.1, 1.3, 1.5)


def speed(low: float, high: float) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    return {"student": {"speedup": {"16": {"median": 1.0, "low": low, "high": high}}}}


@pytest.mark.parametrize(
    ("wall_s", "cpu_s", "threads", "low", "high", "noisy"),
    [
        (10.0, 9.9, 1, 1.8, 1.9, False),
        (12.5, 10.0, 1, 1.8, 1.9, True),  # 1.25 times its CPU time
        (10.0, 9.9, 1, 0.95, 1.05, True),
        (10.0, 9.9, 1, 0.96, 1.2, False),
        (10.0, 9.9, 1, 0.5, 1.04, False),
        (10.0, 2.0, 4, 1.8, 1.9, False),  # says nothing at several threads
    ],
)
def test_noise(wall_s, cpu_s, threads, low, high, noisy):
    noise = statistics.judge_noise(wall_s, cpu_s, threads, speed(low, high))
    assert noise["noisy"] is noisy
    assert noise["wall_over_cpu"] == (round(wall_s / cpu_s, 4) if threads == 1 else None)
    assert (noise["message"] is not None) is noisy


def test_noise_message_names_what_was_seen():
    message = statistics.judge_noise(25.0, 20.0, 1, speed(0.9, 1.5))["message"]
    assert message == (
        "Noisy machine: the timed passes took 1.25 times their CPU time, so other work was using "
        "the processor; the speed-up of student at 16 tokens lies anywhere between 0.90 and 1.50. "
        "Measure again when it is idle."
    )
