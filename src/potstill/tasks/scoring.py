"""Compute every metric of one model on one task, and the score of a constant answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from potstill.data import Examples
from potstill.models import LoadedModel
from potstill.recipe import Task
from potstill.tasks.kinds import kind_of
from potstill.tasks.metrics import Case, Scored
from potstill.tasks.predictions import head_outputs
from potstill.tasks.score_names import is_loss


def task_score(loaded: LoadedModel, examples: Examples, labels: Sequence[str], name: str) -> float:
    """Return one score of a model, the higher the better."""
    value = task_scores(loaded, examples, labels)[name].value
    return -value if is_loss(name) else value


def task_scores(
    loaded: LoadedModel,
    examples: Examples,
    labels: Sequence[str],
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Scored]:
    """Return every metric of a model's task."""
    kind, case = kind_of(loaded.task), Case(loaded.task, labels, examples)
    outputs = head_outputs(loaded, examples, progress)
    return kind.scores(kind.given(outputs, examples, case), case)


def constant_scores(task: Task, examples: Examples, labels: Sequence[str]) -> dict[str, float]:
    """Return the best score of the same answer for all examples, by metric.

    Of labels the best of them by each metric, of answers none at all; a correlation is 0.
    """
    return kind_of(task).constant(Case(task, labels, examples))
