"""The stages of a recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from potstill.recipe_base import Config, Name
from potstill.recipe_compression import Export, Prune, Quantize, Sparsity, TrimVocabulary
from potstill.recipe_objectives import HiddenCosine, InnerObjective, Objective
from potstill.recipe_text import Masking, Sources, TextPass

LayerRule = Literal["alternate", "uniform", "first", "last"]
StudentFamily = Literal["bert", "distilbert"]
_Below1 = Annotated[float, Field(ge=0, lt=1)]


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
    # Trainings with seeds of their own, from `seed` on; the first one's model has the name that is
    # written, the others that name with .2, .3 and so on. Scores are their mean.
    repeats: Annotated[int, Field(ge=1, le=20)] = 1
    sparsity: Sparsity | None = None  # zeros among the weights, for study; null: none are made
    training: Training

    @model_validator(mode="after")
    def _something_to_thin(self) -> Finetune:
        if self.sparsity is not None and self.train == "head":
            raise ValueError(
                "sparsity is of the layers, which train: head leaves alone: leave one of them out"
            )
        return self


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


def asked_for(wanted: dict[str, Any]) -> list[tuple[str, Any]]:
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
    repeats: Annotated[int, Field(ge=1, le=20)] = 1  # as of finetune
    sparsity: Sparsity | None = None  # as of finetune
    # Tasks with labels: ask the teacher once for each example and keep its answers on disk. auto:
    # where all objectives can be served by them and more than one epoch is trained.
    cache: Literal["auto", True, False] = "auto"
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

    @model_validator(mode="after")
    def _cache(self) -> Distill:
        if self.cache is True and self.live is not None:
            raise ValueError(
                f"cache: true keeps a teacher's logits and a vector a text, and {self.live} reads "
                "the hidden states of tokens: leave it out, or set cache: auto"
            )
        return self

    @property
    def live(self) -> str | None:
        """The first objective that a cached teacher can't serve; None: it serves them all."""
        for objective in self.objectives:
            tokens = isinstance(objective, HiddenCosine) and objective.of == "tokens"
            if objective.weight > 0 and (tokens or isinstance(objective, InnerObjective)):
                return objective.kind
        return None

    @property
    def teachers(self) -> list[WeightedTeacher]:
        """The teachers, one or several."""
        if isinstance(self.teacher, str):
            return [WeightedTeacher(model=self.teacher)]
        return self.teacher


class ScoredPairs(Config):
    """Sentence embeddings: pairs of texts that people have given a score of likeness (STS)."""

    sources: Sources
    text: Annotated[list[str], Field(min_length=2, max_length=2)] = ["sentence1", "sentence2"]
    label: str = "score"
    on_bad_row: Literal["error", "skip"] = "error"


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
    pairs: ScoredPairs | None = None
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
    # Further sizes of batches whose throughput is measured.
    batches: list[Annotated[int, Field(ge=1)]] = []
    throughput_length: Annotated[int, Field(ge=3)] | None = None  # tokens; null: the largest length
    pass_over: TextPass | None = None


class Report(Config):
    """Write metrics.json, report.html and the model card."""

    kind: Literal["report"] = "report"
    title: str | None = None
    examples: Annotated[int, Field(ge=0)] = 8
    language: str | None = None
    license: str | None = None


Stage = Annotated[
    Finetune
    | MakeStudent
    | Distill
    | Prune
    | TrimVocabulary
    | Export
    | Quantize
    | Evaluate
    | Benchmark
    | Report,
    Field(discriminator="kind"),
]
# Stages that make another model of the one they read, without training it.
_COMPRESSING = (Prune, TrimVocabulary, Export, Quantize)
# Stages whose models are .onnx files, and those that can read such a one.
WRITES_ONNX = (Export, Quantize)
READS_ONNX = (Quantize, Evaluate, Benchmark, Report)


def stage_reads(stage: Stage) -> list[str]:
    """Models that a stage names; null `models` of evaluate and benchmark are all there are."""
    match stage:
        case Finetune() | Prune() | TrimVocabulary():
            return [stage.model]
        case MakeStudent():
            return [stage.teacher]
        case Distill():
            return list(dict.fromkeys([stage.model, *(t.model for t in stage.teachers)]))
        case Export() | Quantize():
            return [stage.model]
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


def scoring(stage: Quantize, names: Sequence[str]) -> Evaluate:
    """The evaluation that max_drop is judged by; the first name is its baseline."""
    return Evaluate(
        models=list(names),
        baseline=names[0],
        query=stage.query,
        passage=stage.passage,
        label=stage.label,
    )


def published_chain(stages: Sequence[Stage]) -> list[int]:
    """Numbers, from 1, of the stages that write the model a run publishes, in order: the last one
    that is finished counts.

    The first is `main_model`'s; the others compress or export what the one before them wrote.
    """
    main = main_model(stages)
    if main is None:
        return []
    chain, name = [main], stage_writes(stages[main - 1])[0]
    for number, stage in enumerate(stages[main:], start=main + 1):
        if isinstance(stage, _COMPRESSING) and stage.model == name:
            chain.append(number)
            name = stage_writes(stage)[0]
    return chain


def stage_writes(stage: Stage) -> list[str]:
    """Names of the models that a stage writes: none, one, or one for each repeat."""
    match stage:
        case Finetune() | Distill():
            name = stage.writes or stage.model
            return [name, *(f"{name}.{number}" for number in range(2, stage.repeats + 1))]
        case MakeStudent() | Export() | Quantize():
            return [stage.writes]
        case Prune() | TrimVocabulary():
            return [stage.writes or stage.model]
        case Evaluate() | Benchmark() | Report():
            return []


def repeated(stages: Sequence[Stage]) -> dict[str, list[str]]:
    """Name of a model -> the names of its repeats, itself first, of models that have some."""
    written = (stage_writes(stage) for stage in stages)
    return {names[0]: names for names in written if len(names) > 1}


def plain_twin(stages: Sequence[Stage]) -> str | None:
    """The model that was trained from the main student's start, but without a teacher."""
    number = main_model(stages)
    main = stages[number - 1] if number is not None else None
    if not isinstance(main, Distill):
        return None
    twins = [
        stage_writes(stage)[0]
        for stage in stages
        if isinstance(stage, Finetune) and stage.model == main.model
    ]
    return next((name for name in reversed(twins) if name not in stage_writes(main)), None)
