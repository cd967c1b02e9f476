"""The recipe: what a run does, as data. Pydantic models of the YAML; nothing here imports torch.

A recipe names a task, a teacher, a corpus and an ordered list of stages. Every default is in this
file or, for the objectives, in recipe_objectives.py, so the resolved recipe that a run stores says
all that was decided.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from potstill.recipe_objectives import AttentionMse as AttentionMse
from potstill.recipe_objectives import Config as Config
from potstill.recipe_objectives import HardTargets as HardTargets
from potstill.recipe_objectives import HiddenCosine as HiddenCosine
from potstill.recipe_objectives import HiddenMse as HiddenMse
from potstill.recipe_objectives import HiddenObjective as HiddenObjective
from potstill.recipe_objectives import InnerObjective as InnerObjective
from potstill.recipe_objectives import LayerPairs as LayerPairs
from potstill.recipe_objectives import LogitObjective as LogitObjective
from potstill.recipe_objectives import LogitsMse as LogitsMse
from potstill.recipe_objectives import Objective as Objective
from potstill.recipe_objectives import PatientHidden as PatientHidden
from potstill.recipe_objectives import RelationPair as RelationPair
from potstill.recipe_objectives import Relations as Relations
from potstill.recipe_objectives import SoftTargets as SoftTargets
from potstill.recipe_objectives import VectorMse as VectorMse

Task = Literal["masked_lm", "sentence_embedding"]
LayerRule = Literal["alternate", "uniform", "first", "last"]
StudentFamily = Literal["bert", "distilbert"]
_Below1 = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]


# --- text -----------------------------------------------------------------------------------------


class Files(Config):
    """Files on this machine: paths or globs; `package:NAME/...` is in an installed package."""

    kind: Literal["files"] = "files"
    paths: Annotated[list[str], Field(min_length=1)]
    format: Literal["auto", "txt", "jsonl", "csv", "tsv", "parquet"] = "auto"
    # What one record of a .txt file is. A document also has the columns title (its first line),
    # body (the rest) and label (the name of its folder).
    unit: Literal["line", "paragraph", "document"] = "line"
    # Tried in order; a file that fits none is an error.
    encodings: Annotated[list[str], Field(min_length=1)] = ["utf-8"]


class DatasetFolder(Config):
    """A folder written by `datasets`' save_to_disk (a Dataset or a DatasetDict)."""

    kind: Literal["dataset_folder"] = "dataset_folder"
    path: str
    split: str | None = None


class HubDataset(Config):
    """A data set of the hub, by name; only its Parquet form is read, no script ever runs."""

    kind: Literal["hub"] = "hub"
    name: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None


def _as_source(value: Any) -> Any:
    return {"kind": "files", "paths": [value]} if isinstance(value, str) else value


def _as_sources(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


Source = Annotated[
    Files | DatasetFolder | HubDataset, Field(discriminator="kind"), BeforeValidator(_as_source)
]


class Corpus(Config):
    """Text, how it becomes token sequences, and which part of it is never trained on."""

    sources: Annotated[list[Source], Field(min_length=1), BeforeValidator(_as_sources)]
    # The columns that hold text; each becomes sequences of its own.
    columns: Annotated[list[str], Field(min_length=1)] = ["text"]
    max_length: Annotated[int, Field(ge=8)] = 128  # tokens, special tokens included
    min_length: Annotated[int, Field(ge=1)] = 12  # texts of fewer tokens are dropped
    # Sequences with a larger share of unknown tokens are dropped.
    max_unknown: Annotated[float, Field(ge=0, le=1)] = 0.5
    # The share of records held out, chosen by a hash of their text, so that exact duplicates always
    # fall on the same side; or sources of their own.
    heldout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    heldout_sources: (
        Annotated[list[Source], Field(min_length=1), BeforeValidator(_as_sources)] | None
    ) = None
    # The column whose text decides the side; by default all text columns together.
    group_by: str | None = None
    drop_duplicates: bool = False

    @model_validator(mode="after")
    def _lengths(self) -> Corpus:
        if self.min_length > self.max_length:
            raise ValueError(
                f"min_length {self.min_length} is above max_length {self.max_length}: no text "
                "would be left"
            )
        return self


class Masking(Config):
    """Dynamic masking: a new mask every epoch (Devlin et al. 2019; Liu et al. 2019)."""

    probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    mask: Annotated[float, Field(ge=0, le=1)] = 0.8  # of the chosen: replaced by the mask token
    random: Annotated[float, Field(ge=0, le=1)] = 0.1  # by a random token; the rest is kept
    whole_word: bool = False
    # Chance of a token to be chosen ~ count ** -smoothing (0: all alike; the reference uses 0.7).
    smoothing: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _shares(self) -> Masking:
        if self.mask + self.random > 1 + 1e-9:
            raise ValueError(f"mask + random is {self.mask + self.random:g}: it must be at most 1")
        return self


# --- stages ---------------------------------------------------------------------------------------


class InBatch(Config):
    """Sentence embeddings: each text's distribution over the other texts of its group."""

    scale: Annotated[float, Field(gt=0)] = 20.0  # logits = scale * cosine similarity
    # Texts of a group; micro-batches are whole groups, so accumulation changes nothing. null: the
    # whole batch. Of two texts each has but one other, whose probability is always 1.
    group: Annotated[int, Field(ge=3)] | None = None


class Training(Config):
    """The one training loop's settings."""

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
    evaluate_every: Annotated[int, Field(ge=1)] | None = None  # steps; null: about ten times a run
    evaluate_sequences: Annotated[int, Field(ge=1)] = 256  # held-out ones, of such an evaluation
    # Evaluations without improvement before training stops; null: it goes on.
    patience: Annotated[int, Field(ge=1)] | None = None
    keep: Literal["best", "last"] = "last"
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 5.0
    checkpoint_steps: Annotated[int, Field(ge=1)] | None = None
    log_every: Annotated[int, Field(ge=1)] = 10
    trackers: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = []

    @model_validator(mode="after")
    def _ends(self) -> Training:
        if self.epochs is None and self.max_steps is None and self.max_tokens is None:
            raise ValueError("no end is given: set epochs, max_steps or max_tokens")
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )
        return self


class Finetune(Config):
    """Train a model on the task without a teacher (masked LM is a task)."""

    kind: Literal["finetune"] = "finetune"
    model: Name = "teacher"
    writes: Name | None = None  # null: the same name
    train: Literal["all", "head"] = "all"
    masking: Masking = Masking()
    training: Training


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_SHARES = {"half": 1 / 2, "third": 1 / 3, "quarter": 1 / 4, "fifth": 1 / 5}


def _as_count(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+\.?\d*)\s*([kKmMgGbB]?)\s*", value)
    return round(float(found[1]) * _UNITS[found[2].lower()]) if found else value


def _as_share(value: Any) -> Any:
    return _SHARES.get(value, value) if isinstance(value, str) else value


class Student(Config):
    """The student that is asked for: by layers and widths, or by what it may cost."""

    layers: LayerRule | list[Annotated[int, Field(ge=0)]] = "alternate"
    depth: Annotated[int, Field(ge=1)] | None = None  # layers, for a rule; null: half, rounded up
    width: Annotated[int, Field(ge=1)] | None = None  # hidden size; null: the teacher's
    # Inner width of the FFN; null: in proportion to the width.
    ffn: Annotated[int, Field(ge=1)] | None = None
    # Parameters it may have ("15 M"); depth and widths are chosen.
    at_most: Annotated[int, Field(ge=1), BeforeValidator(_as_count)] | None = None
    # The same for the share of what a token costs the teacher, in parameters of layers ("half").
    ratio: Annotated[float, Field(gt=0, le=1), BeforeValidator(_as_share)] | None = None
    # random: to compare with a student that starts from the teacher's weights.
    initialise: Literal["teacher", "random"] = "teacher"
    family: StudentFamily | None = None
    pairs: bool = False  # the teacher reads text pairs, so token types must stay

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> Student:
        budgets = [key for key in ("at_most", "ratio") if getattr(self, key) is not None]
        if len(budgets) == 2:
            raise ValueError("at_most and ratio both choose the student's shape: leave one out")
        sizes = [key for key in ("depth", "width", "ffn") if getattr(self, key) is not None]
        if not isinstance(self.layers, str):
            sizes.append("layers as a list")
        if budgets and sizes:
            raise ValueError(f"{budgets[0]} chooses the shape: leave {' and '.join(sizes)} out")
        return self


class _Making(Config):
    kind: Literal["make_student"] = "make_student"
    teacher: Name = "teacher"
    writes: Name = "student"


def _asked_for(wanted: dict[str, Any]) -> list[tuple[str, Any]]:
    """The known keys of a `student` block, with their fields."""
    return [(key, field) for key, field in Student.model_fields.items() if key in wanted]


class MakeStudent(Student, _Making):
    """Build a smaller student from a teacher's own weights."""


class WeightedTeacher(Config):
    """One of several teachers; their weights are divided by their sum."""

    model: Name
    weight: Annotated[float, Field(gt=0)] = 1.0


def _as_teachers(value: Any) -> Any:
    """Of a list of one, the name: its weight decides nothing."""
    if not isinstance(value, list):
        return value
    parsed = [{"model": item} if isinstance(item, str) else item for item in value]
    if len(parsed) == 1 and isinstance(parsed[0], dict) and set(parsed[0]) == {"model"}:
        return parsed[0]["model"]
    return parsed


class Distill(Config):
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
    training: Training

    @model_validator(mode="after")
    def _objectives(self) -> Distill:
        kinds = [objective.kind for objective in self.objectives]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise ValueError(f"objective {kind} is listed twice: merge the two")
        if sum(objective.weight for objective in self.objectives) <= 0:
            raise ValueError(
                "the weights of the objectives sum to 0: give at least one a weight above 0"
            )
        group = self.in_batch.group
        micro = self.training.micro_batch_size or self.training.batch_size
        if group is not None and micro % group:
            raise ValueError(
                f"the micro-batch of {micro} is not a multiple of in_batch.group {group}"
            )
        inner = [o.kind for o in self.objectives if isinstance(o, InnerObjective)]
        if self.training.compile and inner:
            raise ValueError(
                f"objective {inner[0]} reads inside the layers, which training.compile makes "
                "opaque: leave one of them out"
            )
        return self

    @property
    def teachers(self) -> list[WeightedTeacher]:
        """The teachers, one or several."""
        if isinstance(self.teacher, str):
            return [WeightedTeacher(model=self.teacher)]
        return self.teacher


class Evaluate(Config):
    """Score models on held-out text against the first of them."""

    kind: Literal["evaluate"] = "evaluate"
    models: list[Name] | None = None  # null: every model there is
    baseline: Name = "teacher"
    # Sentence embeddings: the columns of the held-out records that are a query, its passage and
    # its topic.
    query: str | None = None
    passage: str | None = None
    label: str | None = None
    max_length: Annotated[int, Field(ge=8)] | None = None  # tokens; null: the model's own limit
    max_records: Annotated[int, Field(ge=2)] | None = None  # the first so many; null: all
    masking: Masking = Masking()  # masked LM


class Benchmark(Config):
    """Measure size and speed, each model in a process of its own, in interleaved rounds."""

    kind: Literal["benchmark"] = "benchmark"
    models: list[Name] | None = None
    baseline: Name = "teacher"
    threads: Annotated[int, Field(ge=1)] = 1
    lengths: Annotated[list[Annotated[int, Field(ge=3)]], Field(min_length=1)] = [16, 128]
    rounds: Annotated[int, Field(ge=3)] = 10
    repeats: Annotated[int, Field(ge=1)] = 10  # timed passes a round and length
    throughput_batch: Annotated[int, Field(ge=1)] = 32


class Report(Config):
    """Write metrics.json, report.html and the model card."""

    kind: Literal["report"] = "report"
    title: str | None = None
    examples: Annotated[int, Field(ge=0)] = 8
    language: str | None = None
    license: str | None = None


Stage = Annotated[
    Finetune | MakeStudent | Distill | Evaluate | Benchmark | Report, Field(discriminator="kind")
]


class Teacher(Config):
    """A path, `package:NAME/...` inside an installed package, or org/name on the hub."""

    model: str
    revision: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


class Recipe(Config):
    name: Name
    description: str = ""
    task: Task
    seed: Annotated[int, Field(ge=0)] = 1
    # Of training and evaluation; null: torch's own choice.
    threads: Annotated[int, Field(ge=1)] | None = None
    teacher: Teacher
    # Further models that stages read by these names; all share the teacher's vocabulary.
    teachers: dict[Name, Teacher] = {}
    corpus: Corpus
    student: Student = Student()  # what all make_student stages are asked for
    stages: Annotated[list[Stage], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _every_student(cls, value: Any) -> Any:
        """Hand the keys of `student` to the make_student stages."""
        if not isinstance(value, dict) or not isinstance(value.get("student"), dict):
            return value
        wanted, stages = value["student"], value.get("stages")
        if not wanted or not isinstance(stages, list):
            return value
        makes = [isinstance(s, dict) and s.get("kind") == "make_student" for s in stages]
        asked = any(wanted[key] != field.default for key, field in _asked_for(wanted))
        if asked and not any(makes):
            raise ValueError("student: there is no make_student stage that would make one")
        handed = list(stages)
        for number, stage in enumerate(stages, start=1):
            if makes[number - 1]:
                for key in wanted.keys() & stage.keys():
                    if stage[key] != wanted[key]:
                        raise ValueError(
                            f"student.{key} is {wanted[key]}, but stage {number} (make_student) "
                            f"says {stage[key]}: leave one of them out"
                        )
                handed[number - 1] = {**wanted, **stage}
        return {**value, "stages": handed}

    @model_validator(mode="after")
    def _names(self) -> Recipe:
        if "teacher" in self.teachers:
            raise ValueError(
                "teachers.teacher: that name is the key teacher's: choose another for a further one"
            )
        known = {"teacher", *self.teachers}
        for number, stage in enumerate(self.stages, start=1):
            for name in stage_reads(stage):
                if name not in known:
                    raise ValueError(
                        f"stage {number} ({stage.kind}) reads the model '{name}', which no stage "
                        "before it writes"
                    )
            known.update(stage_writes(stage))
        return self

    @model_validator(mode="after")
    def _held_out(self) -> Recipe:
        if self.corpus.heldout == 0 and self.corpus.heldout_sources is None:
            for number, stage in enumerate(self.stages, start=1):
                if isinstance(stage, (Finetune, Distill)) and (
                    stage.training.keep == "best" or stage.training.patience is not None
                ):
                    raise ValueError(
                        f"stage {number} ({stage.kind}): keep: best and patience judge by held-out "
                        "text: raise corpus.heldout or leave them out"
                    )
        return self

    @model_validator(mode="after")
    def _baselines(self) -> Recipe:
        kinds = (Evaluate, Benchmark)
        last = [[s for s in self.stages if isinstance(s, kind)][-1:] for kind in kinds]
        named = {stage.baseline for found in last for stage in found}
        if len(named) > 1:
            raise ValueError(
                "the last evaluate and the last benchmark stage have different baselines "
                f"({' and '.join(sorted(named))}): one table shows both, so name the same"
            )
        return self

    @model_validator(mode="after")
    def _task(self) -> Recipe:
        for number, stage in enumerate(self.stages, start=1):
            problem = unfit(stage, self.task)
            if problem:
                raise ValueError(f"stage {number} ({stage.kind}): {problem}")
        return self


def unfit(stage: Stage, task: Task) -> str | None:
    """Why a stage can't do a task, or None."""
    if isinstance(stage, Distill):
        for objective in stage.objectives:
            problem = _unfit_objective(objective, task)
            if problem:
                return problem
    if task != "sentence_embedding":
        return None
    if isinstance(stage, Finetune):
        return "unlabelled text gives a sentence encoder nothing to learn from; use task masked_lm"
    if not isinstance(stage, Distill):
        return None
    micro = stage.training.micro_batch_size or stage.training.batch_size
    if stage.in_batch.group is None and micro != stage.training.batch_size:
        return (
            "with micro-batches, in_batch.group must say how many texts are compared with each "
            f"other (at most micro_batch_size, {micro})"
        )
    compared = stage.in_batch.group or stage.training.batch_size
    if compared < 3:
        return (
            f"a batch of {compared} compares no texts: each needs two others at least; set "
            "batch_size to 3 or more"
        )
    return None


def _unfit_objective(objective: Objective, task: Task) -> str | None:
    if task == "masked_lm":
        if isinstance(objective, VectorMse):
            return (
                "vector_mse compares sentence vectors, and masked LM has none; use logits_mse or "
                "hidden_mse instead"
            )
        return None
    if isinstance(objective, HardTargets) and objective.target == "gold":
        return "unlabelled text has no gold target; set target: teacher in its hard_targets"
    if isinstance(objective, (SoftTargets, LogitsMse)) and objective.positions == "masked":
        return f"no token of sentence embeddings is masked; set positions: all in {objective.kind}"
    return None


def stage_reads(stage: Stage) -> list[str]:
    """Models that a stage names; null `models` of evaluate and benchmark are all there are."""
    match stage:
        case Finetune():
            return [stage.model]
        case MakeStudent():
            return [stage.teacher]
        case Distill():
            return list(dict.fromkeys([stage.model, *(t.model for t in stage.teachers)]))
        case Evaluate() | Benchmark():
            return list(dict.fromkeys([*(stage.models or []), stage.baseline]))
        case Report():
            return []


def main_model(stages: Sequence[Stage]) -> int | None:
    """The number, from 1, of the stage that writes the model a recipe is about; None: none does.

    It is the last `distill`, else the last `make_student`, else the last `finetune`.
    """
    for kind in (Distill, MakeStudent, Finetune):
        for number in range(len(stages), 0, -1):
            if isinstance(stages[number - 1], kind):
                return number
    return None


def stage_writes(stage: Stage) -> list[str]:
    """Names of the models that a stage writes: none or one."""
    match stage:
        case Finetune() | Distill():
            return [stage.writes or stage.model]
        case MakeStudent():
            return [stage.writes]
        case Evaluate() | Benchmark() | Report():
            return []
