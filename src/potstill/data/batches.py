"""What one forward pass reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from potstill.data.masking import Masker
from potstill.data.sequences import IGNORED, Examples, Tokens

_WINDOW = 50  # batches within which sequences are sorted by length
_ORDER = (0, 1)  # makes the order's random stream another one than that of any example's mask


@dataclass(frozen=True, eq=False)
class Batch:
    """B sequences, padded on the right to the L tokens of the longest.

    Attributes:
        input_ids_BL: int64, masked where there is masking.
        attention_mask_BL: int64, 1 at real tokens.
        gold_BL: what is to be predicted, in the task's own shape. Masked LM: int64 [B x L], the
            original token at chosen positions and -100 elsewhere. Tasks: see heads.
        token_type_ids_BL: int64, for text pairs; None: all 0.
        numbers_B: int64, which examples of the data set they are, one a pair of texts; None where
            nobody asks.
        answerable_BL: bool, tokens at which an answer may begin or end; None: any.
    """

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    gold_BL: Tensor
    token_type_ids_BL: Tensor | None = None
    numbers_B: Tensor | None = None
    answerable_BL: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in own.items() if v is not None})

    def __len__(self) -> int:
        return len(self.input_ids_BL)


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


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The global batches of an epoch: every index once, as int64 [B].

    A pure function of its arguments. Shuffled, sorted by length within windows of 50 batches so
    that little is padded, cut, and the batches shuffled again. What is left over, drawn like the
    rest, is the last batch.
    """
    rng = np.random.default_rng([seed, epoch, *_ORDER])
    order = rng.permutation(len(lengths))
    full = len(order) - len(order) % batch_size
    window = _WINDOW * batch_size
    rest = order[full:]
    batches: list[np.ndarray] = []
    for start in range(0, full, window):
        part = order[start : min(start + window, full)]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches.extend(part.reshape(-1, batch_size))
    shuffled = [batches[i] for i in rng.permutation(len(batches))]
    return [*shuffled, rest] if len(rest) else shuffled


def plan_steps(
    lengths: np.ndarray,
    batch_size: int,
    seed: int,
    *,
    epochs: float | None = None,
    max_steps: int | None = None,
    max_tokens: int | None = None,
) -> tuple[int, int]:
    """Optimizer steps until the first of the limits is reached, and the real tokens in them.

    A part of an epoch is rounded up to whole steps; the step that reaches `max_tokens` counts.
    """
    assert len(lengths) > 0, "no sequences"
    assert any(limit is not None for limit in (epochs, max_steps, max_tokens)), "no limit"
    per_epoch = math.ceil(len(lengths) / batch_size)
    epoch_tokens = int(lengths.sum(dtype=np.int64))
    step_limits = [] if max_steps is None else [max_steps]
    if epochs is not None:
        step_limits.append(max(1, math.ceil(round(epochs * per_epoch, 6))))
    # Whole epochs by arithmetic, the batches only of the one within which the end is.
    whole_epochs = [limit // per_epoch for limit in step_limits]
    whole_epochs += [] if max_tokens is None else [max_tokens // epoch_tokens]
    whole = min(whole_epochs)
    steps, tokens = whole * per_epoch, whole * epoch_tokens

    def ended() -> bool:
        return any(steps >= limit for limit in step_limits) or (
            max_tokens is not None and tokens >= max_tokens
        )

    for batch in epoch_batches(lengths, batch_size, seed, whole):
        if ended():
            break
        steps, tokens = steps + 1, tokens + int(lengths[batch].sum())
    return steps, tokens


def collate(
    tokens: Tokens | Examples,
    indices: np.ndarray,
    pad_id: int,
    masker: Masker | None,
    seed: int,
    epoch: int,
) -> Batch:
    """A batch of sequences, masked by each one's own random stream and padded on the right."""
    if isinstance(tokens, Examples):
        assert masker is None
        found = tokens.batch(indices, pad_id)
        return Batch(**{name: torch.from_numpy(v) for name, v in found.items() if v is not None})
    longest = int(tokens.lengths[indices].max())
    ids_BL = np.full((len(indices), longest), pad_id, dtype=np.int64)
    gold_BL = np.full((len(indices), longest), IGNORED, dtype=np.int64)
    for row, index in enumerate(indices.tolist()):
        ids = tokens[index]
        if masker is None:
            ids_BL[row, : len(ids)] = ids
        else:
            masked = masker(ids, seed, epoch, index)
            ids_BL[row, : len(ids)], gold_BL[row, : len(ids)] = masked
    real_BL = np.arange(longest) < tokens.lengths[indices][:, None]
    return Batch(
        input_ids_BL=torch.from_numpy(ids_BL),
        attention_mask_BL=torch.from_numpy(real_BL.astype(np.int64)),
        gold_BL=torch.from_numpy(gold_BL),
    )
