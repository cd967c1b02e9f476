"""Text and labeled examples as a recipe describes them, and how tokens are masked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from potstill.recipe.config import Config

FileFormat = Literal["txt", "jsonl", "csv", "tsv", "parquet", "conll", "squad"]


class Files(Config):
    """Read files on this machine: paths or globs, or `package:NAME/...` in an installed package."""

    kind: Literal["files"] = "files"
    paths: Annotated[list[str], Field(min_length=1)]
    format: Literal["auto", FileFormat] = "auto"
    # What one record of a .txt file is. A document also has the columns title (its first line),
    # body (the rest) and label (the name of its folder).
    unit: Literal["line", "paragraph", "document"] = "line"
    # Tried in order; a file that fits none is an error.
    encodings: Annotated[list[str], Field(min_length=1)] = ["utf-8"]


class DatasetFolder(Config):
    """Read a folder written by `datasets`' save_to_disk (a Dataset or a DatasetDict)."""

    kind: Literal["dataset_folder"] = "dataset_folder"
    path: str
    split: str | None = None


class HubDataset(Config):
    """Read a data set of the hub, by name: only its Parquet form, and no script ever runs."""

    kind: Literal["hub"] = "hub"
    name: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None


def _as_source(value: Any) -> Any:
    return {"kind": "files", "paths": [value]} if isinstance(value, str) else value


def _as_sources(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


def _as_names(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Source = Annotated[
    Files | DatasetFolder | HubDataset, Field(discriminator="kind"), BeforeValidator(_as_source)
]
Sources = Annotated[list[Source], Field(min_length=1), BeforeValidator(_as_sources)]
Names = Annotated[list[str], Field(min_length=1), BeforeValidator(_as_names)]
# One column of text, or two for a pair.
TextColumns = Annotated[list[str], Field(min_length=1, max_length=2), BeforeValidator(_as_names)]


class Corpus(Config):
    """Describe text, how it becomes token sequences, and which part is never trained on."""

    sources: Sources
    # The columns that hold text; each becomes sequences of its own.
    columns: Annotated[list[str], Field(min_length=1)] = ["text"]
    max_length: Annotated[int, Field(ge=8)] = 128  # tokens, special tokens included
    min_length: Annotated[int, Field(ge=1)] = 12  # texts of fewer tokens are dropped
    # Sequences with a larger fraction of unknown tokens are dropped.
    max_unknown: Annotated[float, Field(ge=0, le=1)] = 0.5
    # The fraction of records held out, chosen by a hash of their text, so that exact duplicates
    # always fall on the same side; or sources of their own.
    heldout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    heldout_sources: Sources | None = None
    # The column whose text decides the side; by default all text columns together.
    group_by: str | None = None
    drop_duplicates: bool = False

    @property
    def all_sources(self) -> list[Source]:
        """Return the sources of both sides."""
        return [*self.sources, *(self.heldout_sources or [])]

    @model_validator(mode="after")
    def _lengths(self) -> Corpus:
        if self.min_length > self.max_length:
            raise ValueError(
                f"min_length: {self.min_length} is above max_length {self.max_length}, so no text "
                "is left. Lower min_length."
            )
        return self


class TaskData(Config):
    """Describe labeled examples of a task, and text that only the teacher labels."""

    train: Sources
    # What a checkpoint is chosen by; null: a fraction of `train`, chosen by a hash of the texts.
    dev: Sources | None = None
    heldout: Annotated[float, Field(ge=0, lt=1)] = 0.1  # that fraction
    # What scores are reported on; null: `dev`.
    test: Sources | None = None
    # More text without labels, for `distill`: the teacher labels it.
    unlabeled: Sources | None = None
    # The column of the text; two for a pair, or for a question and its context. Token
    # classification: a list of words.
    text: TextColumns = ["text"]
    # The column of the labels. Multi-label: a list of names (a string is split at `separator`), or
    # several columns, each 0 or 1. Token classification: a list of tags, one per word. Question
    # answering: the answers, {text: [...], answer_start: [...]}.
    label: Names = ["label"]
    separator: str = ","
    # A column whose values no two rows of a side may share; null: none, but `id` of questions.
    id: str | None = None
    # Sentence similarity: the scores that mean cosines of 0 and 1; null: the lowest and the highest
    # of `train`.
    score_range: tuple[float, float] | None = None
    # Names of the labels in the order of the model's outputs; null: as in the teacher's config,
    # else as they are found, sorted. Where the data has numbers, in the order of those; a teacher's
    # own names keep its order of outputs.
    labels: Annotated[list[str], Field(min_length=1)] | None = None
    max_length: Annotated[int, Field(ge=8)] = 128  # tokens, special tokens included
    # Accept a side all of whose texts are longer than that: their beginnings are read.
    beginnings: bool = False
    # Question answering: a longer context is read in windows; tokens that two of them share. null:
    # a third of max_length.
    stride: Annotated[int, Field(ge=0)] | None = None
    max_answer: Annotated[int, Field(ge=1)] = 30  # tokens of an answer
    # Examples of `train` to take, chosen by the seed; null: all.
    max_train: Annotated[int, Field(ge=1)] | None = None
    max_unlabeled: Annotated[int, Field(ge=1)] | None = None
    # A row that can't be used ends the run, or is skipped and counted.
    on_bad_row: Literal["error", "skip"] = "error"
    metric: str | None = None  # null: the task's own

    @property
    def all_sources(self) -> list[Source]:
        """Return the sources of all sides."""
        return [*self.train, *(self.dev or []), *(self.test or []), *(self.unlabeled or [])]

    @model_validator(mode="after")
    def _once(self) -> TaskData:
        if self.score_range is not None and self.score_range[0] >= self.score_range[1]:
            low, high = self.score_range
            raise ValueError(
                f"score_range: {low:g} is not below {high:g}. Give the lower one first."
            )
        for key in ("text", "label", "labels"):
            named = getattr(self, key) or []
            twice = next((name for name in named if named.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"{key}: '{twice}' is listed twice. Remove one of the two.")
        return self


class Masking(Config):
    """Mask tokens dynamically: a new mask every epoch (Devlin et al. 2019; Liu et al. 2019)."""

    probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    mask: Annotated[float, Field(ge=0, le=1)] = 0.8  # of the chosen: replaced by the mask token
    random: Annotated[float, Field(ge=0, le=1)] = 0.1  # by a random token; the rest is kept
    whole_word: bool = False
    # Chance of a token to be chosen ~ count ** -smoothing (0: all alike; the reference uses 0.7).
    smoothing: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _fractions(self) -> Masking:
        if self.mask + self.random > 1 + 1e-9:
            total = f"{self.mask + self.random:g}"
            raise ValueError(f"mask: mask + random is {total}, more than 1. Lower one of the two.")
        return self
