"""Fine-tune one model on one task of a suite with one seed, and store its scores."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from potstill.data.sequences import Questions
from potstill.evaluation.retention import interval, resampled
from potstill.models import LoadedModel, load_config, load_model
from potstill.pipeline import Reporter, Silent, finetune
from potstill.recipe import Training
from potstill.recipe.config import digested
from potstill.storage.caches import key_of
from potstill.storage.files import read_json, write_json
from potstill.suites.data import SuiteData
from potstill.tasks import read_for, task_scores, tokenize_task
from potstill.tasks.scoring import constant_scores

VERSION = 1  # raise it when the same training would give other scores
SCORE = "score.json"
_RESAMPLING = 5


@dataclass(frozen=True)
class Entrant:
    """Hold a model that takes part in a suite.

    Attributes:
        body: Folder that is fine-tuned: the model's own, or its copy without a task's head.
        digest: Hash of the model that was named.
    """

    name: str
    body: Path
    digest: str


@dataclass(frozen=True)
class Trial:
    """Hold what one fine-tuning depends on, and its place.

    Attributes:
        folder: Folder of the model and the task, with a folder per trial.
    """

    entrant: Entrant
    data: SuiteData
    training: Training
    max_length: int
    seed: int
    folder: Path

    @property
    def key(self) -> str:
        """Return the hash of all that determines the scores."""
        settings = digested(self.training)
        data = [self.data.task.name, self.data.fingerprint]
        return key_of([VERSION, self.entrant.digest, data, settings, self.max_length, self.seed])

    @property
    def place(self) -> Path:
        """Return the trial's folder."""
        return self.folder / f"seed-{self.seed}-{self.key[:8]}"

    def known(self) -> dict[str, Any] | None:
        """Return the content of score.json; None if the trial is not finished."""
        try:
            found = read_json(self.place / SCORE)
            return dict(found) if found["key"] == self.key else None
        except (ValueError, KeyError, TypeError):
            return None

    @property
    def replaces(self) -> bool:
        """Check whether model, task and seed were run with other weights, data or settings."""
        former = self.folder.glob(f"seed-{self.seed}-*/{SCORE}")
        return any(path.parent != self.place for path in former)


class _Bar(Silent):
    """Pass on only the progress of a training: its notes would repeat for every seed."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def progress(self, fraction: float, note: str = "") -> None:
        self._reporter.progress(fraction, note)


def run_trial(trial: Trial, reporter: Reporter) -> dict[str, Any]:
    """Fine-tune a model and score it, or resume an interrupted trial.

    Args:
        trial: What is trained and scored.
        reporter: Receives the progress of the training.

    Returns:
        The content of score.json: `scores`, `low` (lower bounds of their 95% confidence intervals;
        the score if it has none) and `constant` (see `constant_scores`), each by
        `SuiteTask.scores`; `examples`; `left_out`; `steps`, `tokens`, `seconds` of the training.

    Raises:
        ValueError: A model or its data can't be used.
        TrainingFailed, Interrupted: As in training.
    """
    task, place = trial.data.task, trial.place
    place.mkdir(parents=True, exist_ok=True)
    folder = finetune(
        trial.entrant.body,
        trial.data.to_train(trial.max_length),
        place / "training",
        training=trial.training,
        task=task.task,
        seed=trial.seed,
        reporter=_Bar(reporter),
    )
    labels = list(task.labels) or None
    loaded = load_model(folder, task.task, labels=labels)
    found: dict[str, Any] = {"key": trial.key, "seed": trial.seed}
    found |= {name: {} for name in ("scores", "low", "constant", "examples", "left_out")}
    for suffix in task.scored:
        _score(trial, loaded, suffix, found)
    trained = read_json(place / "training" / "result.json")
    found |= {"steps": trained["steps"], "tokens": trained["tokens"], "seconds": trained["seconds"]}
    found["examples"]["train"] = trained["data"]["counts"]["train.examples"]
    # a copy: if this process stops here, a training without its log would run again
    shutil.copy2(place / "training" / "log.jsonl", place / "log.jsonl")
    write_json(place / SCORE, found)
    shutil.rmtree(place / "training")  # five seeds of nine tasks would fill a disk with weights
    return found


def _score(trial: Trial, loaded: LoadedModel, suffix: str, found: dict[str, Any]) -> None:
    """Score one part of the data; rows that can't be used are counted."""
    task, part = trial.data.task, f"scored{suffix}"
    settings = trial.data.to_score(suffix, trial.max_length)
    config = load_config(trial.entrant.body)
    rows = read_for(task.task, settings, config, trial.seed, every_class=False)
    read = tokenize_task(rows, loaded.tokenizer)
    examples = read.dev
    if isinstance(examples, Questions):  # which a few questions alone may not show
        examples = replace(examples, may_lack=task.name == "squad2")
    scored = task_scores(loaded, examples, read.labels)
    constant = constant_scores(task.task, examples, read.labels)
    drawn = resampled([scored[metric] for metric in task.metrics], _RESAMPLING)
    for metric, values_R in zip(task.metrics, drawn, strict=True):
        name, bounds = f"{metric}{suffix}", interval(values_R)
        found["scores"][name] = scored[metric].value
        found["low"][name] = scored[metric].value if bounds is None else bounds[0]
        found["constant"][name] = constant[metric]
    found["examples"][part] = examples.items
    used = ("dev.rows", "dev.examples")
    skipped = sum(n for key, n in read.counts.items() if key.startswith("dev.") and key not in used)
    found["left_out"] |= {part: skipped} if skipped else {}
