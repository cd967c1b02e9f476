"""Which stage and which objective fits which task."""

from __future__ import annotations

from potstill.recipe.compression import Quantize
from potstill.recipe.measuring import Evaluate
from potstill.recipe.objectives import (
    GoldMse,
    HardTargets,
    HiddenCosine,
    LogitsMse,
    Objective,
    SoftTargets,
    VectorMse,
)
from potstill.recipe.stages import Stage
from potstill.recipe.tasks import Task
from potstill.recipe.training import Distill, Finetune


def unreadable(stage: Stage, writer: Stage | None) -> str | None:
    """Why a stage can't read what another one wrote (None: it was given), or None."""
    is_graph = writer is not None and writer.writes_onnx
    if is_graph and not stage.reads_onnx:
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
        if stage.cache is True and not task.cacheable:
            cacheable = ", ".join(one for one in Task if one.cacheable)
            return f"cache: true is for {cacheable}; in {task} leave it out"
    if isinstance(stage, (Finetune, Distill)) and stage.repeats > 1 and task.reads_text:
        return f"repeats: {task} has no scores by seed; leave it out"
    if isinstance(stage, Evaluate) and stage.pairs is not None and task != Task.SENTENCE_EMBEDDING:
        return f"pairs: {task} has no sentence vectors to compare; leave it out"
    if task != Task.SENTENCE_EMBEDDING:
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
    if pooled and not task.has_text_vector:
        return f"hidden_cosine: {task} has no vector of a whole text; set of: tokens"
    if isinstance(objective, GoldMse) and task.has_distribution:
        values = " and ".join(one for one in Task if not one.has_distribution)
        return f"gold_mse is for {values}; in {task} use hard_targets"
    if task == Task.MASKED_LM:
        if isinstance(objective, VectorMse):
            return (
                "vector_mse compares sentence vectors, and masked LM has none; use logits_mse or "
                "hidden_mse instead"
            )
        return None
    if task == Task.SENTENCE_EMBEDDING:
        return _unfit_embedding(objective)
    if isinstance(objective, VectorMse) and not task.has_text_vector:
        return f"vector_mse compares one vector a text, and {task} has none; use hidden_mse"
    if isinstance(objective, (SoftTargets, HardTargets)) and not task.has_distribution:
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
