"""Define the one face of all kinds of heads, from a file's row to a score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic

import numpy as np
from torch import Tensor

from potstill.data import Batch
from potstill.data.sequences import UNLABELED, E
from potstill.models import LoadedModel
from potstill.recipe import Task, TaskData
from potstill.tasks.heads import head_logits
from potstill.tasks.metrics import Case, Scored, best_constant
from potstill.tasks.rows import Cut, Cutting, Labelled, Names, RawExample, Row, Texts

Sides = dict[str, list[RawExample]]  # train, dev; test and unlabeled where they are given
Shown = list[Mapping[str, Any]]  # examples, as result.json has them


class Kind(ABC, Generic[E]):
    """Answer what is asked of a kind of head, for one task.

    Attributes:
        by_token: Whether its outputs have a row per token; else per example.
        own_id: The column of ids that rows have where `data.id` names none; None: no such column.
        blank: The gold of a text that nobody labeled and a model is only asked about.
        said: What `references` are called in a sentence.
    """

    by_token: ClassVar[bool] = False
    own_id: ClassVar[str | None] = None
    blank: ClassVar[Any] = UNLABELED
    said: ClassVar[Mapping[str, str]]

    def __init__(self, task: Task) -> None:
        self.task = task

    # --- rows -------------------------------------------------------------------------------------

    def check_columns(self, data: TaskData) -> None:
        """Refuse too many, or too few, text columns."""

    @abstractmethod
    def read(self, row: Row, origin: str, data: TaskData, labelled: bool) -> tuple[Texts, Any]:
        """Read a row's texts, and its label as the file has it; None: not asked for."""

    def columns(self, texts: Texts, data: TaskData) -> dict[str, str]:
        """Name an example's texts by their columns, as a corpus's record has them."""
        return dict(zip(data.text, texts, strict=False))

    def group(self, data: TaskData) -> str | None:
        """Name the column whose equal texts are all held out or none; None: all columns."""
        return None

    def scaled(self, sides: Sides, data: TaskData) -> Sides:
        """Bring labels to the scale of the outputs."""
        return sides

    @abstractmethod
    def labels(self, read: Sequence[Any], data: TaskData, teacher: Names | None) -> list[str]:
        """Name the labels in the order of the outputs; of a value the value's name alone.

        `read` are the training examples' labels, as the method gave them; `teacher` as in
        `resolve_labels`.
        """

    @abstractmethod
    def gold(self, example: RawExample, labels: Names, given: Names | None) -> Any:
        """Turn an example's label into gold, as `Labelled` has it; `given` as in `label_number`."""

    def class_counts(self, labels: Names, train: Sequence[Labelled]) -> list[tuple[str, int]]:
        """Count the examples of each class; nothing where there are no classes."""
        return []

    # --- tokens and outputs -----------------------------------------------------------------------

    @abstractmethod
    def tokenize(self, found: Sequence[Labelled], cutting: Cutting) -> Cut[E]:
        """Cut examples into token sequences of at most `data.max_length` tokens."""

    def sequences(self, texts: Texts) -> list[Texts]:
        """Divide an example's texts into those that a model reads together."""
        return [texts]

    def outputs(self, loaded: LoadedModel, batch: Batch) -> Tensor:
        """Compute a model's outputs: one row per example [B x C], or per token [B x L x C]."""
        return head_logits(loaded, batch)

    @abstractmethod
    def decide(self, outputs: np.ndarray, examples: E, names: Names) -> Any:
        """Decode a model's outputs, in the examples' order; `names` are its labels' own."""

    # --- scores -----------------------------------------------------------------------------------

    def given(self, outputs: np.ndarray, examples: E, case: Case[E]) -> Any:
        """Turn outputs for `case.test`, as the model itself tokenizes it, into what is scored."""
        return outputs

    @abstractmethod
    def scores(self, given: Any, case: Case[E]) -> dict[str, Scored]:
        """Score what `given` gave by every metric of the task."""

    def constant(self, case: Case[E]) -> dict[str, float]:
        """Score the same answer for all examples: by each metric the most, whichever it is."""
        count = len(case.test.ids) if self.by_token else len(case.test)
        return best_constant(len(case.labels), count, lambda given: self.scores(given, case))

    @abstractmethod
    def references(self, case: Case[E], seed: int) -> dict[str, dict[str, Scored]]:
        """Score baselines without a network; `majority` always exists."""

    @abstractmethod
    def agreement(self, given: Any, base: Any, case: Case[E]) -> dict[str, float]:
        """Compute how similar two models' answers are, right or wrong."""

    @abstractmethod
    def show(self, base: Any, other: Any, case: Case[E], most: int) -> Shown:
        """Show examples that two models answer differently, the surest or furthest first."""
