"""Decide a step's learning rate, and when held-out losses are computed."""

from __future__ import annotations

import math

import numpy as np

from potstill.recipe import Training

EVALUATIONS = 10  # of a training, at most
EVALUATION_SHARE = 0.05  # of the tokens that training reads, at most, which evaluations read
LEAST_EVALUATED = 16  # held-out sequences of an evaluation, however short the training


def learning_rate(settings: Training, step: int, steps: int) -> float:
    """Return a step's learning rate: up over the warm-up, then down to 0, linearly."""
    warm = math.ceil(settings.warmup * steps)
    factor = (step + 1) / warm if step < warm else (steps - step) / max(steps - warm, 1)
    return settings.learning_rate * factor


def evaluations(
    settings: Training, lengths: np.ndarray, steps: int, tokens: int, scored: bool = False
) -> tuple[int, int]:
    """Return after how many steps held-out losses are computed, and of how many sequences.

    Where the settings do not say when, evaluations are ten, of fewer sequences where a twentieth of
    the tokens that training reads has no room for more, so that they take less than that of its
    time; of a short training they are fewer. Those that choose weights or end the training are ten
    whatever they read.

    Args:
        lengths: tokens of the held-out sequences.
        steps, tokens: of the whole training.
        scored: Whether each evaluation also scores all held-out sequences.
    """
    count = settings.evaluate_sequences
    if settings.evaluate_every is not None:
        return settings.evaluate_every, count
    times = EVALUATIONS
    if len(lengths) and settings.keep == "last" and settings.patience is None:
        affordable = int(EVALUATION_SHARE * tokens / float(lengths.mean()))
        count = min(count, max(affordable // (times * (1 + scored)), LEAST_EVALUATED))
        each = min(count, len(lengths)) + scored * len(lengths)
        times = min(max(affordable // each, 1), times)
    return max(steps // times, 1), count
