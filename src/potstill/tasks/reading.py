"""Read labeled examples: files to rows with their gold, mistakes by line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from transformers import PretrainedConfig

from potstill.data.sources import Record, heldout_side, read_rows
from potstill.models.config import has_head, label_names
from potstill.recipe import Source, Task, TaskData
from potstill.tasks.checks import check_classes, check_columns, check_metric
from potstill.tasks.kind import Kind
from potstill.tasks.kinds import kind_of
from potstill.tasks.labels import check_named
from potstill.tasks.rows import (
    BadRow,
    Labelled,
    Names,
    RawExample,
    Row,
    column_of,
    usable,
)


@dataclass
class _Reader:
    data: TaskData
    kind: Kind[Any]
    counts: Counter[str] = field(default_factory=Counter)
    ids: dict[tuple[str, str], str] = field(default_factory=dict)  # (side, id) -> origin

    def sides(self, seed: int) -> dict[str, list[RawExample]]:
        data = self.data
        sides = {"train": self.examples("train", data.train)}
        if data.dev is not None:
            sides["dev"] = self.examples("dev", data.dev)
        else:
            sides["train"], sides["dev"] = self._split(sides["train"], seed)
        sides["train"] = _some_of(sides["train"], data.max_train, seed)
        if data.test is not None:
            sides["test"] = self.examples("test", data.test)
        if data.unlabeled is not None:
            more = self.examples("unlabeled", data.unlabeled, labelled=False)
            sides["unlabeled"] = _some_of(more, data.max_unlabeled, seed)
        return sides

    def _split(
        self, examples: list[RawExample], seed: int
    ) -> tuple[list[RawExample], list[RawExample]]:
        """Return examples to train on, and held out; all questions of a context are on one side."""
        data, group = self.data, self.kind.group(self.data)
        sides: tuple[list[RawExample], list[RawExample]] = ([], [])
        for example in examples:
            record = Record(self.kind.columns(example.texts, data), example.origin)
            sides[heldout_side(record, data.text, group, data.heldout, seed)].append(example)
        return sides

    def examples(
        self, side: str, sources: Sequence[Source], labelled: bool = True
    ) -> list[RawExample]:
        columns = [*self.data.text, *(self.data.label if labelled else ())]
        found: list[RawExample] = []
        reason = ""  # why the first row is left out
        for row, origin in read_rows(sources, columns):
            self.counts[f"{side}.rows"] += 1
            if not labelled and len(self.data.text) == 1 and list(row) == ["text"]:
                row = {self.data.text[0]: row["text"]}  # plain text has no names of columns
            parse = partial(self._one, side, row, origin, labelled)
            example = usable(self.data, self.counts, side, origin, parse)
            if example is not None:
                found.append(example)
            elif not found and not reason:
                reason = _why(parse, origin)
        if not found:
            raise ValueError(f"data.{side}: no row can be used. {reason}")
        return found

    def _one(self, side: str, row: Row, origin: str, labelled: bool) -> RawExample:
        self._once(side, row, origin, labelled)
        return RawExample(*self.kind.read(row, origin, self.data, labelled), origin)

    def _once(self, side: str, row: Row, origin: str, labelled: bool) -> None:
        """Refuse an id that another row has: a question's, or that of the column `data.id`."""
        column = self.data.id or self.kind.own_id
        if column is None:
            return
        name = column_of(row, column, "id") if self.data.id and labelled else row.get(column)
        if name is None:
            return
        other = self.ids.setdefault((side, str(name)), origin)
        if other != origin:
            raise BadRow(
                "duplicate_id", f"the id '{name}' is also the id of {other}. Change one of them."
            )


def _why(parse: Callable[[], Any], origin: str) -> str:
    """Return in one clause where a row is that can't be used, and why it can't."""
    try:
        parse()
    except BadRow as problem:
        return f"In {problem.origin or origin}, {problem}"
    return ""


@dataclass(frozen=True)
class TaskRows:
    """Hold a task's data as it was read: labels in order, usable examples by side."""

    data: TaskData
    task: Task
    labels: list[str]
    sides: dict[str, list[Labelled]]  # train, dev; test and unlabeled where they are given
    counts: dict[str, int]


def read_task(
    data: TaskData,
    task: Task,
    seed: int,
    *,
    teacher_labels: Names | None,
    every_class: bool = True,
) -> TaskRows:
    """Read a task's data, without tokenizing it.

    Args:
        seed: Decides the held-out share, and the choice of `max_train`.
        teacher_labels: As in `resolve_labels`.
        every_class: Refuse a class without a training example.

    Raises:
        ValueError: rows that can't be used (file:line), unknown labels, a class without an example,
            a metric that the task does not have, or nothing left on a side.
    """
    check_columns(data, task)
    kind = kind_of(task)
    reader = _Reader(data, kind)
    sides = reader.sides(seed)
    if task == Task.CLASSIFICATION:
        names = data.labels or teacher_labels or ()
        sides["train"] = _of_one_kind(sides["train"], names, data, reader.counts)
    read_labels = [example.label for example in sides["train"]]
    labels = kind.labels(read_labels, data, teacher_labels)
    by_number = data.labels is not None or teacher_labels is not None
    found: dict[str, list[Labelled]] = {}
    for side, examples in kind.scaled(sides, data).items():
        found[side] = []
        for one in examples:
            parse = partial(_labelled, kind, labels, one, data.labels, by_number)
            if example := usable(data, reader.counts, side, one.origin, parse):
                found[side].append(example)
        if not found[side]:
            raise ValueError(_none_left(side, data))
    check_metric(data, task, labels)
    if every_class:
        check_classes(task, labels, found["train"])
    return TaskRows(data, task, labels, found, dict(reader.counts))


def _none_left(side: str, data: TaskData) -> str:
    if side != "dev" or data.dev is not None:
        return f"data.{side}: no example is left."
    return (
        f"data.heldout: {data.heldout:g} holds out no example of data.train. Raise it, or give "
        "data.dev."
    )


def read_for(
    task: Task, data: TaskData, teacher: PretrainedConfig, seed: int, *, every_class: bool = True
) -> TaskRows:
    """Read a task's data for a teacher, whose labels count where it has a head for the task."""
    names = label_names(teacher) if has_head(teacher, task.head) else None
    return read_task(data, task, seed, teacher_labels=names, every_class=every_class)


def _some_of(examples: list[RawExample], most: int | None, seed: int) -> list[RawExample]:
    if most is None or most >= len(examples):
        return examples
    chosen = np.random.default_rng([seed, 2]).permutation(len(examples))[:most]
    return [examples[i] for i in sorted(chosen.tolist())]


def _of_one_kind(
    train: list[RawExample], names: Names, data: TaskData, counts: Counter[str]
) -> list[RawExample]:
    """Drop numbers beside names, which would be classes of their own, or names beside numbers.

    The rarer of the two are dropped, if any may be left out; `names` are never numbers.
    """
    kinds: dict[bool, list[RawExample]] = {True: [], False: []}
    for example in train:
        if not (example.label in names and example.label.isdecimal()):  # a name, meant so
            kinds[example.label.isdecimal()].append(example)
    if not all(kinds.values()):
        return train
    if data.on_bad_row == "error":
        number, name = kinds[True][0], kinds[False][0]
        raise ValueError(
            f"{number.origin}: label '{number.label}' is a number, and '{name.label}' of "
            f"{name.origin} is a name. Write all labels the same way, name them all in "
            "data.labels, or skip the rarer kind with data.on_bad_row=skip."
        )
    fewer = min(kinds.values(), key=len)
    counts["train.mixed_label"] += len(fewer)
    left_out = {id(example) for example in fewer}
    return [example for example in train if id(example) not in left_out]


def _labelled(
    kind: Kind[Any], labels: Names, example: RawExample, given: Names | None, by_number: bool
) -> Labelled:
    gold = kind.gold(example, labels, given)
    if kind.task == Task.CLASSIFICATION and not by_number and example.label is not None:
        check_named(example.label, labels)
    return Labelled(example.texts, gold, example.origin)
