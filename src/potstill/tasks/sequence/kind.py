"""Texts with a label, labels or a value, and pairs by their cosine, as kinds of heads."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from potstill.data import Batch, Examples
from potstill.data.sequences import UNLABELED, E
from potstill.models import LoadedModel
from potstill.recipe import Task, TaskData
from potstill.tasks.heads import similarity_signals
from potstill.tasks.kind import Kind
from potstill.tasks.labels import label_number, named_labels, resolve_labels
from potstill.tasks.metrics import Case, Scored
from potstill.tasks.rows import Cut, Cutting, Labelled, RawExample, text_of
from potstill.tasks.sequence import scores
from potstill.tasks.sequence.examples import (
    as_cosines,
    read_label,
    read_labels,
    read_value,
    tokenize_apart,
    tokenize_texts,
)
from potstill.tasks.sequence.scores import Chosen


class _Texts(Kind[E]):
    """Do what all tasks on one or two texts have in common."""

    said: ClassVar[Mapping[str, str]] = {
        "majority": "always giving the most frequent answer",
        "tfidf": "TF-IDF with a linear model",
    }

    def read(
        self, row: Mapping[str, object], origin: str, data: TaskData, labelled: bool
    ) -> tuple[tuple[str, ...], Any]:
        texts = tuple(text_of(row, name) for name in data.text)
        return texts, self.label(row, data) if labelled else None

    @abstractmethod
    def label(self, row: Mapping[str, object], data: TaskData) -> Any:
        """Read a row's label as the file has it: a name, names, or a number.

        Raises:
            BadRow: a label of another kind than the task's.
        """

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

    def label(self, row: Mapping[str, object], data: TaskData) -> str:
        return read_label(row, data.label[0])

    def labels(
        self, read: Sequence[Any], data: TaskData, teacher: Sequence[str] | None, unnamed: bool
    ) -> list[str]:
        labels = resolve_labels(named_labels(read, data), data.labels, teacher, unnamed)
        if len(labels) < 2:
            raise ValueError(
                f"data.train: all examples have the label '{labels[0]}'. Give examples of at least "
                "two labels."
            )
        return labels

    def gold(self, example: RawExample, labels: Sequence[str], given: Sequence[str] | None) -> int:
        label = example.label
        return UNLABELED if label is None else label_number(label, labels, given)

    def class_counts(
        self, labels: Sequence[str], train: Sequence[Labelled]
    ) -> list[tuple[str, int]]:
        counts = np.bincount([example.gold for example in train], minlength=len(labels))
        return list(zip(labels, counts.tolist(), strict=False))

    def tokenize(
        self, found: Sequence[Labelled], tokenizer: PreTrainedTokenizerFast, cutting: Cutting
    ) -> Cut[Examples]:
        return Cut(*tokenize_texts(found, tokenizer, cutting.data.max_length, np.int64))

    def decide(self, outputs: np.ndarray, examples: Examples, names: Sequence[str]) -> list[Chosen]:
        return scores.likeliest(outputs, names)

    def scores(self, given: np.ndarray, case: Case[Examples]) -> dict[str, Scored]:
        return scores.label_scores(given, case.test.gold, len(case.labels))

    def commonest(self, gold: np.ndarray, case: Case[Examples]) -> np.ndarray:
        return np.bincount(gold, minlength=len(case.labels)).astype(float)

    def tfidf(self, train: Examples, case: Case[Examples], seed: int) -> np.ndarray | None:
        return scores.tfidf_label(train, case.test, len(case.labels), seed)

    def agreement(self, given: Any, base: Any, case: Case[Examples]) -> dict[str, float]:
        return scores.label_agreement(given, base)

    def show(
        self, base: Any, other: Any, case: Case[Examples], most: int
    ) -> list[Mapping[str, Any]]:
        return scores.label_examples(base, other, case, most)


class MultiLabelKind(LabelKind):
    """Read one or two texts with any number of labels."""

    def label(self, row: Mapping[str, object], data: TaskData) -> Any:
        return read_labels(row, data.label, data.separator)

    def labels(
        self, read: Sequence[Any], data: TaskData, teacher: Sequence[str] | None, unnamed: bool
    ) -> list[str]:
        return resolve_labels(named_labels(read, data), data.labels, teacher, unnamed)

    def gold(self, example: RawExample, labels: Sequence[str], given: Sequence[str] | None) -> Any:
        if example.label is None:
            return [UNLABELED] * len(labels)
        chosen = {label_number(name, labels, given) for name in example.label}
        return [int(number in chosen) for number in range(len(labels))]

    def class_counts(
        self, labels: Sequence[str], train: Sequence[Labelled]
    ) -> list[tuple[str, int]]:
        counts = np.array([example.gold for example in train]).sum(0)
        return list(zip(labels, counts.tolist(), strict=False))

    def decide(self, outputs: np.ndarray, examples: Examples, names: Sequence[str]) -> list[Chosen]:
        return scores.likely(outputs, names)

    def scores(self, given: np.ndarray, case: Case[Examples]) -> dict[str, Scored]:
        return scores.multi_label_scores(given, case.test.gold)

    def commonest(self, gold: np.ndarray, case: Case[Examples]) -> np.ndarray:
        return np.where(scores.commonest_labels(gold), 1.0, -1.0)

    def tfidf(self, train: Examples, case: Case[Examples], seed: int) -> np.ndarray | None:
        return scores.tfidf_labels(train, case.test, seed)

    def agreement(self, given: Any, base: Any, case: Case[Examples]) -> dict[str, float]:
        return {"labels": float(((given > 0) == (base > 0)).mean())}

    def show(
        self, base: Any, other: Any, case: Case[Examples], most: int
    ) -> list[Mapping[str, Any]]:
        return scores.multi_label_examples(base, other, case, most)


class ValueKind(_Texts[E]):
    """Read one or two texts with a value."""

    def label(self, row: Mapping[str, object], data: TaskData) -> float:
        return read_value(row, data.label[0])

    def labels(
        self, read: Sequence[Any], data: TaskData, teacher: Sequence[str] | None, unnamed: bool
    ) -> list[str]:
        return data.label

    def gold(
        self, example: RawExample, labels: Sequence[str], given: Sequence[str] | None
    ) -> float:
        return math.nan if example.label is None else float(example.label)

    def tokenize(
        self, found: Sequence[Labelled], tokenizer: PreTrainedTokenizerFast, cutting: Cutting
    ) -> Cut[Any]:
        return Cut(*tokenize_texts(found, tokenizer, cutting.data.max_length, np.float32))

    def decide(self, outputs: np.ndarray, examples: E, names: Sequence[str]) -> list[float]:
        return [float(value) for value in outputs[:, 0]]

    def scores(self, given: np.ndarray, case: Case[E]) -> dict[str, Scored]:
        return scores.value_scores(given, case.test.gold)

    def constant(self, case: Case[E]) -> dict[str, float]:
        return {"pearson": 0.0, "spearman": 0.0}

    def commonest(self, gold: np.ndarray, case: Case[E]) -> np.ndarray:
        return np.asarray(gold.mean(keepdims=True))

    def tfidf(self, train: E, case: Case[E], seed: int) -> np.ndarray | None:
        return scores.tfidf_value(train, case.test)

    def agreement(self, given: Any, base: Any, case: Case[E]) -> dict[str, float]:
        return scores.value_agreement(given, base)

    def show(self, base: Any, other: Any, case: Case[E], most: int) -> list[Mapping[str, Any]]:
        return scores.value_examples(base[:, 0], other[:, 0], case.test, most)


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

    def scaled(
        self, sides: dict[str, list[RawExample]], data: TaskData
    ) -> dict[str, list[RawExample]]:
        return as_cosines(sides, data)

    def tokenize(
        self, found: Sequence[Labelled], tokenizer: PreTrainedTokenizerFast, cutting: Cutting
    ) -> Cut[Any]:
        return Cut(*tokenize_apart(found, tokenizer, cutting.data.max_length))

    def sequences(self, texts: tuple[str, ...]) -> list[tuple[str, ...]]:
        return [(text,) for text in texts]

    def outputs(self, loaded: LoadedModel, batch: Batch) -> Tensor:
        cosine_P1 = similarity_signals(loaded, batch).features_KD
        assert cosine_P1 is not None
        return cosine_P1

    def tfidf(self, train: Any, case: Case[Any], seed: int) -> np.ndarray | None:
        return scores.tfidf_cosine(case.test)


def sequence_kind(task: Task) -> Kind[Any]:
    """Choose the kind of a task on whole sequences."""
    if not task.has_distribution:
        return ValueKind(task)
    return MultiLabelKind(task) if task == Task.MULTI_LABEL else LabelKind(task)
