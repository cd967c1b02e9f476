"""The tasks that are learnt from labelled examples, as data: one row each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HeadTask = Literal[
    "classification",
    "multi_label",
    "regression",
    "sentence_similarity",
    "token_classification",
    "question_answering",
]
# What it predicts for: whole sequences, tokens, the ends of an answer; or, without weights of its
# own, two texts by the cosine of their embeddings.
Head = Literal["sequence", "tokens", "spans", "cosine"]

Task = Literal[
    "masked_lm",
    "sentence_embedding",
    "classification",
    "multi_label",
    "regression",
    "sentence_similarity",
    "token_classification",
    "question_answering",
]
# Those that are learnt from text as it is; the others need labelled examples, in `data`.
TEXT_TASKS = ("masked_lm", "sentence_embedding")
# Those whose answer is a value; it has no distribution.
VALUE_TASKS = ("regression", "sentence_similarity")
# Those in which a teacher's answer to an example is always the same, whatever the batch.
CACHED_TASKS = (
    "classification",
    "multi_label",
    "regression",
    "sentence_similarity",
    "token_classification",
)


@dataclass(frozen=True)
class TaskRow:
    """What one task is.

    Attributes:
        head: see `Head`.
        problem_type: what transformers' config.json calls it; None where it has no word.
        metric: the score that a checkpoint is chosen by, and that retention is of.
        metrics: all that are computed.
    """

    task: HeadTask
    head: Head
    problem_type: str | None
    metric: str
    metrics: tuple[str, ...]

    @property
    def has_labels(self) -> bool:
        """Whether it has an output for each of some labels; else it gives values, or answers."""
        return self.head in ("sequence", "tokens") and self.task not in VALUE_TASKS


TASKS: dict[HeadTask, TaskRow] = {
    row.task: row
    for row in (
        TaskRow(
            task="classification",
            head="sequence",
            problem_type="single_label_classification",
            metric="accuracy",
            metrics=("accuracy", "f1", "macro_f1", "matthews"),
        ),
        TaskRow(
            task="multi_label",
            head="sequence",
            problem_type="multi_label_classification",
            metric="micro_f1",
            metrics=("micro_f1", "macro_f1", "exact_match"),
        ),
        TaskRow(
            task="regression",
            head="sequence",
            problem_type="regression",
            metric="spearman",
            metrics=("pearson", "spearman", "mse"),
        ),
        TaskRow(
            task="sentence_similarity",
            head="cosine",
            problem_type=None,
            metric="spearman",
            metrics=("pearson", "spearman", "mse"),
        ),
        TaskRow(
            task="token_classification",
            head="tokens",
            problem_type=None,
            metric="f1",
            metrics=("f1", "precision", "recall", "accuracy"),
        ),
        TaskRow(
            task="question_answering",
            head="spans",
            problem_type=None,
            metric="f1",
            metrics=("exact_match", "f1"),
        ),
    )
}

# Class names of transformers end in these; a cosine has no class.
ENDINGS: dict[Head, str] = {
    "sequence": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "spans": "ForQuestionAnswering",
}


def row_of(task: Task) -> TaskRow | None:
    """The row of a task with a head of its own; None for masked LM and sentence embeddings."""
    if task == "masked_lm" or task == "sentence_embedding":
        return None
    return TASKS[task]


def is_encoder(task: Task) -> bool:
    """Whether a task's models are sentence encoders: no head, modules that pool."""
    return task in ("sentence_embedding", "sentence_similarity")
