"""Words with tags, as a kind of head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from potstill.data import Batch, Examples
from potstill.models import LoadedModel
from potstill.models.config import label_names
from potstill.recipe import Task, TaskData
from potstill.tasks.heads import head_logits
from potstill.tasks.labels import named_labels, resolve_labels
from potstill.tasks.metrics import Case, Scored, best_constant
from potstill.tasks.rows import Cut, Cutting, Labelled, RawExample
from potstill.tasks.tokens.examples import (
    check_tag_names,
    read_sentence,
    sorted_tags,
    tag_numbers,
    tokenize_sentences,
    type_counts,
)
from potstill.tasks.tokens.scores import (
    Tagged,
    at_words,
    predicted_tags,
    tag_agreement,
    tag_examples,
    tag_scores,
    tagged_words,
    trivial_tags,
)


class TokensKind:
    """Sentences whose words have tags; methods as `kinds.Kind` has them."""

    by_token: bool = True
    own_id: str | None = None
    blank: Any = None
    said: Mapping[str, str] = {
        "majority": "tagging every word O",
        "lexicon": "each word's commonest tag in training",
    }

    def check_columns(self, data: TaskData) -> None:
        if len(data.text) != 1:
            raise ValueError("data.text: token_classification reads one column, a list of words")

    def read(
        self,
        row: Mapping[str, object],
        origin: str,
        data: TaskData,
        task: Task,
        labelled: bool,
    ) -> tuple[tuple[str, ...], Any]:
        return read_sentence(row, origin, data, labelled)

    def columns(self, texts: tuple[str, ...], data: TaskData) -> dict[str, str]:
        return {data.text[0]: " ".join(texts)}

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
        found = named_labels(read, data)
        if teacher is None and data.labels is None:
            labels = sorted_tags(found)
        else:
            labels = resolve_labels(found, data.labels, teacher, unnamed)
        check_tag_names(labels)
        return labels

    def gold(
        self,
        task: Task,
        example: RawExample,
        labels: Sequence[str],
        given: Sequence[str] | None,
    ) -> Any:
        tags = example.label
        return None if tags is None else tag_numbers(example.texts, tags, labels, given)

    def class_counts(
        self, task: Task, labels: Sequence[str], train: Sequence[Labelled]
    ) -> list[tuple[str, int]]:
        return list(type_counts(labels, train).items())

    def tokenize(
        self, found: Sequence[Labelled], tokenizer: PreTrainedTokenizerFast, cutting: Cutting
    ) -> Cut:
        return Cut(*tokenize_sentences(found, tokenizer, cutting.data.max_length))

    def outputs(self, loaded: LoadedModel, batch: Batch) -> Tensor:
        return head_logits(loaded, batch)

    def decide(self, outputs: np.ndarray, examples: Examples, loaded: LoadedModel) -> list[Tagged]:
        return tagged_words(outputs, examples, label_names(loaded.model.config))

    def given(self, outputs: np.ndarray, examples: Examples, case: Case) -> Any:
        if examples is case.test:
            return outputs
        return at_words(outputs, examples, case.test, case.labels.index("O"))

    def scores(self, given: Any, case: Case) -> dict[str, Scored]:
        assert case.test.items is not None
        tags = predicted_tags(given, case.test, case.labels.index("O"))
        return tag_scores(case.test.items.truths, tags, case.labels)

    def constant(self, case: Case) -> dict[str, float]:
        return best_constant(
            len(case.labels), len(case.test.ids), lambda outputs: self.scores(outputs, case)
        )

    def references(self, case: Case, seed: int) -> dict[str, dict[str, Scored]]:
        test = case.test.items
        assert test is not None
        tags = trivial_tags(case.train.items if case.train else None, test, case.labels)
        return {name: tag_scores(test.truths, found, case.labels) for name, found in tags.items()}

    def agreement(self, given: Any, base: Any, case: Case) -> dict[str, float]:
        return tag_agreement(given, base, case.test)

    def show(self, base: Any, other: Any, case: Case, most: int) -> list[Mapping[str, Any]]:
        return tag_examples(base, other, case.test, case.labels, most)
