"""Order and number the names of labels, and check that two models share them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from potstill.models import LoadedModel
from potstill.models.config import is_unnamed, label_names
from potstill.recipe import TaskData
from potstill.tasks.rows import BadRow, Names, some


def is_number_below(label: str, count: int) -> bool:
    """Return whether a label is a number below `count`."""
    return label.isdecimal() and int(label) < count


def check_named(label: str, labels: Names) -> None:
    """Refuse the number of a label whose place only the alphabet gave it.

    Raises:
        BadRow: a number that is no name.
    """
    if label not in labels:
        raise BadRow(
            "unknown_label",
            f"label '{label}' is a number, and train has names ({some(labels)}). Write all labels "
            "the same way, or set data.labels in the order of their numbers.",
        )


def label_number(label: str, labels: Names, given: Names | None = None) -> int:
    """Return a label's number, by its name or, where no name is a number, by its number.

    Args:
        labels: in the order of the model's outputs.
        given: the same names in the order that the data's numbers count in; None: that one.
    """
    if label in labels:
        return labels.index(label)
    if is_number_below(label, len(labels)) and not any(name.isdecimal() for name in labels):
        return int(label) if given is None else labels.index(given[int(label)])
    raise BadRow(
        "unknown_label",
        f"label '{label}' is not one of the model's labels: {some(labels)}. Correct it.",
    )


def named_labels(labels: Iterable[Any], data: TaskData) -> set[str]:
    """Return all names among the examples' labels, each of which is a name or a list of names."""
    # a column names its label, whether or not an example has it
    found: set[str] = set(data.label) if len(data.label) > 1 else set()
    for label in labels:
        found |= set(label) if isinstance(label, list) else {label}
    return found


def resolve_labels(found: set[str], given: Names | None, teacher: Names | None) -> list[str]:
    """Return the names of the labels in the order of the head's outputs.

    Args:
        found: as they stand in the training data.
        given: `data.labels`.
        teacher: of a teacher with a trained head, in its order; None: no head is trained yet.

    Raises:
        ValueError: names that can't be brought together with the teacher's.
    """
    if teacher is None:
        return list(given) if given is not None else sorted(found, key=_natural)
    names, unnamed = list(teacher), is_unnamed(teacher)
    if given is not None:
        if len(given) != len(names):
            raise ValueError(
                f"data.labels: {len(given)} names, but the teacher has {len(names)} labels "
                f"({some(names)}). Name as many labels."
            )
        if unnamed:
            return list(given)
        if set(given) != set(names):
            raise ValueError(
                f"data.labels: {some(given)} are not the teacher's labels. They are {some(names)}."
            )
    if unnamed and not all(is_number_below(label, len(names)) for label in found):
        raise ValueError(
            f"data.labels: the teacher's labels have no names ({some(names)}) and the data's are "
            f"{some(sorted(found))}. Set data.labels in the order of the teacher's outputs."
        )
    return names


def _natural(name: str) -> tuple[bool, int, str]:
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def check_labels(loaded: LoadedModel, labels: Names) -> None:
    """Refuse a head whose labels are not the run's labels, in the run's order.

    Its outputs would be trained as the run's labels, and named by its own.

    Raises:
        ValueError: other labels, or another order.
    """
    if not loaded.task.has_labels:
        return
    own = label_names(loaded.model.config)
    if own != list(labels):
        raise ValueError(
            f"{loaded.name}: the labels of its head are {', '.join(own)}, and the run's labels are "
            f"{', '.join(labels)}, in this order. Give a model with the same labels in the same "
            "order, or a model without a head."
        )
