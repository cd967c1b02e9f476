"""Read, answer and score words with tags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from potstill.data.sequences import Sentences
from potstill.recipe import TaskData
from potstill.tasks import metrics
from potstill.tasks.kind import Kind, Shown
from potstill.tasks.labels import named_labels, resolve_labels
from potstill.tasks.metrics import Case, Scored
from potstill.tasks.rows import Cut, Cutting, Labelled, Names, RawExample, Row, Texts
from potstill.tasks.tokens.examples import (
    check_tag_names,
    read_sentence,
    sorted_tags,
    tag_numbers,
    tokenize_sentences,
)
from potstill.tasks.tokens.scores import (
    Tagged,
    at_words,
    predicted_tags,
    tag_scores,
    tagged_words,
    trivial_tags,
)


class TokensKind(Kind[Sentences]):
    """Read sentences whose words have tags."""

    by_token: ClassVar[bool] = True
    blank: ClassVar[Any] = None
    said: ClassVar[Mapping[str, str]] = {
        "majority": "tagging every word O",
        "lexicon": "each word's most frequent tag in training",
    }

    def check_columns(self, data: TaskData) -> None:
        if len(data.text) != 1:
            raise ValueError(
                "data.text: token_classification reads one column, a list of words. Name one."
            )

    def read(self, row: Row, origin: str, data: TaskData, labelled: bool) -> tuple[Texts, Any]:
        return read_sentence(row, origin, data, labelled)

    def columns(self, texts: Texts, data: TaskData) -> dict[str, str]:
        return {data.text[0]: " ".join(texts)}

    def labels(self, read: Sequence[Any], data: TaskData, teacher: Names | None) -> list[str]:
        found = named_labels(read, data)
        if teacher is None and data.labels is None:
            labels = sorted_tags(found)
        else:
            labels = resolve_labels(found, data.labels, teacher)
        check_tag_names(labels)
        return labels

    def gold(self, example: RawExample, labels: Names, given: Names | None) -> Any:
        tags = example.label
        return None if tags is None else tag_numbers(example.texts, tags, labels, given)

    def class_counts(self, labels: Names, train: Sequence[Labelled]) -> list[tuple[str, int]]:
        begun = Counter(labels[n] for example in train for n in example.gold)
        types = dict.fromkeys(label[2:] for label in labels if label != "O")
        return [(name, begun[f"B-{name}"]) for name in types]

    def tokenize(self, found: Sequence[Labelled], cutting: Cutting) -> Cut[Sentences]:
        return tokenize_sentences(found, cutting)

    def decide(self, outputs: np.ndarray, examples: Sentences, names: Names) -> list[Tagged]:
        return tagged_words(outputs, examples, names)

    def given(self, outputs: np.ndarray, examples: Sentences, case: Case[Sentences]) -> Any:
        if examples is case.test:
            return outputs
        return at_words(outputs, examples, case.test, case.labels.index("O"))

    def scores(self, given: Any, case: Case[Sentences]) -> dict[str, Scored]:
        tags = predicted_tags(given, case.test, case.labels.index("O"))
        return tag_scores(case.test.tags, tags, case.labels)

    def references(self, case: Case[Sentences], seed: int) -> dict[str, dict[str, Scored]]:
        tags = trivial_tags(case.train, case.test, case.labels)
        return {n: tag_scores(case.test.tags, given, case.labels) for n, given in tags.items()}

    def agreement(self, given: Any, base: Any, case: Case[Sentences]) -> dict[str, float]:
        first_T = case.test.word_at >= 0
        return metrics.agreement(given[first_T], base[first_T])

    def show(self, base: Any, other: Any, case: Case[Sentences], most: int) -> Shown:
        examples, labels = case.test, case.labels
        first = np.flatnonzero(examples.word_at >= 0)
        shown: Shown = []
        for k, one, two in metrics.differing(base[first], other[first], labels, most):
            item = int(np.searchsorted(examples.offsets, first[k], side="right")) - 1
            word = int(examples.word_at[first[k]])
            words, truth = examples.words[item], examples.tags[item]
            shown.append(
                {
                    "query": f"{words[word]} (word {word + 1}) in: {' '.join(words)}",
                    "expected": labels[int(truth[word])],
                    "teacher": one,
                    "student": two,
                }
            )
        return shown
