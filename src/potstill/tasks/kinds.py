"""Choose the kind of a task's head; nothing else does."""

from __future__ import annotations

from typing import Any, assert_never

from potstill.recipe import Task
from potstill.tasks.kind import Kind
from potstill.tasks.sequence.kind import CosineKind, LabelKind, MultiLabelKind, ValueKind
from potstill.tasks.sequence.scores import Chosen
from potstill.tasks.spans.kind import SpansKind
from potstill.tasks.spans.scores import Given
from potstill.tasks.tokens.kind import TokensKind
from potstill.tasks.tokens.scores import Tagged

Prediction = list[Chosen] | list[Tagged] | list[Given] | list[float]


def kind_of(task: Task) -> Kind[Any]:
    """Choose the kind of a task's head, if it has one."""
    match task.head:
        case None:
            raise ValueError(
                f"task: {task} is learned from plain text, and reads no labeled examples. Choose "
                "another task."
            )
        case "sequence" if not task.has_distribution:
            return ValueKind(task)
        case "sequence":
            return MultiLabelKind(task) if task == Task.MULTI_LABEL else LabelKind(task)
        case "cosine":
            return CosineKind(task)
        case "tokens":
            return TokensKind(task)
        case "spans":
            return SpansKind(task)
        case _:
            assert_never(task.head)
