"""Token sequences and examples, as training and evaluation read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

UNLABELED = -200
IGNORED = -100  # gold where there is nothing to predict: torch's ignore_index

# A sequence (int32 [L]) and its number -> what the model sees and what it predicts, int64 [L].
Mask = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class _Ragged:
    """Hold N token sequences end to end, special tokens included."""

    ids: np.ndarray  # uint16 or int32
    offsets: np.ndarray  # int64 [N + 1]: sequence i is ids[offsets[i] : offsets[i + 1]]
    lengths: np.ndarray  # int32 [N]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return sequence `index`: int32 [L]."""
        return np.array(self.ids[self.offsets[index] : self.offsets[index + 1]], dtype=np.int32)

    def batch(self, indices: np.ndarray, pad_id: int) -> dict[str, np.ndarray]:
        """Return some sequences padded on the right, by the names that `Batch` has for them."""
        ids_BL = self.padded(self.ids, indices, pad_id)
        real_BL = np.arange(ids_BL.shape[1]) < self.lengths[indices][:, None]
        return {"input_ids_BL": ids_BL, "attention_mask_BL": real_BL.astype(np.int64)}

    def padded(self, values: np.ndarray, indices: np.ndarray, fill: int) -> np.ndarray:
        """Return values per token of some sequences: int64 [B x L]."""
        rows_BL = np.full((len(indices), int(self.lengths[indices].max())), fill, dtype=np.int64)
        for row, index in enumerate(indices.tolist()):
            start, end = self.offsets[index], self.offsets[index + 1]
            rows_BL[row, : end - start] = values[start:end]
        return rows_BL


@dataclass(frozen=True, eq=False)
class Tokens(_Ragged):
    """Hold the token sequences of one side of a corpus, memory-mapped."""

    token_counts: np.ndarray  # int64 [V]
    fingerprint: str
    numbered_from: int = 0  # as of Examples

    def batch(
        self, indices: np.ndarray, pad_id: int, mask: Mask | None = None
    ) -> dict[str, np.ndarray]:
        found = super().batch(indices, pad_id)
        ids_BL, gold_BL = found["input_ids_BL"], np.full_like(found["input_ids_BL"], IGNORED)
        if mask is not None:
            for row, index in enumerate(indices.tolist()):
                length = int(self.lengths[index])
                ids_BL[row, :length], gold_BL[row, :length] = mask(self[index], index)
        numbers_B = indices.astype(np.int64) + self.numbered_from
        return {**found, "gold_BL": gold_BL, "numbers_B": numbers_B}


@dataclass(frozen=True, eq=False)
class Examples(_Ragged):
    """Hold a task's tokenized examples in memory.

    One or two texts that are one sequence; other kinds of heads have a class of their own below.
    """

    types: np.ndarray | None  # token types (uint8), as long as `ids`; None: all 0
    gold: np.ndarray  # one row per sequence; see tasks/heads.py
    texts: Sequence[tuple[str, ...]]  # of each sequence, for people to read
    origins: Sequence[str]  # where each came from: "file:line"
    numbered_from: int = 0  # number of the first one, where they follow others in a teacher's cache

    # What has an entry per token, and what has one per sequence.
    per_token: ClassVar[tuple[str, ...]] = ("ids", "types")
    per_sequence: ClassVar[tuple[str, ...]] = ("lengths", "gold", "texts", "origins")

    def __add__(self, other: Self) -> Self:
        if self.types is None and other.types is not None:
            self = replace(self, types=np.zeros(len(self.ids), np.uint8))
        if other.types is None and self.types is not None:
            other = replace(other, types=np.zeros(len(other.ids), np.uint8))
        both = self._each(lambda name: _joined(getattr(self, name), getattr(other, name)))
        offsets = np.concatenate([self.offsets, other.offsets[1:] + self.offsets[-1]])
        return replace(self, **both, offsets=offsets, numbered_from=0)

    @property
    def items(self) -> int:
        """Count what is scored as one: sequences, or questions."""
        return len(self)

    def first(self, count: int) -> Self:
        """Return the first `count` items: all sequences of each."""
        return self.chosen(np.arange(min(count, len(self))))

    def chosen(self, indices: np.ndarray) -> Self:
        """Return some sequences, in the order of `indices`."""
        parts = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in indices]
        flat = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(self.lengths[indices], dtype=np.int64)])
        found = self._each(
            lambda name: _taken(getattr(self, name), flat if name in self.per_token else indices)
        )
        return replace(self, **found, offsets=offsets, numbered_from=0)

    def _each(self, made: Callable[[str], Any]) -> dict[str, Any]:
        return {name: made(name) for name in (*self.per_token, *self.per_sequence)}

    def alone(self) -> Examples:
        """Return the sequences as a model reads them."""
        return self

    def batch(self, indices: np.ndarray, pad_id: int) -> dict[str, np.ndarray]:
        found = super().batch(indices, pad_id)
        if self.types is not None:
            found["token_type_ids_BL"] = self.padded(self.types, indices, 0)
        numbers_B = indices.astype(np.int64) + self.numbered_from
        return {**found, "gold_BL": self.gold[indices], "numbers_B": numbers_B}


E = TypeVar("E", bound=Examples)


@dataclass(frozen=True, eq=False)
class Pairs(Examples):
    """Hold pairs of texts that a model reads apart."""

    _: KW_ONLY
    second_at: np.ndarray  # int32 [N]: where in a sequence the second text begins

    per_sequence: ClassVar[tuple[str, ...]] = (*Examples.per_sequence, "second_at")

    def alone(self) -> Examples:
        return self.apart(np.arange(len(self)))

    def apart(self, indices: np.ndarray) -> Examples:
        """Return the first texts of some pairs, then their second ones, each with the gold."""
        starts, middles = self.offsets[indices], self.offsets[indices] + self.second_at[indices]
        first = np.concatenate([starts, middles])
        last = np.concatenate([middles, self.offsets[indices + 1]])
        lengths = (last - first).astype(np.int32)
        flat = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
        return Examples(
            ids=self.ids[flat],
            offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            lengths=lengths,
            types=None,
            gold=np.tile(self.gold[indices], 2),
            texts=self.texts,
            origins=self.origins,
        )

    def batch(self, indices: np.ndarray, pad_id: int) -> dict[str, np.ndarray]:
        apart = self.apart(indices)
        numbers_P = indices.astype(np.int64) + self.numbered_from
        found = apart.batch(np.arange(len(apart)), pad_id)
        return {**found, "gold_BL": self.gold[indices], "numbers_B": numbers_P}


@dataclass(frozen=True, eq=False)
class Sentences(Examples):
    """Hold sentences whose words have tags; `gold` is as long as `ids`."""

    _: KW_ONLY
    # int32, as long as `ids`: the number of the word whose first subword token it is, -1 for none
    word_at: np.ndarray
    words: Sequence[tuple[str, ...]]  # of each sentence
    tags: Sequence[Sequence[int]]  # each sentence's labels by word, as numbers; none: no labels

    per_token: ClassVar[tuple[str, ...]] = (*Examples.per_token, "gold", "word_at")
    per_sequence: ClassVar[tuple[str, ...]] = ("lengths", "texts", "origins", "words", "tags")

    def batch(self, indices: np.ndarray, pad_id: int) -> dict[str, np.ndarray]:
        gold_BL = self.padded(self.gold, indices, IGNORED)
        return {**super().batch(indices, pad_id), "gold_BL": gold_BL}


@dataclass(frozen=True, eq=False)
class Questions(Examples):
    """Hold windows of questions and their contexts; `gold` is the first and last token."""

    _: KW_ONLY
    # int32 [T x 2]: the characters of the context that each of the `ids` covers, both -1 where it
    # is no part of the context
    spans: np.ndarray
    of: np.ndarray  # int64 [N]: each window's question; those of one are neighbors, in order
    questions: Sequence[tuple[str, ...]]  # each with its context
    answers: Sequence[Sequence[str]]  # that each question may have; none: it has no answer
    longest: int = 0  # tokens of an answer, at most
    may_lack: bool = False  # some question of the training text has no answer, so that none is one

    per_token: ClassVar[tuple[str, ...]] = (*Examples.per_token, "spans")
    per_sequence: ClassVar[tuple[str, ...]] = (*Examples.per_sequence, "of")

    def __add__(self, other: Self) -> Self:
        both = super().__add__(replace(other, of=other.of + self.items))
        return replace(
            both,
            questions=[*self.questions, *other.questions],
            answers=[*self.answers, *other.answers],
        )

    @property
    def items(self) -> int:
        return len(self.questions)

    def first(self, count: int) -> Self:
        chosen = self.chosen(np.flatnonzero(self.of < count))
        return replace(chosen, questions=self.questions[:count], answers=self.answers[:count])

    def batch(self, indices: np.ndarray, pad_id: int) -> dict[str, np.ndarray]:
        # the context's tokens, and the first of all, which stands for no answer
        start_BL = self.padded(self.spans[:, 0], indices, -1)
        start_BL[:, 0] = 0
        return {**super().batch(indices, pad_id), "answerable_BL": start_BL >= 0}


def _joined(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return None
    return np.concatenate([one, other]) if isinstance(one, np.ndarray) else [*one, *other]


def _taken(values: Any, indices: np.ndarray) -> Any:
    if values is None:
        return None
    return values[indices] if isinstance(values, np.ndarray) else [values[i] for i in indices]


@dataclass(frozen=True, eq=False)
class TokenizedCorpus:
    """Hold both sides of a corpus and what became of its records.

    `counts`: records; sequences and tokens (special ones included) of each side; split (texts);
    dropped_short (texts); dropped_unknown (sequences that are mostly unknown tokens); duplicates
    (texts that occur earlier on the same side; with `drop_duplicates` on either side, and they
    are dropped); leaked (held-out texts that are also in the training text). `warnings` are the
    sentences about what matters.
    """

    train: Tokens
    heldout: Tokens
    counts: dict[str, int]
    warnings: list[str]
