"""Labelled examples: files to rows, rows to token sequences with their gold, mistakes by line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from potstill.data import Examples
from potstill.heads import UNLABELLED
from potstill.models import has_head, is_unnamed, label_names
from potstill.recipe import Source, Task, TaskData
from potstill.tasks import TaskRow, row_of
from potstill.text import Record, heldout_side, read_rows

_SHOWN = 10  # names that a message lists
_RARE = 10  # examples below which a class is told of
_BATCH = 1000  # texts that are tokenised at a time


@dataclass(frozen=True, eq=False)
class TaskExamples:
    """A task's data, tokenised for one tokenizer.

    Attributes:
        labels: names, in the order of the head's outputs; for regression the value's name alone.
        unlabelled: more text, for the teacher to label; None without.
        counts: rows read and left out, by reason and side.
        warnings: in sentences, what of it matters.
    """

    labels: list[str]
    train: Examples
    dev: Examples
    test: Examples
    unlabelled: Examples | None
    counts: dict[str, int]
    warnings: list[str]


@dataclass(frozen=True)
class _Example:
    texts: tuple[str, ...]
    label: Any  # as read: a name, names, a number; None: unlabelled
    origin: str


class _BadRow(ValueError):
    """A row that can't be used; `reason` is how it is counted where it is left out."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class _Reader:
    data: TaskData
    row: TaskRow
    counts: Counter[str] = field(default_factory=Counter)

    def examples(
        self, side: str, sources: Sequence[Source], labelled: bool = True
    ) -> list[_Example]:
        columns = [*self.data.text, *(self.data.label if labelled else ())]
        found = []
        for row, origin in read_rows(sources, columns):
            self.counts[f"{side}.rows"] += 1
            parsed = self.used(side, origin, partial(self._one, row, labelled))
            if parsed is not None:
                texts, label = parsed
                found.append(_Example(texts, label, origin))
        if not found:
            raise ValueError(f"data.{side}: no row can be used")
        return found

    def used(self, side: str, origin: str, parse: Callable[[], Any]) -> Any:
        """What a row gives; None where it is left out."""
        try:
            return parse()
        except _BadRow as problem:
            if self.data.on_bad_row == "error":
                raise ValueError(
                    f"{origin}: {problem}, or leave such rows out with data.on_bad_row=skip"
                ) from None
            self.counts[f"{side}.{problem.reason}"] += 1
            return None

    def _one(self, row: Mapping[str, object], labelled: bool) -> tuple[tuple[str, ...], Any]:
        texts = tuple(self._text(row, name) for name in self.data.text)
        return texts, self._label(row) if labelled else None

    def _text(self, row: Mapping[str, object], column: str) -> str:
        value = _column(row, column, "text")
        if value is None or (isinstance(value, str) and not value.strip()):
            raise _BadRow("empty_text", f"the text column '{column}' is empty: fill it in")
        if not isinstance(value, (str, int, float)):
            kind = type(value).__name__
            raise _BadRow("no_text", f"column '{column}' holds a {kind}, not text: name another")
        return str(value)

    def _label(self, row: Mapping[str, object]) -> Any:
        columns = self.data.label
        if self.row.task == "multi_label":
            return self._several(row, columns)
        if len(columns) > 1:
            raise ValueError(
                f"data.label: {self.row.task} has one label column, {len(columns)} are named"
            )
        value = _column(row, columns[0], "label")
        if value is None or value == "":
            raise _BadRow("no_label", f"the label column '{columns[0]}' is empty: fill it in")
        if self.row.task == "regression":
            return _number(value, columns[0])
        if isinstance(value, float) and not value.is_integer():
            raise _BadRow(
                "bad_label", f"label {value!r} is a fraction: classes are names or whole numbers"
            )
        if not isinstance(value, (str, int, float)):
            kind = type(value).__name__
            raise _BadRow("bad_label", f"label column '{columns[0]}' holds a {kind}: name another")
        return str(int(value)) if isinstance(value, (bool, float)) else str(value).strip()

    def _several(self, row: Mapping[str, object], columns: Sequence[str]) -> list[str]:
        values = [_column(row, column, "label") for column in columns]
        if len(columns) > 1:
            chosen = []
            for column, value in zip(columns, values, strict=True):
                if str(value).strip() not in ("0", "1", "0.0", "1.0", "True", "False"):
                    raise _BadRow(
                        "bad_label",
                        f"label column '{column}' holds {value!r}: 0 or 1 belongs there",
                    )
                if str(value).strip() in ("1", "1.0", "True"):
                    chosen.append(column)
            return chosen
        value = values[0]
        if isinstance(value, (list, tuple)):
            return [str(item) for item in value]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return [str(value)]
        if value is None or isinstance(value, str):
            parts = (value or "").split(self.data.separator)
            return [part.strip() for part in parts if part.strip()]
        raise _BadRow(
            "bad_label",
            f"label column '{columns[0]}' holds {value!r}: a list of names belongs there",
        )


def _column(row: Mapping[str, object], name: str, key: str) -> Any:
    if name not in row:
        shown = ", ".join(list(row)[:_SHOWN])
        raise _BadRow("no_column", f"no column '{name}' (data.{key}); there are: {shown}")
    return row[name]


def _number(value: Any, column: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise _BadRow(
            "bad_label", f"label column '{column}' holds {value!r}: a number belongs there"
        )
    return number


# --- labels ---------------------------------------------------------------------------------------


def resolve_labels(
    found: set[str], given: Sequence[str] | None, teacher: Sequence[str] | None, unnamed: bool
) -> list[str]:
    """Names of the labels in the order of the head's outputs.

    Args:
        found: as they stand in the training data.
        given: `data.labels`.
        teacher: of a teacher with a trained head, in its order; None: no head is trained yet.
        unnamed: the teacher's config has no names of its own.

    Raises:
        ValueError: names that can't be brought together with the teacher's.
    """
    if teacher is None:
        return list(given) if given is not None else sorted(found, key=_natural)
    names = list(teacher)
    if given is not None:
        if len(given) != len(names):
            raise ValueError(
                f"data.labels: {len(given)} names, but the teacher has {len(names)} labels "
                f"({_some(names)})"
            )
        if unnamed:
            return list(given)
        if set(given) != set(names):
            raise ValueError(f"data.labels: {_some(given)} are not the teacher's: {_some(names)}")
    if unnamed and not all(_is_number_below(label, len(names)) for label in found):
        raise ValueError(
            f"data.labels: the teacher's labels have no names ({_some(names)}) and the data's are "
            f"{_some(sorted(found))}: give data.labels in the order of the teacher's outputs"
        )
    return names


def _natural(name: str) -> tuple[bool, int, str]:
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def _is_number_below(label: str, count: int) -> bool:
    return label.isdecimal() and int(label) < count


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(str(name) for name in names[:_SHOWN]) + more


def _index(label: str, labels: Sequence[str]) -> int:
    """A label's number: by its name, or, where no name is a number, by its number."""
    if label in labels:
        return labels.index(label)
    if _is_number_below(label, len(labels)) and not any(name.isdecimal() for name in labels):
        return int(label)
    raise _BadRow(
        "unknown_label", f"label '{label}' is none of the model's: {_some(labels)}; correct it"
    )


# --- all together ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskRows:
    """A task's data as it was read: labels in order, usable examples with their gold by side."""

    data: TaskData
    row: TaskRow
    labels: list[str]
    sides: dict[str, list[Labelled]]  # train, dev; test and unlabelled where they are given
    counts: dict[str, int]


@dataclass(frozen=True)
class Labelled:
    """One example: its texts, its gold (see heads), where it came from."""

    texts: tuple[str, ...]
    gold: Any
    origin: str


def read_task(
    data: TaskData,
    row: TaskRow,
    seed: int,
    *,
    teacher_labels: Sequence[str] | None,
    unnamed: bool = False,
    every_class: bool = True,
) -> TaskRows:
    """Read a task's data; nothing is tokenised.

    Args:
        seed: of the held-out share, and of the choice of `max_train`.
        teacher_labels, unnamed: see `resolve_labels`.
        every_class: refuse a class without an example to learn from.

    Raises:
        ValueError: rows that can't be used (file:line), unknown labels, a class without an example,
            or nothing left on a side.
    """
    reader = _Reader(data, row)
    sides = {"train": reader.examples("train", data.train)}
    if data.dev is not None:
        sides["dev"] = reader.examples("dev", data.dev)
    else:
        sides["train"], sides["dev"] = _split(sides["train"], data, seed)
    sides["train"] = _some_of(sides["train"], data.max_train, seed)
    if data.test is not None:
        sides["test"] = reader.examples("test", data.test)
    if data.unlabelled is not None:
        more = reader.examples("unlabelled", data.unlabelled, labelled=False)
        sides["unlabelled"] = _some_of(more, data.max_unlabelled, seed)
    labels = _labels(row, sides["train"], data, teacher_labels, unnamed)
    found = {
        side: [
            Labelled(example.texts, gold, example.origin)
            for example in examples
            if (gold := reader.used(side, example.origin, partial(_gold, row, labels, example)))
            is not None
        ]
        for side, examples in sides.items()
    }
    empty = next((side for side in found if not found[side]), None)
    if empty is not None:
        raise ValueError(f"data.{empty}: no example is left")
    if every_class:
        _check_classes(row, labels, found["train"])
    return TaskRows(data, row, labels, found, dict(reader.counts))


def read_for(
    task: Task, data: TaskData, teacher: PretrainedConfig, seed: int, *, every_class: bool = True
) -> TaskRows:
    """`read_task` for a teacher's config, whose labels count where it has a head for the task."""
    row = row_of(task)
    assert row is not None
    trained = has_head(teacher, row.head)
    names = label_names(teacher) if trained else None
    return read_task(
        data,
        row,
        seed,
        teacher_labels=names,
        unnamed=trained and is_unnamed(teacher),
        every_class=every_class,
    )


def tokenize_task(rows: TaskRows, tokenizer: PreTrainedTokenizerFast) -> TaskExamples:
    """Token sequences of a task's data, cut at `data.max_length`.

    Raises:
        ValueError: that cuts every text of a side.
    """
    warnings = _class_warnings(rows)
    sides = {}
    for side, examples in rows.sides.items():
        sides[side], cut = _tokenized(rows, side, tokenizer)
        if cut > 0.01 * len(examples):
            warnings.append(
                f"{cut} of {len(examples)} texts of {side} are longer than data.max_length "
                f"({rows.data.max_length} tokens), and cut there"
            )
    known = {example.texts for example in rows.sides["train"]}
    for side in rows.sides.keys() & {"dev", "test"}:
        both = sum(example.texts in known for example in rows.sides[side])
        if both:
            warnings.append(
                f"{both} of {len(rows.sides[side])} texts of {side} are also in train, so scores "
                "on them are too good"
            )
    left = {key: value for key, value in rows.counts.items() if not key.endswith(".rows")}
    warnings += [f"{count} rows are left out ({key})" for key, count in sorted(left.items())]
    return TaskExamples(
        labels=rows.labels,
        train=sides["train"],
        dev=sides["dev"],
        test=sides.get("test", sides["dev"]),
        unlabelled=sides.get("unlabelled"),
        counts={**rows.counts, **{f"{k}.examples": len(v) for k, v in sides.items()}},
        warnings=warnings,
    )


def _split(
    examples: list[_Example], data: TaskData, seed: int
) -> tuple[list[_Example], list[_Example]]:
    sides: tuple[list[_Example], list[_Example]] = ([], [])
    for example in examples:
        record = Record(dict(zip(data.text, example.texts, strict=True)), example.origin)
        sides[heldout_side(record, data.text, None, data.heldout, seed)].append(example)
    return sides


def _some_of(examples: list[_Example], most: int | None, seed: int) -> list[_Example]:
    if most is None or most >= len(examples):
        return examples
    chosen = np.random.default_rng([seed, 2]).permutation(len(examples))[:most]
    return [examples[i] for i in sorted(chosen.tolist())]


def _labels(
    row: TaskRow,
    train: list[_Example],
    data: TaskData,
    teacher: Sequence[str] | None,
    unnamed: bool,
) -> list[str]:
    if row.task == "regression":
        return data.label
    found: set[str] = set()
    for example in train:
        found |= set(example.label) if isinstance(example.label, list) else {example.label}
    labels = resolve_labels(found, data.labels, teacher, unnamed)
    if row.task == "classification" and len(labels) < 2:
        raise ValueError(f"data.train: all examples have the label '{labels[0]}': two are needed")
    return labels


def _gold(row: TaskRow, labels: Sequence[str], example: _Example) -> Any:
    label = example.label
    if row.task == "regression":
        return math.nan if label is None else label
    if row.task == "multi_label":
        if label is None:
            return [UNLABELLED] * len(labels)
        chosen = {_index(name, labels) for name in label}
        return [int(number in chosen) for number in range(len(labels))]
    return UNLABELLED if label is None else _index(label, labels)


def _tokenized(
    rows: TaskRows, side: str, tokenizer: PreTrainedTokenizerFast
) -> tuple[Examples, int]:
    """The examples of a side, and how many of them were cut."""
    found, most = rows.sides[side], rows.data.max_length
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    cut = 0
    for start in range(0, len(found), _BATCH):
        columns = zip(*(example.texts for example in found[start : start + _BATCH]), strict=True)
        encoded = tokenizer(
            *(list(column) for column in columns),
            truncation=True,
            max_length=most,
            return_attention_mask=False,
            return_token_type_ids=True,
            split_special_tokens=True,  # "[SEP]" in a text is five characters
        )
        ids += [np.array(one, dtype=np.int32) for one in encoded["input_ids"]]
        types += [np.array(one, dtype=np.uint8) for one in encoded["token_type_ids"]]
        cut += sum(bool(one.overflowing) for one in encoded.encodings or [])
    if cut == len(found):
        raise ValueError(f"data.max_length: {most} tokens cut every text of data.{side}: raise it")
    lengths = np.array([len(one) for one in ids], dtype=np.int32)
    types_T = np.concatenate(types)
    gold_type = np.float32 if rows.row.task == "regression" else np.int64
    examples = Examples(
        ids=np.concatenate(ids),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        lengths=lengths,
        types=types_T if types_T.any() else None,
        gold=np.array([example.gold for example in found], dtype=gold_type),
        texts=[example.texts for example in found],
        origins=[example.origin for example in found],
    )
    return examples, cut


def _class_counts(row: TaskRow, labels: Sequence[str], train: Sequence[Labelled]) -> list[int]:
    """Examples of each label; none where there are no labels."""
    if row.head != "sequence" or row.task == "regression":
        return []
    gold = np.array([example.gold for example in train])
    if row.task == "multi_label":
        return [int(count) for count in gold.sum(0)]
    return [int(count) for count in np.bincount(gold, minlength=len(labels))]


def _check_classes(row: TaskRow, labels: Sequence[str], train: Sequence[Labelled]) -> None:
    counts = _class_counts(row, labels, train)
    absent = [label for label, count in zip(labels, counts, strict=False) if count == 0]
    if absent:
        raise ValueError(
            f"data.train: no example of the label{'s' * (len(absent) > 1)} {_some(absent)}: add "
            "some, or leave it out of data.labels"
        )


def _class_warnings(rows: TaskRows) -> list[str]:
    counts = _class_counts(rows.row, rows.labels, rows.sides["train"])
    rare = [
        f"{label} ({count})"
        for label, count in zip(rows.labels, counts, strict=False)
        if count < _RARE
    ]
    return [f"few examples of {_some(rare)}: what is learnt of them is chance"] if rare else []
