"""Read, answer and score texts with a label, labels or a value, and pairs by their cosine."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from torch import Tensor

from potstill.data import Batch, Examples
from potstill.data.sequences import UNLABELED, E
from potstill.models import LoadedModel
from potstill.recipe import TaskData
from potstill.tasks import metrics
from potstill.tasks.heads import similarity_signals
from potstill.tasks.kind import Kind, Shown, Sides
from potstill.tasks.labels import label_number, named_labels, resolve_labels
from potstill.tasks.metrics import Case, Scored
from potstill.tasks.rows import Cut, Cutting, Labelled, Names, RawExample, Row, Texts, text_of
from potstill.tasks.sequence.examples import (
    as_cosines,
    read_label,
    read_labels,
    read_value,
    tokenize_apart,
    tokenize_texts,
)
from potstill.tasks.sequence.scores import (
    Chosen,
    chosen,
    commonest_labels,
    tfidf_answers,
    tfidf_cosines,
)


class _Texts(Kind[E]):
    """Do what all tasks on one or two texts have in common."""

    said: ClassVar[Mapping[str, str]] = {
        "majority": "always giving the most frequent answer",
        "tfidf": "TF-IDF with a linear model",
    }

    def read(self, row: Row, origin: str, data: TaskData, labelled: bool) -> tuple[Texts, Any]:
        texts = tuple(text_of(row, name) for name in data.text)
        return texts, self.label(row, data) if labelled else None

    @abstractmethod
    def label(self, row: Row, data: TaskData) -> Any:
        """Read a row's label as the file has it: a name, names, or a number."""

    def references(self, case: Case[E], seed: int) -> dict[str, dict[str, Scored]]:
        train = case.test if case.train is None else case.train
        found = {"majority": np.tile(self.commonest(train.gold, case), (len(case.test), 1))}
        tfidf = self.tfidf(case.train, case, seed) if case.train is not None else None
        if tfidf is not None:
            found["tfidf"] = tfidf
        return {name: self.scores(answers, case) for name, answers in found.items()}

    @abstractmethod
    def commonest(self, gold: np.ndarray, case: Case[E]) -> np.ndarray:
        """Return the answer that suits the most examples, as logits or a value: [C]."""

    @abstractmethod
    def tfidf(self, train: E, case: Case[E], seed: int) -> np.ndarray | None:
        """Return what TF-IDF answers, [N x C]; None where no text has a word."""


class LabelKind(_Texts[Examples]):
    """Read one or two texts with one label."""

    def label(self, row: Row, data: TaskData) -> str:
        return read_label(row, data.label[0])

    def labels(self, read: Sequence[Any], data: TaskData, teacher: Names | None) -> list[str]:
        labels = resolve_labels(named_labels(read, data), data.labels, teacher)
        if len(labels) < 2:
            raise ValueError(
                f"data.train: all examples have the label '{labels[0]}'. Give examples of at least "
                "two labels."
            )
        return labels

    def gold(self, example: RawExample, labels: Names, given: Names | None) -> int:
        label = example.label
        return UNLABELED if label is None else label_number(label, labels, given)

    def class_counts(self, labels: Names, train: Sequence[Labelled]) -> list[tuple[str, int]]:
        counts = np.bincount([example.gold for example in train], minlength=len(labels))
        return list(zip(labels, counts.tolist(), strict=False))

    def tokenize(self, found: Sequence[Labelled], cutting: Cutting) -> Cut[Examples]:
        return tokenize_texts(found, cutting, np.int64)

    def decide(self, outputs: np.ndarray, examples: Examples, names: Names) -> list[Chosen]:
        return chosen(softmax(outputs.astype(np.float64), axis=1), names)

    def scores(self, given: np.ndarray, case: Case[Examples]) -> dict[str, Scored]:
        gold_N, predicted_N, classes = case.test.gold, given.argmax(axis=1), len(case.labels)
        found = {
            "accuracy": metrics.accuracy(gold_N, predicted_N),
            "macro_f1": metrics.macro_f1(gold_N, predicted_N, classes),
            "matthews": metrics.matthews(gold_N, predicted_N, classes),
        }
        if classes == 2:
            found["f1"] = metrics.f1(gold_N, predicted_N)
        return found

    def commonest(self, gold: np.ndarray, case: Case[Examples]) -> np.ndarray:
        return np.bincount(gold, minlength=len(case.labels)).astype(float)

    def tfidf(self, train: Examples, case: Case[Examples], seed: int) -> np.ndarray | None:
        logistic = LogisticRegression(max_iter=1000, C=10.0, random_state=seed)

        def log_probabilities(fitted: Any, texts: list[str]) -> np.ndarray:
            found = np.full((len(texts), len(case.labels)), -np.inf)
            found[:, fitted.classes_] = fitted.predict_log_proba(texts)
            return found

        return tfidf_answers(train, case.test, logistic, log_probabilities)

    def agreement(self, given: Any, base: Any, case: Case[Examples]) -> dict[str, float]:
        return metrics.agreement(given, base)

    def show(self, base: Any, other: Any, case: Case[Examples], most: int) -> Shown:
        test, labels = case.test, case.labels
        return [
            {
                "query": " | ".join(test.texts[n]),
                "expected": labels[int(test.gold[n])],
                "teacher": first,
                "student": second,
            }
            for n, first, second in metrics.differing(base, other, labels, most)
        ]


class MultiLabelKind(LabelKind):
    """Read one or two texts with any number of labels."""

    def label(self, row: Row, data: TaskData) -> Any:
        return read_labels(row, data.label, data.separator)

    def labels(self, read: Sequence[Any], data: TaskData, teacher: Names | None) -> list[str]:
        return resolve_labels(named_labels(read, data), data.labels, teacher)

    def gold(self, example: RawExample, labels: Names, given: Names | None) -> Any:
        if example.label is None:
            return [UNLABELED] * len(labels)
        own = {label_number(name, labels, given) for name in example.label}
        return [int(number in own) for number in range(len(labels))]

    def class_counts(self, labels: Names, train: Sequence[Labelled]) -> list[tuple[str, int]]:
        counts = np.array([example.gold for example in train]).sum(0)
        return list(zip(labels, counts.tolist(), strict=False))

    def decide(self, outputs: np.ndarray, examples: Examples, names: Names) -> list[Chosen]:
        return chosen(expit(outputs.astype(np.float64)), names)

    def scores(self, given: np.ndarray, case: Case[Examples]) -> dict[str, Scored]:
        wanted_NC, predicted_NC = case.test.gold == 1, given > 0
        return {
            "micro_f1": metrics.micro_f1(wanted_NC, predicted_NC),
            "macro_f1": metrics.multi_label_macro_f1(wanted_NC, predicted_NC),
            "exact_match": metrics.exact_match(wanted_NC, predicted_NC),
        }

    def commonest(self, gold: np.ndarray, case: Case[Examples]) -> np.ndarray:
        return np.where(commonest_labels(gold), 1.0, -1.0)

    def tfidf(self, train: Examples, case: Case[Examples], seed: int) -> np.ndarray | None:
        logistic = LogisticRegression(max_iter=1000, C=10.0, random_state=seed)

        def logits(fitted: Any, texts: list[str]) -> np.ndarray:
            found: np.ndarray = fitted.decision_function(texts).reshape(len(texts), -1)
            return found

        return tfidf_answers(train, case.test, OneVsRestClassifier(logistic), logits)

    def agreement(self, given: Any, base: Any, case: Case[Examples]) -> dict[str, float]:
        return {"labels": float(((given > 0) == (base > 0)).mean())}

    def show(self, base: Any, other: Any, case: Case[Examples], most: int) -> Shown:
        test, labels = case.test, case.labels
        rows, columns = np.nonzero((base > 0) != (other > 0))
        # how far from 0 a logit is, either way, is how sure of its answer a model is
        sure = np.minimum(np.abs(base), np.abs(other))[rows, columns]
        order = np.argsort(-sure, kind="stable")[:most]

        def named(c: int, given: bool) -> str:
            return labels[c] if given else f"not {labels[c]}"

        def answer(c: int, logit: float) -> dict[str, Any]:
            return {"top": named(c, logit > 0), "p": float(expit(abs(logit)))}

        return [
            {
                "query": " | ".join(test.texts[n]),
                "expected": named(c, test.gold[n, c] == 1),
                "teacher": answer(c, base[n, c]),
                "student": answer(c, other[n, c]),
            }
            for n, c in zip(rows[order].tolist(), columns[order].tolist(), strict=True)
        ]


class ValueKind(_Texts[E]):
    """Read one or two texts with a value."""

    def label(self, row: Row, data: TaskData) -> float:
        return read_value(row, data.label[0])

    def labels(self, read: Sequence[Any], data: TaskData, teacher: Names | None) -> list[str]:
        return data.label

    def gold(self, example: RawExample, labels: Names, given: Names | None) -> float:
        return math.nan if example.label is None else float(example.label)

    def tokenize(self, found: Sequence[Labelled], cutting: Cutting) -> Cut[Any]:
        return tokenize_texts(found, cutting, np.float32)

    def decide(self, outputs: np.ndarray, examples: E, names: Names) -> list[float]:
        return [float(value) for value in outputs[:, 0]]

    def scores(self, given: np.ndarray, case: Case[E]) -> dict[str, Scored]:
        predicted_N, wanted_N = given[:, 0].astype(float), case.test.gold.astype(float)
        return {
            "pearson": metrics.pearson(wanted_N, predicted_N),
            "spearman": metrics.spearman(wanted_N, predicted_N),
            "mse": metrics.mse(wanted_N, predicted_N),
        }

    def constant(self, case: Case[E]) -> dict[str, float]:
        return {"pearson": 0.0, "spearman": 0.0}

    def commonest(self, gold: np.ndarray, case: Case[E]) -> np.ndarray:
        return np.asarray(gold.mean(keepdims=True))

    def tfidf(self, train: E, case: Case[E], seed: int) -> np.ndarray | None:
        return tfidf_answers(train, case.test, Ridge(), lambda m, texts: m.predict(texts)[:, None])

    def agreement(self, given: Any, base: Any, case: Case[E]) -> dict[str, float]:
        return {"pearson": metrics.pearson(base[:, 0], given[:, 0]).value}

    def show(self, base: Any, other: Any, case: Case[E], most: int) -> Shown:
        base_N, other_N, test = base[:, 0], other[:, 0], case.test
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


class CosineKind(ValueKind[Any]):
    """Read two texts with a value that is the cosine of their embeddings."""

    blank: ClassVar[Any] = math.nan
    said: ClassVar[Mapping[str, str]] = {
        "majority": "always giving the same score",
        "tfidf": "the cosine of TF-IDF",
    }

    def check_columns(self, data: TaskData) -> None:
        if len(data.text) != 2:
            raise ValueError(
                "data.text: sentence_similarity compares two columns. Set "
                "data.text=[sentence1, sentence2]."
            )

    def scaled(self, sides: Sides, data: TaskData) -> Sides:
        return as_cosines(sides, data)

    def tokenize(self, found: Sequence[Labelled], cutting: Cutting) -> Cut[Any]:
        return tokenize_apart(found, cutting)

    def sequences(self, texts: Texts) -> list[Texts]:
        return [(text,) for text in texts]

    def outputs(self, loaded: LoadedModel, batch: Batch) -> Tensor:
        cosine_P1 = similarity_signals(loaded, batch).features_KD
        assert cosine_P1 is not None
        return cosine_P1

    def tfidf(self, train: Any, case: Case[Any], seed: int) -> np.ndarray | None:
        first, second = zip(*case.test.texts, strict=True)
        if not metrics.has_words([*first, *second]):
            return None
        return tfidf_cosines(first, second)[:, None]
