"""List the suites' tasks as data: files, columns, labels, metrics, settings of fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from potstill.recipe import Task, Training

SuiteName = Literal["glue", "imdb", "squad", "squad2"]
# tsv: a table; folders: a folder per label with a .txt file per text; squad: SQuAD's own JSON.
Layout = Literal["tsv", "folders", "squad"]


@dataclass(frozen=True)
class Split:
    """Locate one part of a task's data.

    Attributes:
        files: Paths below the data folder, as published; the first that exists counts.
        hub: Name of the split on the hub.
    """

    files: tuple[str, ...]
    hub: str


class Hub(NamedTuple):
    """Name a dataset of the hub at one revision, which never changes."""

    name: str
    config: str | None
    revision: str

    def __str__(self) -> str:
        return f"{self.name}:{self.config or 'default'}@{self.revision}"


@dataclass(frozen=True)
class SuiteTask:
    """Describe one task of a suite.

    Attributes:
        title: The name in tables.
        text, label: Columns of the official files.
        labels: Labels of the official files, in the order of a head's outputs.
        metrics: Reported metrics; the task's score is their mean.
        scored: Suffix of the metrics' names -> the part of the data that is scored.
        header: Columns of files without a header.
        hub_text, hub_label, hub_labels: The hub's columns and labels (in order), where they differ.
        batch_size, epochs, learning_rate, max_length: Settings of fine-tuning.
        small: Whether it has too few scored examples for a meaningful score retention.
    """

    name: str
    title: str
    hub: Hub
    train: Split
    scored: dict[str, Split]
    task: Task = Task.CLASSIFICATION
    text: tuple[str, ...] = ("sentence1", "sentence2")
    label: str = "label"
    labels: tuple[str, ...] = ("0", "1")
    metrics: tuple[str, ...] = ("accuracy",)
    layout: Layout = "tsv"
    header: tuple[str, ...] | None = None
    hub_text: tuple[str, ...] | None = None
    hub_label: str = "label"
    hub_labels: tuple[str, ...] | None = None
    batch_size: int = 32
    epochs: float = 3
    learning_rate: float = 2e-5
    max_length: int = 128
    small: bool = False

    @property
    def scores(self) -> list[str]:
        """Return the names of all reported scores: metrics with their part's suffix."""
        return [f"{metric}{suffix}" for suffix in self.scored for metric in self.metrics]


def _glue(title: str, scored: Mapping[str, tuple[str, str]] | None = None, **own: Any) -> SuiteTask:
    """Describe a task of GLUE: batches of 32, 3 epochs (Devlin et al. 2019, section 4.1).

    Args:
        scored: Suffix -> file and split of the hub; None: those that most tasks have.
    """
    name, parts = title.lower().replace("-", ""), scored or {"": ("dev", "validation")}
    return SuiteTask(
        name,
        title,
        Hub("nyu-mll/glue", name, "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"),
        Split((f"{title}/train.tsv",), "train"),
        {suffix: Split((f"{title}/{file}.tsv",), hub) for suffix, (file, hub) in parts.items()},
        **own,
    )


def _squad(name: str, version: str, hub: Hub, batch_size: int, epochs: float) -> SuiteTask:
    """Describe a SQuAD task: settings of Devlin et al. 2019, sections 4.2 and 4.3."""
    return SuiteTask(
        name,
        f"SQuAD {version}",
        hub,
        Split((f"train-v{version}.json",), "train"),
        {"": Split((f"dev-v{version}.json",), "validation")},
        task=Task.QUESTION_ANSWERING,
        text=("question", "context"),
        label="answers",
        labels=(),
        metrics=("exact_match", "f1"),
        layout="squad",
        hub_label="answers",
        batch_size=batch_size,
        epochs=epochs,
        learning_rate=5e-5,
        max_length=384,
    )


_ENTAILED = ("entailment", "not_entailment")
_SQUAD = Hub("rajpurkar/squad", None, "7b6d24c440a36b6815f21b70d25016731768db1f")
_SQUAD2 = Hub("rajpurkar/squad_v2", None, "3ffb306f725f7d2ce8394bc1873b24868140c412")

SUITES: dict[SuiteName, tuple[SuiteTask, ...]] = {
    # The smallest learning rate of Devlin et al.; 5 epochs for MRPC and WNLI, as in transformers'
    # own GLUE example.
    "glue": (
        _glue(
            "CoLA",
            text=("sentence",),
            metrics=("matthews",),
            header=("source", "label", "mark", "sentence"),
            hub_labels=("unacceptable", "acceptable"),
        ),
        _glue(
            "MNLI",
            {
                "_matched": ("dev_matched", "validation_matched"),
                "_mismatched": ("dev_mismatched", "validation_mismatched"),
            },
            label="gold_label",
            labels=("entailment", "neutral", "contradiction"),
            hub_text=("premise", "hypothesis"),
        ),
        _glue(
            "MRPC",
            text=("#1 String", "#2 String"),
            label="Quality",
            metrics=("accuracy", "f1"),
            hub_text=("sentence1", "sentence2"),
            hub_labels=("not_equivalent", "equivalent"),
            epochs=5,
        ),
        _glue("QNLI", text=("question", "sentence"), labels=_ENTAILED),
        _glue(
            "QQP",
            text=("question1", "question2"),
            label="is_duplicate",
            metrics=("accuracy", "f1"),
            hub_labels=("not_duplicate", "duplicate"),
        ),
        _glue("RTE", labels=_ENTAILED, small=True),
        _glue("SST-2", text=("sentence",), hub_labels=("negative", "positive")),
        _glue(
            "STS-B",
            task=Task.REGRESSION,
            label="score",
            labels=(),
            metrics=("pearson", "spearman"),
        ),
        _glue("WNLI", hub_labels=("not_entailment", "entailment"), epochs=5, small=True),
    ),
    "imdb": (
        SuiteTask(
            "imdb",
            "IMDb",
            Hub("stanfordnlp/imdb", "plain_text", "e6281661ce1c48d982bc483cf8a173c1bbeb5d31"),
            Split(("aclImdb/train", "train"), "train"),
            {"": Split(("aclImdb/test", "test"), "test")},
            text=("text",),
            labels=("neg", "pos"),
            layout="folders",
            max_length=512,
        ),
    ),
    "squad": (_squad("squad", "1.1", _SQUAD, batch_size=32, epochs=3),),
    "squad2": (_squad("squad2", "2.0", _SQUAD2, batch_size=48, epochs=2),),
}
SEEDS = 5  # the paper's: its scores are the median of five (Sanh et al. 2019, table 1)


def suite_tasks(suite: str, wanted: Sequence[str] | None) -> list[SuiteTask]:
    """Return the wanted tasks of a suite, in the suite's order.

    Args:
        suite: Names the suite.
        wanted: Names of tasks; None: all.

    Raises:
        ValueError: There is no such suite, or no such task in it.
    """
    if suite not in SUITES:
        raise ValueError(f"--suite: '{suite}' is not a suite. The suites are {', '.join(SUITES)}.")
    tasks = SUITES[suite]
    names = [task.name for task in tasks]
    if wanted is None:
        return list(tasks)
    unknown = next((name for name in wanted if name not in names), None)
    if unknown is not None or not wanted:
        problem = "no task is named" if unknown is None else f"'{unknown}' is not a task of {suite}"
        raise ValueError(f"--tasks: {problem}. The tasks of {suite} are {', '.join(names)}.")
    return [task for task in tasks if task.name in wanted]


def training_of(task: SuiteTask, learning_rate: float | None, epochs: float | None) -> Training:
    """Return a task's training, as BERT's: AdamW, 10% warm-up, linear decay, the last weights.

    No checkpoint is chosen by its score: it would be chosen on the scored examples.

    Args:
        task: Has the settings.
        learning_rate: Replaces the task's own; None: keep it.
        epochs: Replaces the task's own; None: keep it.
    """
    size = task.batch_size
    return Training(
        epochs=epochs if epochs is not None else task.epochs,
        batch_size=size,
        # a long text needs the memory of many short texts
        micro_batch_size=size if task.max_length <= 128 else 8,
        learning_rate=learning_rate if learning_rate is not None else task.learning_rate,
        betas=(0.9, 0.999),
        weight_decay=0.01,
        warmup=0.1,
        clip=1.0,
        evaluate_every=10**9,  # only at the end
        keep="last",
    )
