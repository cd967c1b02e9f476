"""Score models with a task's head on labeled examples, and trivial baselines with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from potstill.data import Examples
from potstill.data.sequences import Questions
from potstill.evaluation.lineup import Lineup, counted
from potstill.evaluation.retention import Runs, mean_score, values_of
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
    """Score each model and trivial baselines, and compare them with the baseline.

    A model with several trainings has their mean score. Intervals are over examples; the scores of
    each training (`seeds`) show the range over seeds. Trivial baselines learn from `case.train`; if
    it is None, only the most frequent answer is scored, that of `case.test` itself.

    Args:
        metric: The score of `differences` and `findings`; None: the task's own.
        progress: Receives the finished fraction, 0 to 1.

    Raises:
        ValueError: A model has other labels, or a question's context fits by one tokenizer only.
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
        "records": case.test.items,
        "baseline": lineup.baseline,
        "labels": list(case.labels),
        "metric": metric,
        "twin": lineup.twin,
        "models": _models(lineup, case, outputs, scored, metric),
        "references": {name: {task: values_of(one)} for name, [one] in references.items()},
        **compared,
        **_exclusive(lineup, case, outputs),
        "examples": kind.show(base, other, case, SHOWN),
    }


def _exclusive(lineup: Lineup, case: Case[Any], outputs: Mapping[str, Sequence[Any]]) -> Evaluation:
    """Return one example's distribution, and each model's confusion matrix.

    Both are None unless each example has exactly one label.
    """
    if case.task.problem_type != "single_label_classification":
        return {"softened": None, "confusion": None}
    base, other = outputs[lineup.baseline][0], outputs[lineup.shown][0]
    return {
        "softened": softened(base, other, case.test, case.labels),
        "confusion": {n: confusion(given[0], case.test) for n, given in outputs.items()},
    }


def _outputs(
    lineup: Lineup, case: Case[Any], progress: Callable[[float], None]
) -> dict[str, list[Any]]:
    """Return what each training of each model is scored by."""
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
    """Return each model's scores, and how far its answers agree with the baseline's."""
    kind, base = kind_of(case.task), outputs[lineup.baseline][0]
    found: dict[str, Any] = {}
    for name in lineup.order:
        runs = scored[name]
        found[name] = {case.task: {score: mean_score(runs, score) for score in runs[0]}}
        if len(runs) > 1:
            found[name][case.task]["seeds"] = [one[metric].value for one in runs]
        if name != lineup.baseline:
            each = [kind.agreement(given, base, case) for given in outputs[name]]
            found[name]["agreement"] = {
                key: float(np.mean([one[key] for one in each])) for key in each[0]
            }
    return found


def _check_same_items(case: Case[Any]) -> None:
    test = case.test
    for name, own in case.own.items():
        if isinstance(test, Questions) and own.questions != test.questions:
            raise ValueError(
                f"data.max_length: {own.items} questions leave room for their context with the "
                f"tokenizer of {name}, and {test.items} with the baseline's. Raise "
                "data.max_length, or lower data.stride."
            )


def _in_order(
    loaded: LoadedModel,
    task: Task,
    labels: Sequence[str],
    examples: Examples,
    progress: Callable[[int], None],
) -> np.ndarray:
    """Return `head_outputs` with columns in the order of `labels`, not the model's own."""
    outputs = head_outputs(loaded, examples, progress)
    if not task.has_labels:
        return outputs
    names = label_names(loaded.model.config)
    if is_unnamed(names) and len(names) == len(labels):
        return outputs
    if sorted(names) != sorted(labels):
        raise ValueError(
            f"evaluate.models: the labels of {loaded.name} are {', '.join(names)}, and the "
            f"baseline's are {', '.join(labels)}. Name models with the same labels."
        )
    return outputs[:, [names.index(label) for label in labels]]
