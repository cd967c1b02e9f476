"""The recipe: what a run does, as data. Pydantic models of the YAML; nothing here imports torch.

A recipe names a task, a teacher, a corpus and an ordered list of stages. Every default is in this
file or in the recipe_*.py that it imports from, so the resolved recipe that a run stores says all
that was decided.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from potstill.recipe_base import Config as Config
from potstill.recipe_base import Name as Name
from potstill.recipe_compression import Export as Export
from potstill.recipe_compression import GraphPruning as GraphPruning
from potstill.recipe_compression import Prune as Prune
from potstill.recipe_compression import Quantize as Quantize
from potstill.recipe_compression import Sparsity as Sparsity
from potstill.recipe_compression import TrimVocabulary as TrimVocabulary
from potstill.recipe_objectives import AttentionMse as AttentionMse
from potstill.recipe_objectives import GoldMse as GoldMse
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
from potstill.recipe_stages import READS_ONNX as READS_ONNX
from potstill.recipe_stages import WRITES_ONNX, asked_for
from potstill.recipe_stages import Benchmark as Benchmark
from potstill.recipe_stages import Distill as Distill
from potstill.recipe_stages import Evaluate as Evaluate
from potstill.recipe_stages import Finetune as Finetune
from potstill.recipe_stages import InBatch as InBatch
from potstill.recipe_stages import LayerRule as LayerRule
from potstill.recipe_stages import MakeStudent as MakeStudent
from potstill.recipe_stages import Report as Report
from potstill.recipe_stages import ScoredPairs as ScoredPairs
from potstill.recipe_stages import Stage as Stage
from potstill.recipe_stages import Student as Student
from potstill.recipe_stages import StudentFamily as StudentFamily
from potstill.recipe_stages import Training as Training
from potstill.recipe_stages import WeightedTeacher as WeightedTeacher
from potstill.recipe_stages import main_model as main_model
from potstill.recipe_stages import plain_twin as plain_twin
from potstill.recipe_stages import published_chain as published_chain
from potstill.recipe_stages import repeated as repeated
from potstill.recipe_stages import scoring as scoring
from potstill.recipe_stages import stage_reads as stage_reads
from potstill.recipe_stages import stage_writes as stage_writes
from potstill.recipe_text import Corpus as Corpus
from potstill.recipe_text import DatasetFolder as DatasetFolder
from potstill.recipe_text import Files as Files
from potstill.recipe_text import HubDataset as HubDataset
from potstill.recipe_text import Masking as Masking
from potstill.recipe_text import Source as Source
from potstill.recipe_text import TaskData as TaskData
from potstill.recipe_text import TextPass as TextPass

Task = Literal[
    "masked_lm",
    "sentence_embedding",
    "classification",
    "multi_label",
    "regression",
    "sentence_similarity",
    "token_classification",
    "question_answering",
]
# Those that are learnt from text as it is; the others need labelled examples, in `data`.
TEXT_TASKS = ("masked_lm", "sentence_embedding")
# Those whose answer is a value; it has no distribution.
VALUE_TASKS = ("regression", "sentence_similarity")
# Those in which a teacher's answer to an example is always the same, whatever the batch.
CACHED_TASKS = (
    "classification",
    "multi_label",
    "regression",
    "sentence_similarity",
    "token_classification",
)


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
    # Text as it is, for masked LM and sentence embeddings; or the labelled examples of a task.
    corpus: Corpus | None = None
    data: TaskData | None = None
    student: Student = Student()  # what all make_student stages are asked for
    stages: Annotated[list[Stage], Field(min_length=1)]

    @property
    def text(self) -> Corpus | TaskData:
        """What models learn from."""
        found = self.corpus if self.data is None else self.data
        assert found is not None
        return found

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
        asked = any(wanted[key] != field.default for key, field in asked_for(wanted))
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
        writers: dict[str, Stage] = {}  # name -> the last stage that wrote it
        for number, stage in enumerate(self.stages, start=1):
            where = f"stage {number} ({stage.kind})"
            for name in stage_reads(stage):
                if name not in known:
                    raise ValueError(
                        f"{where} reads the model '{name}', which no stage before it writes"
                    )
                problem = _unreadable(stage, writers.get(name))
                if problem is not None:
                    raise ValueError(f"{where} reads the model '{name}', {problem}")
            written = stage_writes(stage)
            known.update(written)
            writers |= dict.fromkeys(written, stage)
        return self

    @model_validator(mode="after")
    def _text(self) -> Recipe:
        wanted, other = ("corpus", "data") if self.task in TEXT_TASKS else ("data", "corpus")
        if getattr(self, wanted) is None:
            raise ValueError(f"{wanted} is not set: task {self.task} reads it")
        if getattr(self, other) is not None:
            raise ValueError(f"{other} is not read for task {self.task}: leave it out")
        return self

    @model_validator(mode="after")
    def _held_out(self) -> Recipe:
        corpus, data = self.corpus, self.data
        nothing = corpus is not None and corpus.heldout == 0 and corpus.heldout_sources is None
        key = "corpus.heldout"
        if data is not None:
            nothing, key = data.heldout == 0 and data.dev is None, "data.heldout"
        if nothing:
            for number, stage in enumerate(self.stages, start=1):
                if isinstance(stage, (Finetune, Distill)) and (
                    stage.training.keep == "best" or stage.training.patience is not None
                ):
                    raise ValueError(
                        f"stage {number} ({stage.kind}): keep: best and patience judge by held-out "
                        f"text: raise {key} or leave them out"
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


def _unreadable(stage: Stage, writer: Stage | None) -> str | None:
    """Why a stage can't read what another one wrote (None: it was given), or None."""
    is_graph = isinstance(writer, WRITES_ONNX)
    if is_graph and not isinstance(stage, READS_ONNX):
        return (
            "which is an ONNX file and can't be changed any more: name the model that it was "
            "exported from"
        )
    if not isinstance(stage, Quantize):
        return None
    if not is_graph:
        return "which is no ONNX file: export it first and name what export writes"
    if isinstance(writer, Quantize):
        return "which is quantised already: name the one that it was made from"
    return None


def unfit(stage: Stage, task: Task) -> str | None:
    """Why a stage can't do a task, or None."""
    if isinstance(stage, Distill):
        for objective in stage.objectives:
            problem = _unfit_objective(objective, task)
            if problem:
                return problem
        if stage.cache is True and task not in CACHED_TASKS:
            return f"cache: true is for {', '.join(CACHED_TASKS)}; in {task} leave it out"
    if isinstance(stage, (Finetune, Distill)) and stage.repeats > 1 and task in TEXT_TASKS:
        return f"repeats: {task} has no scores by seed; leave it out"
    if isinstance(stage, Evaluate) and stage.pairs is not None and task != "sentence_embedding":
        return f"pairs: {task} has no sentence vectors to compare; leave it out"
    if task != "sentence_embedding":
        return None
    if isinstance(stage, Finetune):
        return (
            "text without labels gives a sentence encoder nothing to learn from: use task "
            "sentence_similarity with pairs that have a score, or masked_lm"
        )
    return _unfit_groups(stage) if isinstance(stage, Distill) else None


def _unfit_groups(stage: Distill) -> str | None:
    """Why texts of a batch can't be compared with each other, or None."""
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
    pooled = isinstance(objective, HiddenCosine) and objective.of == "pooled"
    if pooled and task in ("masked_lm", "token_classification", "question_answering"):
        return f"hidden_cosine: {task} has no vector of a whole text; set of: tokens"
    if isinstance(objective, GoldMse) and task not in VALUE_TASKS:
        return f"gold_mse is for {' and '.join(VALUE_TASKS)}; in {task} use hard_targets"
    if task == "masked_lm":
        if isinstance(objective, VectorMse):
            return (
                "vector_mse compares sentence vectors, and masked LM has none; use logits_mse or "
                "hidden_mse instead"
            )
        return None
    if task == "sentence_embedding":
        return _unfit_embedding(objective)
    if isinstance(objective, VectorMse) and task in ("token_classification", "question_answering"):
        return f"vector_mse compares one vector a text, and {task} has none; use hidden_mse"
    if isinstance(objective, (SoftTargets, HardTargets)) and task in VALUE_TASKS:
        return f"{objective.kind} needs a distribution, and {task} has one value: use " + (
            "logits_mse" if isinstance(objective, SoftTargets) else "gold_mse"
        )
    if isinstance(objective, (SoftTargets, LogitsMse)) and objective.positions == "masked":
        return f"no token is masked in {task}; set positions: all in {objective.kind}"
    return None


def _unfit_embedding(objective: Objective) -> str | None:
    if isinstance(objective, HardTargets) and objective.target == "gold":
        return "unlabelled text has no gold target; set target: teacher in its hard_targets"
    if isinstance(objective, (SoftTargets, LogitsMse)) and objective.positions == "masked":
        return f"no token of sentence embeddings is masked; set positions: all in {objective.kind}"
    return None
