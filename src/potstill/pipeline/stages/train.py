"""Train a stage's model, once or several times; shared by the stages that train."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import manual_seed
from torch.nn import Module

from potstill.data import make_masker
from potstill.models import LoadedModel, save_model
from potstill.pipeline.context import Context, Done, TokenizedText
from potstill.pipeline.outlook import Outlook, check_text_length
from potstill.recipe import Distill, Finetune, InBatch, Masking, Objective, Task, Training
from potstill.storage.files import read_json, write_json
from potstill.storage.run_folder import drop_checkpoints, sync_below
from potstill.tasks.heads import Reading
from potstill.tasks.labels import check_labels
from potstill.tasks.scoring import task_score
from potstill.training import Job, Trainee, train
from potstill.training.distributed import check_processes
from potstill.training.job import Progress
from potstill.training.log import check_trackers
from potstill.training.teacher_cache import Answers
from potstill.training.teachers import CachedTeacher, LiveTeacher
from potstill.training.trainee import freeze


def opened(name: str, context: Context, untrained_head: bool = False) -> LoadedModel:
    """Open a model that is trained or learned from; its labels must be the run's."""
    loaded = context.open(name, untrained_head=untrained_head)
    if context.task.head is not None:
        check_labels(loaded, context.rows.labels)
    return loaded


@dataclass(frozen=True)
class Lesson:
    """Hold what all trainings of a stage share; a stage that repeats trains several times.

    Attributes:
        text: The run's text in the tokens of the model that is trained.
        fingerprint: Marks checkpoints; those with another one are not resumed.
        teachers: Models with their weights, and their cached outputs; None means a live teacher.
        untrained_head: Whether the model may lack a head for the task.
        check: Is called with the model before each training.
    """

    stage: Finetune | Distill
    context: Context
    text: TokenizedText
    fingerprint: str
    objectives: Sequence[Objective]
    in_batch: InBatch
    teachers: Sequence[tuple[LoadedModel, float, Answers | None]] = ()
    untrained_head: bool = True
    check: Callable[[LoadedModel], None] = lambda _: None

    def train(self, folder: Path) -> Done:
        """Train once or `repeats` times; an interrupted stage keeps its finished trainings."""
        context, names = self.context, self.stage.written
        if len(names) == 1:
            return self._once(folder, context.seed), {names[0]: "model"}
        results = []
        for number in range(1, len(names) + 1):
            own = folder / f"repeat-{number}"
            seed = context.seed + number - 1
            context.reporter.say(f"training {number} of {len(names)}, seed {seed}")
            own.mkdir(exist_ok=True)
            if not _is_finished(own, folder):
                result = {"seed": seed, **self._once(own, seed)}
                if context.is_main:
                    sync_below(own)
                    write_json(own / "result.json", result)
                    drop_checkpoints(own)  # those of all trainings would fill a disk
            if context.is_main:
                results.append(read_json(own / "result.json"))
        if context.is_main:  # the first model and log are where those of a single training are
            for name in ("model", "log.jsonl"):
                if (folder / "repeat-1" / name).exists():  # else moved before the stage was stopped
                    (folder / "repeat-1" / name).replace(folder / name)
        first = results[0] if results else {}
        writes = {name: f"repeat-{number}/model" for number, name in enumerate(names, start=1)}
        return {**first, "repeats": results}, {**writes, names[0]: "model"}

    def _once(self, folder: Path, seed: int) -> dict[str, Any]:
        manual_seed(seed)  # for the weights of a new head
        loaded = opened(self.stage.model, self.context, self.untrained_head)
        self.check(loaded)
        freeze(self.stage, loaded)
        check_text_length(self.context.text_settings, loaded)
        training_side, heldout, told = self.text.sides(bool(self.teachers))
        if len(heldout) == 0 and self.stage.needs_heldout:
            raise ValueError(
                "training.keep: best and patience need held-out text, and none is left. Raise "
                "corpus.heldout, or omit both."
            )
        trainee, reporter = self._trainee(loaded, seed), self.context.reporter
        job = Job(
            trainee=trainee,
            train=training_side,
            heldout=heldout,
            masker=self.text.masker(self.stage.masking),
            pad_id=int(loaded.tokenizer.pad_token_id or 0),
            settings=self.stage.training,
            seed=seed,
            folder=folder,
            fingerprint=self.fingerprint,
            score=self._scorer(loaded),
            progress=lambda state: reporter.progress(_fraction(state), _note(state)),
            say=reporter.say,
        )
        found = asdict(train(job))
        del found["resumed_from"]
        Module.to(loaded.model, "cpu")
        if self.context.is_main:
            save_model(loaded, folder / "model")
        if self.teachers:
            told = {"teachers": "cached" if self.teachers[0][2] else "live", **told}
        return {
            **found,
            "objectives": [objective.model_dump() for objective in trainee.reading.objectives],
            "projections": [
                f"{label.partition('_')[2]} ({weight.shape[0]} x {weight.shape[1]})"
                for label, weight in trainee.projections.items()
            ],
            **told,
        }

    def _trainee(self, loaded: LoadedModel, seed: int) -> Trainee:
        settings = self.stage.training
        # An objective without weight would cost its share of the time for nothing.
        weighted = [objective for objective in self.objectives if objective.weight > 0]
        reading = Reading.of(loaded.task, weighted, self.in_batch, settings.batch_size)
        teachers = [
            LiveTeacher(teacher, reading, weight)
            if answers is None
            else CachedTeacher(teacher, answers, reading, weight)
            for teacher, weight, answers in self.teachers
        ]
        trainee = Trainee(loaded, teachers, reading, settings.chunk_size, seed)
        if loaded.task.head or any(each.reads == "layers" for each in weighted):
            trainee.freeze_unreached()
        return trainee

    def _scorer(self, loaded: LoadedModel) -> Callable[[], float] | None:
        """Return what scores a checkpoint on the examples it is chosen by; None for a corpus."""
        if loaded.task.head is None:
            return None
        metric = self.context.data_settings.metric or loaded.task.metric
        dev, labels = self.text.examples.dev, self.text.examples.labels
        return lambda: task_score(loaded, dev, labels, metric)


def _is_finished(repeat: Path, folder: Path) -> bool:
    """Return whether a repeat is done; the first one's model may have been moved to `folder`."""
    if not (repeat / "result.json").is_file():
        return False
    # in this order: the first process may be moving it while another one looks
    here = (repeat / "model").is_dir()
    return here or (repeat.name == "repeat-1" and (folder / "model").is_dir())


def _fraction(state: Progress) -> float:
    return min(state.tokens / max(state.total_tokens, 1), 1.0)


def _note(state: Progress) -> str:
    loss = "" if state.loss is None else f", loss {state.loss:.4f}"
    return f"step {state.step} of {state.steps}{loss}"


# --- checks without weights -----------------------------------------------------------------------


def check_training(
    training: Training, outlook: Outlook, models: Sequence[LoadedModel], group: int | None = None
) -> None:
    """Check what a training asks for, without weights.

    Args:
        training: The settings of the training.
        outlook: What is known of the run.
        models: The teachers, and last the model that is trained: users know a teacher by its name.
        group: How many texts are compared with each other; None means none are.

    Raises:
        ValueError: A model has other labels or is too short for the text, a tracker is not
            installed, the layers can't be recomputed, or the batch can't be split among processes.
    """
    for loaded in models:
        if outlook.labels is not None:
            check_labels(loaded, outlook.labels)
        check_text_length(outlook.recipe.text, loaded)
    check_trackers(training.trackers)
    trained = models[-1].model
    if training.gradient_checkpointing and not trained.supports_gradient_checkpointing:
        raise ValueError(
            f"training.gradient_checkpointing: {type(trained).__name__} can't recompute its "
            "layers. Omit it, or set a smaller micro_batch_size."
        )
    check_processes(training, int(os.environ.get("WORLD_SIZE", "1")), group)


def check_masking(masking: Masking, outlook: Outlook, loaded: LoadedModel) -> None:
    """Check that a model's tokens can be masked as a masked-LM training asks.

    Raises:
        ValueError: See `data.make_masker`.
    """
    if outlook.recipe.task == Task.MASKED_LM:
        any_counts = np.ones(max(loaded.tokenizer.get_vocab().values()) + 1, dtype=np.int64)
        make_masker(masking, loaded.tokenizer, any_counts)
