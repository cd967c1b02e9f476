"""Check a task's data as a whole: columns, metric, classes, contradictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from potstill.recipe import Task, TaskData
from potstill.tasks.kinds import kind_of
from potstill.tasks.rows import Labelled, some

_RARE = 10  # examples below which a class is told of


def check_columns(data: TaskData, task: Task) -> None:
    """Refuse columns that the task has no use for: too many, or too few."""
    kind_of(task).check_columns(data)
    if task != Task.MULTI_LABEL and len(data.label) > 1:
        raise ValueError(
            f"data.label: {task} has one label column, and {len(data.label)} are named. Name one."
        )


def check_metric(data: TaskData, task: Task, labels: Sequence[str]) -> None:
    """Refuse a metric that is none of the task's, or of another number of labels."""
    if data.metric is not None and data.metric not in task.metrics:
        raise ValueError(
            f"data.metric: {task} has no metric '{data.metric}'. "
            f"The metrics are {', '.join(task.metrics)}."
        )
    if task == Task.CLASSIFICATION and data.metric == "f1" and len(labels) != 2:
        raise ValueError(
            f"data.metric: f1 is for two labels, and the data has {len(labels)}. Set macro_f1."
        )


def check_classes(task: Task, labels: Sequence[str], train: Sequence[Labelled]) -> None:
    """Refuse a label, or a type of entities, without an example."""
    counts = kind_of(task).class_counts(labels, train)
    absent = [label for label, count in counts if count == 0]
    if absent:
        raise ValueError(
            f"data.train: no example of the label{'s' * (len(absent) > 1)} {some(absent)}. "
            "Add examples, or remove the label from data.labels (label columns: from data.label)."
        )


def class_warnings(task: Task, labels: Sequence[str], train: Sequence[Labelled]) -> list[str]:
    """Return warnings about the training examples."""
    counts = kind_of(task).class_counts(labels, train)
    rare = [f"{label} ({count})" for label, count in counts if count < _RARE]
    few = f"data.train: few examples of {some(rare)}, so the model learns little about them."
    return [*([few] if rare else []), *(_disputed(train) if task.has_labels else [])]


def seen_warnings(sides: Mapping[str, Sequence[Labelled]]) -> list[str]:
    """Return warnings about scored texts that models also learn from.

    Args:
        sides: examples of train and dev, and of test and unlabeled where there are some.
    """
    learnt = {
        "train": "so their scores are too high",
        "unlabeled": "so the student learns the teacher's answers to them",
    }
    found = []
    for side, effect in learnt.items():
        known = {example.texts for example in sides.get(side, ())}
        for scored in sides.keys() & {"dev", "test"}:
            both = sum(example.texts in known for example in sides[scored])
            if both:
                found.append(
                    f"data.{side}: {both} of {len(sides[scored])} texts of {scored} are also in "
                    f"{side}, {effect}."
                )
    return sorted(found)


def _disputed(train: Sequence[Labelled]) -> list[str]:
    """Return a warning about texts that have several labels, which may be mistakes."""
    first: dict[tuple[str, ...], Labelled] = {}
    twice: dict[tuple[str, ...], str] = {}
    for example in train:
        other = first.setdefault(example.texts, example)
        if other.gold != example.gold:
            twice.setdefault(example.texts, f"{other.origin} and {example.origin}")
    if not twice:
        return []
    count = "1 text has" if len(twice) == 1 else f"{len(twice)} texts have"
    return [
        f"data.train: {count} different labels in different rows, the first in "
        f"{next(iter(twice.values()))}. No model can learn both; correct them."
    ]
