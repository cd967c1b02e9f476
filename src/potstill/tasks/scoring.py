"""Every metric of one model on one task, and the score of a constant answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, assert_never

import numpy as np

from potstill.data import Examples
from potstill.models import LoadedModel
from potstill.recipe import VALUE_TASKS, Task, TaskRow, row_of
from potstill.tasks.metrics import Scored
from potstill.tasks.predictions import head_outputs
from potstill.tasks.sequence.scores import label_scores
from potstill.tasks.spans.scores import answer_scores, best_answers
from potstill.tasks.tokens.scores import predicted_tags, tag_scores


def task_score(loaded: LoadedModel, examples: Examples, labels: Sequence[str], name: str) -> float:
    """One score of a model, the higher the better."""
    value = task_scores(loaded, examples, labels)[name].value
    return -value if name == "mse" else value


def task_scores(
    loaded: LoadedModel,
    examples: Examples,
    labels: Sequence[str],
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Scored]:
    """Every metric of a model's task."""
    row = row_of(loaded.task)
    assert row is not None
    given = given_answers(row, head_outputs(loaded, examples, progress), examples)
    return scores_of(row, given, examples, labels)


def constant_scores(task: Task, examples: Examples, labels: Sequence[str]) -> dict[str, float]:
    """The most that the same answer for all examples scores, whichever it is, by metric.

    Of labels the best of them by each metric, of answers none at all; a correlation is 0.
    """
    row = row_of(task)
    assert row is not None
    if row.head == "spans":
        assert examples.items is not None
        none = answer_scores([""] * len(examples.items), examples.items)
        return {name: scored.value for name, scored in none.items()}
    if task in VALUE_TASKS:
        return {"pearson": 0.0, "spearman": 0.0}
    always = [np.tile(one, (len(examples), 1)) for one in np.eye(len(labels))]
    each = [scores_of(row, outputs, examples, labels) for outputs in always]
    return {name: max(scored[name].value for scored in each) for name in each[0]}


# --- scores ---------------------------------------------------------------------------------------


def given_answers(row: TaskRow, outputs: np.ndarray, examples: Examples) -> Any:
    """What a model's outputs are scored by: answers of questions; else the outputs themselves."""
    return best_answers(outputs, examples) if row.head == "spans" else outputs


def scores_of(
    row: TaskRow, given: Any, examples: Examples, labels: Sequence[str]
) -> dict[str, Scored]:
    """Every metric of a task."""
    match row.head:
        case "tokens":
            assert examples.items is not None
            tags = predicted_tags(given, examples, labels.index("O"))
            return tag_scores(examples.items.truths, tags, labels)
        case "spans":
            assert examples.items is not None
            return answer_scores([answer.text for answer in given], examples.items)
        case "sequence" | "cosine":
            return label_scores(row.task, given, examples.gold, len(labels))
        case _:
            assert_never(row.head)
