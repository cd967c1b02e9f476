"""Public suites of tasks, as data: files, columns, labels, metrics, and how each is fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

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
        config: on the hub, where it is not the task's own.
    """

    files: tuple[str, ...]
    hub: str
    config: str | None = None


@dataclass(frozen=True)
class Hub:
    """A data set of the hub at one revision, which never changes."""

    name: str
    config: str | None
    revision: str


@dataclass(frozen=True)
class SuiteTask:
    """One task of a suite.

    Attributes:
        title: as tables print it.
        text, label: columns of the official files.
        labels: as the official files have them, in the order of a head's outputs.
        metrics: what is reported, of task_metrics' names; the task's score is their mean.
        scored: what is scored: a suffix of the metrics' names -> its part of the data.
        tests: a submission's file -> the part without labels that it answers.
        header: columns of labelled files that have no header.
        hub_text, hub_labels: where the hub calls columns or labels (in order) otherwise.
        batch_size, epochs, learning_rate, max_length: of fine-tuning.
        small: too few scored examples for a share of the teacher's score to mean much.
    """

    name: str
    title: str
    task: Task
    hub: Hub
    text: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    train: Split
    scored: dict[str, Split]
    tests: dict[str, Split] = field(default_factory=dict)
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


def _glue(config: str) -> Hub:
    return Hub("nyu-mll/glue", config, "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c")


def _split(folder: str, name: str, hub: str) -> Split:
    return Split((f"{folder}/{name}.tsv",), hub)


def _parts(folder: str) -> tuple[Split, dict[str, Split], dict[str, Split]]:
    """The three parts of a GLUE task whose files are called train, dev and test."""
    return (
        _split(folder, "train", "train"),
        {"": _split(folder, "dev", "validation")},
        {f"{folder}.tsv": _split(folder, "test", "test")},
    )


_PAIR = ("sentence1", "sentence2")
_BINARY = ("0", "1")
_ENTAILED = ("entailment", "not_entailment")

# Batches of 32, 3 epochs: Devlin et al. 2019, section 4.1, whose smallest learning rate is 2e-5; 5
# epochs of MRPC and WNLI, as transformers' own GLUE example has them.
GLUE = (
    SuiteTask(
        "cola",
        "CoLA",
        Task.CLASSIFICATION,
        _glue("cola"),
        ("sentence",),
        "label",
        _BINARY,
        ("matthews",),
        *_parts("CoLA"),
        header=("source", "label", "mark", "sentence"),
        hub_labels=("unacceptable", "acceptable"),
    ),
    SuiteTask(
        "mnli",
        "MNLI",
        Task.CLASSIFICATION,
        _glue("mnli"),
        _PAIR,
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        _split("MNLI", "train", "train"),
        {
            "_matched": _split("MNLI", "dev_matched", "validation_matched"),
            "_mismatched": _split("MNLI", "dev_mismatched", "validation_mismatched"),
        },
        {
            "MNLI-m.tsv": _split("MNLI", "test_matched", "test_matched"),
            "MNLI-mm.tsv": _split("MNLI", "test_mismatched", "test_mismatched"),
            # the diagnostic set, which has no training text of its own
            "AX.tsv": Split(("diagnostic/diagnostic.tsv", "AX/AX.tsv"), "test", "ax"),
        },
        hub_text=("premise", "hypothesis"),
    ),
    SuiteTask(
        "mrpc",
        "MRPC",
        Task.CLASSIFICATION,
        _glue("mrpc"),
        ("#1 String", "#2 String"),
        "Quality",
        _BINARY,
        ("accuracy", "f1"),
        *_parts("MRPC"),
        hub_text=_PAIR,
        hub_labels=("not_equivalent", "equivalent"),
        epochs=5,
    ),
    SuiteTask(
        "qnli",
        "QNLI",
        Task.CLASSIFICATION,
        _glue("qnli"),
        ("question", "sentence"),
        "label",
        _ENTAILED,
        ("accuracy",),
        *_parts("QNLI"),
    ),
    SuiteTask(
        "qqp",
        "QQP",
        Task.CLASSIFICATION,
        _glue("qqp"),
        ("question1", "question2"),
        "is_duplicate",
        _BINARY,
        ("accuracy", "f1"),
        *_parts("QQP"),
        hub_labels=("not_duplicate", "duplicate"),
    ),
    SuiteTask(
        "rte",
        "RTE",
        Task.CLASSIFICATION,
        _glue("rte"),
        _PAIR,
        "label",
        _ENTAILED,
        ("accuracy",),
        *_parts("RTE"),
        small=True,
    ),
    SuiteTask(
        "sst2",
        "SST-2",
        Task.CLASSIFICATION,
        _glue("sst2"),
        ("sentence",),
        "label",
        _BINARY,
        ("accuracy",),
        *_parts("SST-2"),
        hub_labels=("negative", "positive"),
    ),
    SuiteTask(
        "stsb",
        "STS-B",
        Task.REGRESSION,
        _glue("stsb"),
        _PAIR,
        "score",
        (),
        ("pearson", "spearman"),
        *_parts("STS-B"),
    ),
    SuiteTask(
        "wnli",
        "WNLI",
        Task.CLASSIFICATION,
        _glue("wnli"),
        _PAIR,
        "label",
        _BINARY,
        ("accuracy",),
        *_parts("WNLI"),
        hub_labels=("not_entailment", "entailment"),
        epochs=5,
        small=True,
    ),
)

IMDB = SuiteTask(
    "imdb",
    "IMDb",
    Task.CLASSIFICATION,
    Hub("stanfordnlp/imdb", "plain_text", "e6281661ce1c48d982bc483cf8a173c1bbeb5d31"),
    ("text",),
    "label",
    ("neg", "pos"),
    ("accuracy",),
    Split(("aclImdb/train", "train"), "train"),
    {"": Split(("aclImdb/test", "test"), "test")},
    layout="folders",
    max_length=512,
)


def _squad(name: str, version: str, hub: Hub, batch_size: int, epochs: float) -> SuiteTask:
    """Settings of Devlin et al. 2019, sections 4.2 and 4.3."""
    return SuiteTask(
        name,
        f"SQuAD {version}",
        Task.QUESTION_ANSWERING,
        hub,
        ("question", "context"),
        "answers",
        (),
        ("exact_match", "f1"),
        Split((f"train-v{version}.json",), "train"),
        {"": Split((f"dev-v{version}.json",), "validation")},
        layout="squad",
        hub_label="answers",
        batch_size=batch_size,
        epochs=epochs,
        learning_rate=5e-5,
        max_length=384,
    )


SQUAD = _squad(
    "squad",
    "1.1",
    Hub("rajpurkar/squad", None, "7b6d24c440a36b6815f21b70d25016731768db1f"),
    batch_size=32,
    epochs=3,
)
SQUAD2 = _squad(
    "squad2",
    "2.0",
    Hub("rajpurkar/squad_v2", None, "3ffb306f725f7d2ce8394bc1873b24868140c412"),
    batch_size=48,
    epochs=2,
)

SUITES: dict[SuiteName, tuple[SuiteTask, ...]] = {
    "glue": GLUE,
    "imdb": (IMDB,),
    "squad": (SQUAD,),
    "squad2": (SQUAD2,),
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
