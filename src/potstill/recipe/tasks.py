"""The one list of tasks that a model can be for, with the facts about each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Literal

from potstill.recipe.config import nearest

# What a head predicts for: whole sequences, tokens, the ends of an answer; or, without weights of
# its own, two texts by the cosine of their embeddings.
Head = Literal["sequence", "tokens", "spans", "cosine"]

# Class names of transformers end in these; a cosine has no class.
ENDINGS: dict[Head, str] = {
    "sequence": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "spans": "ForQuestionAnswering",
}


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """Hold the facts about one task, each explained in `Task`."""

    head: Head | None = None
    metrics: tuple[str, ...] = ()
    metric: str = ""
    problem_type: str | None = None
    is_encoder: bool = False
    has_distribution: bool = True
    has_text_vector: bool = False
    cacheable: bool = False


_sequence_classes = partial(_Facts, head="sequence", has_text_vector=True, cacheable=True)
_value = partial(
    _Facts,
    metrics=("pearson", "spearman", "mse"),
    metric="spearman",
    has_distribution=False,
    has_text_vector=True,
    cacheable=True,
)


class Task(StrEnum):
    """Name a task and hold its facts; equal to its name, as recipes and results have it."""

    head: Head | None  # None: it is learned from plain text, without labels
    metrics: tuple[str, ...]  # all scores that are computed of labeled examples
    metric: str  # what a checkpoint is chosen by, and retention is of; "" without labels
    problem_type: str | None  # in transformers' config.json; None where it has no word
    is_encoder: bool  # its models are sentence encoders: no head, modules that pool
    has_distribution: bool  # an output is a distribution over classes; else it is a value
    # Its models have one vector per text: its embedding, or what the classifier reads.
    has_text_vector: bool
    cacheable: bool  # a teacher's output for an example is the same in every batch

    def __new__(cls, name: str, facts: _Facts = _Facts()) -> Task:
        task = str.__new__(cls, name)
        task._value_ = name
        task.__dict__ |= vars(facts)
        return task

    MASKED_LM = "masked_lm"
    SENTENCE_EMBEDDING = (
        "sentence_embedding",
        _Facts(is_encoder=True, has_text_vector=True, cacheable=True),
    )
    CLASSIFICATION = (
        "classification",
        _sequence_classes(
            metrics=("accuracy", "f1", "macro_f1", "matthews"),
            metric="accuracy",
            problem_type="single_label_classification",
        ),
    )
    MULTI_LABEL = (
        "multi_label",
        _sequence_classes(
            metrics=("micro_f1", "macro_f1", "exact_match"),
            metric="micro_f1",
            problem_type="multi_label_classification",
        ),
    )
    REGRESSION = "regression", _value(head="sequence", problem_type="regression")
    SENTENCE_SIMILARITY = "sentence_similarity", _value(head="cosine", is_encoder=True)
    TOKEN_CLASSIFICATION = (
        "token_classification",
        _Facts(
            head="tokens",
            metrics=("f1", "precision", "recall", "accuracy"),
            metric="f1",
            cacheable=True,
        ),
    )
    QUESTION_ANSWERING = (
        "question_answering",
        _Facts(head="spans", metrics=("exact_match", "f1"), metric="f1"),
    )

    @classmethod
    def _missing_(cls, value: object) -> Task:
        hint = nearest(str(value), list(cls), "The tasks are")
        raise ValueError(f"task: '{value}' is not a task. {hint}")

    @property
    def reads_text(self) -> bool:
        """Return whether it is learned from plain text; else from labeled examples."""
        return self.head is None

    @property
    def has_labels(self) -> bool:
        """Return whether it has an output per label; else values, or parts of a text."""
        return self.head in ("sequence", "tokens") and self.has_distribution
