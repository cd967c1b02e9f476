"""Scores of tasks against scikit-learn and scipy; resamples against items taken one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from potstill.evaluation import retention
from potstill.evaluation.retention import RESAMPLES, interval, resampled
from potstill.tasks import metrics
from potstill.tasks.metrics import Scored

RNG = np.random.default_rng(0)
GOLD = RNG.integers(0, 3, 60)
PREDICTED = np.where(RNG.random(60) < 0.6, GOLD, RNG.integers(0, 3, 60))
TWO_GOLD, TWO_PREDICTED = GOLD % 2, PREDICTED % 2
SETS_GOLD, SETS_PREDICTED = RNG.random((60, 4)) < 0.4, RNG.random((60, 4)) < 0.5
VALUES = RNG.integers(0, 6, 60).astype(float)  # with ties
GUESSES = VALUES + RNG.normal(size=60)

CASES: dict[str, tuple[Callable[..., Scored], Callable[..., Any], Any, Any]] = {
    "accuracy": (metrics.accuracy, sk.accuracy_score, GOLD, PREDICTED),
    "f1": (metrics.f1, sk.f1_score, TWO_GOLD, TWO_PREDICTED),
    "macro_f1": (
        lambda g, p: metrics.macro_f1(g, p, 3),
        lambda g, p: sk.f1_score(g, p, average="macro", labels=[0, 1, 2], zero_division=0),
        GOLD,
        PREDICTED,
    ),
    "matthews": (
        lambda g, p: metrics.matthews(g, p, 3),
        sk.matthews_corrcoef,
        GOLD,
        PREDICTED,
    ),
    "matthews of two": (
        lambda g, p: metrics.matthews(g, p, 2),
        sk.matthews_corrcoef,
        TWO_GOLD,
        TWO_PREDICTED,
    ),
    "micro_f1": (
        metrics.micro_f1,
        lambda g, p: sk.f1_score(g, p, average="micro"),
        SETS_GOLD,
        SETS_PREDICTED,
    ),
    "multi-label macro_f1": (
        metrics.multi_label_macro_f1,
        lambda g, p: sk.f1_score(g, p, average="macro", zero_division=0),
        SETS_GOLD,
        SETS_PREDICTED,
    ),
    "exact_match": (metrics.exact_match, sk.accuracy_score, SETS_GOLD, SETS_PREDICTED),
    "pearson": (metrics.pearson, lambda g, p: stats.pearsonr(g, p)[0], VALUES, GUESSES),
    "spearman": (metrics.spearman, lambda g, p: stats.spearmanr(g, p)[0], VALUES, GUESSES),
    "mse": (metrics.mse, sk.mean_squared_error, VALUES, GUESSES),
}


@pytest.mark.parametrize("name", CASES)
def test_scores(name: str) -> None:
    ours, reference, gold, predicted = CASES[name]
    assert ours(gold, predicted).value == pytest.approx(reference(gold, predicted), abs=1e-12)
    assert ours(gold, gold).value == pytest.approx(0.0 if name == "mse" else 1.0)


def test_glues_metrics_by_hand() -> None:
    # right yes 2, missed yes 1, wrong yes 1, right no 1
    gold, given = np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 0, 1])
    assert metrics.accuracy(gold, given).value == pytest.approx(3 / 5)
    assert metrics.f1(gold, given).value == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    # (2 * 1 - 1 * 1) / sqrt((2 + 1) (2 + 1) (1 + 1) (1 + 1))
    assert metrics.matthews(gold, given, 2).value == pytest.approx(1 / 6)
    # deviations (-1.5, -.5, .5, 1.5) and (-2, 0, -1, 3): 7 / sqrt(5 * 14)
    values, guesses = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 2.0, 1.0, 5.0])
    assert metrics.pearson(values, guesses).value == pytest.approx(7 / 70**0.5)
    # ranks (1, 3, 2, 4), and of the tie (1, 2.5, 2.5, 4): 4 / 5 and 4.5 / sqrt(5 * 4.5)
    assert metrics.spearman(values, guesses).value == pytest.approx(4 / 5)
    tied = np.array([1.0, 2.0, 2.0, 3.0])
    assert metrics.spearman(tied, guesses).value == pytest.approx(4.5 / 22.5**0.5)


@pytest.mark.parametrize("name", [name for name in CASES if name != "spearman"])
def test_a_resample_is_the_score_of_the_items_it_drew(name: str) -> None:
    ours, reference, gold, predicted = CASES[name]
    [values] = resampled([ours(gold, predicted)], seed=7)
    assert values.shape == (RESAMPLES,)
    rng = np.random.default_rng(7)
    counts = rng.multinomial(60, np.full(60, 1 / 60), size=RESAMPLES)
    for number in (0, 1, RESAMPLES - 1):
        drawn = np.repeat(np.arange(60), counts[number])
        expected = reference(gold[drawn], predicted[drawn])
        assert values[number] == pytest.approx(expected, abs=1e-9)


def test_resamples_of_ranks_keep_the_ranks_among_all() -> None:
    [values] = resampled([metrics.spearman(VALUES, GUESSES)], seed=7)
    counts = np.random.default_rng(7).multinomial(60, np.full(60, 1 / 60), size=RESAMPLES)
    drawn = np.repeat(np.arange(60), counts[3])
    ranks = stats.rankdata(VALUES)[drawn], stats.rankdata(GUESSES)[drawn]
    assert values[3] == pytest.approx(stats.pearsonr(*ranks)[0], abs=1e-9)


def test_models_are_resampled_in_pairs() -> None:
    good = metrics.accuracy(GOLD, GOLD)
    same = metrics.accuracy(GOLD, PREDICTED)
    first, second, perfect = resampled([same, same, good], seed=1)
    assert (first == second).all()
    assert perfect == pytest.approx(1)


def test_in_blocks_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scored = [metrics.accuracy(GOLD, PREDICTED)]
    whole = resampled(scored, seed=1)
    monkeypatch.setattr(retention, "_BLOCK", 60 * 7)
    assert resampled(scored, seed=1) == pytest.approx(whole)


def test_what_never_varies_scores_nothing() -> None:
    constant, zeros = np.ones(60, dtype=int), np.zeros(60, dtype=int)
    assert metrics.matthews(GOLD, constant, 3).value == 0
    assert metrics.pearson(VALUES, constant.astype(float)).value == 0
    assert metrics.f1(zeros, zeros).value == 0


def test_intervals() -> None:
    assert interval(np.arange(101.0)) == pytest.approx([2.5, 97.5])
    assert interval(np.array([1.0, np.nan])) is None
