"""What labels and values of texts are worth, and what trivial means reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, log_softmax, softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import confusion_matrix
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from potstill.data import Examples
from potstill.recipe import Task
from potstill.tasks import metrics
from potstill.tasks.metrics import Scored


@dataclass(frozen=True)
class Chosen:
    """A text's labels, most likely first, with their probabilities (T = 1).

    Of multi-label each is the label's own, whatever the others are.
    """

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]


def chosen_labels(task: Task, outputs_NC: np.ndarray, names: Sequence[str]) -> list[Chosen]:
    """Each text's labels: softmax of the logits; of multi-label the sigmoid of each."""
    logits_NC = outputs_NC.astype(np.float64)
    shares_NC = expit(logits_NC) if task == Task.MULTI_LABEL else softmax(logits_NC, axis=1)
    found = []
    for shares_C in shares_NC:
        order = np.argsort(-shares_C, kind="stable")
        ordered = tuple(names[number] for number in order)
        found.append(Chosen(ordered, tuple(shares_C[order].tolist())))
    return found


# --- scores ---------------------------------------------------------------------------------------


def label_scores(
    task: Task, outputs: np.ndarray, gold: np.ndarray, classes: int
) -> dict[str, Scored]:
    """Every metric of classification, multi-label, regression or similarity.

    Args:
        outputs: logits [N x classes], or values [N x 1].
        gold: see heads.
    """
    if not task.has_distribution:
        predicted, wanted = outputs[:, 0].astype(float), gold.astype(float)
        return {
            "pearson": metrics.pearson(wanted, predicted),
            "spearman": metrics.spearman(wanted, predicted),
            "mse": metrics.mse(wanted, predicted),
        }
    if task == Task.MULTI_LABEL:
        wanted, predicted = gold == 1, outputs > 0
        return {
            "micro_f1": metrics.micro_f1(wanted, predicted),
            "macro_f1": metrics.multi_label_macro_f1(wanted, predicted),
            "exact_match": metrics.exact_match(wanted, predicted),
        }
    predicted = outputs.argmax(axis=1)
    found = {
        "accuracy": metrics.accuracy(gold, predicted),
        "macro_f1": metrics.macro_f1(gold, predicted, classes),
        "matthews": metrics.matthews(gold, predicted, classes),
    }
    if classes == 2:
        found["f1"] = metrics.f1(gold, predicted)
    return found


def label_agreement(task: Task, outputs: np.ndarray, base: np.ndarray) -> dict[str, float]:
    """How alike two models' answers are, right or wrong."""
    if not task.has_distribution:
        return {"pearson": metrics.pearson(base[:, 0], outputs[:, 0]).value}
    if task == Task.MULTI_LABEL:
        return {"labels": float(((outputs > 0) == (base > 0)).mean())}
    log_s, log_t = log_softmax(outputs, axis=1), log_softmax(base, axis=1)
    kl_N = (np.exp(log_t) * (log_t - log_s)).sum(axis=1)
    same_N = outputs.argmax(axis=1) == base.argmax(axis=1)
    return {"top1": float(same_N.mean()), "kl": float(kl_N.mean())}


def trivial_labels(
    task: Task, train: Examples | None, test: Examples, labels: Sequence[str], seed: int
) -> dict[str, np.ndarray]:
    """Answers, as logits, of the commonest label (or the mean) and of a linear model on TF-IDF,
    where the texts have a word.
    """
    if train is None:
        return {"majority": _commonest(task, test.gold, len(test), len(labels))}
    gold, count = train.gold, len(test)
    majority = _commonest(task, gold, count, len(labels))
    if task == Task.SENTENCE_SIMILARITY:
        first, second = zip(*test.texts, strict=True)
        if not metrics.has_words([*first, *second]):
            return {"majority": majority}
        return {"majority": majority, "tfidf": tfidf_cosines(first, second)[:, None]}
    texts = [" \n ".join(one) for one in train.texts]
    asked = [" \n ".join(one) for one in test.texts]
    if not metrics.has_words(texts):
        return {"majority": majority}
    features = TfidfVectorizer(sublinear_tf=True, min_df=1, ngram_range=(1, 2))
    linear: Any
    if task == Task.REGRESSION:
        linear = make_pipeline(features, Ridge()).fit(texts, gold)
        return {"majority": majority, "tfidf": linear.predict(asked)[:, None]}
    logistic = LogisticRegression(max_iter=1000, C=10.0, random_state=seed)
    if task == Task.MULTI_LABEL:
        linear = make_pipeline(features, OneVsRestClassifier(logistic)).fit(texts, gold)
        return {"majority": majority, "tfidf": linear.decision_function(asked).reshape(count, -1)}
    linear = make_pipeline(features, logistic).fit(texts, gold)
    scores = np.full((count, len(labels)), -np.inf)
    scores[:, linear.classes_] = linear.predict_log_proba(asked)
    return {"majority": majority, "tfidf": scores}


def tfidf_cosines(first: Sequence[str], second: Sequence[str]) -> np.ndarray:
    """The cosine of two texts' TF-IDF vectors, of pairs: [N]; idf of these texts themselves."""
    vectorizer = TfidfVectorizer(sublinear_tf=True).fit([*first, *second])
    both = [vectorizer.transform(texts) for texts in (first, second)]
    return np.asarray(both[0].multiply(both[1]).sum(axis=1)).ravel()


def _commonest(task: Task, gold: np.ndarray, count: int, classes: int) -> np.ndarray:
    """The same answer for all examples, as logits: the mean, or the commonest label or labels."""
    if not task.has_distribution:
        answer = gold.mean(keepdims=True)
    elif task == Task.MULTI_LABEL:
        answer = np.where(_commonest_labels(gold), 1.0, -1.0)
    else:
        answer = np.bincount(gold, minlength=classes).astype(float)
    return np.tile(answer, (count, 1))


def _commonest_labels(gold_NC: np.ndarray) -> np.ndarray:
    """The commonest labels, as many as give every example the best F1 over all labels: bool [C]."""
    order = np.argsort(-gold_NC.sum(axis=0), kind="stable")
    right = gold_NC.sum(axis=0)[order].cumsum()
    f1 = 2 * right / (len(gold_NC) * np.arange(1, len(order) + 1) + right[-1])
    chosen = np.zeros(len(order), dtype=bool)
    chosen[order[: int(f1.argmax()) + 1]] = True
    return chosen


def confusion(outputs: np.ndarray, test: Examples, classes: int) -> list[list[int]]:
    """Examples of each label (rows) that were given each label (columns).

    Args:
        outputs: logits [N x classes].
    """
    matrix = confusion_matrix(test.gold, outputs.argmax(axis=1), labels=range(classes))
    counts: list[list[int]] = matrix.tolist()
    return counts


def softened(
    base: np.ndarray, other: np.ndarray, test: Examples, labels: Sequence[str]
) -> dict[str, Any]:
    """One example's distribution over the labels at several temperatures."""
    most_N = metrics.softmax(base, 1.0).max(axis=1)
    chosen = int(np.abs(most_N - 0.7).argmin())  # sure, yet not so sure that nothing is to be seen
    shown = np.argsort(-base[chosen], kind="stable")[:8]
    return {
        "text": " | ".join(test.texts[chosen]),
        "candidates": [labels[number] for number in shown],
        "temperatures": {
            f"{t:g}": metrics.softmax(base[chosen], t)[shown].tolist() for t in metrics.TEMPERATURES
        },
        "student": {"1": metrics.softmax(other[chosen], 1.0)[shown].tolist()},
    }


def label_examples(
    task: Task,
    base: np.ndarray,
    other: np.ndarray,
    test: Examples,
    labels: Sequence[str],
    most: int,
) -> list[Mapping[str, Any]]:
    """Examples that two models answer differently, those of which both are sure first; of values
    those that are furthest apart; of several labels a text each label by itself.
    """
    if not task.has_distribution:
        return _value_examples(base[:, 0], other[:, 0], test, most)
    if task == Task.MULTI_LABEL:
        return _yes_or_no_examples(base, other, test, labels, most)
    p_t, p_s = metrics.softmax(base, 1.0), metrics.softmax(other, 1.0)
    top_t, top_s = base.argmax(axis=1), other.argmax(axis=1)
    differing = np.flatnonzero(top_t != top_s)
    sure_N = np.minimum(p_t.max(axis=1), p_s.max(axis=1))
    differing = differing[np.argsort(-sure_N[differing], kind="stable")]
    return [
        {
            "query": " | ".join(test.texts[n]),
            "expected": labels[int(test.gold[n])],
            "teacher": {"top": labels[int(top_t[n])], "p": float(p_t[n].max())},
            "student": {"top": labels[int(top_s[n])], "p": float(p_s[n].max())},
        }
        for n in differing[:most].tolist()
    ]


def _value_examples(
    base_N: np.ndarray, other_N: np.ndarray, test: Examples, most: int
) -> list[Mapping[str, Any]]:
    order = np.argsort(-np.abs(base_N - other_N), kind="stable")[:most]
    return [
        {
            "query": " | ".join(test.texts[n]),
            "expected": f"{test.gold[n]:.3f}",
            "teacher": {"top": f"{base_N[n]:.3f}"},
            "student": {"top": f"{other_N[n]:.3f}"},
        }
        for n in order.tolist()
        if base_N[n] != other_N[n]
    ]


def _yes_or_no_examples(
    base_NC: np.ndarray, other_NC: np.ndarray, test: Examples, labels: Sequence[str], most: int
) -> list[Mapping[str, Any]]:
    """One for each label of a text that one model gives and the other doesn't."""
    rows, columns = np.nonzero((base_NC > 0) != (other_NC > 0))
    # how far from 0 a logit is, either way, is how sure of its answer a model is
    sure = np.minimum(np.abs(base_NC), np.abs(other_NC))[rows, columns]
    order = np.argsort(-sure, kind="stable")[:most]

    def answer(label: str, logit: float) -> dict[str, Any]:
        return {"top": _yes_or_no(label, logit > 0), "p": float(expit(abs(logit)))}

    return [
        {
            "query": " | ".join(test.texts[n]),
            "expected": _yes_or_no(labels[c], test.gold[n, c] == 1),
            "teacher": answer(labels[c], base_NC[n, c]),
            "student": answer(labels[c], other_NC[n, c]),
        }
        for n, c in zip(rows[order].tolist(), columns[order].tolist(), strict=True)
    ]


def _yes_or_no(label: str, given: bool) -> str:
    return label if given else f"not {label}"
