"""Share what readers of labeled rows need: an example at each step, an unusable row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

from transformers import PreTrainedTokenizerFast

from potstill.data.sequences import E
from potstill.recipe import TaskData

_SHOWN = 10  # names that a message lists

Row = Mapping[str, object]
Texts = tuple[str, ...]
Names = Sequence[str]


@dataclass(frozen=True)
class RawExample:
    """Hold one example as its row has it; `label` is None where the row is unlabeled."""

    texts: Texts
    label: Any  # a name, names, a number, tags or answers
    origin: str


@dataclass(frozen=True)
class Labelled:
    """Hold one example as it is learned from.

    Of token classification the texts are the words, and gold is a label's number for each. Of
    question answering they are the question and its context, and gold is a list of answers (first
    character, text). Of other tasks gold is as in heads. Without labels gold is UNLABELED, or not
    a number for regression, and None for tokens and questions.
    """

    texts: Texts
    gold: Any
    origin: str


@dataclass(frozen=True)
class Cutting:
    """Hold how examples become token sequences.

    Attributes:
        side: of the data, for messages; None: somebody typed the texts.
        may_lack: some question of the training text has no answer.
        counts: what is left out is counted here, by reason and side.
    """

    data: TaskData
    tokenizer: PreTrainedTokenizerFast
    side: str | None = None
    may_lack: bool = False
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, eq=False)
class Cut(Generic[E]):
    """Hold token sequences of examples, and what was lost on the way.

    Attributes:
        cut: how many texts are longer than what is read of them.
        lost: how many words have no token.
        warnings: what else matters, in sentences.
    """

    examples: E
    cut: int = 0
    lost: int = 0
    warnings: Sequence[str] = ()


class BadRow(ValueError):
    """Report a row that can't be used; `reason` is how it is counted where it is left out."""

    def __init__(self, reason: str, message: str, origin: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.origin = origin


def usable(
    data: TaskData, counts: Counter[str], side: str, origin: str, parse: Callable[[], Any]
) -> Any:
    """Return what a row holds; None where the row is skipped, which is counted."""
    try:
        return parse()
    except BadRow as problem:
        if data.on_bad_row == "error":
            raise ValueError(
                f"{problem.origin or origin}: {problem} Or skip such rows with "
                "data.on_bad_row=skip."
            ) from None
        counts[f"{side}.{problem.reason}"] += 1
        return None


def column_of(row: Row, name: str, key: str) -> Any:
    """Return a row's value; `key` is the recipe's key that names the column."""
    if name not in row:
        raise BadRow(
            "no_column", f"no column '{name}' (data.{key}). The columns are {some(list(row))}."
        )
    return row[name]


def text_of(row: Row, column: str) -> str:
    """Return a row's text, which is not empty."""
    value = column_of(row, column, "text")
    if is_missing(value):
        raise BadRow("empty_text", f"the text column '{column}' is empty. Fill it in.")
    if not isinstance(value, (str, int, float)):
        kind = type(value).__name__
        raise BadRow("no_text", f"column '{column}' holds a {kind}, not text. Name a text column.")
    return str(value)


def is_missing(value: object) -> bool:
    """Return whether a value is missing: null, white space, or a table's NaN for null."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def some(names: Names) -> str:
    """Return the first ten names, for a message."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(str(name) for name in names[:_SHOWN]) + more
