"""Which stage and which objective fits which task."""

from __future__ import annotations

from potstill.recipe.compression import Quantize
from potstill.recipe.measuring import Evaluate
from potstill.recipe.objectives import Objective
from potstill.recipe.stages import Stage
from potstill.recipe.tasks import Task
from potstill.recipe.training import Distill, Finetune


def unreadable(stage: Stage, writer: Stage | None) -> str | None:
    """Explain why a stage can't read a model; None if it can.

    Args:
        stage: The stage that names the model.
        writer: The stage that wrote the model; None for a model that was given.
    """
    is_graph = writer is not None and writer.writes_onnx
    if is_graph and not stage.reads_onnx:
        return "is an ONNX file and can't be changed. Name the model that it was exported from."
    if not isinstance(stage, Quantize):
        return None
    if not is_graph:
        return "is not an ONNX file. Export it first, and name what the export stage writes."
    if isinstance(writer, Quantize):
        return "is already quantized. Name the model that it was made from."
    return None


def unfit(stage: Stage, task: Task) -> str | None:
    """Return why a stage can't do a task, or None."""
    if isinstance(stage, Distill):
        problems = (_unfit_objective(objective, task) for objective in stage.objectives)
        if problem := next(filter(None, problems), None):
            return problem
        if stage.cache is True and not task.cacheable:
            cacheable = ", ".join(one for one in Task if one.cacheable)
            return f"cache: true is for {cacheable}, not {task}. Omit the key."
    if isinstance(stage, (Finetune, Distill)) and stage.repeats > 1 and task.reads_text:
        return f"repeats: {task} has no scores per seed. Omit it."
    if isinstance(stage, Evaluate) and stage.pairs is not None and task != Task.SENTENCE_EMBEDDING:
        return f"pairs: {task} has no sentence vectors to compare. Omit it."
    if task != Task.SENTENCE_EMBEDDING:
        return None
    if isinstance(stage, Finetune):
        return (
            "text without labels gives a sentence encoder nothing to learn from. Use task "
            "sentence_similarity with pairs that have a score, or masked_lm."
        )
    return _unfit_groups(stage) if isinstance(stage, Distill) else None


def _unfit_groups(stage: Distill) -> str | None:
    """Return why texts of a batch can't be compared with each other, or None."""
    micro = stage.training.micro_batch_size or stage.training.batch_size
    if stage.in_batch.group is None and micro != stage.training.batch_size:
        return (
            "in_batch.group: with micro-batches the number of texts to compare with each other is "
            f"required. Set it to at most micro_batch_size, {micro}."
        )
    compared = stage.in_batch.group or stage.training.batch_size
    if compared < 3:
        return (
            f"training.batch_size: {compared} texts are too few to compare each with at least two "
            "others. Set at least 3."
        )
    return None


def _unfit_objective(objective: Objective, task: Task) -> str | None:
    """Explain why an objective has nothing to compare in a task; None where it has."""
    where = f"objectives.{objective.kind}"
    predicts = "distribution" if task.has_distribution else "value"
    if objective.wants not in (None, predicts):
        instead = "hard_targets" if predicts == "distribution" else "logits_mse or gold_mse"
        return f"{where}: {task} predicts a {predicts}, not a {objective.wants}. Use {instead}."
    if objective.reads == "vectors" and not task.has_text_vector:
        return (
            f"{where}: {task} has no vector of a whole text. Use hidden_mse, or hidden_cosine "
            "with of: tokens."
        )
    if objective.rows == "masked" and task != Task.MASKED_LM:
        return f"{where}: {task} masks no token. Set positions: all."
    if objective.rows == "gold" and objective.uses_gold and task == Task.SENTENCE_EMBEDDING:
        return f"{where}: text without labels has no gold target. Set target: teacher."
    return None
