"""Call a fast tokenizer in one way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizerFast

from potstill.data.sequences import E

T = TypeVar("T")

_TEXTS = 500  # tokenized at a time, or
_CHARACTERS = 1 << 20  # of text: an encoding takes some 100 bytes per token


@dataclass
class Sequences:
    """Collect token sequences as a tokenizer gives them, and which of them it truncated."""

    ids: list[np.ndarray] = field(default_factory=list)
    types: list[np.ndarray] = field(default_factory=list)
    is_cut: list[bool] = field(default_factory=list)

    @property
    def cut(self) -> int:
        return sum(self.is_cut)

    def add(self, encoded: BatchEncoding) -> None:
        self.ids += [np.array(one, dtype=np.int32) for one in encoded["input_ids"]]
        self.types += [np.array(one, dtype=np.uint8) for one in encoded["token_type_ids"]]
        self.is_cut += [bool(one.overflowing) for one in encoded.encodings or []]

    def examples(self, kind: type[E], **others: Any) -> E:
        """Return the sequences end to end, with what else the class has."""
        lengths = np.array([len(one) for one in self.ids], dtype=np.int32)
        types_T = np.concatenate(self.types)
        return kind(
            ids=np.concatenate(self.ids),
            offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            lengths=lengths,
            types=types_T if types_T.any() else None,
            **others,
        )


# How texts are tokenized, beside where they are truncated.
TOKENIZING = {
    "return_attention_mask": False,
    "return_token_type_ids": True,
    "split_special_tokens": True,  # "[SEP]" in a text is five characters
}


def encode_whole(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    special: bool = False,
    offsets: bool = False,
) -> Any:
    """Return ids of whole texts, whatever truncation and padding tokenizer.json asks for.

    `special` adds the special tokens around a text; `offsets` returns `offset_mapping`, too.
    """
    return tokenizer(
        list(texts),
        add_special_tokens=special,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=offsets,
        split_special_tokens=True,  # "[MASK]" in a text is six characters, and no mask
        verbose=False,  # "longer than the maximum": what becomes of it is the caller's part
    )


def text_batches(items: Iterable[T], text_of: Callable[[T], str] = str) -> Iterator[list[T]]:
    """Group texts, or what has some, into batches that can be tokenized at a time."""
    batch: list[T] = []
    characters = 0
    for item in items:
        batch.append(item)
        characters += len(text_of(item))
        if len(batch) == _TEXTS or characters >= _CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
