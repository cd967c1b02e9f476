"""Run all tasks and seeds of a suite for several models, and write their scores and retention."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from potstill.pipeline import Reporter, Silent
from potstill.recipe import Training
from potstill.storage import environment
from potstill.storage.files import write_json
from potstill.suites.catalog import SEEDS, SuiteTask, suite_tasks, training_of
from potstill.suites.data import SuiteData, check_files, read_suite_task
from potstill.suites.entrants import Folder, max_lengths, named_models, open_entrants
from potstill.suites.scores import is_above_constant, model_result, retention, task_result
from potstill.suites.trials import Entrant, Trial, run_trial

RESULT = "suite.json"
WORK = "work"
_TRAINING = {
    *("epochs", "batch_size", "learning_rate", "betas", "eps", "weight_decay", "warmup", "clip"),
}


@dataclass(frozen=True)
class _Task:
    """Hold a task, its examples, and how all models are fine-tuned on it."""

    task: SuiteTask
    data: SuiteData
    training: Training
    max_length: int

    @property
    def left_out(self) -> dict[str, int]:
        """Return part of the examples -> number of rows that can't be used."""
        ends = {key.partition("left_out.")[2]: count for key, count in self.data.counts.items()}
        return {part: count for part, count in ends.items() if part}


@dataclass(frozen=True)
class _Plan:
    """Hold what is run: tasks, models, seeds."""

    suite: str
    tasks: dict[str, _Task]
    entrants: list[Entrant]  # the baseline first
    seeds: list[int]
    limit: int | None
    output: Path
    notes: list[str]

    def trial(self, own: _Task, entrant: Entrant, seed: int) -> Trial:
        folder = self.output / WORK / entrant.name / own.task.name
        return Trial(entrant, own.data, own.training, own.max_length, seed, folder)

    @property
    def partial(self) -> list[str]:
        """Return the reasons why this is only a part of the suite; empty for the whole suite."""
        every = len(suite_tasks(self.suite, None))
        reasons = []
        if len(self.tasks) < every:
            reasons.append(f"{len(self.tasks)} of {every} tasks")
        if len(self.seeds) < SEEDS:
            seeds = f"{len(self.seeds)} seed{'s' * (len(self.seeds) > 1)}"
            reasons.append(f"{seeds} instead of {SEEDS}")
        for own in self.tasks.values():
            for part, (taken, there) in own.data.cut.items():
                reasons.append(f"{own.task.title}: {taken} of {there} examples of {part}")
        return reasons


def evaluate_suite(
    models: Sequence[Folder] | Mapping[str, Folder],
    baseline: Folder,
    suite: str = "glue",
    *,
    data_dir: Folder | None = None,
    tasks: Sequence[str] | None = None,
    seeds: int = SEEDS,
    limit: int | None = None,
    learning_rate: float | None = None,
    epochs: float | None = None,
    threads: int | None = None,
    output: Folder | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Fine-tune models and a baseline on a suite's tasks, and compare their scores.

    Finished trainings stay in the output folder: the same call resumes where it stopped, and only
    trains again what has another model, setting or file.

    Args:
        models: Folders, `package:NAME/...` or hub names of encoders, masked-LM models or fine-tuned
            models, whose head is replaced; `NAME=FOLDER` or a mapping gives them names.
        baseline: The model that the others are compared with, given in the same way.
        suite: glue, imdb, squad or squad2.
        data_dir: Folder in the official layout; None: the hub, at a pinned revision.
        tasks: Names of some of the suite's tasks; None: all.
        seeds: Number of trainings per model and task, with the seeds 1, 2, ...
        limit: Largest number of examples per part of a task's data; None: all.
        learning_rate, epochs: For all tasks; None: each task's own.
        threads: Threads of torch; None: unchanged.
        output: Folder of the result; None: runs/suites/<suite>.
        reporter: Receives progress and notes; None: nobody.

    Returns:
        What is written as suite.json; see docs/suites.md.

    Raises:
        ValueError: A model, a file or a setting can't be used.
        TrainingFailed, Interrupted: As in training.
    """
    _check_numbers(seeds, limit, learning_rate, epochs)
    chosen = suite_tasks(suite, tasks)
    place = None if data_dir is None else Path(data_dir)
    check_files(chosen, place)
    folder = Path(output) if output is not None else Path("runs") / "suites" / suite
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    report = reporter or Silent()
    notes: list[str] = []
    entrants = open_entrants(named_models(models, baseline), folder / WORK, notes)
    data, lengths = _read(chosen, place, limit, report), max_lengths(chosen, entrants, notes)
    trainings = {task.name: training_of(task, learning_rate, epochs) for task in chosen}
    planned = {t.name: _Task(t, data[t.name], trainings[t.name], lengths[t.name]) for t in chosen}
    plan = _Plan(suite, planned, entrants, list(range(1, seeds + 1)), limit, folder, notes)
    result = _result(plan, _trials(plan, report), hub=place is None)
    write_json(folder / RESULT, result)
    return result


# --- what is asked for ----------------------------------------------------------------------------


def _check_numbers(
    seeds: int, limit: int | None, learning_rate: float | None, epochs: float | None
) -> None:
    if seeds < 1:
        raise ValueError(f"--seeds: {seeds} is less than one training. Set it to 1 or more.")
    if limit is not None and limit < 1:
        raise ValueError(f"--limit: {limit} leaves no example. Set it to 1 or more.")
    for key, value in (("--learning-rate", learning_rate), ("--epochs", epochs)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(
                f"{key}: {value:g} is not a number above 0. Set it to a finite number above 0."
            )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "--suite: a suite runs in one process. Start it without torchrun or accelerate launch."
        )


def _read(
    tasks: Sequence[SuiteTask], place: Path | None, limit: int | None, reporter: Reporter
) -> dict[str, SuiteData]:
    found = {}
    for task in tasks:
        reporter.say(f"reading {task.title}")
        found[task.name] = read_suite_task(task, place, limit, reporter.say)
    return found


# --- the work -------------------------------------------------------------------------------------

_Found = dict[str, dict[str, list[dict[str, Any]]]]  # model -> task -> a score.json per seed


def _trials(plan: _Plan, reporter: Reporter) -> _Found:
    found: _Found = {one.name: {name: [] for name in plan.tasks} for one in plan.entrants}
    every = list(product(plan.tasks.values(), plan.seeds, plan.entrants))
    for number, (own, seed, entrant) in enumerate(every, start=1):
        trial = plan.trial(own, entrant, seed)
        known = trial.known()
        title = f"{own.task.title}, {entrant.name}, seed {seed}"
        reporter.stage(number, len(every), title, known is not None)
        if known is None:
            if trial.replaces:
                reporter.say(f"{title}: model, data or settings have changed since the last run")
            known = run_trial(trial, reporter)
        found[entrant.name][own.task.name].append(known)
    return found


def _result(plan: _Plan, found: _Found, *, hub: bool) -> dict[str, Any]:
    baseline = plan.entrants[0].name
    tasks = {
        name: {key: task_result(own.task, trials[key]) for key, own in plan.tasks.items()}
        for name, trials in found.items()
    }
    first = {name: trials[0] for name, trials in found[baseline].items()}
    sure = {
        name: is_above_constant(own.task, found[baseline][name]) for name, own in plan.tasks.items()
    }
    digests = {one.name: one.digest for one in plan.entrants}
    return {
        "suite": plan.suite,
        "partial": bool(plan.partial),
        "partial_reasons": plan.partial,
        "baseline": baseline,
        "models": {
            name: {"digest": digests[name], **model_result(own)} for name, own in tasks.items()
        },
        "retention": {
            name: retention(own, tasks[baseline], sure)
            for name, own in tasks.items()
            if name != baseline
        },
        "tasks": {
            name: {
                "title": own.task.title,
                "metrics": own.task.scores,
                "small": own.task.small,
                "baseline_above_constant": sure[name],
                "constant": first[name]["constant"],
                "examples": first[name]["examples"],
                "left_out": own.left_out,
            }
            for name, own in plan.tasks.items()
        },
        "notes": [*plan.notes, *_notes(plan, sure, found)],
        "settings": _settings(plan, hub),
        "environment": environment(),
    }


def _settings(plan: _Plan, hub: bool) -> dict[str, Any]:
    import torch

    return {
        "seeds": plan.seeds,
        "limit": plan.limit,
        "threads": torch.get_num_threads(),
        "tasks": {
            name: {
                "max_length": own.max_length,
                "data": str(own.task.hub) if hub else "local files in the official layout",
                "fingerprint": own.data.fingerprint,
                "training": own.training.model_dump(mode="json", include=_TRAINING),
            }
            for name, own in plan.tasks.items()
        },
    }


def _notes(plan: _Plan, sure: Mapping[str, Mapping[str, bool]], found: _Found) -> list[str]:
    """Return what limits the claims of the result, in sentences."""
    baseline = plan.entrants[0].name
    told = []
    unsure = [own.task.title for name, own in plan.tasks.items() if not sure[name]["score"]]
    if unsure:
        told.append(
            f"no retention on {', '.join(unsure)}: {baseline} does not score significantly better "
            "than a constant answer"
        )
    small = {name: own.task.title for name, own in plan.tasks.items() if own.task.small}
    if small:
        first = {name: found[baseline][name][0]["examples"]["scored"] for name in small}
        shown = [f"{title} ({first[name]})" for name, title in small.items()]
        told.append(f"too few scored examples for claims about retention: {', '.join(shown)}")
    for key, own in plan.tasks.items():
        for part, count in own.left_out.items():
            told.append(f"{own.task.title}: {count} rows of {part} can't be used and are skipped")
        for name, trials in found.items():
            for part, count in trials[key][0]["left_out"].items():
                told.append(f"{own.task.title}: {count} rows of {part} are not scored for {name}")
    return told
