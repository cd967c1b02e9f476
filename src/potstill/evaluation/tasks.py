"""Scores of task models on labelled examples, beside the teacher, the plain twin and guessing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from potstill.data import Examples
from potstill.evaluation import retention as bootstrap
from potstill.evaluation.retention import Runs, mean_resampled, mean_score, not_beaten, retentions
from potstill.models import LoadedModel, load_model
from potstill.models.config import is_unnamed, label_names
from potstill.recipe import Evaluate, Task, TaskRow, row_of
from potstill.tasks.kinds import Kind, kind_of
from potstill.tasks.metrics import Case
from potstill.tasks.predictions import head_outputs
from potstill.tasks.sequence.scores import confusion, softened

SHOWN = 50  # examples that the report may choose from


def evaluate_task(
    models: Mapping[str, Sequence[Path]],
    test: Examples,
    train: Examples | None,
    labels: Sequence[str],
    task: Task,
    settings: Evaluate,
    metric: str | None,
    seed: int,
    progress: Callable[[float], None] = lambda _: None,
    *,
    student: str | None = None,
    twin: str | None = None,
    tests: Mapping[str, Examples] | None = None,
) -> dict[str, Any]:
    """Scores of each model, retention against the baseline, and what trivial means reach.

    A model that was trained several times scores the mean of its trainings. Intervals are of the
    examples: what other ones would have given these models; what other seeds would have given is
    told by the scores of each (`seeds`).

    Args:
        models: name -> folders, one a training; the baseline must be among them.
        train: what TF-IDF, each word's commonest tag and the commonest answer are learnt from;
            None: the commonest answer is that of `test` itself, and the others are not there.
        metric: the score that findings speak of; None: the task's own.
        student: the model whose answers stand beside the baseline's; None: the last one.
        twin: the same student trained without a teacher, where there is one.
        tests: of models with a tokenizer of their own: name -> `test` as it cuts the texts.

    Returns:
        As result.json: see docs on tasks.

    Raises:
        ValueError: a model of other labels, or questions that one tokenizer has room for and
            another has not.
    """
    row = row_of(task)
    assert row is not None
    _check_same_items(test, tests or {})
    if settings.max_records is not None:
        test = test.first(settings.max_records)
        tests = {k: own.first(settings.max_records) for k, own in (tests or {}).items()}
    cut = {name: (tests or {}).get(name, test) for name in models}
    kind, case = kind_of(row.head), Case(row.task, labels, test, train)
    metric = metric or row.metric
    order = [settings.baseline, *(name for name in models if name != settings.baseline)]
    student = order[-1] if student is None else student
    done, work = 0, sum(len(models[name]) * len(cut[name]) for name in order)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done / work)

    outputs = {
        name: [
            kind.given(
                _in_order(load_model(folder, task, labels=labels), row, labels, cut[name], advance),
                cut[name],
                case,
            )
            for folder in models[name]
        ]
        for name in order
    }
    scored = {
        name: [kind.scores(values, case) for values in found] for name, found in outputs.items()
    }
    references = {name: [found] for name, found in kind.references(case, seed).items()}
    guesses = {
        one: mean_score(references["majority"], one)
        for one in dict.fromkeys([metric, *scored[settings.baseline][0]])
        if one != "mse"  # a loss is not kept
    }
    retention, intervals = retentions(scored, settings.baseline, guesses, task, seed)
    differences = _differences(metric, scored, references, student, twin, seed)
    base = outputs[settings.baseline][0]
    found: dict[str, Any] = {}
    for name in order:
        found[name] = {task: _values(scored[name])}
        if len(scored[name]) > 1:
            found[name][task]["seeds"] = [one[metric].value for one in scored[name]]
        if name != settings.baseline:
            found[name]["agreement"] = _agreement(kind, case, outputs[name], base)
    return {
        "task": task,
        "records": len(test) if test.items is None else len(test.items),
        "baseline": settings.baseline,
        "labels": list(labels),
        "metric": metric,
        "twin": twin,
        "models": found,
        "references": {name: {task: _values(found)} for name, found in references.items()},
        "retention": retention,
        "intervals": intervals,
        "differences": differences,
        "findings": not_beaten(differences, student, kind.said, -1 if metric == "mse" else 1),
        "softened": (
            softened(base, outputs[student][0], test, labels) if task == "classification" else None
        ),
        "confusion": (
            {name: confusion(found[0], test, len(labels)) for name, found in outputs.items()}
            if task == "classification"
            else None
        ),
        "examples": kind.show(base, outputs[student][0], case, SHOWN),
    }


def _check_same_items(test: Examples, tests: Mapping[str, Examples]) -> None:
    for name, own in tests.items():
        if test.items is None or own.items is None or own.items.texts == test.items.texts:
            continue
        raise ValueError(
            f"{name}: by its tokenizer {len(own.items)} questions leave room for their context, by "
            f"the baseline's {len(test.items)}: raise data.max_length or lower data.stride, so "
            "that none is left out"
        )


def _in_order(
    loaded: LoadedModel,
    row: TaskRow,
    labels: Sequence[str],
    examples: Examples,
    progress: Callable[[int], None],
) -> np.ndarray:
    """`head_outputs`, the columns in the order of `labels` whatever the model's own order is.

    Raises:
        ValueError: the model has other labels.
    """
    outputs = head_outputs(loaded, examples, progress)
    if not row.has_labels:
        return outputs
    names = label_names(loaded.model.config)
    if is_unnamed(loaded.model.config) and len(names) == len(labels):
        return outputs
    if sorted(names) != sorted(labels):
        raise ValueError(
            f"{loaded.name}: its labels are {', '.join(names)}, and the baseline's "
            f"{', '.join(labels)}: give models of the same labels"
        )
    return outputs[:, [names.index(label) for label in labels]]


def _values(runs: Runs) -> dict[str, Any]:
    return {name: mean_score(runs, name) for name in runs[0]}


def _agreement(kind: Kind, case: Case, runs: Sequence[Any], base: Any) -> dict[str, float]:
    """How alike a model's answers and the baseline's are, right or wrong."""
    each = [kind.agreement(given, base, case) for given in runs]
    return {name: float(np.mean([found[name] for found in each])) for name in each[0]}


def _differences(
    metric: str,
    scored: Mapping[str, Runs],
    references: Mapping[str, Runs],
    student: str,
    twin: str | None,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """The student's score less the twin's and the trivial ones', with a paired 95% interval."""
    others = dict(references)
    if twin is not None and twin != student:
        others = {twin: scored[twin], **others}
    drawn = mean_resampled([scored[student], *others.values()], metric, seed)
    mine = mean_score(scored[student], metric)
    return {
        name: {
            "metric": metric,
            "difference": mine - mean_score(other, metric),
            "interval": bootstrap.interval(drawn[0] - values_R),
        }
        for (name, other), values_R in zip(others.items(), drawn[1:], strict=True)
    }
