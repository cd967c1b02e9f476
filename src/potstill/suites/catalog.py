"""Public suites of tasks, as data: files, columns, labels, metrics, and how each is fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from potstill.recipe import Task, Training

SuiteName = Literal["glue", "imdb", "squad", "squad2"]
# tsv: a table; folders: a folder a label, in it a .txt file a text; squad: SQuAD's own JSON.
Layout = Literal["tsv", "folders", "squad"]


@dataclass(frozen=True)
class Split:
    """One part of a task's data.

    Attributes:
        files: below the data folder, as it is published; of several the first that is there.
        hub: name of the split on the hub.
    """

    files: tuple[str, ...]
    hub: str


class Hub(NamedTuple):
    """A data set of the hub at one revision, which never changes."""

    name: str
    config: str | None
    revision: str

    def __str__(self) -> str:
        return f"{self.name}:{self.config or 'default'}@{self.revision}"


@dataclass(frozen=True)
class SuiteTask:
    """One task of a suite.

    Attributes:
        title: as tables print it.
        text, label: columns of the official files.
        labels: as the official files have them, in the order of a head's outputs.
        metrics: what is reported, of task_metrics' names; the task's score is their mean.
        scored: what is scored: a suffix of the metrics' names -> its part of the data.
        header: columns of files that have no header.
        hub_text, hub_labels: where the hub calls columns or labels (in order) otherwise.
        batch_size, epochs, learning_rate, max_length: of fine-tuning.
        small: too few scored examples for a share of the teacher's score to mean much.
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
        """Names of all that is reported: metrics with their part's suffix."""
        return [f"{metric}{suffix}" for suffix in self.scored for metric in self.metrics]


def _glue(title: str, scored: Mapping[str, tuple[str, str]] | None = None, **own: Any) -> SuiteTask:
    """A task of GLUE: batches of 32, 3 epochs, as Devlin et al. 2019, section 4.1, have them.

    Args:
        scored: suffix -> file and split of the hub; None: those that most tasks have.
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
    """Settings of Devlin et al. 2019, sections 4.2 and 4.3."""
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
    # The smallest learning rate of Devlin et al.; 5 epochs of MRPC and WNLI, as transformers' own
    # GLUE example has them.
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
    """The tasks of a suite, in its order; all of them, or those that are wanted.

    Raises:
        ValueError: no such suite, or no such task in it.
    """
    if suite not in SUITES:
        raise ValueError(f"--suite: there is no suite '{suite}'; there are: {', '.join(SUITES)}")
    tasks = SUITES[suite]
    names = [task.name for task in tasks]
    if wanted is None:
        return list(tasks)
    unknown = next((name for name in wanted if name not in names), None)
    if unknown is not None or not wanted:
        problem = "no task is named" if unknown is None else f"there is no task '{unknown}'"
        raise ValueError(f"--tasks: {problem}; {suite} has: {', '.join(names)}")
    return [task for task in tasks if task.name in wanted]


def training_of(task: SuiteTask, learning_rate: float | None, epochs: float | None) -> Training:
    """How a task is fine-tuned, as BERT is: AdamW, 10% warm-up, linear decay, the last weights.

    No checkpoint is chosen by its score: the examples that would choose are those that are scored.
    """
    size = task.batch_size
    return Training(
        epochs=epochs if epochs is not None else task.epochs,
        batch_size=size,
        # long texts need the memory of many short ones
        micro_batch_size=size if task.max_length <= 128 else 8,
        learning_rate=learning_rate if learning_rate is not None else task.learning_rate,
        betas=(0.9, 0.999),
        weight_decay=0.01,
        warmup=0.1,
        clip=1.0,
        evaluate_every=10**9,  # at the end alone
        keep="last",
    )
