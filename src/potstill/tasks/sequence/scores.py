"""Score labels and values of texts, and trivial baselines."""

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
from potstill.tasks import metrics
from potstill.tasks.metrics import Case, Scored


@dataclass(frozen=True)
class Chosen:
    """Hold a text's labels, most likely first, with their probabilities (T = 1).

    Of multi-label each is the label's own, whatever the others are.
    """

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]


def likeliest(outputs_NC: np.ndarray, names: Sequence[str]) -> list[Chosen]:
    """Return each text's labels by the softmax of the logits."""
    return _ordered(softmax(outputs_NC.astype(np.float64), axis=1), names)


def likely(outputs_NC: np.ndarray, names: Sequence[str]) -> list[Chosen]:
    """Return each text's labels by the sigmoid of each logit."""
    return _ordered(expit(outputs_NC.astype(np.float64)), names)


def _ordered(shares_NC: np.ndarray, names: Sequence[str]) -> list[Chosen]:
    found = []
    for shares_C in shares_NC:
        order = np.argsort(-shares_C, kind="stable")
        ordered = tuple(names[number] for number in order)
        found.append(Chosen(ordered, tuple(shares_C[order].tolist())))
    return found


# --- scores ---------------------------------------------------------------------------------------


def label_scores(outputs_NC: np.ndarray, gold_N: np.ndarray, classes: int) -> dict[str, Scored]:
    """Compute every metric of texts with one label each; logits [N x classes]."""
    predicted_N = outputs_NC.argmax(axis=1)
    found = {
        "accuracy": metrics.accuracy(gold_N, predicted_N),
        "macro_f1": metrics.macro_f1(gold_N, predicted_N, classes),
        "matthews": metrics.matthews(gold_N, predicted_N, classes),
    }
    if classes == 2:
        found["f1"] = metrics.f1(gold_N, predicted_N)
    return found


def multi_label_scores(outputs_NC: np.ndarray, gold_NC: np.ndarray) -> dict[str, Scored]:
    """Compute every metric of texts with any number of labels each; gold is 0 or 1."""
    wanted_NC, predicted_NC = gold_NC == 1, outputs_NC > 0
    return {
        "micro_f1": metrics.micro_f1(wanted_NC, predicted_NC),
        "macro_f1": metrics.multi_label_macro_f1(wanted_NC, predicted_NC),
        "exact_match": metrics.exact_match(wanted_NC, predicted_NC),
    }


def value_scores(outputs_N1: np.ndarray, gold_N: np.ndarray) -> dict[str, Scored]:
    """Compute every metric of texts with a value each."""
    predicted_N, wanted_N = outputs_N1[:, 0].astype(float), gold_N.astype(float)
    return {
        "pearson": metrics.pearson(wanted_N, predicted_N),
        "spearman": metrics.spearman(wanted_N, predicted_N),
        "mse": metrics.mse(wanted_N, predicted_N),
    }


def label_agreement(outputs_NC: np.ndarray, base_NC: np.ndarray) -> dict[str, float]:
    """Compute how alike two models' labels are, right or wrong."""
    log_s, log_t = log_softmax(outputs_NC, axis=1), log_softmax(base_NC, axis=1)
    kl_N = (np.exp(log_t) * (log_t - log_s)).sum(axis=1)
    same_N = outputs_NC.argmax(axis=1) == base_NC.argmax(axis=1)
    return {"top1": float(same_N.mean()), "kl": float(kl_N.mean())}


def value_agreement(outputs_N1: np.ndarray, base_N1: np.ndarray) -> dict[str, float]:
    """Compute how alike two models' values are, right or wrong."""
    return {"pearson": metrics.pearson(base_N1[:, 0], outputs_N1[:, 0]).value}


# --- what takes no network ------------------------------------------------------------------------


def tfidf_label(train: Examples, test: Examples, classes: int, seed: int) -> np.ndarray | None:
    """Return a logistic regression's log-probabilities on TF-IDF, [N x C]; None without a word."""
    fitted = _fitted(train, LogisticRegression(max_iter=1000, C=10.0, random_state=seed))
    if fitted is None:
        return None
    found = np.full((len(test), classes), -np.inf)
    found[:, fitted.classes_] = fitted.predict_log_proba(_whole(test))
    return found


def tfidf_labels(train: Examples, test: Examples, seed: int) -> np.ndarray | None:
    """Return one logistic regression per label on TF-IDF, logits [N x C]; None without a word."""
    logistic = LogisticRegression(max_iter=1000, C=10.0, random_state=seed)
    fitted = _fitted(train, OneVsRestClassifier(logistic))
    if fitted is None:
        return None
    found: np.ndarray = fitted.decision_function(_whole(test)).reshape(len(test), -1)
    return found


def tfidf_value(train: Examples, test: Examples) -> np.ndarray | None:
    """Return a ridge regression's values on TF-IDF, [N x 1]; None without a word."""
    fitted = _fitted(train, Ridge())
    return None if fitted is None else fitted.predict(_whole(test))[:, None]


def tfidf_cosine(test: Examples) -> np.ndarray | None:
    """Return the cosine of each pair's TF-IDF vectors, [N x 1]; None without a word."""
    first, second = zip(*test.texts, strict=True)
    if not metrics.has_words([*first, *second]):
        return None
    return tfidf_cosines(first, second)[:, None]


def _whole(examples: Examples) -> list[str]:
    return [" \n ".join(texts) for texts in examples.texts]


def _fitted(train: Examples, model: Any) -> Any:
    """Return a model that learned from the TF-IDF of the training texts; None without a word."""
    texts = _whole(train)
    if not metrics.has_words(texts):
        return None
    features = TfidfVectorizer(sublinear_tf=True, min_df=1, ngram_range=(1, 2))
    return make_pipeline(features, model).fit(texts, train.gold)


def tfidf_cosines(first: Sequence[str], second: Sequence[str]) -> np.ndarray:
    """Return the cosine of each pair's TF-IDF vectors [N], with the idf of these texts."""
    vectorizer = TfidfVectorizer(sublinear_tf=True).fit([*first, *second])
    both = [vectorizer.transform(texts) for texts in (first, second)]
    return np.asarray(both[0].multiply(both[1]).sum(axis=1)).ravel()


def commonest_labels(gold_NC: np.ndarray) -> np.ndarray:
    """Return the most frequent labels whose micro F1 for every example is best: bool [C]."""
    order = np.argsort(-gold_NC.sum(axis=0), kind="stable")
    right = gold_NC.sum(axis=0)[order].cumsum()
    f1 = 2 * right / (len(gold_NC) * np.arange(1, len(order) + 1) + right[-1])
    chosen = np.zeros(len(order), dtype=bool)
    chosen[order[: int(f1.argmax()) + 1]] = True
    return chosen


def confusion(outputs: np.ndarray, test: Examples, classes: int) -> list[list[int]]:
    """Count examples of each label (rows) that were given each label (columns).

    Args:
        outputs: logits [N x classes].
    """
    matrix = confusion_matrix(test.gold, outputs.argmax(axis=1), labels=range(classes))
    counts: list[list[int]] = matrix.tolist()
    return counts


def softened(
    base: np.ndarray, other: np.ndarray, test: Examples, labels: Sequence[str]
) -> dict[str, Any]:
    """Return one example's distribution over the labels at several temperatures."""
    most_N = metrics.softmax(base, 1.0).max(axis=1)
    chosen = int(np.abs(most_N - 0.7).argmin())  # sure, yet not so sure that nothing is to be seen
    shown = np.argsort(-base[chosen], kind="stable")[:8]
    text, names = " | ".join(test.texts[chosen]), [labels[number] for number in shown]
    return metrics.softened(text, names, base[chosen], other[chosen], shown)


def label_examples(
    base: np.ndarray, other: np.ndarray, case: Case[Examples], most: int
) -> list[Mapping[str, Any]]:
    """Show texts that two models label differently, those of which both are sure first."""
    test, labels = case.test, case.labels
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


def value_examples(
    base_N: np.ndarray, other_N: np.ndarray, test: Examples, most: int
) -> list[Mapping[str, Any]]:
    """Show texts that two models give different values, those furthest apart first."""
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


def multi_label_examples(
    base_NC: np.ndarray, other_NC: np.ndarray, case: Case[Examples], most: int
) -> list[Mapping[str, Any]]:
    """Show each label of a text that one model gives and the other does not, the surest first."""
    test, labels = case.test, case.labels
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
