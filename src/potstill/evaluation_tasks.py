"""Scores of task models on labelled examples, beside the teacher, the plain twin and guessing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from potstill import metrics, task_metrics
from potstill.data import Examples, collate
from potstill.heads import model_inputs
from potstill.models import LoadedModel, load_model
from potstill.recipe import Evaluate, Task, TaskData
from potstill.task_metrics import Scored
from potstill.tasks import TaskRow, row_of

BATCH = 32
SHOWN = 50  # examples that the report may choose from


def check_task_metric(data: TaskData, task: Task) -> None:
    """Refuse a metric that a task has not.

    Raises:
        ValueError: `data.metric` is none of the task's.
    """
    row = row_of(task)
    assert row is not None
    if data.metric is not None and data.metric not in row.metrics:
        raise ValueError(
            f"data.metric: {task} has no metric '{data.metric}'; there are: "
            f"{', '.join(row.metrics)}"
        )


def task_score(loaded: LoadedModel, examples: Examples, labels: Sequence[str], name: str) -> float:
    """One score of a model, the higher the better."""
    row = row_of(loaded.task)
    assert row is not None
    outputs = head_outputs(loaded, examples)
    value = _scores(row, outputs, examples.gold, len(labels))[name].value
    return -value if name == "mse" else value


def head_outputs(
    loaded: LoadedModel,
    examples: Examples,
    progress: Callable[[int], None] = lambda _: None,
) -> np.ndarray:
    """A sequence head's logits [N x C], float32, in the examples' order; T = 1."""
    model, device = loaded.model, loaded.model.device
    training = model.training
    model.eval()
    order = np.argsort(examples.lengths, kind="stable")
    found: np.ndarray | None = None
    pad_id = int(loaded.tokenizer.pad_token_id or 0)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        batch = collate(examples, rows, pad_id, None, 0, 0).to(device)
        with torch.inference_mode():
            logits = model(**model_inputs(model, batch)).logits.float().cpu().numpy()
        found = np.zeros((len(order), logits.shape[1]), np.float32) if found is None else found
        found[rows] = logits
        progress(len(rows))
    model.train(training)
    assert found is not None, "no examples"
    return found


@dataclass(frozen=True)
class _Case:
    """What is scored: a task's examples, and how."""

    row: TaskRow
    labels: Sequence[str]
    train: Examples | None
    test: Examples
    metric: str

    def scores(self, outputs: np.ndarray) -> dict[str, Scored]:
        return _scores(self.row, outputs, self.test.gold, len(self.labels))

    @property
    def key(self) -> str:
        return f"{self.row.task}.{self.metric}"


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
) -> dict[str, Any]:
    """Scores of each model, retention against the baseline, and what trivial means reach.

    A model that was trained several times scores the mean of its trainings. Intervals are of the
    examples: what other ones would have given these models; what other seeds would have given is
    told by the scores of each (`seeds`).

    Args:
        models: name -> folders, one a training; the baseline must be among them.
        train: what TF-IDF and the majority are learnt from; None: the commonest answer is that of
            `test` itself, and there is no TF-IDF.
        metric: the score that findings speak of; None: the task's own.
        student: the model whose answers stand beside the baseline's; None: the last one.
        twin: the same student trained without a teacher, where there is one.

    Returns:
        As result.json: see docs on tasks.
    """
    row = row_of(task)
    assert row is not None
    if settings.max_records is not None:
        test = test.chosen(np.arange(min(settings.max_records, len(test))))
    case = _Case(row, labels, train, test, metric or row.metric)
    order = [settings.baseline, *(name for name in models if name != settings.baseline)]
    student = order[-1] if student is None else student
    done, work = 0, sum(len(models[name]) for name in order) * len(test)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done / work)

    outputs = {
        name: [
            head_outputs(load_model(folder, task, labels=labels), test, advance)
            for folder in models[name]
        ]
        for name in order
    }
    scored = {name: [case.scores(values) for values in found] for name, found in outputs.items()}
    references = {name: [case.scores(values)] for name, values in _trivial(case, seed).items()}
    retention, intervals = _retentions(case, scored, references, settings.baseline, seed)
    differences = _differences(case, scored, references, student, twin, seed)
    base = outputs[settings.baseline][0]
    found: dict[str, Any] = {}
    for name in order:
        found[name] = {task: _values(scored[name])}
        if len(scored[name]) > 1:
            found[name][task]["seeds"] = [one[case.metric].value for one in scored[name]]
        if name != settings.baseline:
            found[name]["agreement"] = _agreement(row, outputs[name], base)
    return {
        "task": task,
        "records": len(test),
        "baseline": settings.baseline,
        "labels": list(labels),
        "metric": case.metric,
        "twin": twin,
        "models": found,
        "references": {name: {task: _values(found)} for name, found in references.items()},
        "retention": retention,
        "intervals": intervals,
        "differences": differences,
        "findings": _findings(case, differences, student),
        "softened": _softened(case, base, outputs[student][0]),
        "examples": _examples(case, base, outputs[student][0]),
    }


Runs = Sequence[Mapping[str, Scored]]  # of one model, a mapping of scores for each training


def _values(runs: Runs) -> dict[str, Any]:
    return {name: _mean(runs, name) for name in runs[0]}


def _mean(runs: Runs, metric: str) -> float:
    return float(np.mean([found[metric].value for found in runs]))


def _resampled(models: Sequence[Runs], metric: str, seed: int) -> list[np.ndarray]:
    """Of each model, the mean score of its trainings in each resample of the examples."""
    flat = [found[metric] for runs in models for found in runs]
    drawn = iter(task_metrics.resampled(flat, seed))
    return [np.mean([next(drawn) for _ in runs], axis=0) for runs in models]


# --- scores ---------------------------------------------------------------------------------------


def _scores(row: TaskRow, outputs: np.ndarray, gold: np.ndarray, classes: int) -> dict[str, Scored]:
    """Every metric of a task, its own first."""
    if row.task == "regression":
        predicted, wanted = outputs[:, 0].astype(float), gold.astype(float)
        return {
            "pearson": task_metrics.pearson(wanted, predicted),
            "spearman": task_metrics.spearman(wanted, predicted),
            "mse": task_metrics.mse(wanted, predicted),
        }
    if row.task == "multi_label":
        wanted, predicted = gold == 1, outputs > 0
        return {
            "micro_f1": task_metrics.micro_f1(wanted, predicted),
            "macro_f1": task_metrics.multi_label_macro_f1(wanted, predicted),
            "exact_match": task_metrics.exact_match(wanted, predicted),
        }
    predicted = outputs.argmax(axis=1)
    found = {
        "accuracy": task_metrics.accuracy(gold, predicted),
        "macro_f1": task_metrics.macro_f1(gold, predicted, classes),
        "matthews": task_metrics.matthews(gold, predicted, classes),
    }
    if classes == 2:
        found["f1"] = task_metrics.f1(gold, predicted)
    return found


def _agreement(row: TaskRow, runs: Sequence[np.ndarray], base: np.ndarray) -> dict[str, float]:
    """How alike a model's answers and the baseline's are, right or wrong."""
    each = [_alike(row, outputs, base) for outputs in runs]
    return {name: float(np.mean([found[name] for found in each])) for name in each[0]}


def _alike(row: TaskRow, outputs: np.ndarray, base: np.ndarray) -> dict[str, float]:
    if row.task == "regression":
        return {"pearson": task_metrics.pearson(base[:, 0], outputs[:, 0]).value}
    if row.task == "multi_label":
        return {"labels": float(((outputs > 0) == (base > 0)).mean())}
    log_s, log_t = log_softmax(outputs, axis=1), log_softmax(base, axis=1)
    kl_N = (np.exp(log_t) * (log_t - log_s)).sum(axis=1)
    same_N = outputs.argmax(axis=1) == base.argmax(axis=1)
    return {"top1": float(same_N.mean()), "kl": float(kl_N.mean())}


def _retentions(
    case: _Case,
    scored: Mapping[str, Runs],
    references: Mapping[str, Runs],
    baseline: str,
    seed: int,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, list[float]]]]:
    """model -> score -> share of the baseline's, and its 95% interval.

    Of scores where the baseline is above guessing beyond doubt: the lower end of its own interval
    is above what always giving the commonest answer scores.
    """
    others = [name for name in scored if name != baseline]
    ratios: dict[str, dict[str, float]] = {name: {} for name in others}
    intervals: dict[str, dict[str, list[float]]] = {}
    for metric in _own_first(case.metric, scored[baseline][0]):
        if metric == "mse":
            continue
        drawn = _resampled([scored[name] for name in (baseline, *others)], metric, seed)
        guess = _mean(references["majority"], metric)
        sure = task_metrics.interval(drawn[0])
        if sure is None or sure[0] <= max(guess, 0.0):
            continue
        for name, values_R in zip(others, drawn[1:], strict=True):
            key = f"{case.row.task}.{metric}"
            ratios[name][key] = _mean(scored[name], metric) / _mean(scored[baseline], metric)
            found = task_metrics.interval(values_R / drawn[0])
            if found is not None:
                intervals.setdefault(name, {})[key] = found
    return ratios, intervals


def _own_first(metric: str, names: Mapping[str, Any]) -> list[str]:
    return [metric, *(name for name in names if name != metric)]


def _differences(
    case: _Case,
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
    drawn = _resampled([scored[student], *others.values()], case.metric, seed)
    mine = _mean(scored[student], case.metric)
    return {
        name: {
            "metric": case.metric,
            "difference": mine - _mean(other, case.metric),
            "interval": task_metrics.interval(drawn[0] - values_R),
        }
        for (name, other), values_R in zip(others.items(), drawn[1:], strict=True)
    }


def _findings(case: _Case, differences: Mapping[str, Any], student: str) -> list[str]:
    """What a reader must not miss, in sentences."""
    sign = -1 if case.metric == "mse" else 1
    found = []
    for name, told in differences.items():
        who = {
            "majority": "always giving the commonest answer",
            "tfidf": "TF-IDF with a linear model",
        }
        other = who.get(name, f"{name}, trained without a teacher")
        bounds = told["interval"]
        if sign * told["difference"] <= 0:
            found.append(f"{student} does not beat {other} ({case.metric})")
        elif bounds is None or min(sign * bounds[0], sign * bounds[1]) <= 0:
            found.append(
                f"{student} is above {other}, but not beyond doubt: the 95% interval of the "
                f"difference in {case.metric} includes 0"
            )
    return found


# --- what trivial means reach ---------------------------------------------------------------------


def _trivial(case: _Case, seed: int) -> dict[str, np.ndarray]:
    """Answers, as logits, of the commonest label (or the mean) and of a linear model on TF-IDF."""
    if case.train is None:
        return {"majority": _commonest(case, case.test.gold)}
    gold, count, task = case.train.gold, len(case.test), case.row.task
    texts = [" \n ".join(one) for one in case.train.texts]
    asked = [" \n ".join(one) for one in case.test.texts]
    majority = _commonest(case, gold)
    features = TfidfVectorizer(sublinear_tf=True, min_df=1, ngram_range=(1, 2))
    linear: Any
    if task == "regression":
        linear = make_pipeline(features, Ridge()).fit(texts, gold)
        return {"majority": majority, "tfidf": linear.predict(asked)[:, None]}
    logistic = LogisticRegression(max_iter=1000, C=10.0, random_state=seed)
    if task == "multi_label":
        linear = make_pipeline(features, OneVsRestClassifier(logistic)).fit(texts, gold)
        return {"majority": majority, "tfidf": linear.decision_function(asked).reshape(count, -1)}
    linear = make_pipeline(features, logistic).fit(texts, gold)
    scores = np.full((count, len(case.labels)), -np.inf)
    scores[:, linear.classes_] = linear.predict_log_proba(asked)
    return {"majority": majority, "tfidf": scores}


def _commonest(case: _Case, gold: np.ndarray) -> np.ndarray:
    """The same answer for all examples, as logits: the mean, or the commonest label or labels."""
    if case.row.task == "regression":
        answer = gold.mean(keepdims=True)
    elif case.row.task == "multi_label":
        answer = np.where(gold.mean(axis=0) > 0.5, 1.0, -1.0)
    else:
        answer = np.bincount(gold, minlength=len(case.labels)).astype(float)
    return np.tile(answer, (len(case.test), 1))


# --- examples -------------------------------------------------------------------------------------


def _softened(case: _Case, base: np.ndarray, other: np.ndarray) -> dict[str, Any] | None:
    """One example's distribution over the labels at several temperatures."""
    if case.row.task != "classification":
        return None
    most_N = metrics.softmax(base, 1.0).max(axis=1)
    chosen = int(np.abs(most_N - 0.7).argmin())  # sure, yet not so sure that nothing is to be seen
    shown = np.argsort(-base[chosen], kind="stable")[:8]
    return {
        "text": " | ".join(case.test.texts[chosen]),
        "candidates": [case.labels[number] for number in shown],
        "temperatures": {
            f"{t:g}": metrics.softmax(base[chosen], t)[shown].tolist() for t in metrics.TEMPERATURES
        },
        "student": {"1": metrics.softmax(other[chosen], 1.0)[shown].tolist()},
    }


def _examples(case: _Case, base: np.ndarray, other: np.ndarray) -> list[dict[str, Any]]:
    """Examples that baseline and student answer differently, the surest first."""
    if case.row.task != "classification":
        return []
    p_t, p_s = metrics.softmax(base, 1.0), metrics.softmax(other, 1.0)
    top_t, top_s = base.argmax(axis=1), other.argmax(axis=1)
    differing = np.flatnonzero(top_t != top_s)
    sure_N = np.minimum(p_t.max(axis=1), p_s.max(axis=1))
    differing = differing[np.argsort(-sure_N[differing], kind="stable")]
    return [
        {
            "query": " | ".join(case.test.texts[n]),
            "expected": case.labels[int(case.test.gold[n])],
            "teacher": {"top": case.labels[int(top_t[n])], "p": float(p_t[n].max())},
            "student": {"top": case.labels[int(top_s[n])], "p": float(p_s[n].max())},
        }
        for n in differing[:SHOWN].tolist()
    ]
