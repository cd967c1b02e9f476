"""One model fine-tuned on one task of a suite with one seed: its scores, kept for the next time."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

from potstill.data import Examples
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
    """A model that takes part in a suite.

    Attributes:
        body: the folder that is fine-tuned: the model's own, or its copy without a task's head.
        digest: of the model that was given.
    """

    name: str
    body: Path
    digest: str


@dataclass(frozen=True)
class Trial:
    """One fine-tuning, and where it is kept.

    Attributes:
        folder: of the model and the task; each trial has a folder of its own in it.
    """

    entrant: Entrant
    data: SuiteData
    training: Training
    max_length: int
    seed: int
    folder: Path

    @property
    def key(self) -> str:
        """Of all that decides the scores."""
        settings = digested(self.training)
        data = [self.data.task.name, self.data.fingerprint]
        return key_of([VERSION, self.entrant.digest, data, settings, self.max_length, self.seed])

    @property
    def place(self) -> Path:
        return self.folder / f"seed-{self.seed}-{self.key[:8]}"

    def known(self) -> dict[str, Any] | None:
        """Its score, where it has been run; None else."""
        try:
            found = read_json(self.place / SCORE)
            return dict(found) if found["key"] == self.key else None
        except (ValueError, KeyError, TypeError):
            return None

    @property
    def replaces(self) -> bool:
        """Whether the same model, task and seed was run with other weights, data or settings."""
        former = self.folder.glob(f"seed-{self.seed}-*/{SCORE}")
        return any(path.parent != self.place for path in former)


class _Bar(Silent):
    """The progress of a training alone: what it says would be said for every seed."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def progress(self, fraction: float, note: str = "") -> None:
        self._reporter.progress(fraction, note)


def run_trial(trial: Trial, reporter: Reporter) -> dict[str, Any]:
    """Fine-tune and score a model, or take up where an interrupted trial was.

    Returns:
        As score.json: `scores`, `low` (lower ends of their 95% intervals) and `constant` (see
        evaluation_tasks.constant_scores), each by the names of `SuiteTask.scores`; `examples`;
        `left_out`; `steps`, `tokens`, `seconds` of the training.

    Raises:
        ValueError: bad input. TrainingFailed, Interrupted: see training.
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
    found |= {key: trained[key] for key in ("steps", "tokens", "seconds")}
    found["examples"]["train"] = trained["data"]["counts"]["train.examples"]
    # a copy: without it the training would not be whole, and done again where this stops here
    shutil.copy2(place / "training" / "log.jsonl", place / "log.jsonl")
    write_json(place / SCORE, found)
    shutil.rmtree(place / "training")  # five seeds of nine tasks would fill a disk with weights
    return found


def _score(trial: Trial, loaded: LoadedModel, suffix: str, found: dict[str, Any]) -> None:
    task = trial.data.task
    examples, labels, left_out = scored_examples(trial, suffix, loaded)
    scored = task_scores(loaded, examples, labels)
    constant = constant_scores(task.task, examples, labels)
    drawn = resampled([scored[metric] for metric in task.metrics], _RESAMPLING)
    for metric, values_R in zip(task.metrics, drawn, strict=True):
        name, bounds = f"{metric}{suffix}", interval(values_R)
        found["scores"][name] = scored[metric].value
        found["low"][name] = scored[metric].value if bounds is None else bounds[0]
        found["constant"][name] = constant[metric]
    part = f"scored{suffix}"
    found["examples"][part] = examples.items
    found["left_out"] |= {part: left_out} if left_out else {}


def scored_examples(
    trial: Trial, suffix: str, loaded: LoadedModel
) -> tuple[Examples, list[str], int]:
    """A scored part as a model's tokenizer cuts it, the labels, and how many rows are left out."""
    task = trial.data.task
    settings = trial.data.to_score(suffix, trial.max_length)
    config = load_config(trial.entrant.body)
    rows = read_for(task.task, settings, config, trial.seed, every_class=False)
    found = tokenize_task(rows, loaded.tokenizer)
    examples = found.dev
    if isinstance(examples, Questions):  # which a few questions alone may not show
        examples = changed(examples, may_lack=task.name == "squad2")
    left = {k: n for k, n in found.counts.items() if k.startswith("dev.")}
    rest = sum(n for k, n in left.items() if k not in ("dev.rows", "dev.examples"))
    return examples, found.labels, rest
