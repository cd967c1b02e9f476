"""The one place that chooses a kind of head, and the one face that all kinds have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, assert_never

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from potstill.data import Batch, Examples
from potstill.models import LoadedModel
from potstill.recipe import Task, TaskData
from potstill.tasks.metrics import Case, Scored
from potstill.tasks.rows import Cut, Cutting, Labelled, RawExample
from potstill.tasks.sequence.kind import CosineKind, SequenceKind
from potstill.tasks.sequence.scores import Chosen
from potstill.tasks.spans.kind import SpansKind
from potstill.tasks.spans.scores import Given
from potstill.tasks.tokens.kind import TokensKind
from potstill.tasks.tokens.scores import Tagged

Prediction = list[Chosen] | list[Tagged] | list[Given] | list[float]


class Kind(Protocol):
    """What is asked of a kind of head, from a file's row to a score.

    Attributes:
        by_token: Whether its outputs have a row for each token; else for each example.
        own_id: The column of ids that rows have where `data.id` names none; None: no such column.
        blank: The gold of a text that nobody labelled and a model is only asked about.
        said: What `references` are called in a sentence.
    """

    by_token: bool
    own_id: str | None
    blank: Any
    said: Mapping[str, str]

    # --- rows -------------------------------------------------------------------------------------

    def check_columns(self, data: TaskData) -> None:
        """Refuse another number of text columns.

        Raises:
            ValueError: too many, or too few.
        """

    def read(
        self,
        row: Mapping[str, object],
        origin: str,
        data: TaskData,
        task: Task,
        labelled: bool,
    ) -> tuple[tuple[str, ...], Any]:
        """Read a row's texts, and its label as it stands there; None: not asked for.

        Raises:
            BadRow: the row can't be used.
        """

    def columns(self, texts: tuple[str, ...], data: TaskData) -> dict[str, str]:
        """Name an example's texts by their columns, as a corpus's record has them."""

    def group(self, data: TaskData) -> str | None:
        """Name the column whose equal texts are all held out or none; None: all columns."""

    def scaled(
        self, sides: dict[str, list[RawExample]], data: TaskData
    ) -> dict[str, list[RawExample]]:
        """Bring labels to the scale of the outputs.

        Raises:
            ValueError: the training examples have no scale.
        """

    def labels(
        self,
        task: Task,
        read: Sequence[Any],
        data: TaskData,
        teacher: Sequence[str] | None,
        unnamed: bool,
    ) -> list[str]:
        """Name the labels in the order of the outputs; of a value the value's name alone.

        Args:
            read: Labels of the training examples, as `read` gave them.
            teacher: As in `resolve_labels`, with `unnamed`.

        Raises:
            ValueError: labels that can't be learnt, or not with this teacher.
        """

    def gold(
        self,
        task: Task,
        example: RawExample,
        labels: Sequence[str],
        given: Sequence[str] | None,
    ) -> Any:
        """Turn an example's label into gold, as `Labelled` has it; `given` as in `label_number`.

        Raises:
            BadRow: a label that is none of the labels.
        """

    def class_counts(
        self, task: Task, labels: Sequence[str], train: Sequence[Labelled]
    ) -> list[tuple[str, int]]:
        """Count the examples of each class; nothing where there are no classes."""

    # --- tokens and outputs -----------------------------------------------------------------------

    def tokenize(
        self, found: Sequence[Labelled], tokenizer: PreTrainedTokenizerFast, cutting: Cutting
    ) -> Cut:
        """Cut examples into token sequences of `data.max_length` tokens at most.

        Raises:
            ValueError: a question that leaves no room for its context.
        """

    def outputs(self, loaded: LoadedModel, batch: Batch) -> Tensor:
        """Run a model: a row for each example [B x C], or for each token [B x L x C]."""

    def decide(self, outputs: np.ndarray, examples: Examples, loaded: LoadedModel) -> Prediction:
        """Say what a model's outputs stand for, in the examples' order."""

    # --- scores -----------------------------------------------------------------------------------

    def given(self, outputs: np.ndarray, examples: Examples, case: Case) -> Any:
        """Turn outputs into what is scored.

        Args:
            examples: `case.test`, as the model's own tokenizer cuts it.
        """

    def scores(self, given: Any, case: Case) -> dict[str, Scored]:
        """Score what `given` gave by every metric of the task."""

    def constant(self, case: Case) -> dict[str, float]:
        """Score the same answer for all examples: by each metric the most, whichever it is."""

    def references(self, case: Case, seed: int) -> dict[str, dict[str, Scored]]:
        """Score what takes no network; `majority`, always there, gives the commonest answer."""

    def agreement(self, given: Any, base: Any, case: Case) -> dict[str, float]:
        """Say how alike two models' answers are, right or wrong."""

    def show(self, base: Any, other: Any, case: Case, most: int) -> list[Mapping[str, Any]]:
        """Show examples that two models answer differently, the surest or furthest first."""


def kind_of(task: Task) -> Kind:
    """Choose the kind of a task's head.

    Raises:
        ValueError: the task has no head of its own.
    """
    match task.head:
        case None:
            raise ValueError(f"{task} is learned from plain text, without labeled examples")
        case "sequence":
            return SequenceKind()
        case "cosine":
            return CosineKind()
        case "tokens":
            return TokensKind()
        case "spans":
            return SpansKind()
        case _:
            assert_never(task.head)
