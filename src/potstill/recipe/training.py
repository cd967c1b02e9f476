"""Stages that train a model: finetune and distill, and what both share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from potstill.recipe.config import Config, Name, StageConfig
from potstill.recipe.data import Masking
from potstill.recipe.objectives import Objective
from potstill.recipe.tasks import Task

_Below1 = Annotated[float, Field(ge=0, lt=1)]


class InBatch(Config):
    """Set up, for sentence embeddings, each text's distribution over the others of its group."""

    scale: Annotated[float, Field(gt=0)] = 20.0  # logits = scale * cosine similarity
    # Texts of a group; micro-batches are whole groups, so accumulation changes nothing. null: the
    # whole batch. In a group of two, the only other text always has probability 1.
    group: Annotated[int, Field(ge=3)] | None = None


class Training(Config):
    """Set up the training loop."""

    # Whichever of the three ends first ends the training.
    epochs: Annotated[float, Field(gt=0)] | None = None
    max_steps: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    # Sequences of one optimizer step, over all processes.
    batch_size: Annotated[int, Field(ge=1)] = 32
    # Sequences of one forward pass; null: batch_size.
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    betas: tuple[_Below1, _Below1] = (0.9, 0.98)
    eps: Annotated[float, Field(gt=0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05  # share of the steps
    clip: Annotated[float, Field(gt=0)] | None = 5.0
    dropout: bool = True  # false: train with the student's dropout off
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    chunk_size: Annotated[int, Field(ge=1)] = 128  # rows of logits that exist at a time
    evaluate_every: Annotated[int, Field(ge=1)] | None = None  # steps; null: about ten per run
    evaluate_sequences: Annotated[int, Field(ge=1)] = 256  # held-out ones per evaluation
    # Evaluations without improvement before training stops; null: it never stops early.
    patience: Annotated[int, Field(ge=1)] | None = None
    keep: Literal["best", "last"] = "last"
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 5.0
    checkpoint_steps: Annotated[int, Field(ge=1)] | None = None
    log_every: Annotated[int, Field(ge=1)] = 10
    trackers: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = []

    @model_validator(mode="after")
    def _ends(self) -> Training:
        if self.epochs is None and self.max_steps is None and self.max_tokens is None:
            raise ValueError("no end is given. Set epochs, max_steps or max_tokens.")
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size: {self.batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size}. Set a multiple."
            )
        return self


class TrainingStage(StageConfig):
    """Base of the stages that train, once or `repeats` times."""

    trains: ClassVar[bool] = True
    removed: ClassVar[Mapping[str, str]] = {
        "sparsity": "the key was removed, for zeros among weights save neither time nor bytes. "
        "Omit it; prune, make_student and quantize make models smaller."
    }

    if TYPE_CHECKING:  # keys of both stages, at other places
        model: Name
        writes: Name | None
        repeats: int
        training: Training

    @property
    def written(self) -> list[str]:
        name = self.writes or self.model
        return [name, *(f"{name}.{number}" for number in range(2, self.repeats + 1))]

    def unfit(self, task: Task) -> str | None:
        if self.repeats > 1 and task.reads_text:
            return f"repeats: {task} has no scores per seed. Omit it."
        return None

    @property
    def trains_body(self) -> bool:
        """Return whether it trains more than the head."""
        return True

    @property
    def trains_lm_head(self) -> bool:
        """Return whether it trains a vocabulary head."""
        return True

    @property
    def needs_heldout(self) -> bool:
        return self.training.keep == "best" or self.training.patience is not None


class Finetune(TrainingStage):
    """Train a model on the task without a teacher (masked LM is a task)."""

    kind: Literal["finetune"] = "finetune"
    model: Name = "teacher"
    writes: Name | None = None  # null: the same name
    train: Literal["all", "head"] = "all"
    masking: Masking = Masking()
    # Trainings with seeds of their own, from `seed` on; the first one's model has the name that is
    # written, the others that name with .2, .3 and so on. Scores are means over them.
    repeats: Annotated[int, Field(ge=1, le=20)] = 1
    training: Training

    @property
    def trains_body(self) -> bool:
        return self.train == "all"

    @property
    def reads(self) -> list[str]:
        return [self.model]

    def unfit(self, task: Task) -> str | None:
        problem = super().unfit(task)
        if problem is None and task == Task.SENTENCE_EMBEDDING:
            return (
                "text without labels gives a sentence encoder nothing to learn from. Use task "
                "sentence_similarity with pairs that have a score, or masked_lm."
            )
        return problem


class WeightedTeacher(Config):
    """Name one of several teachers; their weights are divided by their sum."""

    model: Name
    weight: Annotated[float, Field(gt=0)] = 1.0


def _as_teachers(value: Any) -> Any:
    """Take the name out of a list of one, whose weight decides nothing."""
    if not isinstance(value, list):
        return value
    parsed = [{"model": item} if isinstance(item, str) else item for item in value]
    if len(parsed) == 1 and isinstance(parsed[0], dict) and set(parsed[0]) == {"model"}:
        return parsed[0]["model"]
    return parsed


class Distill(TrainingStage):
    """Train a student to follow a teacher, or several."""

    kind: Literal["distill"] = "distill"
    model: Name = "student"
    # A name; or a list of names, or of {model: NAME, weight: NUMBER}.
    teacher: Annotated[
        Name | Annotated[list[WeightedTeacher], Field(min_length=1)], BeforeValidator(_as_teachers)
    ] = "teacher"
    writes: Name | None = None
    objectives: Annotated[list[Objective], Field(min_length=1)]
    in_batch: InBatch = InBatch()
    masking: Masking = Masking()
    repeats: Annotated[int, Field(ge=1, le=20)] = 1  # as of finetune
    # Run the teacher once per example, or text of a sentence encoder, and cache its outputs on
    # disk. auto: where they serve all objectives, are read more than once and fit on the disk.
    cache: Literal["auto", True, False] = "auto"
    training: Training

    @model_validator(mode="after")
    def _objectives(self) -> Distill:
        kinds = [objective.kind for objective in self.objectives]
        if twice := next((kind for kind in kinds if kinds.count(kind) > 1), None):
            raise ValueError(f"objectives: {twice} is listed twice. Merge the two.")
        if not self.weighted:
            raise ValueError(
                "objectives: their weights sum to 0. Give at least one a weight above 0."
            )
        group = self.in_batch.group
        micro = self.training.micro_batch_size or self.training.batch_size
        if group is not None and micro % group:
            raise ValueError(
                f"in_batch.group: the micro-batch of {micro} is not a multiple of {group}. Set a "
                "divisor of it."
            )
        inner = [o.kind for o in self.objectives if o.reads == "layers"]
        if self.training.compile and inner:
            raise ValueError(
                f"training.compile: objective {inner[0]} reads inside the layers, which are opaque "
                "when compiled. Omit one of the two."
            )
        if self.cache is True and inner:
            raise ValueError(self._uncacheable(inner[0]))
        return self

    @staticmethod
    def _uncacheable(kind: str) -> str:
        return (
            f"cache: true caches a teacher's logits and one vector per text, and {kind} reads the "
            "hidden states of tokens. Omit the objective, or set cache: auto."
        )

    def unfit(self, task: Task) -> str | None:
        problems = (objective.unfit(task) for objective in self.objectives)
        if problem := next(filter(None, problems), None):
            return problem
        if self.cache is True and not task.cacheable:
            cacheable = ", ".join(one for one in Task if one.cacheable)
            return f"cache: true is for {cacheable}, not {task}. Omit the key."
        if self.cache is True and (kind := self.live(task)) is not None:
            return self._uncacheable(kind)
        if (problem := super().unfit(task)) or task != Task.SENTENCE_EMBEDDING:
            return problem
        # Texts of a batch are compared with each other.
        batch = self.training.batch_size
        micro, group = self.training.micro_batch_size or batch, self.in_batch.group
        if group is None and micro != batch:
            return (
                "in_batch.group: with micro-batches the number of texts to compare with each other "
                f"is required. Set it to at most micro_batch_size, {micro}."
            )
        if (group or batch) < 3:
            return (
                f"training.batch_size: {group or batch} texts are too few to compare each with at "
                "least two others. Set at least 3."
            )
        return None

    def live(self, task: Task) -> str | None:
        """Name the first objective that a cached teacher can't serve; None: it serves all."""
        cached = {"logits", "vectors"}
        if task == Task.SENTENCE_EMBEDDING:  # of which hidden states are cached, too
            cached.add("tokens")
        return next((o.kind for o in self.weighted if o.reads not in cached), None)

    @property
    def trains_lm_head(self) -> bool:
        # Parameters without a gradient would stall data-parallel training.
        return any(objective.reads == "logits" for objective in self.weighted)

    @property
    def weighted(self) -> list[Objective]:
        """List the objectives that have a weight; others would cost time for nothing."""
        return [objective for objective in self.objectives if objective.weight > 0]

    @property
    def teachers(self) -> list[WeightedTeacher]:
        """List the teachers, one or several."""
        if isinstance(self.teacher, str):
            return [WeightedTeacher(model=self.teacher)]
        return self.teacher

    @property
    def made_from(self) -> str:  # of a finished run, too, whose teachers are not parsed
        return self.model

    @property
    def reads(self) -> list[str]:
        return list(dict.fromkeys([self.model, *(t.model for t in self.teachers)]))
