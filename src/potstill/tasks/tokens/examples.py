"""Read sentences of words with tags in IOB2, and tokenize them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from potstill.data.files import Sentence
from potstill.data.sequences import IGNORED, UNLABELED, Sentences
from potstill.data.tokenize import TOKENIZING, Sequences
from potstill.recipe import TaskData
from potstill.tasks.labels import label_number
from potstill.tasks.rows import BadRow, Cut, Cutting, Labelled, Names, Row, Texts, column_of

_BATCH = 1000  # sentences that are tokenized at a time


# --- rows -----------------------------------------------------------------------------------------


def read_sentence(
    row: Row, origin: str, data: TaskData, labelled: bool
) -> tuple[Texts, list[str] | None]:
    """Read a row's words, and their tags as the file has them; None: not asked for."""
    words = _words(column_of(row, data.text[0], "text"), data.text[0], labelled)
    empty = next((n for n, word in enumerate(words) if not word.strip()), None)
    if empty is not None:
        where = place_of_word(row, origin, empty)
        raise BadRow("empty_text", f"word {empty + 1} is empty. Remove it.", where)
    if not labelled:
        return words, None
    column = data.label[0]
    value = column_of(row, column, "label")
    if not isinstance(value, (list, tuple)):
        kind = type(value).__name__
        raise BadRow("bad_label", f"label column '{column}' holds a {kind}. Write a list of tags.")
    if len(value) != len(words):
        raise BadRow(
            "bad_label", f"{len(words)} words, but {len(value)} tags. Write one tag per word."
        )
    missing = next((n for n, tag in enumerate(value) if tag is None or tag == ""), None)
    if missing is not None:
        raise BadRow(
            "no_label",
            f"the word '{words[missing]}' has no tag. Write one (in a .conll file after a tab).",
            place_of_word(row, origin, missing),
        )
    tags = [str(tag).strip() for tag in value]
    if not all(tag.isdecimal() for tag in tags):  # numbers are checked when they have names
        check_tags(words, tags, row, origin)
    return words, tags


def _words(value: Any, column: str, labelled: bool) -> Texts:
    if isinstance(value, str) and not labelled:
        value = value.split()
    if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
        kind = type(value).__name__
        raise BadRow("no_text", f"column '{column}' holds a {kind}. Write a list of words.")
    if not value:
        raise BadRow("empty_text", f"the text column '{column}' is empty. Fill it in.")
    return tuple(value)


def place_of_word(row: Row, origin: str, number: int) -> str:
    """Return file:line of a word, where words have lines of their own."""
    if not isinstance(row, Sentence):
        return origin
    file, _, line = origin.rpartition(":")
    return f"{file}:{int(line) + number}"


def check_tags(words: Names, tags: Names, row: Row, origin: str) -> None:
    """Refuse tags that are not IOB2: O; B- and a type; I- and the type of the word before."""
    before = "O"
    for number, tag in enumerate(tags):
        kind, _, name = tag.partition("-")
        problem = ""
        if tag != "O" and not _is_tag(tag):
            problem = "is neither O, nor B- or I- with a type (IOB2). Correct it."
        elif kind == "I" and before[2:] != name:
            problem = f"comes after {before}: in IOB2 an entity begins with B-{name}. Correct it."
        if problem:
            raise BadRow(
                "bad_tag",
                f"the tag '{tag}' of '{words[number]}' (word {number + 1}) {problem}",
                place_of_word(row, origin, number),
            )
        before = tag


def _is_tag(tag: str) -> bool:
    return tag[:2] in ("B-", "I-") and len(tag) > 2


# --- labels ---------------------------------------------------------------------------------------


def sorted_tags(found: Collection[str]) -> list[str]:
    """Return O, then B- and I- of each type, by name; numbers as they are."""
    if all(tag.isdecimal() for tag in found):
        return sorted(found, key=int)
    types = sorted({tag[2:] for tag in found if tag != "O"})
    return ["O", *(f"{kind}-{name}" for name in types for kind in "BI")]


def check_tag_names(labels: Names) -> None:
    """Refuse labels that are not those of IOB2: numbers without names, or another scheme."""
    wrong = next((label for label in labels if label != "O" and not _is_tag(label)), None)
    if wrong is not None:
        raise ValueError(
            f"data.labels: '{wrong}' is not a tag of IOB2 (O, B-type, I-type). Name the "
            "tags, in the order of their numbers where the data has numbers."
        )
    if "O" not in labels:
        raise ValueError("data.labels: O, the tag of words outside entities, is missing. Add it.")


def tag_numbers(words: Names, tags: Names, labels: Names, given: Names | None) -> list[int]:
    """Return each tag's number, where the names are IOB2; `given` as in `label_number`."""
    numbers = [label_number(tag, labels, given) for tag in tags]
    check_tags(words, [labels[number] for number in numbers], {}, "")
    return numbers


# --- word pieces ----------------------------------------------------------------------------------


def tokenize_sentences(found: Sequence[Labelled], cutting: Cutting) -> Cut[Sentences]:
    """Tokenize sentences; the first subword token of each word carries its label.

    A sentence is tokenized as the text that it is, words with a space between them: so do models
    read it that were trained on text, and byte-level ones tell a word's first piece by that space.
    """
    pieces = Sequences()
    places: list[np.ndarray] = []
    lost = 0
    for start in range(0, len(found), _BATCH):
        part = found[start : start + _BATCH]
        encoded = cutting.tokenizer(
            [" ".join(example.texts) for example in part],
            truncation=True,
            max_length=cutting.data.max_length,
            return_offsets_mapping=True,
            **TOKENIZING,
        )
        pieces.add(encoded)
        for example, offsets in zip(part, encoded["offset_mapping"], strict=True):
            places.append(first_pieces(example.texts, offsets))
            lost += len(example.texts) - int((places[-1] >= 0).sum())
    gold = [_gold(example.gold, own) for example, own in zip(found, places, strict=True)]
    examples = pieces.examples(
        Sentences,
        gold=np.concatenate(gold),
        texts=[(" ".join(example.texts),) for example in found],
        origins=[example.origin for example in found],
        word_at=np.concatenate(places),
        words=[example.texts for example in found],
        tags=[example.gold or [] for example in found],
    )
    return Cut(examples, pieces.cut, lost)


def first_pieces(words: Names, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return each token's word where it is that word's first token, else -1: int32 [L].

    Args:
        offsets: the characters that each token covers, of the words with a space between them;
            none for a special token.
    """
    lengths = np.array([len(word) for word in words])
    ends = np.cumsum(lengths + 1) - 1
    starts = ends - lengths
    spans_L2 = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    word_L = np.minimum(np.searchsorted(ends, spans_L2[:, 0], side="right"), len(words) - 1)
    within_L = (spans_L2[:, 0] < spans_L2[:, 1]) & (starts[word_L] < spans_L2[:, 1])
    within_L &= spans_L2[:, 0] < ends[word_L]
    found = np.full(len(spans_L2), -1, dtype=np.int32)
    at = np.flatnonzero(within_L)
    first_words, first = np.unique(word_L[at], return_index=True)
    found[at[first]] = first_words
    return found


def _gold(numbers: Sequence[int] | None, places_L: np.ndarray) -> np.ndarray:
    """Return a word's label at its first subword token: int64 [L]."""
    gold_L = np.full(len(places_L), IGNORED, dtype=np.int64)
    first_L = places_L >= 0
    gold_L[first_L] = UNLABELED if numbers is None else np.array(numbers)[places_L[first_L]]
    return gold_L
