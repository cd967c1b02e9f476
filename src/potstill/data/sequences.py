"""Token sequences and examples, and the batches that training and evaluation cut them into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

UNLABELLED = -200

IGNORED = -100  # gold where there is nothing to predict: torch's ignore_index


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
