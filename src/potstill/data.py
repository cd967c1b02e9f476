"""Token sequences and examples, and the batches that training and evaluation cut them into."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from potstill.batches import Batch
from potstill.masking import IGNORED, Masker

_WINDOW = 50  # batches within which sequences are sorted by length
_ORDER = (0, 1)  # makes the order's random stream another one than that of any example's mask


@dataclass(frozen=True, eq=False)
class Tokens:
    """The token sequences of one side of a corpus, special tokens included, memory-mapped."""

    ids: np.ndarray  # uint16 or int32, all sequences end to end
    offsets: np.ndarray  # int64 [N + 1]: sequence i is ids[offsets[i] : offsets[i + 1]]
    lengths: np.ndarray  # int32 [N]
    token_counts: np.ndarray  # int64 [V]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        """Sequence `index`: int32 [L]."""
        start, end = self.offsets[index], self.offsets[index + 1]
        return np.array(self.ids[start:end], dtype=np.int32)


@dataclass(frozen=True, eq=False)
class Items:
    """What is scored as one where it is not simply a sequence: sentences of words, and questions.

    Attributes:
        of: int64 [N]: the item that each sequence is of; those of one are neighbours, in order.
        texts: an item's words; or its question and its context.
        truths: an item's labels by word, as numbers; or the answers it may have, none for none.
        longest: tokens of an answer at most.
        may_lack: some questions of the training text have no answer, so that none is one.
    """

    of: np.ndarray
    texts: Sequence[tuple[str, ...]]
    truths: Sequence[Sequence[Any]]
    longest: int = 0
    may_lack: bool = False

    def __len__(self) -> int:
        return len(self.truths)

    def __add__(self, other: Items) -> Items:
        return replace(
            self,
            of=np.concatenate([self.of, other.of + len(self)]),
            texts=[*self.texts, *other.texts],
            truths=[*self.truths, *other.truths],
        )


@dataclass(frozen=True, eq=False)
class Examples:
    """The tokenised examples of a task's data, special tokens included, in memory.

    Attributes:
        ids: int32, all sequences end to end.
        offsets: int64 [N + 1]: example i is ids[offsets[i] : offsets[i + 1]].
        lengths: int32 [N].
        types: token types (uint8), as long as `ids`; None: all 0.
        gold: a row an example, or, for tokens, as long as `ids`; see heads.
        texts: each example's texts, for people to read.
        origins: where each came from: "file:line".
        by_token: `gold` is as long as `ids`.
        places: as long as `ids`. Tokens: the number of the word whose first piece it is, -1 for
            none. Questions: the characters of the context that it covers, int32 [T x 2], both -1
            where it is no part of it.
        items: of tokens and of questions.
        second_at: int32 [N], of two texts that are encoded apart: where in a sequence the second
            one begins.
        numbered_from: the number of the first one, where they follow others in a teacher's cache.
    """

    ids: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    types: np.ndarray | None
    gold: np.ndarray
    texts: Sequence[tuple[str, ...]]
    origins: Sequence[str]
    by_token: bool = False
    places: np.ndarray | None = None
    items: Items | None = None
    numbered_from: int = 0
    second_at: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        """Sequence `index`: int32 [L]."""
        found: np.ndarray = self.ids[self.offsets[index] : self.offsets[index + 1]]
        return found

    def __add__(self, other: Examples) -> Examples:
        assert self.by_token == other.by_token
        types = None
        if self.types is not None or other.types is not None:
            types = np.concatenate(
                [
                    np.zeros(len(e.ids), np.uint8) if e.types is None else e.types
                    for e in (self, other)
                ]
            )
        return Examples(
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.offsets, other.offsets[1:] + self.offsets[-1]]),
            np.concatenate([self.lengths, other.lengths]),
            types,
            np.concatenate([self.gold, other.gold]),
            [*self.texts, *other.texts],
            [*self.origins, *other.origins],
            self.by_token,
            _joined(self.places, other.places),
            None if self.items is None or other.items is None else self.items + other.items,
            second_at=_joined(self.second_at, other.second_at),
        )

    def first(self, count: int) -> Examples:
        """The first so many items: all sequences of each."""
        if self.items is None:
            return self.chosen(np.arange(min(count, len(self))))
        chosen = self.chosen(np.flatnonzero(self.items.of < count))
        assert chosen.items is not None
        kept = replace(
            chosen.items, texts=self.items.texts[:count], truths=self.items.truths[:count]
        )
        return replace(chosen, items=kept)

    def chosen(self, indices: np.ndarray) -> Examples:
        """Some of them, in the order of `indices`."""
        parts = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in indices]
        flat = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        lengths = self.lengths[indices]
        return Examples(
            self.ids[flat],
            np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            lengths,
            None if self.types is None else self.types[flat],
            self.gold[flat if self.by_token else indices],
            [self.texts[i] for i in indices],
            [self.origins[i] for i in indices],
            self.by_token,
            None if self.places is None else self.places[flat],
            None if self.items is None else replace(self.items, of=self.items.of[indices]),
            second_at=None if self.second_at is None else self.second_at[indices],
        )

    def apart(self, indices: np.ndarray) -> Examples:
        """The first texts of some pairs, then their second ones, each with the pair's gold."""
        assert self.second_at is not None
        starts, middles = self.offsets[indices], self.offsets[indices] + self.second_at[indices]
        first = np.concatenate([starts, middles])
        last = np.concatenate([middles, self.offsets[indices + 1]])
        lengths = (last - first).astype(np.int32)
        flat = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
        return replace(
            self,
            ids=self.ids[flat],
            offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            lengths=lengths,
            types=None,
            gold=np.tile(self.gold[indices], 2),
            second_at=None,
        )


def _joined(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
    return None if one is None or other is None else np.concatenate([one, other])


@dataclass(frozen=True, eq=False)
class TokenizedCorpus:
    """Both sides of a corpus and what became of its records.

    `counts`: records; sequences and tokens (special ones included) of each side; split (texts);
    dropped_short (texts); dropped_unknown (sequences that are mostly unknown tokens); duplicates
    (texts that occur earlier on the same side; with `drop_duplicates` on either side, and they
    are dropped); leaked (held-out texts that are also in the training text). `warnings` says in
    sentences what of it matters.
    """

    train: Tokens
    heldout: Tokens
    counts: dict[str, int]
    warnings: list[str]


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
        return _collate_examples(tokens, indices, pad_id)
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


def _collate_examples(examples: Examples, indices: np.ndarray, pad_id: int) -> Batch:
    if examples.second_at is not None:
        texts = examples.apart(indices)
        batch = _collate_examples(texts, np.arange(len(texts)), pad_id)
        numbers_P = torch.from_numpy(indices.astype(np.int64) + examples.numbered_from)
        return replace(batch, gold_BL=batch.gold_BL[: len(indices)], numbers_B=numbers_P)
    ids_BL = _padded(examples, examples.ids, indices, pad_id)
    types, gold = examples.types, examples.gold
    real_BL = np.arange(ids_BL.shape[1]) < examples.lengths[indices][:, None]
    return Batch(
        input_ids_BL=torch.from_numpy(ids_BL),
        attention_mask_BL=torch.from_numpy(real_BL.astype(np.int64)),
        gold_BL=torch.from_numpy(
            _padded(examples, gold, indices, IGNORED) if examples.by_token else gold[indices]
        ),
        token_type_ids_BL=(
            None if types is None else torch.from_numpy(_padded(examples, types, indices, 0))
        ),
        numbers_B=torch.from_numpy(indices.astype(np.int64) + examples.numbered_from),
        answerable_BL=_answerable(examples, indices),
    )


def _answerable(examples: Examples, indices: np.ndarray) -> torch.Tensor | None:
    """The context's tokens, and the first of all, which stands for no answer: bool [B x L]."""
    if examples.places is None or examples.by_token:
        return None
    start_BL = _padded(examples, examples.places[:, 0], indices, -1)
    start_BL[:, 0] = 0
    return torch.from_numpy(start_BL >= 0)


def _padded(examples: Examples, flat: np.ndarray, indices: np.ndarray, fill: int) -> np.ndarray:
    """Per-token values of some examples: int64 [B x L]."""
    longest = int(examples.lengths[indices].max())
    rows_BL = np.full((len(indices), longest), fill, dtype=np.int64)
    for row, index in enumerate(indices.tolist()):
        start, end = examples.offsets[index], examples.offsets[index + 1]
        rows_BL[row, : end - start] = flat[start:end]
    return rows_BL
