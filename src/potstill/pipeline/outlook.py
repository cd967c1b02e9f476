"""Hold what is known of a run before it starts: its models without weights, and its first text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from potstill.models import LoadedModel, load_model
from potstill.recipe import Corpus, Recipe, Stage, TaskData
from potstill.tasks import TaskRows


@dataclass(frozen=True)
class Outline:
    """Hold the models of one stage without their weights: shapes and names, on the meta device.

    Attributes:
        model: What the stage makes or trains.
        teachers: What it reads for that.
        why: How the shape of `model` was chosen.
    """

    stage: Stage
    model: LoadedModel | None = None
    teachers: tuple[LoadedModel, ...] = ()
    why: str = ""


@dataclass
class Outlook:
    """Hold what is known of a run before it starts.

    Attributes:
        given: Folders of the models that no stage writes, by name.
        columns: The columns of a corpus's first records.
        rows: A task's data as it was read.
        where: The stage that is being checked, as messages call it.
        written: Models as the stages so far write them, by name.
        opened: Given models, by name and whether a head may be untrained.
    """

    recipe: Recipe
    given: Mapping[str, Path]
    columns: Sequence[str] = ()
    rows: TaskRows | None = None
    where: str = ""
    written: dict[str, LoadedModel] = field(default_factory=dict)
    opened: dict[tuple[str, bool], LoadedModel] = field(default_factory=dict)

    @property
    def labels(self) -> list[str] | None:
        """Return the labels of a task's data; None for a corpus."""
        return self.rows.labels if self.rows is not None else None

    def model(self, name: str, untrained_head: bool = False) -> LoadedModel:
        """Return a model as it will be when the stage reads it, on the meta device."""
        if name in self.written:
            return self.written[name]
        key = name, untrained_head
        if key not in self.opened:
            self.opened[key] = load_model(
                self.given[name],
                self.recipe.task,
                untrained_head=untrained_head,
                weights=False,
                labels=self.labels,
            )
        return self.opened[key]

    @contextmanager
    def named(self) -> Iterator[None]:
        """Name the stage in an error, for keys that may be elsewhere in the recipe, too."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from None


def check_length(key: str, tokens: int, loaded: LoadedModel) -> None:
    """Refuse sequences that are too long for a model.

    Args:
        key: The recipe's key that asks for them.
        tokens: How long they are, special tokens included.
        loaded: The model that reads them.

    Raises:
        ValueError: The model's maximum sequence length is smaller.
    """
    limit = loaded.positions
    if tokens > limit:
        raise ValueError(
            f"{key}: {tokens} tokens exceed the maximum sequence length of {loaded.name}, {limit}. "
            f"Set at most {limit}."
        )


def check_text_length(text: Corpus | TaskData, loaded: LoadedModel) -> None:
    """Refuse a text's `max_length` that is too long for a model.

    Raises:
        ValueError: See `check_length`.
    """
    key = "corpus" if isinstance(text, Corpus) else "data"
    check_length(f"{key}.max_length", text.max_length, loaded)
