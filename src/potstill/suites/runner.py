"""A suite for several models: every task and seed, then medians, averages and what was kept."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.pipeline import Reporter, Silent
from potstill.recipe import Training
from potstill.storage import environment
from potstill.storage.files import write_json, write_text
from potstill.suites.catalog import SEEDS, SuiteTask, suite_tasks, training_of
from potstill.suites.data import SuiteData, check_files, read_suite_task
from potstill.suites.entrants import Folder, max_lengths, named_models, open_entrants
from potstill.suites.scores import is_above_constant, model_result, retention, task_result
from potstill.suites.trials import Entrant, Trial, run_trial

RESULT = "suite.json"
WORK = "work"
PREDICTIONS = ("predictions", "predictions-partial")  # of a suite, of a quick look
_TRAINING = {
    "epochs",
    "batch_size",
    "learning_rate",
    "betas",
    "eps",
    "weight_decay",
    "warmup",
    "clip",
}


@dataclass(frozen=True)
class _Plan:
    """What is run: tasks with their data and settings, models, seeds."""

    suite: str
    tasks: list[SuiteTask]
    data: dict[str, SuiteData]
    trainings: dict[str, Training]
    lengths: dict[str, int]
    entrants: list[Entrant]  # the baseline first
    seeds: list[int]
    limit: int | None
    output: Path
    notes: list[str]

    def trial(self, task: SuiteTask, entrant: Entrant, seed: int) -> Trial:
        return Trial(
            entrant,
            self.data[task.name],
            self.trainings[task.name],
            self.lengths[task.name],
            seed,
            self.output / WORK / entrant.name / task.name,
            predicts=seed == self.seeds[0],
        )

    @property
    def partial(self) -> list[str]:
        """Why this is a quick look, and not the suite; empty if it is the suite."""
        every = len(suite_tasks(self.suite, None))
        reasons = []
        if len(self.tasks) < every:
            reasons.append(f"{len(self.tasks)} of {every} tasks")
        if len(self.seeds) < SEEDS:
            seeds = f"{len(self.seeds)} seed{'s' * (len(self.seeds) > 1)}"
            reasons.append(f"{seeds} instead of {SEEDS}")
        for task in self.tasks:
            for part, (taken, there) in self.data[task.name].cut.items():
                reasons.append(f"{task.title}: {taken} of {there} examples of {part}")
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
    """Fine-tune models and a baseline on a suite's tasks, score them, and say what was kept.

    What is finished is kept in the output folder: the same call goes on where it stopped, and a
    changed model, setting or file is trained on anew.

    Args:
        models, baseline: folders, `package:NAME/...` or hub names, of encoders, masked-LM models,
            or fine-tuned ones, whose body alone counts; `NAME=FOLDER` names one, or a mapping.
        suite: glue, imdb, squad or squad2.
        data_dir: a folder in the official layout; None: the hub, at a pinned revision.
        tasks: some of the suite's; None: all.
        seeds: trainings of each model on each task, with the seeds 1, 2, ...
        limit: examples of each part of a task's data at most.
        learning_rate, epochs: of all tasks; None: each task's own (see suites).
        threads: of torch; None: as they are.
        output: None: runs/suites/<suite>.

    Returns:
        What is written as suite.json; see docs/suites.md.

    Raises:
        ValueError: bad input. TrainingFailed, Interrupted: see training.
    """
    _check_numbers(seeds, limit, learning_rate, epochs)
    chosen = suite_tasks(suite, tasks)
    if data_dir is not None:
        check_files(chosen, Path(data_dir))
    folder = Path(output) if output is not None else Path("runs") / "suites" / suite
    _check_output(folder)
    named = named_models(models, baseline)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    report = reporter or Silent()
    notes: list[str] = []
    entrants = open_entrants(named, folder / WORK, notes)
    data = {}
    for task in chosen:
        report.say(f"reading {task.title}")
        place = Path(data_dir) if data_dir else None
        data[task.name] = read_suite_task(task, place, limit, report.say)
    plan = _Plan(
        suite=suite,
        tasks=chosen,
        data=data,
        trainings={task.name: training_of(task, learning_rate, epochs) for task in chosen},
        lengths=max_lengths(chosen, entrants, notes),
        entrants=entrants,
        seeds=list(range(1, seeds + 1)),
        limit=limit,
        output=folder,
        notes=notes,
    )
    found = _trials(plan, report)
    result = _result(plan, found, hub=data_dir is None)
    write_json(folder / RESULT, result)
    _collect_predictions(plan)
    return result


# --- what is asked for ----------------------------------------------------------------------------


def _check_numbers(
    seeds: int, limit: int | None, learning_rate: float | None, epochs: float | None
) -> None:
    if seeds < 1:
        raise ValueError(f"--seeds: {seeds} is less than one training: give 1 or more")
    if limit is not None and limit < 1:
        raise ValueError(f"--limit: {limit} leaves no example: give 1 or more")
    for key, value in (("--learning-rate", learning_rate), ("--epochs", epochs)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{key}: {value:g} is not a number above 0")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("a suite runs in one process: start it without torchrun or accelerate")


def _check_output(folder: Path) -> None:
    """Refuse a folder in which predictions stand that would be replaced and are not a suite's."""
    if (folder / RESULT).exists() or (folder / WORK).exists():
        return
    found = next((name for name in PREDICTIONS if (folder / name).exists()), None)
    if found is not None:
        raise ValueError(
            f"--output: {folder} holds a folder '{found}' that no suite wrote: name another folder"
        )


# --- the work -------------------------------------------------------------------------------------

_Found = dict[str, dict[str, list[dict[str, Any]]]]  # model -> task -> a score.json for each seed


def _trials(plan: _Plan, reporter: Reporter) -> _Found:
    found: _Found = {one.name: {task.name: [] for task in plan.tasks} for one in plan.entrants}
    every = [
        (task, entrant, seed)
        for task in plan.tasks
        for seed in plan.seeds
        for entrant in plan.entrants
    ]
    for number, (task, entrant, seed) in enumerate(every, start=1):
        trial = plan.trial(task, entrant, seed)
        known = trial.known()
        title = f"{task.title}, {entrant.name}, seed {seed}"
        reporter.stage(number, len(every), title, known is not None)
        if known is None:
            if trial.replaces:
                reporter.say(f"{title}: model, data or settings are not those of before")
            known = run_trial(trial, reporter)
        found[entrant.name][task.name].append(known)
    return found


def _result(plan: _Plan, found: _Found, *, hub: bool) -> dict[str, Any]:
    baseline = plan.entrants[0].name
    tasks = {
        name: {task.name: task_result(task, found[name][task.name]) for task in plan.tasks}
        for name in found
    }
    sure = {task.name: is_above_constant(task, found[baseline][task.name]) for task in plan.tasks}
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
            task.name: {
                "title": task.title,
                "metrics": task.scores,
                "small": task.small,
                "baseline_above_constant": sure[task.name],
                "constant": found[baseline][task.name][0]["constant"],
                "examples": found[baseline][task.name][0]["examples"],
                "left_out": {
                    key.removeprefix("left_out."): count
                    for key, count in plan.data[task.name].counts.items()
                    if key.startswith("left_out.")
                },
            }
            for task in plan.tasks
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
            task.name: {
                "max_length": plan.lengths[task.name],
                "data": (
                    f"{task.hub.name}:{task.hub.config or 'default'}@{task.hub.revision}"
                    if hub
                    else "local files in the official layout"
                ),
                "fingerprint": plan.data[task.name].fingerprint,
                "training": plan.trainings[task.name].model_dump(mode="json", include=_TRAINING),
            }
            for task in plan.tasks
        },
    }


def _notes(plan: _Plan, sure: Mapping[str, Mapping[str, bool]], found: _Found) -> list[str]:
    """What a reader must not miss, in sentences."""
    baseline = plan.entrants[0].name
    told = []
    unsure = [task.title for task in plan.tasks if not sure[task.name]["score"]]
    if unsure:
        told.append(
            f"no retention on {', '.join(unsure)}: {baseline} does not score above a constant "
            "answer beyond doubt"
        )
    small = [task for task in plan.tasks if task.small]
    if small:
        shown = [f"{t.title} ({found[baseline][t.name][0]['examples']['scored']})" for t in small]
        told.append(f"too few scored examples for claims about retention: {', '.join(shown)}")
    for task in plan.tasks:
        for part, count in plan.data[task.name].counts.items():
            if part.startswith("left_out."):
                where = part.removeprefix("left_out.")
                told.append(f"{task.title}: {count} rows of {where} can't be used: left out")
        for name, trials in found.items():
            for part, count in trials[task.name][0]["left_out"].items():
                told.append(f"{task.title}: {count} rows of {part} are not scored for {name}")
    return told


# --- submissions ----------------------------------------------------------------------------------


def _collect_predictions(plan: _Plan) -> None:
    """The first seed's answers, side by side as a submission has them; a quick look's are marked.

    The first seed, not the best one: choosing by the scores would make them too good.
    """
    place = plan.output / PREDICTIONS[bool(plan.partial)]
    for former in PREDICTIONS:
        shutil.rmtree(plan.output / former, ignore_errors=True)
    for entrant in plan.entrants:
        for task in plan.tasks:
            for path in plan.trial(task, entrant, plan.seeds[0]).predictions:
                own = place / entrant.name
                own.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, own / path.name)
    if plan.partial and place.is_dir():
        reasons = "; ".join(plan.partial)
        write_text(place / "PARTIAL.txt", f"A quick look, not the suite: {reasons}.\n")
