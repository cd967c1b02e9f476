"""When a training's learning rate rises and falls, and when held-out losses are computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from potstill.recipe import Training
from potstill.training.schedule import evaluations, learning_rate


def test_schedule_is_warmup_then_linear_decay() -> None:
    settings = Training(max_steps=20, learning_rate=0.5, warmup=0.2)
    rates = [learning_rate(settings, step, steps=20) for step in range(20)]
    assert rates[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert rates[4:] == pytest.approx([0.5 * (20 - step) / 16 for step in range(4, 20)])
    settings = Training(max_steps=10, learning_rate=0.25, warmup=0.0)
    assert learning_rate(settings, 0, steps=10) == 0.25


@pytest.mark.parametrize(
    ("more", "lengths", "tokens", "expected"),
    [
        # 256 x 40 tokens are 10,240: a twentieth of 10 million has room for 48 of them
        ({}, [40] * 1000, 10_000_000, (100, 256)),
        # of 600,000 it is 30,000 tokens, 750 sequences
        ({}, [40] * 1000, 600_000, (100, 75)),
        # of 100,000 it is 125 sequences, in groups of 16 or more
        ({}, [40] * 1000, 100_000, (1000 // 7, 16)),
        # of 1,000 for one sequence: a loss needs some more
        ({}, [40] * 1000, 1_000, (1000, 16)),
        # few held-out sequences are all read
        ({}, [40] * 20, 1_000_000, (100, 125)),
        # asked for: as asked
        ({"evaluate_every": 7}, [40] * 1000, 1_000, (7, 256)),
        # those that choose the weights are ten
        ({"keep": "best"}, [40] * 1000, 1_000, (100, 256)),
        ({"patience": 2}, [40] * 1000, 1_000, (100, 256)),
        ({}, [], 1_000, (100, 256)),
    ],
)
def test_held_out_losses_cost_a_twentieth_of_training(
    more: dict[str, Any], lengths: list[int], tokens: int, expected: tuple[int, int]
) -> None:
    settings = Training(max_steps=1000, **more)
    every, count = evaluations(settings, np.array(lengths, dtype=np.int32), 1000, tokens)
    assert (every, count) == expected
    if not more and lengths and count > 16:
        read = (1000 // every) * min(count, len(lengths)) * 40
        assert read <= 0.05 * tokens


def test_scores_of_all_held_out_examples_cost_as_well() -> None:
    """A twentieth of 10 million has room for 12,500 sequences: 256 and 1,000 fit in 9 times."""
    lengths = np.full(1000, 40, dtype=np.int32)
    settings = Training(max_steps=1000)
    assert evaluations(settings, lengths, 1000, 10_000_000, scored=True) == (1000 // 9, 256)
