"""Which sequences a process reads: all of them, once, whatever the number of processes."""

from __future__ import annotations

import numpy as np
import pytest

from potstill.data import Batch, Tokens
from potstill.data.batches import MicroBatches, epoch_batches

SEED = 3


@pytest.fixture
def tokens() -> Tokens:
    """19 sequences of 3 to 9 tokens; each token is the number of its sequence."""
    lengths = (3 + np.arange(19) * 5 % 7).astype(np.int32)
    ids = np.repeat(np.arange(19, dtype=np.int32), lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Tokens(ids, offsets, lengths, np.bincount(ids), "tokens")


def process(rank: int = 0, world: int = 1, micro: int = 2) -> MicroBatches:
    return MicroBatches(6, micro, pad_id=0, masker=None, seed=SEED, rank=rank, world=world)


def indices_of(batch: Batch) -> list[int]:
    found: list[int] = batch.input_ids_BL[:, 0].tolist()
    return found


def test_one_process_reads_the_batches_in_order(tokens: Tokens) -> None:
    batches = process()
    for step in range(8):  # two epochs of 6, 6, 6 and 1
        own = batches.of_step(tokens, step)
        expected = epoch_batches(tokens.lengths, 6, SEED, step // 4)[step % 4]
        assert [number for number, _ in own] == list(range(-(-len(expected) // 2)))
        assert np.concatenate([indices_of(batch) for _, batch in own]).tolist() == expected.tolist()


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_micro_batches_of_one(tokens: Tokens, world: int) -> None:
    for step in range(8):
        alone = {n: indices_of(b) for n, b in process().of_step(tokens, step)}
        shares = [process(rank, world).of_step(tokens, step) for rank in range(world)]
        # all make the same number of passes: gradients are averaged after the last
        assert len({len(share) for share in shares}) == 1
        numbered = [(n, indices_of(b)) for share in shares for n, b in share]
        assert dict(pair for pair in numbered if pair[0] >= 0) == alone
        assert sum(number >= 0 for number, _ in numbered) == len(alone)
        # who has nothing left repeats the first one under the number -1
        assert all(indices == alone[0] for number, indices in numbered if number < 0)


def test_steps_may_be_asked_for_in_any_order(tokens: Tokens) -> None:
    batches = process()
    later, first = batches.of_step(tokens, 5), batches.of_step(tokens, 0)
    for step, own in ((5, later), (0, first)):
        for (_, ours), (_, fresh) in zip(own, process().of_step(tokens, step), strict=True):
            assert ours.input_ids_BL.tolist() == fresh.input_ids_BL.tolist()


def test_a_spread_takes_from_everywhere_sorted_by_length(tokens: Tokens) -> None:
    found = np.concatenate([indices_of(batch) for batch in process().spread(tokens, 4, epoch=9)])
    assert sorted(found.tolist()) == [0, 6, 12, 18]
    assert np.diff(tokens.lengths[found]).min() >= 0
    everything = [indices_of(batch) for batch in process().spread(tokens, 100, epoch=9)]
    assert sorted(index for part in everything for index in part) == list(range(19))
    assert max(map(len, everything)) == 2


@pytest.mark.parametrize("world", [2, 3])
def test_a_spread_is_shared_and_nothing_is_counted_twice(tokens: Tokens, world: int) -> None:
    found = [
        index
        for rank in range(world)
        for batch in process(rank, world).spread(tokens, 19, epoch=9)
        for index in indices_of(batch)
    ]
    assert sorted(found) == list(range(19))
