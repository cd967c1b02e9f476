"""Labelled examples: files to rows with their gold, mistakes by line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, assert_never

import numpy as np
from transformers import PretrainedConfig

from potstill.data.sequences import UNLABELLED
from potstill.data.sources import Record, heldout_side, read_rows
from potstill.models.config import has_head, is_unnamed, label_names
from potstill.recipe import VALUE_TASKS, Source, Task, TaskData, TaskRow, row_of
from potstill.tasks.checks import check_classes, check_columns, check_metric
from potstill.tasks.labels import check_named, label_number, resolve_labels
from potstill.tasks.rows import BadRow, Labelled, column_of, usable
from potstill.tasks.sequence.examples import read_texts
from potstill.tasks.spans.examples import LABELS, read_question
from potstill.tasks.tokens.examples import check_tag_names, read_sentence, sorted_tags, tag_numbers


@dataclass(frozen=True)
class _Example:
    texts: tuple[str, ...]
    label: Any  # as read: a name, names, a number; None: unlabelled
    origin: str


@dataclass
class _Reader:
    data: TaskData
    row: TaskRow
    counts: Counter[str] = field(default_factory=Counter)
    ids: dict[tuple[str, str], str] = field(default_factory=dict)  # (side, id) -> origin

    def examples(
        self, side: str, sources: Sequence[Source], labelled: bool = True
    ) -> list[_Example]:
        columns = [*self.data.text, *(self.data.label if labelled else ())]
        found: list[_Example] = []
        problem = ""  # of the first row that is left out
        for read, origin in read_rows(sources, columns):
            self.counts[f"{side}.rows"] += 1
            row = read if labelled else self._named(read)
            parse = partial(self._one, side, row, origin, labelled)
            parsed = usable(self.data, self.counts, side, origin, parse)
            if parsed is not None:
                texts, label = parsed
                found.append(_Example(texts, label, origin))
            elif not found and not problem:
                problem = _problem(parse, origin)
        if not found:
            raise ValueError(f"data.{side}: no row can be used; the first: {problem}")
        return found

    def _one(
        self, side: str, row: Mapping[str, object], origin: str, labelled: bool
    ) -> tuple[tuple[str, ...], Any]:
        self._once(side, row, origin, labelled)
        match self.row.head:
            case "tokens":
                return read_sentence(row, origin, self.data, labelled)
            case "spans":
                return read_question(row, self.data, labelled)
            case "sequence" | "cosine":
                return read_texts(row, self.data, self.row.task, labelled)
            case _:
                assert_never(self.row.head)

    def _named(self, row: Mapping[str, object]) -> Mapping[str, object]:
        """Plain text, which has no names of columns, is the one text that there is."""
        if len(self.data.text) == 1 and list(row) == ["text"]:
            return {self.data.text[0]: row["text"]}
        return row

    def _once(self, side: str, row: Mapping[str, object], origin: str, labelled: bool) -> None:
        """Refuse an id that another row has: a question's, or that of the column `data.id`."""
        column = self.data.id or ("id" if self.row.head == "spans" else None)
        if column is None:
            return
        name = column_of(row, column, "id") if self.data.id and labelled else row.get(column)
        if name is None:
            return
        other = self.ids.setdefault((side, str(name)), origin)
        if other != origin:
            raise BadRow("duplicate_id", f"the id '{name}' is also that of {other}: change one")


def _problem(parse: Callable[[], Any], origin: str) -> str:
    # a run that leaves out every row owes its user the reason
    try:
        parse()
    except BadRow as problem:
        return f"{problem.origin or origin}: {problem}"
    return ""


# --- all together ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskRows:
    """A task's data as it was read: labels in order, usable examples with their gold by side."""

    data: TaskData
    row: TaskRow
    labels: list[str]
    sides: dict[str, list[Labelled]]  # train, dev; test and unlabelled where they are given
    counts: dict[str, int]


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
            a metric that the task has not, or nothing left on a side.
    """
    check_columns(data, row)
    reader = _Reader(data, row)
    sides = {"train": reader.examples("train", data.train)}
    if data.dev is not None:
        sides["dev"] = reader.examples("dev", data.dev)
    else:
        sides["train"], sides["dev"] = _split(sides["train"], data, row, seed)
    sides["train"] = _some_of(sides["train"], data.max_train, seed)
    if data.test is not None:
        sides["test"] = reader.examples("test", data.test)
    if data.unlabelled is not None:
        more = reader.examples("unlabelled", data.unlabelled, labelled=False)
        sides["unlabelled"] = _some_of(more, data.max_unlabelled, seed)
    if row.task == "classification":
        names = data.labels or teacher_labels or ()
        sides["train"] = _of_one_kind(sides["train"], names, data, reader.counts)
    labels = _labels(row, sides["train"], data, teacher_labels, unnamed)
    by_number = data.labels is not None or teacher_labels is not None
    if row.head == "cosine":
        sides = _as_cosines(sides, data)
    found: dict[str, list[Labelled]] = {}
    for side, examples in sides.items():
        each = [
            usable(
                data,
                reader.counts,
                side,
                one.origin,
                partial(_labelled, row, labels, one, data.labels, by_number),
            )
            for one in examples
        ]
        found[side] = [example for example in each if example is not None]
    empty = next((side for side in found if not found[side]), None)
    if empty is not None:
        raise ValueError(f"data.{empty}: no example is left{_why_none(empty, data)}")
    check_metric(data, row, labels)
    if every_class:
        check_classes(row, labels, found["train"])
    return TaskRows(data, row, labels, found, dict(reader.counts))


def _why_none(side: str, data: TaskData) -> str:
    if side != "dev" or data.dev is not None:
        return ""
    return (
        f": none of data.train is in the share held out (data.heldout, {data.heldout:g}): raise "
        "it, or give data.dev"
    )


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


def _split(
    examples: list[_Example], data: TaskData, row: TaskRow, seed: int
) -> tuple[list[_Example], list[_Example]]:
    """Examples to train on, and the held-out share; all questions of a context are on one side."""
    sides: tuple[list[_Example], list[_Example]] = ([], [])
    for example in examples:
        columns = dict(zip(data.text, example.texts, strict=False))
        if row.head == "tokens":
            columns = {data.text[0]: " ".join(example.texts)}
        record = Record(columns, example.origin)
        group = data.text[1] if row.head == "spans" else None
        sides[heldout_side(record, data.text, group, data.heldout, seed)].append(example)
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
    if row.task in VALUE_TASKS:
        return data.label
    if row.task == "question_answering":
        return LABELS
    # a column names its label, whether or not an example has it
    found: set[str] = set(data.label) if len(data.label) > 1 else set()
    for example in train:
        found |= set(example.label) if isinstance(example.label, list) else {example.label}
    labels = resolve_labels(found, data.labels, teacher, unnamed)
    if row.task == "token_classification" and teacher is None and data.labels is None:
        labels = sorted_tags(found)
    if row.task == "token_classification":
        check_tag_names(labels)
    if row.task == "classification" and len(labels) < 2:
        raise ValueError(f"data.train: all examples have the label '{labels[0]}': two are needed")
    return labels


def _as_cosines(sides: Mapping[str, list[_Example]], data: TaskData) -> dict[str, list[_Example]]:
    """The scores between 0 and 1, as cosines can tell them.

    Raises:
        ValueError: all pairs that are learnt from have the same score.
    """
    scores = [example.label for example in sides["train"]]
    least, greatest = data.score_range or (min(scores), max(scores))
    if least == greatest:
        raise ValueError(f"data.train: all pairs have the score {least:g}: two are needed")
    span = greatest - least

    def scaled(example: _Example) -> _Example:
        if example.label is None:
            return example
        return replace(example, label=(example.label - least) / span)

    return {side: [scaled(one) for one in found] for side, found in sides.items()}


def _of_one_kind(
    train: list[_Example], names: Sequence[str], data: TaskData, counts: Counter[str]
) -> list[_Example]:
    """The examples without numbers beside names, which would be classes of their own, or guesses:
    what there is less of is left out.

    Raises:
        ValueError: the first of the other kind that is none of `names`, if none may be left out.
    """
    kinds: dict[bool, list[_Example]] = {True: [], False: []}
    for example in train:
        if not (example.label in names and example.label.isdecimal()):  # a name, meant so
            kinds[example.label.isdecimal()].append(example)
    if not all(kinds.values()):
        return train
    if data.on_bad_row == "error":
        number, name = kinds[True][0], kinds[False][0]
        raise ValueError(
            f"{number.origin}: label '{number.label}' is a number, and '{name.label}' of "
            f"{name.origin} a name: write all labels in one way, name them all in data.labels, or "
            "leave out those that there are fewer of with data.on_bad_row=skip"
        )
    fewer = min(kinds.values(), key=len)
    counts["train.mixed_label"] += len(fewer)
    left_out = {id(example) for example in fewer}
    return [example for example in train if id(example) not in left_out]


def _labelled(
    row: TaskRow,
    labels: Sequence[str],
    example: _Example,
    given: Sequence[str] | None,
    by_number: bool,
) -> Labelled:
    gold = _gold(row, labels, example, given)
    if row.task == "classification" and not by_number and example.label is not None:
        check_named(example.label, labels)
    return Labelled(example.texts, gold, example.origin)


def _gold(
    row: TaskRow, labels: Sequence[str], example: _Example, given: Sequence[str] | None
) -> Any:
    label = example.label
    if row.task == "question_answering":
        return label
    if row.task == "token_classification":
        return None if label is None else tag_numbers(example.texts, label, labels, given)
    if row.task in VALUE_TASKS:
        return math.nan if label is None else label
    if row.task == "multi_label":
        if label is None:
            return [UNLABELLED] * len(labels)
        chosen = {label_number(name, labels, given) for name in label}
        return [int(number in chosen) for number in range(len(labels))]
    return UNLABELLED if label is None else label_number(label, labels, given)
