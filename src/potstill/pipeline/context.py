"""Hold what the stages of a run share: models, settings, text, and where progress is reported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from potstill.recipe import Corpus, Masking, Task, TaskData
from potstill.storage import cache_folder
from potstill.tasks import TaskExamples, TaskRows, read_for, tokenize_task
from potstill.training.preflight import Findings

# What a stage did, for result.json; and name -> path below its folder for the models it wrote.
Done = tuple[Mapping[str, Any], dict[str, str]]


class Reporter(Protocol):
    """Receive the progress of a run; the command line draws bars, the API is silent."""

    def say(self, message: str) -> None: ...

    def progress(self, fraction: float, note: str = "") -> None: ...

    def stage(self, number: int, total: int, kind: str, skipped: bool) -> None: ...


class Silent:
    """Report nothing."""

    def say(self, message: str) -> None: ...

    def progress(self, fraction: float, note: str = "") -> None: ...

    def stage(self, number: int, total: int, kind: str, skipped: bool) -> None: ...


@dataclass(frozen=True)
class Context:
    """Hold what the stages of a run share; stages add the models that they write to `models`.

    Attributes:
        text_settings: The recipe's text.
        student: The model that the recipe is about.
        twin: The same model trained without a teacher.
        repeats: See `recipe.stages.repeated`.
        checked: What was found of teachers, by their folders.
        texts: The text as tokenized so far, by vocabulary; see `text_for`.
    """

    task: Task
    seed: int
    text_settings: Corpus | TaskData
    run: Path
    models: dict[str, Path]
    reporter: Reporter
    cache: Path = field(default_factory=lambda: cache_folder() / "tokens")
    is_main: bool = True
    student: str | None = None
    twin: str | None = None
    repeats: Mapping[str, Sequence[str]] = field(default_factory=dict)
    checked: dict[Path, Findings] = field(default_factory=dict)
    texts: dict[frozenset[tuple[str, int]], TokenizedText] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def labeled(self) -> bool:
        """Return whether the text is a task's examples, and not a corpus."""
        return isinstance(self.text_settings, TaskData)

    @property
    def corpus_settings(self) -> Corpus:
        assert isinstance(self.text_settings, Corpus)
        return self.text_settings

    @property
    def data_settings(self) -> TaskData:
        assert isinstance(self.text_settings, TaskData)
        return self.text_settings

    @cached_property
    def rows(self) -> TaskRows:
        """Read a task's data, before it is tokenized."""
        teacher = load_config(self.models["teacher"])
        return read_for(self.task, self.data_settings, teacher, self.seed)

    @cached_property
    def heldout_records(self) -> list[Record]:
        """Read the held-out records with all columns, for scores that need more than tokens."""
        corpus = self.corpus_settings
        if corpus.heldout_sources is not None:
            return list(read_records(corpus.heldout_sources, corpus.columns))
        return [
            record
            for record in read_records(corpus.sources, corpus.columns)
            if heldout_side(record, corpus.columns, corpus.group_by, corpus.heldout, self.seed)
        ]

    def text_for(self, name: str) -> TokenizedText:
        """Return the text in a model's own tokens, shared by all models of one vocabulary."""
        if not self.texts and name != "teacher":
            self.text_for("teacher")  # whose tokenizer serves all models of its vocabulary
        folder = self.models[name]
        own = load_model(folder, self.task, untrained_head=True, weights=False).tokenizer
        vocabulary = frozenset(own.get_vocab().items())
        return self.texts.setdefault(vocabulary, TokenizedText(self, own))

    def open(self, name: str, untrained_head: bool = False) -> LoadedModel:
        """Open a model of the run, with its weights."""
        labels = self.rows.labels if self.labeled else None
        folder = self.models[name]
        return load_model(folder, self.task, untrained_head=untrained_head, labels=labels)

    def note(self, *messages: str) -> None:
        for message in messages:
            self.reporter.say(f"note: {message}")

    def compared(self, names: Sequence[str] | None, baseline: str) -> dict[str, Path]:
        """Return the models of a comparison: those named, or all, with one of each repeated model.

        Args:
            names: The models that a stage names; None means all.
            baseline: The model that comes first.
        """
        again = {name for names in self.repeats.values() for name in names[1:]}
        every = [name for name in self.models if name not in again]
        wanted = dict.fromkeys([baseline, *(names if names is not None else every)])
        return {name: self.models[name] for name in wanted}


@dataclass(frozen=True, eq=False)
class TokenizedText:
    """Hold a run's text in the tokens of one vocabulary; it is read when it is first asked for."""

    context: Context
    tokenizer: PreTrainedTokenizerFast

    @cached_property
    def examples(self) -> TaskExamples:
        """Tokenize a task's data."""
        self.context.reporter.say("reading and tokenizing the examples")
        found = tokenize_task(self.context.rows, self.tokenizer)
        self.context.note(*found.warnings)
        return found

    @cached_property
    def corpus(self) -> TokenizedCorpus:
        """Tokenize the corpus, or open what was cached."""
        context = self.context
        context.reporter.say("reading and tokenizing the corpus (cached for the next time)")
        found = tokenize_corpus(
            context.corpus_settings,
            self.tokenizer,
            context.cache,
            context.seed,
            say=context.reporter.say,
        )
        self.context.note(*found.warnings)
        return found

    @property
    def training_side(self) -> Tokens | Examples:
        return self.examples.train if self.context.labeled else self.corpus.train

    @property
    def heldout_side(self) -> Tokens | Examples:
        """Return text that no model was trained on; the training text where none is held out."""
        if self.context.labeled:
            return self.examples.test
        return self.corpus.heldout if len(self.corpus.heldout) else self.corpus.train

    @property
    def heldout_name(self) -> str:
        """Name the texts of `heldout_side` in a sentence."""
        if self.context.labeled or len(self.corpus.heldout):
            return "held-out texts"
        return "training texts, for none are held out,"

    def sides(self, taught: bool) -> tuple[Tokens | Examples, Tokens | Examples, dict[str, Any]]:
        """Return what is trained on, what checkpoints are chosen by, and result.json's data part.

        Args:
            taught: Whether a teacher labels the unlabeled text, which is then trained on, too.
        """
        if not self.context.labeled:
            corpus = self.corpus
            told = {"corpus": {"counts": corpus.counts, "warnings": corpus.warnings}}
            return corpus.train, replace(corpus.heldout, numbered_from=len(corpus.train)), told
        found = self.examples
        train = found.train
        if taught and found.unlabeled is not None:
            train = train + found.unlabeled
        told = {key: getattr(found, key) for key in ("counts", "warnings", "labels")}
        return train, replace(found.dev, numbered_from=len(train)), {"data": told}

    def masker(self, masking: Masking) -> Masker | None:
        """Return what masks tokens in training; None for tasks that mask none."""
        if self.context.task != Task.MASKED_LM:
            return None
        return make_masker(masking, self.tokenizer, self.corpus.train.token_counts)

    def batches(self, side: Tokens | Examples, count: int) -> Iterator[Batch]:
        """Draw at most `count` texts of a side by the run's seed, in batches on `measuring_device`.

        For masked LM their tokens are masked.
        """
        seed, masker = self.context.seed, self.masker(Masking())
        mask = None if masker is None else masker.of_epoch(seed, 0)
        pad = int(self.tokenizer.pad_token_id or 0)
        chosen = np.random.default_rng(seed).permutation(len(side))[:count]
        for start in range(0, len(chosen), BATCH):
            part = chosen[start : start + BATCH]
            yield collate(side, part, pad, mask).to(measuring_device())
