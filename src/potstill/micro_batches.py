"""Which sequences one of several processes reads at each step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from potstill.batches import Batch
from potstill.data import Examples, Tokens, collate, epoch_batches
from potstill.masking import Masker


class MicroBatches:
    """One process's share of every batch: a pure function of step, process and their number.

    Args:
        batch_size, micro_batch_size: sequences of a step over all processes, and of one forward
            pass.
        rank, world: this process, and how many there are.
    """

    def __init__(
        self,
        batch_size: int,
        micro_batch_size: int,
        *,
        pad_id: int,
        masker: Masker | None,
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        self.batch_size, self.size = batch_size, micro_batch_size
        self.pad_id, self.masker, self.seed = pad_id, masker, seed
        self.rank, self.world = rank, world
        self._epoch: tuple[int, list[np.ndarray]] | None = None  # the last one that was asked for

    def of_step(self, tokens: Tokens | Examples, step: int) -> list[tuple[int, Batch]]:
        """This process's micro-batches of a step, numbered within it.

        One that is numbered -1 is another process's: it only keeps this one in step and must add
        nothing.
        """
        epoch, within = divmod(step, -(-len(tokens) // self.batch_size))
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (
                epoch,
                epoch_batches(tokens.lengths, self.batch_size, self.seed, epoch),
            )
        return self._own(self._epoch[1][within], tokens, epoch)

    def spread(self, tokens: Tokens | Examples, count: int, epoch: int) -> Iterator[Batch]:
        """This process's micro-batches of `count` sequences that are spread over all of them.

        Like in training, those of one batch are of similar length.
        """
        chosen = np.linspace(0, len(tokens) - 1, min(count, len(tokens))).astype(int)
        chosen = chosen[np.argsort(tokens.lengths[chosen], kind="stable")]
        for start in range(0, len(chosen), self.size * self.world):
            part = chosen[start : start + self.size * self.world]
            yield from (batch for number, batch in self._own(part, tokens, epoch) if number >= 0)

    def _own(
        self, indices: np.ndarray, tokens: Tokens | Examples, epoch: int
    ) -> list[tuple[int, Batch]]:
        parts = [indices[i : i + self.size] for i in range(0, len(indices), self.size)]
        rounds = -(-len(parts) // self.world)
        own = []
        for turn in range(rounds):
            number = turn * self.world + self.rank
            part = parts[number] if number < len(parts) else parts[0]
            batch = collate(tokens, part, self.pad_id, self.masker, self.seed, epoch)
            own.append((number if number < len(parts) else -1, batch))
        return own
