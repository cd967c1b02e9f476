"""Read texts and pairs of texts with a label, labels or a value, and tokenize them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from potstill.data import Examples
from potstill.data.sequences import Pairs
from potstill.data.tokenize import TOKENIZING, Sequences
from potstill.recipe import TaskData
from potstill.tasks.kind import Sides
from potstill.tasks.rows import (
    BadRow,
    Cut,
    Cutting,
    Labelled,
    RawExample,
    Row,
    column_of,
    is_missing,
)

_BATCH = 1000  # texts that are tokenized at a time


def read_label(row: Row, column: str) -> str:
    """Read a row's label: a name, or the name of a number."""
    value = _value(row, column)
    if isinstance(value, float) and not value.is_integer():
        raise BadRow(
            "bad_label", f"label {value!r} is a fraction. Classes are names or whole numbers."
        )
    if not isinstance(value, (str, int, float)):
        kind = type(value).__name__
        raise BadRow(
            "bad_label", f"label column '{column}' holds a {kind}. Name a column of labels."
        )
    return str(int(value)) if isinstance(value, (bool, float)) else str(value).strip()


def _value(row: Row, column: str) -> Any:
    value = column_of(row, column, "label")
    if is_missing(value):
        raise BadRow("no_label", f"the label column '{column}' is empty. Fill it in.")
    return value


def read_labels(row: Row, columns: Sequence[str], separator: str) -> list[str]:
    """Read a row's labels: of one cell, or of one column per label."""
    values = [column_of(row, column, "label") for column in columns]
    if len(columns) > 1:
        chosen = []
        for column, value in zip(columns, values, strict=True):
            if str(value).strip() not in ("0", "1", "0.0", "1.0", "True", "False"):
                raise BadRow("bad_label", f"label column '{column}' holds {value!r}. Write 0 or 1.")
            if str(value).strip() in ("1", "1.0", "True"):
                chosen.append(column)
        return chosen
    return _names(values[0], columns[0], separator)


def _names(value: Any, column: str, separator: str) -> list[str]:
    """Return the names in one cell, each once."""
    if isinstance(value, str):
        names = [part.strip() for part in value.split(separator) if part.strip()]
    else:
        each = [] if value is None else value if isinstance(value, (list, tuple)) else [value]
        if any(is_missing(item) or isinstance(item, bool) for item in each):
            raise BadRow(
                "bad_label", f"label column '{column}' holds {value!r}. Write a list of names."
            )
        names = [str(item) for item in each]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:  # [0, 1, 0] would be read as the labels 0 and 1
        raise BadRow(
            "bad_label",
            f"label column '{column}' names '{twice}' twice. Name each label once, or set "
            "data.label to one column of 0 and 1 per label.",
        )
    return names


def read_value(row: Row, column: str) -> float:
    """Read a row's value, a finite number."""
    value = _value(row, column)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow("bad_label", f"label column '{column}' holds {value!r}. Write a number.")
    return number


def as_cosines(sides: Sides, data: TaskData) -> Sides:
    """Scale the scores to between 0 and 1, as cosines can express them."""
    scores = [example.label for example in sides["train"]]
    least, greatest = data.score_range or (min(scores), max(scores))
    if least == greatest:
        raise ValueError(
            f"data.train: all pairs have the score {least:g}. Give pairs with different scores."
        )
    span = greatest - least

    def scaled(example: RawExample) -> RawExample:
        if example.label is None:
            return example
        return replace(example, label=(example.label - least) / span)

    return {side: [scaled(one) for one in found] for side, found in sides.items()}


def tokenize_texts(found: Sequence[Labelled], cutting: Cutting, gold_type: type) -> Cut[Examples]:
    """Tokenize texts; a sequence has at most `data.max_length` tokens."""
    pieces = Sequences()
    for columns in _columns(found):
        pieces.add(_encoded(cutting, *columns))
    examples = pieces.examples(
        Examples,
        gold=np.array([example.gold for example in found], dtype=gold_type),
        texts=[example.texts for example in found],
        origins=[example.origin for example in found],
    )
    return Cut(examples, pieces.cut)


def tokenize_apart(found: Sequence[Labelled], cutting: Cutting) -> Cut[Pairs]:
    """Tokenize pairs of texts, each text by itself, of at most `data.max_length` tokens."""
    pieces = Sequences()
    seconds: list[int] = []
    for columns in _columns(found):
        first, second = Sequences(), Sequences()
        for one, column in zip((first, second), columns, strict=True):
            one.add(_encoded(cutting, column))
        for front, back in zip(first.ids, second.ids, strict=True):
            pieces.ids.append(np.concatenate([front, back]))
            pieces.types.append(np.zeros(len(front) + len(back), dtype=np.uint8))
            seconds.append(len(front))
        pieces.is_cut += [a or b for a, b in zip(first.is_cut, second.is_cut, strict=True)]
    examples = pieces.examples(
        Pairs,
        gold=np.array([pair.gold for pair in found], dtype=np.float32),
        texts=[pair.texts for pair in found],
        origins=[pair.origin for pair in found],
        second_at=np.array(seconds, dtype=np.int32),
    )
    return Cut(examples, pieces.cut)


def _columns(found: Sequence[Labelled]) -> Iterator[list[list[str]]]:
    """Yield the first, and the second texts, of some examples at a time."""
    for start in range(0, len(found), _BATCH):
        texts = (example.texts for example in found[start : start + _BATCH])
        yield [list(column) for column in zip(*texts, strict=True)]


def _encoded(cutting: Cutting, *columns: list[str]) -> Any:
    most = cutting.data.max_length
    return cutting.tokenizer(*columns, truncation=True, max_length=most, **TOKENIZING)
