"""Scores of task models on labelled examples, beside the teacher, the plain twin and guessing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from potstill.data import Examples
from potstill.data.sequences import Questions
from potstill.evaluation import retention as bootstrap
from potstill.evaluation.lineup import Compared, Lineup
from potstill.evaluation.retention import Runs, mean_resampled, mean_score, retentions
from potstill.models import LoadedModel, load_model
from potstill.models.config import is_unnamed, label_names
from potstill.recipe import Evaluate, Task
from potstill.tasks.kinds import kind_of
from potstill.tasks.metrics import Case
from potstill.tasks.predictions import head_outputs
from potstill.tasks.sequence.scores import confusion, softened

SHOWN = 50  # examples that the report may choose from


# as result.json has them
_KEYS = (
    *("task", "records", "baseline", "labels", "metric", "twin", "models", "references"),
    *("retention", "intervals", "differences", "findings", "softened", "confusion", "examples"),
)


def evaluate_task(
    lineup: Lineup,
    case: Case[Any],
    settings: Evaluate,
    metric: str | None = None,
    progress: Callable[[float], None] = lambda _: None,
    *,
    tests: Mapping[str, Examples] | None = None,
) -> dict[str, Any]:
    """Scores of each model, retention against the baseline, and what trivial means reach.

    A model that was trained several times scores the mean of its trainings. Intervals are of the
    examples: what other ones would have given these models; what other seeds would have given is
    told by the scores of each (`seeds`).

    Args:
        case: what is scored. `train` is what TF-IDF, each word's commonest tag and the commonest
            answer are learnt from; None: the commonest answer is that of `test` itself, and the
            others are not there.
        metric: the score that findings speak of; None: the task's own.
        tests: of models with a tokenizer of their own: name -> `test` as it cuts the texts.

    Returns:
        As result.json: see docs on tasks.

    Raises:
        ValueError: a model of other labels, or questions that one tokenizer has room for and
            another has not.
    """
    task = case.task
    kind, metric = kind_of(task), metric or task.metric
    _check_same_items(case.test, tests or {})
    if settings.max_records is not None:
        case = replace(case, test=case.test.first(settings.max_records))
        tests = {k: own.first(settings.max_records) for k, own in (tests or {}).items()}
    cut = {name: (tests or {}).get(name, case.test) for name in lineup.models}
    outputs = _outputs(lineup, case, cut, progress)
    scored = {name: [kind.scores(each, case) for each in given] for name, given in outputs.items()}
    references = {name: [found] for name, found in kind.references(case, lineup.seed).items()}
    # a loss is not kept
    kept = [one for one in dict.fromkeys([metric, *scored[lineup.baseline][0]]) if one != "mse"]
    guesses = {one: mean_score(references["majority"], one) for one in kept}
    retention, intervals = retentions(scored, lineup.baseline, guesses, task, lineup.seed)
    base, other = outputs[lineup.baseline][0], outputs[lineup.shown][0]
    found = lineup.result(
        Compared(
            task=task,
            records=case.test.items,
            models=_models(lineup, case, outputs, scored, metric),
            references={name: {task: _values(runs)} for name, runs in references.items()},
            retention=retention,
            intervals=intervals,
            differences=_differences(lineup, metric, scored, references),
            said=kind.said,
            is_loss=metric == "mse",
            softened=_softened(case, base, other),
            examples=kind.show(base, other, case, SHOWN),
        )
    )
    found |= {"labels": list(case.labels), "metric": metric}
    found["confusion"] = _confusion(case, {name: given[0] for name, given in outputs.items()})
    return {key: found[key] for key in _KEYS}


def _softened(case: Case[Any], base: Any, other: Any) -> dict[str, Any] | None:
    """One example's distribution over the labels, where they exclude each other."""
    if case.task != Task.CLASSIFICATION:
        return None
    return softened(base, other, case.test, case.labels)


def _confusion(case: Case[Any], outputs: Mapping[str, Any]) -> dict[str, list[list[int]]] | None:
    """How often each label was given for each, by model, where labels exclude each other."""
    if case.task != Task.CLASSIFICATION:
        return None
    count = len(case.labels)
    return {name: confusion(given, case.test, count) for name, given in outputs.items()}


def _outputs(
    lineup: Lineup, case: Case[Any], cut: Mapping[str, Examples], progress: Callable[[float], None]
) -> dict[str, list[Any]]:
    """What each training of each model is scored by."""
    task = case.task
    kind = kind_of(task)
    done, work = 0, sum(len(lineup.models[name]) * len(cut[name]) for name in lineup.order)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done / work)

    def given(folder: Path, examples: Examples) -> Any:
        loaded = load_model(folder, task, labels=case.labels)
        outputs = _in_order(loaded, task, case.labels, examples, advance)
        return kind.given(outputs, examples, case)

    return {
        name: [given(folder, cut[name]) for folder in lineup.models[name]] for name in lineup.order
    }


def _models(
    lineup: Lineup,
    case: Case[Any],
    outputs: Mapping[str, Sequence[Any]],
    scored: Mapping[str, Runs],
    metric: str,
) -> dict[str, Any]:
    """Each model's scores, and how alike its answers and the baseline's are."""
    base = outputs[lineup.baseline][0]
    found: dict[str, Any] = {}
    for name in lineup.order:
        found[name] = {case.task: _values(scored[name])}
        if len(scored[name]) > 1:
            found[name][case.task]["seeds"] = [one[metric].value for one in scored[name]]
        if name != lineup.baseline:
            found[name]["agreement"] = _agreement(case, outputs[name], base)
    return found


def _check_same_items(test: Examples, tests: Mapping[str, Examples]) -> None:
    for name, own in tests.items():
        if not isinstance(test, Questions) or not isinstance(own, Questions):
            continue
        if own.questions == test.questions:
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


def _agreement(case: Case[Any], runs: Sequence[Any], base: Any) -> dict[str, float]:
    """How alike a model's answers and the baseline's are, right or wrong."""
    kind = kind_of(case.task)
    each = [kind.agreement(given, base, case) for given in runs]
    return {name: float(np.mean([found[name] for found in each])) for name in each[0]}


def _differences(
    lineup: Lineup, metric: str, scored: Mapping[str, Runs], references: Mapping[str, Runs]
) -> dict[str, dict[str, Any]]:
    """The student's score less the twin's and the trivial ones', with a paired 95% interval."""
    student, *twins = (scored[name] for name in lineup.compared)
    others = {**dict(zip(lineup.compared[1:], twins, strict=True)), **references}
    drawn = mean_resampled([student, *others.values()], metric, lineup.seed)
    mine = mean_score(student, metric)
    return {
        name: {
            "metric": metric,
            "difference": mine - mean_score(other, metric),
            "interval": bootstrap.interval(drawn[0] - values_R),
        }
        for (name, other), values_R in zip(others.items(), drawn[1:], strict=True)
    }
