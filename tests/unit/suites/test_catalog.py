"""The table of suites: what GLUE's and SQuAD's own papers and pages say of them."""

from __future__ import annotations

import re

import pytest

from potstill.recipe import Task
from potstill.suites.catalog import SUITES, SuiteTask, suite_tasks, training_of

EVERY = [task for tasks in SUITES.values() for task in tasks]


def test_glue_has_its_nine_tasks_with_their_own_metrics() -> None:
    # Wang et al. 2019, table 1
    assert {task.name: task.scores for task in SUITES["glue"]} == {
        "cola": ["matthews"],
        "mnli": ["accuracy_matched", "accuracy_mismatched"],
        "mrpc": ["accuracy", "f1"],
        "qnli": ["accuracy"],
        "qqp": ["accuracy", "f1"],
        "rte": ["accuracy"],
        "sst2": ["accuracy"],
        "stsb": ["pearson", "spearman"],
        "wnli": ["accuracy"],
    }


@pytest.mark.parametrize("task", EVERY, ids=lambda task: task.name)
def test_rows_are_whole(task: SuiteTask) -> None:
    assert set(task.metrics) <= set(Task(task.task).metrics)
    assert re.fullmatch(r"[0-9a-f]{40}", task.hub.revision)  # a branch would move
    assert bool(task.labels) == (task.task == "classification")
    if task.hub_labels is not None:
        assert len(task.hub_labels) == len(task.labels)


def test_some_tasks() -> None:
    assert [task.name for task in suite_tasks("glue", ["rte", "cola"])] == ["cola", "rte"]
    assert len(suite_tasks("glue", None)) == 9
    with pytest.raises(
        ValueError, match=r"--tasks: 'colla' is not a task of glue. The tasks of glue are cola, mn"
    ):
        suite_tasks("glue", ["cola", "colla"])
    with pytest.raises(ValueError, match="--tasks: no task is named"):
        suite_tasks("glue", [])
    with pytest.raises(
        ValueError, match=r"'super' is not a suite. The suites are glue, imdb, squad, squad2"
    ):
        suite_tasks("super", None)


def test_settings_are_the_tasks_own_or_what_is_asked_for() -> None:
    [rte, wnli] = suite_tasks("glue", ["rte", "wnli"])
    assert (training_of(rte, None, None).epochs, training_of(wnli, None, None).epochs) == (3, 5)
    asked = training_of(wnli, 1e-4, 1)
    assert (asked.learning_rate, asked.epochs, asked.keep) == (1e-4, 1, "last")
