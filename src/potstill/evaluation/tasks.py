"""Scores of task models on labelled examples, beside the teacher, the plain twin and guessing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from potstill.data import Examples
from potstill.evaluation.lineup import Lineup, counted
from potstill.evaluation.retention import Runs, mean_score
from potstill.models import LoadedModel, load_model
from potstill.models.config import is_unnamed, label_names
from potstill.recipe import Evaluate, Task
from potstill.tasks.kinds import kind_of
from potstill.tasks.metrics import Case
from potstill.tasks.predictions import head_outputs
from potstill.tasks.results import Evaluation
from potstill.tasks.score_names import is_loss
from potstill.tasks.sequence.scores import confusion, softened

SHOWN = 50  # examples that the report may choose from


def evaluate_task(
    lineup: Lineup,
    case: Case[Any],
    settings: Evaluate,
    metric: str | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> Evaluation:
    """Scores of each model, retention against the baseline, and what trivial means reach.

    A model that was trained several times scores the mean of its trainings. Intervals are of the
    examples: what other ones would have given these models; what other seeds would have given is
    told by the scores of each (`seeds`).

    Args:
        case: what is scored. `train` is what TF-IDF, each word's commonest tag and the commonest
            answer are learnt from; None: the commonest answer is that of `test` itself, and the
            others are not there.
        metric: the score that findings speak of; None: the task's own.

    Returns:
        As result.json: see docs on tasks.

    Raises:
        ValueError: a model of other labels, or questions that one tokenizer has room for and
            another has not.
    """
    task = case.task
    kind, metric = kind_of(task), metric or task.metric
    _check_same_items(case)
    if settings.max_records is not None:
        case = case.first(settings.max_records)
    outputs = _outputs(lineup, case, progress)
    scored = {name: [kind.scores(each, case) for each in given] for name, given in outputs.items()}
    references = {name: [found] for name, found in kind.references(case, lineup.seed).items()}
    kept = [one for one in dict.fromkeys([metric, *scored[lineup.baseline][0]]) if not is_loss(one)]
    chance = {f"{task}.{one}": mean_score(references["majority"], one) for one in kept}
    compared = lineup.compare(scored, references, chance, metric, kind.said)
    base, other = outputs[lineup.baseline][0], outputs[lineup.shown][0]
    return {
        "task": task,
        "records": len(case.test if case.test.items is None else case.test.items),
        "baseline": lineup.baseline,
        "labels": list(case.labels),
        "metric": metric,
        "twin": lineup.twin,
        "models": _models(lineup, case, outputs, scored, metric),
        "references": {name: {task: _values(runs)} for name, runs in references.items()},
        **compared,
        **_exclusive(lineup, case, outputs),
        "examples": kind.show(base, other, case, SHOWN),
    }


def _exclusive(lineup: Lineup, case: Case, outputs: Mapping[str, Sequence[Any]]) -> Evaluation:
    """One example's distribution, and how often each label was given for each, by model.

    Both None where an example may have several labels, a value, or an answer.
    """
    if case.task.problem_type != "single_label_classification":
        return {"softened": None, "confusion": None}
    base, other = outputs[lineup.baseline][0], outputs[lineup.shown][0]
    count = len(case.labels)
    return {
        "softened": softened(base, other, case.test, case.labels),
        "confusion": {n: confusion(given[0], case.test, count) for n, given in outputs.items()},
    }


def _outputs(lineup: Lineup, case: Case, progress: Callable[[float], None]) -> dict[str, list[Any]]:
    """What each training of each model is scored by."""
    kind = kind_of(case.task)
    cut = {name: case.own.get(name, case.test) for name in lineup.order}
    advance = counted(sum(len(lineup.models[name]) * len(cut[name]) for name in cut), progress)

    def given(folder: Path, examples: Examples) -> Any:
        loaded = load_model(folder, case.task, labels=case.labels)
        outputs = _in_order(loaded, case.task, case.labels, examples, advance)
        return kind.given(outputs, examples, case)

    return {
        name: [given(folder, examples) for folder in lineup.models[name]]
        for name, examples in cut.items()
    }


def _models(
    lineup: Lineup,
    case: Case[Any],
    outputs: Mapping[str, Sequence[Any]],
    scored: Mapping[str, Runs],
    metric: str,
) -> dict[str, Any]:
    """Each model's scores, and how alike its answers and the baseline's are, right or wrong."""
    kind, base = kind_of(case.task), outputs[lineup.baseline][0]
    found: dict[str, Any] = {}
    for name in lineup.order:
        found[name] = {case.task: _values(scored[name])}
        if len(scored[name]) > 1:
            found[name][case.task]["seeds"] = [one[metric].value for one in scored[name]]
        if name != lineup.baseline:
            each = [kind.agreement(given, base, case) for given in outputs[name]]
            found[name]["agreement"] = {
                key: float(np.mean([one[key] for one in each])) for key in each[0]
            }
    return found


def _check_same_items(case: Case) -> None:
    test = case.test
    for name, own in case.own.items():
        if test.items is None or own.items is None or own.items.texts == test.items.texts:
            continue
        raise ValueError(
            f"{name}: by its tokenizer {own.items} questions leave room for their context, by "
            f"the baseline's {test.items}: raise data.max_length or lower data.stride, so "
            "that none is left out"
        )


def _in_order(
    loaded: LoadedModel,
    task: Task,
    labels: Sequence[str],
    examples: Examples,
    progress: Callable[[int], None],
) -> np.ndarray:
    """`head_outputs`, the columns in the order of `labels` whatever the model's own order is.

    Raises:
        ValueError: the model has other labels.
    """
    outputs = head_outputs(loaded, examples, progress)
    if not task.has_labels:
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
