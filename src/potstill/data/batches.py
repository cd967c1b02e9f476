"""Batches: the order of an epoch, how many steps there are, and what a forward pass reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from potstill.data.masking import Masker
from potstill.data.sequences import Examples, Mask, Tokens
from potstill.recipe import Training

_WINDOW = 50  # batches within which sequences are sorted by length
_ORDER = (0, 1)  # makes the order's random stream another one than that of any example's mask


@dataclass(frozen=True, eq=False)
class Batch:
    """Hold B sequences, padded on the right to the L tokens of the longest."""

    input_ids_BL: Tensor  # int64, masked where there is masking
    attention_mask_BL: Tensor  # int64, 1 at real tokens
    # What is to be predicted, in the task's own shape (see heads). Masked LM: int64 [B x L], the
    # original token at chosen positions and -100 elsewhere.
    gold_BL: Tensor
    token_type_ids_BL: Tensor | None = None  # int64, for text pairs; None: all 0
    numbers_B: Tensor | None = None  # int64, of the examples, one per pair of texts; None: unknown
    answerable_BL: Tensor | None = None  # bool: an answer may begin or end there; None: anywhere

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on another device."""
        return Batch(**{k: v.to(device) for k, v in vars(self).items() if v is not None})

    def __len__(self) -> int:
        return len(self.input_ids_BL)


@dataclass
class MicroBatches:
    """Deal every batch out to processes: a pure function of step, process and their number."""

    batch_size: int  # sequences of a step, over all processes
    size: int  # of one forward pass
    pad_id: int
    masker: Masker | None
    seed: int
    rank: int  # number of this process, of `world`
    world: int
    # the last epoch that was asked for
    _epoch: tuple[int, list[np.ndarray]] | None = field(default=None, init=False)

    def of_step(self, tokens: Tokens | Examples, step: int) -> list[tuple[int, Batch]]:
        """Return this process's micro-batches of a step, numbered within it.

        One that is numbered -1 is another process's: it only keeps this one in step and must add
        nothing.
        """
        epoch, within = divmod(step, -(-len(tokens) // self.batch_size))
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, epoch_batches(tokens.lengths, self.batch_size, self.seed, epoch)
        return self._own(self._epoch[1][within], tokens, epoch)

    def spread(self, tokens: Tokens | Examples, count: int, epoch: int) -> Iterator[Batch]:
        """Yield this process's micro-batches of `count` sequences, spread over all sequences.

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
        mask = None if self.masker is None else self.masker.of_epoch(self.seed, epoch)
        parts = [indices[i : i + self.size] for i in range(0, len(indices), self.size)]
        end = -(-len(parts) // self.world) * self.world
        own = [n if n < len(parts) else -1 for n in range(self.rank, end, self.world)]
        return [(n, collate(tokens, parts[max(n, 0)], self.pad_id, mask)) for n in own]


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the global batches of an epoch: every index once, as int64 [B].

    A pure function of its arguments. Shuffled, sorted by length within windows of 50 batches so
    that little is padded, divided, and the batches shuffled again. What is left over, drawn like
    the rest, is the last batch.
    """
    rng = np.random.default_rng([seed, epoch, *_ORDER])
    order = rng.permutation(len(lengths))
    full = len(order) - len(order) % batch_size
    window = _WINDOW * batch_size
    batches: list[np.ndarray] = []
    for start in range(0, full, window):
        part = order[start : min(start + window, full)]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches.extend(part.reshape(-1, batch_size))
    shuffled = [batches[i] for i in rng.permutation(len(batches))]
    return [*shuffled, order[full:]] if full < len(order) else shuffled


def plan_steps(lengths: np.ndarray, training: Training, seed: int) -> tuple[int, int]:
    """Count the optimizer steps until the training's first limit, and the real tokens in them.

    A part of an epoch is rounded up to whole steps; the step that reaches `max_tokens` counts.
    """
    assert len(lengths) > 0, "no sequences"
    max_tokens = training.max_tokens
    per_epoch = math.ceil(len(lengths) / training.batch_size)
    epoch_tokens = int(lengths.sum(dtype=np.int64))
    step_limits = [] if training.max_steps is None else [training.max_steps]
    if training.epochs is not None:
        step_limits.append(max(1, math.ceil(round(training.epochs * per_epoch, 6))))
    # Whole epochs by arithmetic, the batches only of the one within which the end is.
    whole_epochs = [limit // per_epoch for limit in step_limits]
    whole_epochs += [] if max_tokens is None else [max_tokens // epoch_tokens]
    whole = min(whole_epochs)
    steps, tokens = whole * per_epoch, whole * epoch_tokens
    for batch in epoch_batches(lengths, training.batch_size, seed, whole):
        if any(steps >= limit for limit in step_limits):
            break
        if max_tokens is not None and tokens >= max_tokens:
            break
        steps, tokens = steps + 1, tokens + int(lengths[batch].sum())
    return steps, tokens


def collate(
    tokens: Tokens | Examples, indices: np.ndarray, pad_id: int, mask: Mask | None = None
) -> Batch:
    """Bring some sequences into a batch, padded on the right; `mask` is `Masker.of_epoch`'s."""
    if mask is None:
        found = tokens.batch(indices, pad_id)
    else:
        assert isinstance(tokens, Tokens)
        found = tokens.batch(indices, pad_id, mask)
    return Batch(**{name: torch.from_numpy(values) for name, values in found.items()})
