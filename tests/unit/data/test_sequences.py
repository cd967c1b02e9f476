"""Batches of token sequences: order, steps, padding and masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_text import random_lines, wordpiece, write_corpus

from potstill.data import collate, make_masker, tokenize_corpus
from potstill.data.batches import epoch_batches, plan_steps
from potstill.recipe import Corpus, Masking, Training


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Corpus]:
    return partial(write_corpus, tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize(("number", "size"), [(1000, 8), (1003, 8), (5, 8), (8, 8), (1, 1)])
def test_an_epoch_is_a_permutation(number: int, size: int) -> None:
    lengths = np.random.default_rng(0).integers(3, 128, number).astype(np.int32)
    batches = epoch_batches(lengths, size, seed=1, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(number))
    assert {len(batch) for batch in batches[:-1]} <= {size}
    assert len(batches[-1]) == (number % size or size)
    assert len(batches) == -(-number // size)


def test_epochs_differ_and_repeat() -> None:
    lengths = np.random.default_rng(0).integers(3, 128, 1000).astype(np.int32)

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(epoch_batches(lengths, 8, seed, epoch)).tolist()

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(*key)) for key in ((1, 0), (1, 1), (2, 0), (2, 1))}) == 4


def test_batches_hold_sequences_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(3, 128, 50 * 8 + 3).astype(np.int32)
    *batches, rest = epoch_batches(lengths, 8, seed=1, epoch=0)
    sorted_batched = sorted(np.delete(lengths, rest).tolist())
    # One window: put in order, the batches' lengths are the sorted lengths.
    ordered = sorted(batches, key=lambda batch: (lengths[batch].min(), lengths[batch].max()))
    found = np.concatenate([np.sort(lengths[batch]) for batch in ordered])
    assert found.tolist() == sorted_batched
    assert [b.tolist() for b in ordered] != [b.tolist() for b in batches]  # but not in that order
    # Two windows: each is sorted on its own, so lengths overlap between them.
    twice = np.concatenate([lengths, lengths])
    two = sorted(epoch_batches(twice, 8, 1, 0), key=lambda batch: twice[batch].min())
    assert any(twice[a].max() > twice[b].min() for a, b in pairwise(two))


def walk(
    lengths: np.ndarray,
    size: int,
    epochs: float | None,
    max_steps: int | None,
    max_tokens: int | None,
) -> tuple[int, int]:
    """Step by step."""
    per_epoch, steps, tokens = -(-len(lengths) // size), 0, 0
    while True:
        epoch, within = divmod(steps, per_epoch)
        steps += 1
        tokens += int(lengths[epoch_batches(lengths, size, 1, epoch)[within]].sum())
        over = epochs is not None and steps >= epochs * per_epoch
        over |= max_steps is not None and steps >= max_steps
        if over or (max_tokens is not None and tokens >= max_tokens):
            return steps, tokens


LIMITS = product((None, 0.001, 0.5, 1.0, 2.3, 3.0), (None, 1, 6, 14, 100), (None, 1, 400, 10_000))


@pytest.mark.parametrize(
    ("epochs", "max_steps", "max_tokens"), [limits for limits in LIMITS if any(limits)]
)
def test_plan_steps(epochs: float | None, max_steps: int | None, max_tokens: int | None) -> None:
    lengths = np.random.default_rng(0).integers(3, 20, 50).astype(np.int32)  # 7 steps an epoch
    training = Training(batch_size=8, epochs=epochs, max_steps=max_steps, max_tokens=max_tokens)
    planned = plan_steps(lengths, training, 1)
    assert planned == walk(lengths, 8, epochs, max_steps, max_tokens)


def test_plan_steps_at_the_end_of_an_epoch() -> None:
    lengths = np.full(16, 5, dtype=np.int32)
    for most, expected in ((80, (2, 80)), (81, (3, 120)), (79, (2, 80)), (40, (1, 40))):
        assert plan_steps(lengths, Training(batch_size=8, max_tokens=most), 1) == expected
    # 0.07 x 100 is a little more than 7 in floating point
    training = Training(batch_size=8, epochs=0.07)
    assert plan_steps(np.full(800, 5, dtype=np.int32), training, 1) == (7, 280)


def test_collate(corpus: Callable[..., Corpus], cache: Path) -> None:
    tokens = tokenize_corpus(corpus(["a b c", "d", "e f"]), wordpiece(), cache, seed=1).train
    batch = collate(tokens, np.array([1, 2]), pad_id=0)
    assert batch.input_ids_BL.tolist() == [[2, 8, 3, 0], [2, 9, 10, 3]]
    assert batch.attention_mask_BL.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.gold_BL.tolist() == [[-100] * 4] * 2
    types = [batch.input_ids_BL, batch.attention_mask_BL, batch.gold_BL]
    assert {tensor.dtype for tensor in types} == {torch.int64}
    moved = batch.to("meta")
    assert moved.input_ids_BL.device.type == moved.gold_BL.device.type == "meta"


def test_a_mask_is_the_same_in_every_batch(corpus: Callable[..., Corpus], cache: Path) -> None:
    tokenizer = wordpiece()
    tokens = tokenize_corpus(corpus(random_lines(50), max_length=40), tokenizer, cache, 1).train
    mask = make_masker(Masking(), tokenizer, tokens.token_counts)
    everything = collate(tokens, np.arange(50), 0, mask.of_epoch(1, 3))
    for indices in ([7], [30, 7], [7, 1, 49]):
        batch = collate(tokens, np.array(indices), 0, mask.of_epoch(1, 3))
        row, length = indices.index(7), int(tokens.lengths[7])
        for name in ("input_ids_BL", "gold_BL"):
            mine, other = getattr(batch, name)[row], getattr(everything, name)[7]
            assert mine[:length].tolist() == other[:length].tolist()
        padding_BL = batch.attention_mask_BL == 0
        assert (batch.gold_BL[padding_BL] == -100).all()
        assert (batch.input_ids_BL[padding_BL] == 0).all()
    chosen = everything.gold_BL != -100
    assert int(chosen.sum()) >= 50
    original = collate(tokens, np.arange(50), 0).input_ids_BL
    assert (everything.gold_BL[chosen] == original[chosen]).all()
    assert (everything.input_ids_BL[~chosen] == original[~chosen]).all()
    later = collate(tokens, np.arange(50), 0, mask.of_epoch(1, 4))
    assert ((later.gold_BL != everything.gold_BL).any(1)).sum() > 40
