"""What the stages of one run share, and where a run tells how far it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerFast

from potstill.compression.importance import BATCH
from potstill.data import (
    Batch,
    Examples,
    Masker,
    Tokens,
    collate,
    make_masker,
    read_records,
    tokenize_corpus,
)
from potstill.data.sequences import TokenizedCorpus
from potstill.data.sources import Record, heldout_side
from potstill.models import LoadedModel, load_config, load_model
from potstill.models.devices import measuring_device
from potstill.models.families import position_limit
from potstill.recipe import Corpus, Masking, Recipe, Stage, Task, TaskData
from potstill.tasks import TaskExamples, TaskRows, read_for, tokenize_task
from potstill.training.preflight import Findings


class Reporter(Protocol):
    """Where a run tells how far it is; the command line draws bars, the API says nothing."""

    def say(self, message: str) -> None: ...

    def progress(self, fraction: float, note: str = "") -> None: ...

    def stage(self, number: int, total: int, kind: str, skipped: bool) -> None: ...


class Silent:
    """A reporter that reports nothing."""

    def say(self, message: str) -> None: ...

    def progress(self, fraction: float, note: str = "") -> None: ...

    def stage(self, number: int, total: int, kind: str, skipped: bool) -> None: ...


@dataclass(frozen=True)
class Context:
    """What the stages of one run share.

    Frozen because `cut_as` makes copies and keeps them: a field that changed would stay as it was
    in those. Models are added to the dict, which all copies hold.
    """

    task: Task
    seed: int
    text_settings: Corpus | TaskData
    run: Path
    cache: Path
    models: dict[str, Path]
    reporter: Reporter
    is_main: bool = True
    # What the text is cut by; None: the teacher's tokenizer, as it is when it is first needed.
    cutter: PreTrainedTokenizerFast | None = None
    student: str | None = None  # the model the recipe is about
    twin: str | None = None  # the same one trained without a teacher
    repeats: Mapping[str, Sequence[str]] = field(default_factory=dict)  # see recipe.repeated
    checked: dict[Path, Findings] = field(default_factory=dict)  # teachers, by their folders
    # Shared with the contexts that `cut_as` makes: these, and a task's rows once they are read.
    cuts: list[Context] = field(default_factory=list, repr=False, compare=False)
    read: list[TaskRows] = field(default_factory=list, repr=False, compare=False)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self.cutter or self._tokenizer("teacher")

    def _tokenizer(self, name: str) -> PreTrainedTokenizerFast:
        folder = self.models[name]
        return load_model(folder, self.task, untrained_head=True, weights=False).tokenizer

    def cut_as(self, name: str) -> Context:
        """The context whose text is cut into a model's own tokens: another one after its vocabulary
        was trimmed, the same for all models of one vocabulary.
        """
        own = self._tokenizer(name)
        if not self.cuts:
            self.cuts.append(self)
        for known in self.cuts:
            if known.tokenizer.get_vocab() == own.get_vocab():
                return known
        made = replace(self, cutter=own)
        self.cuts.append(made)
        return made

    @property
    def corpus_settings(self) -> Corpus:
        assert isinstance(self.text_settings, Corpus)
        return self.text_settings

    @property
    def rows(self) -> TaskRows:
        """A task's data as it was read, whatever cuts it."""
        if not self.read:
            assert isinstance(self.text_settings, TaskData)
            teacher = load_config(self.models["teacher"])
            self.read.append(read_for(self.task, self.text_settings, teacher, self.seed))
        return self.read[0]

    @cached_property
    def examples(self) -> TaskExamples:
        """A task's data, cut by this context's tokenizer."""
        self.reporter.say("reading and tokenising the examples")
        found = tokenize_task(self.rows, self.tokenizer)
        for warning in found.warnings:
            self.reporter.say(f"note: {warning}")
        return found

    def open(self, name: str, untrained_head: bool = False) -> LoadedModel:
        """A model of the run, with its weights."""
        labels = self.examples.labels if isinstance(self.text_settings, TaskData) else None
        folder = self.models[name]
        return load_model(folder, self.task, untrained_head=untrained_head, labels=labels)

    @property
    def training_side(self) -> Tokens | Examples:
        if isinstance(self.text_settings, TaskData):
            return self.examples.train
        return self.corpus.train

    @property
    def heldout_side(self) -> Tokens | Examples:
        """Text that no model was trained on; where none is held out, what they were trained on."""
        if isinstance(self.text_settings, TaskData):
            return self.examples.test
        return self.corpus.heldout if len(self.corpus.heldout) else self.corpus.train

    @property
    def heldout_texts(self) -> str:
        """What the texts of `heldout_side` are to be called."""
        if isinstance(self.text_settings, TaskData) or len(self.corpus.heldout):
            return "held-out texts"
        return "training texts, for none are held out,"

    @cached_property
    def corpus(self) -> TokenizedCorpus:
        self.reporter.say("reading and tokenising the corpus (cached for the next time)")
        corpus = tokenize_corpus(
            self.corpus_settings, self.tokenizer, self.cache, self.seed, say=self.reporter.say
        )
        for warning in corpus.warnings:
            self.reporter.say(f"note: {warning}")
        return corpus

    def masker(self, masking: Masking) -> Masker:
        return make_masker(masking, self.tokenizer, self.corpus.train.token_counts)

    @cached_property
    def heldout_records(self) -> list[Record]:
        """Held-out records with all columns, for scores that need more than token sequences."""
        corpus = self.corpus_settings
        if corpus.heldout_sources is not None:
            return list(read_records(corpus.heldout_sources, corpus.columns))
        return [
            record
            for record in read_records(corpus.sources, corpus.columns)
            if heldout_side(record, corpus.columns, corpus.group_by, corpus.heldout, self.seed)
        ]


def chosen_models(names: Sequence[str] | None, baseline: str, context: Context) -> dict[str, Path]:
    """The models that a stage is about; of repeats the first alone."""
    again = {name for names in context.repeats.values() for name in names[1:]}
    every = [name for name in context.models if name not in again]
    wanted = list(dict.fromkeys([baseline, *(names if names is not None else every)]))
    return {name: context.models[name] for name in wanted}


def sampled_batches(context: Context, side: Tokens | Examples, count: int) -> Iterator[Batch]:
    """Batches of `count` texts of a side at most, drawn by the run's seed alone, on the
    `measuring_device`; those of masked LM with tokens masked.
    """
    masker = context.masker(Masking()) if context.task == Task.MASKED_LM else None
    pad = int(context.tokenizer.pad_token_id or 0)
    chosen = np.random.default_rng(context.seed).permutation(len(side))[:count]
    for start in range(0, len(chosen), BATCH):
        part = chosen[start : start + BATCH]
        yield collate(side, part, pad, masker, context.seed, 0).to(measuring_device())


@dataclass(frozen=True)
class Outline:
    """The models of one stage without their weights: shapes and names, on the meta device."""

    stage: Stage
    model: LoadedModel | None = None  # what it makes or trains
    teachers: tuple[LoadedModel, ...] = ()
    why: str = ""  # of a student's shape


@dataclass
class Outlook:
    """What is known of a run before it starts: its models without weights, and the first text.

    Attributes:
        given: folders of the models that no stage writes, by name.
        columns: of the first records of a corpus.
        rows: a task's data as it was read.
        where: the stage that is being checked, as messages call it.
        written: models as stages up to it write them, by name.
        opened: given models, by name and whether a head may be untrained.
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
        """The labels of a task's data; None of a corpus."""
        return self.rows.labels if self.rows is not None else None

    def model(self, name: str, untrained_head: bool = False) -> LoadedModel:
        """A model as it will be when the stage reads it, on the meta device."""
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
        """Say which stage it is, in an error whose keys may stand elsewhere in the recipe, too."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from None


def check_length(text: Corpus | TaskData, loaded: LoadedModel) -> None:
    """Refuse sequences that a model has no positions for.

    Raises:
        ValueError: max_length is too large.
    """
    positions = position_limit(loaded.model.config)
    if text.max_length > positions:
        key = "corpus" if isinstance(text, Corpus) else "data"
        raise ValueError(
            f"{key}.max_length: {text.max_length} tokens are more than the {positions} "
            f"positions of {loaded.name}: set {positions} at most"
        )


def sides_of(
    context: Context, taught: bool
) -> tuple[Tokens | Examples, Tokens | Examples, dict[str, Any]]:
    """What is trained on, what is judged by, and what result.json tells of the data."""
    if isinstance(context.text_settings, Corpus):
        corpus = context.corpus
        told = {"corpus": {"counts": corpus.counts, "warnings": corpus.warnings}}
        return corpus.train, corpus.heldout, told
    found = context.examples
    train_side = found.train
    if taught and found.unlabelled is not None:
        train_side = train_side + found.unlabelled
    told = {"data": {"counts": found.counts, "warnings": found.warnings, "labels": found.labels}}
    return train_side, replace(found.dev, numbered_from=len(train_side)), told
