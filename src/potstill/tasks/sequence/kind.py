"""Texts with a label, labels or a value, and pairs by their cosine, as kinds of heads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from potstill.data import Batch, Examples
from potstill.data.sequences import UNLABELLED
from potstill.models import LoadedModel
from potstill.models.config import label_names
from potstill.recipe import Task, TaskData
from potstill.tasks.heads import head_logits, similarity_signals
from potstill.tasks.labels import label_number, named_labels, resolve_labels
from potstill.tasks.metrics import Case, Scored, best_constant
from potstill.tasks.rows import Cut, Cutting, Labelled, RawExample
from potstill.tasks.sequence.examples import (
    as_cosines,
    read_texts,
    tokenize_apart,
    tokenize_texts,
)
from potstill.tasks.sequence.scores import (
    Chosen,
    chosen_labels,
    label_agreement,
    label_examples,
    label_scores,
    trivial_labels,
)


class SequenceKind:
    """One or two texts with a label, labels or a value; methods as `kinds.Kind` has them."""

    by_token: bool = False
    own_id: str | None = None
    blank: Any = UNLABELLED
    said: Mapping[str, str] = {
        "majority": "always giving the commonest answer",
        "tfidf": "TF-IDF with a linear model",
    }

    def check_columns(self, data: TaskData) -> None:
        pass  # a text or two: the recipe has no more

    def read(
        self,
        row: Mapping[str, object],
        origin: str,
        data: TaskData,
        task: Task,
        labelled: bool,
    ) -> tuple[tuple[str, ...], Any]:
        return read_texts(row, data, task, labelled)

    def columns(self, texts: tuple[str, ...], data: TaskData) -> dict[str, str]:
        return dict(zip(data.text, texts, strict=False))

    def group(self, data: TaskData) -> str | None:
        return None

    def scaled(
        self, sides: dict[str, list[RawExample]], data: TaskData
    ) -> dict[str, list[RawExample]]:
        return sides

    def labels(
        self,
        task: Task,
        read: Sequence[Any],
        data: TaskData,
        teacher: Sequence[str] | None,
        unnamed: bool,
    ) -> list[str]:
        if not task.has_distribution:
            return data.label
        labels = resolve_labels(named_labels(read, data), data.labels, teacher, unnamed)
        if task == Task.CLASSIFICATION and len(labels) < 2:
            raise ValueError(
                f"data.train: all examples have the label '{labels[0]}': two are needed"
            )
        return labels

    def gold(
        self,
        task: Task,
        example: RawExample,
        labels: Sequence[str],
        given: Sequence[str] | None,
    ) -> Any:
        label = example.label
        if not task.has_distribution:
            return math.nan if label is None else label
        if task == Task.MULTI_LABEL:
            if label is None:
                return [UNLABELLED] * len(labels)
            chosen = {label_number(name, labels, given) for name in label}
            return [int(number in chosen) for number in range(len(labels))]
        return UNLABELLED if label is None else label_number(label, labels, given)

    def class_counts(
        self, task: Task, labels: Sequence[str], train: Sequence[Labelled]
    ) -> list[tuple[str, int]]:
        if not task.has_distribution:
            return []
        gold = np.array([example.gold for example in train])
        several = task == Task.MULTI_LABEL
        counts = gold.sum(0) if several else np.bincount(gold, minlength=len(labels))
        return list(zip(labels, counts.tolist(), strict=False))

    def tokenize(
        self, found: Sequence[Labelled], tokenizer: PreTrainedTokenizerFast, cutting: Cutting
    ) -> Cut:
        gold_type = np.float32 if cutting.task == Task.REGRESSION else np.int64
        return Cut(*tokenize_texts(found, tokenizer, cutting.data.max_length, gold_type))

    def outputs(self, loaded: LoadedModel, batch: Batch) -> Tensor:
        return head_logits(loaded, batch)

    def decide(
        self, outputs: np.ndarray, examples: Examples, loaded: LoadedModel
    ) -> list[Chosen] | list[float]:
        if not loaded.task.has_distribution:
            return [float(value) for value in outputs[:, 0]]
        return chosen_labels(loaded.task, outputs, label_names(loaded.model.config))

    def given(self, outputs: np.ndarray, examples: Examples, case: Case) -> Any:
        return outputs

    def scores(self, given: Any, case: Case) -> dict[str, Scored]:
        return label_scores(case.task, given, case.test.gold, len(case.labels))

    def constant(self, case: Case) -> dict[str, float]:
        if not case.task.has_distribution:
            return {"pearson": 0.0, "spearman": 0.0}
        return best_constant(
            len(case.labels), len(case.test), lambda outputs: self.scores(outputs, case)
        )

    def references(self, case: Case, seed: int) -> dict[str, dict[str, Scored]]:
        answers = trivial_labels(case.task, case.train, case.test, case.labels, seed)
        return {name: self.scores(found, case) for name, found in answers.items()}

    def agreement(self, given: Any, base: Any, case: Case) -> dict[str, float]:
        return label_agreement(case.task, given, base)

    def show(self, base: Any, other: Any, case: Case, most: int) -> list[Mapping[str, Any]]:
        return label_examples(case.task, base, other, case.test, case.labels, most)


class CosineKind(SequenceKind):
    """Two texts with a value that is the cosine of their embeddings."""

    blank: Any = math.nan
    said: Mapping[str, str] = {
        "majority": "always giving the same score",
        "tfidf": "the cosine of TF-IDF",
    }

    def check_columns(self, data: TaskData) -> None:
        if len(data.text) != 2:
            raise ValueError(
                "data.text: sentence_similarity compares two columns: text: [sentence1, sentence2]"
            )

    def scaled(
        self, sides: dict[str, list[RawExample]], data: TaskData
    ) -> dict[str, list[RawExample]]:
        return as_cosines(sides, data)

    def tokenize(
        self, found: Sequence[Labelled], tokenizer: PreTrainedTokenizerFast, cutting: Cutting
    ) -> Cut:
        return Cut(*tokenize_apart(found, tokenizer, cutting.data.max_length))

    def outputs(self, loaded: LoadedModel, batch: Batch) -> Tensor:
        cosine_P1 = similarity_signals(loaded, batch).features_KD
        assert cosine_P1 is not None
        return cosine_P1
