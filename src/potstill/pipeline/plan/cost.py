"""Estimate what a training costs before it starts: tokens from a sample, work as torch counts it.

No weights are read: models are on the meta device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from potstill.compression.importance import BATCH
from potstill.models import LoadedModel
from potstill.objectives.pairing import projection_shapes
from potstill.pipeline.outlook import Outline
from potstill.pipeline.plan.text import Text
from potstill.recipe import (
    AttentionMse,
    Distill,
    Finetune,
    LogitsMse,
    Objective,
    Prune,
    Relations,
    SoftTargets,
    Task,
    Training,
)
from potstill.training.teacher_cache import why_live
from potstill.training.trainee import freeze

LIBRARIES = 400e6  # bytes that Python, torch and transformers take before any model
# Training's floating-point operations per second, as a fraction of a large matrix product's.
# Measured on two CPU cores with MiniLM: sentence distillation from 6 to 3 layers and masked-LM
# training of 6 layers both give 0.57.
EFFICIENCY = 0.57


@dataclass(frozen=True)
class Cost:
    """Hold the time, memory and disk that one stage takes."""

    steps: int | None  # of one training; None: not known
    tokens: float | None  # real ones
    tokens_per_second: float
    memory: dict[str, float]  # bytes at the peak, by what they are for
    checkpoints: float  # bytes on disk while it runs
    trainings: int = 1
    asking: float = 0.0  # seconds to compute the teachers' outputs once, where they are cached

    @property
    def seconds(self) -> float | None:
        """Seconds of all trainings; None: not known."""
        if self.tokens is None:
            return None
        return self.trainings * self.tokens / self.tokens_per_second + self.asking


def cost_of(outline: Outline, text: Text, matmul: float) -> Cost:
    """Estimate a stage that learns; `matmul`: operations per second of a large matrix product."""
    if isinstance(outline.stage, Prune):
        return _pruning_cost(outline.stage, outline.teachers[0], text, matmul)
    stage, student = _trained(outline)
    per_epoch, length = text.per_epoch, round(text.mean)
    if isinstance(stage, Finetune) and text.labeled is not None:
        per_epoch = text.labeled
    steps, tokens = steps_and_tokens(stage.training, per_epoch, text.mean)
    asking = 0.0
    if per_epoch is not None and tokens is not None:
        epochs = stage.repeats * tokens / (per_epoch * text.mean)
        if isinstance(stage, Distill) and why_live(stage, student.task, epochs) is None:
            forward = sum(_work(teacher, length)[0] for teacher in outline.teachers)
            asking = per_epoch * text.mean * forward / (EFFICIENCY * matmul)
            outline = replace(outline, teachers=())
    # weights and two moments of the optimizer; the last two are kept, and with `keep` the best
    checkpoints = (3 if stage.training.keep == "best" else 2) * 12.0 * trained_parameters(outline)
    speed = EFFICIENCY * matmul / flops_per_token(outline, length)
    memory = memory_bytes(outline, text.longest)
    return Cost(steps, tokens, speed, memory, checkpoints, stage.repeats, asking)


def _pruning_cost(stage: Prune, loaded: LoadedModel, text: Text, matmul: float) -> Cost:
    """Estimate the gradients of an importance, once for each thing that is cut."""
    count = min(stage.texts, text.per_epoch or stage.texts)
    passes = sum(part is not None for part in (stage.layers, stage.ffn))
    passes += 2 * (stage.width is not None)  # of directions, and of heads
    loaded.model.eval().requires_grad_(True)
    # forward, backward to activations, and the two forward passes that measure what pruning cost
    flops = (2 * passes + 1) * _work(loaded, round(text.mean))[0]
    memory = {
        "libraries": LIBRARIES,
        "weights, before and after": 8.0 * loaded.model.num_parameters(),
        "activations": float(BATCH * text.longest * _work(loaded, text.longest)[2]),
    }
    speed = EFFICIENCY * matmul / flops
    return Cost(math.ceil(count / BATCH), count * text.mean, speed, memory, checkpoints=0.0)


def steps_and_tokens(
    training: Training, per_epoch: float | None, mean: float
) -> tuple[int | None, float | None]:
    """Count optimizer steps and real tokens until the first limit.

    None where the size of the corpus would have to be known; without it, the steps are a bound.
    """
    batches, sequences = None, float(training.batch_size)
    if per_epoch is not None:
        batches = max(math.ceil(per_epoch / training.batch_size), 1)
        sequences = min(per_epoch / batches, sequences)  # the last batch is a smaller one
    limits = (
        training.max_steps,
        training.max_tokens and math.ceil(training.max_tokens / (sequences * mean)),
        training.epochs and batches and max(math.ceil(training.epochs * batches), 1),
    )
    steps = min((int(limit) for limit in limits if limit is not None), default=None)
    return steps, None if steps is None else steps * sequences * mean


# --- work -----------------------------------------------------------------------------------------


def flops_per_token(outline: Outline, length: int) -> float:
    """Count a training step's floating-point operations, for each token of texts this long.

    The vocabulary head is computed at the rows that the objectives read. Norms, activations and
    the optimizer are within EFFICIENCY.
    """
    stage, student = _trained(outline)
    rows = _head_rows(stage, student)
    forward, backward, _ = _work(student, length, rows)
    if stage.training.gradient_checkpointing and _work(student, length)[1]:
        forward += _work(student, length)[0]  # once more, to have what backward needs
    asked = sum(_work(teacher, length, rows)[0] for teacher in outline.teachers)
    return float(forward + backward + asked)


def _trained(outline: Outline) -> tuple[Finetune | Distill, LoadedModel]:
    """A training stage and its model, set to train what the stage trains."""
    stage, student = outline.stage, outline.model
    assert isinstance(stage, (Finetune, Distill))
    assert student is not None
    freeze(stage, student)
    student.model.train(stage.training.dropout)
    return stage, student


def _work(loaded: LoadedModel, length: int, rows: float = 0.0) -> np.ndarray:
    """Count as `_counted`, with a vocabulary head at a fraction of the tokens."""
    body = loaded.model.base_model if loaded.task == Task.MASKED_LM else loaded.model
    work = _counted(body, length)
    return work + rows * (_counted(loaded.model, length) - work) if rows else work


def _counted(model: Any, length: int) -> np.ndarray:
    """Count, for each token of a text: operations forward and backward, bytes kept for backward."""
    table: Any = model.get_input_embeddings().weight
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    sdpa, kept = model.config._attn_implementation == "sdpa", dict[int, torch.Tensor]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # a fused attention, which the meta device lacks, keeps no matrix without dropout
        if model.training or not sdpa or tensor.shape[-2:] != (length, length):
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    inputs = torch.empty(1, length, table.shape[1], device="meta")
    inputs.requires_grad_(table.requires_grad)
    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(inputs_embeds=inputs)[0]
        forward = counter.get_total_flops()
        if output.requires_grad:
            output.backward(torch.empty_like(output))
        both = counter.get_total_flops()
    stored = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in own)
    return np.array([forward, both - forward, stored]) / length


def _head_rows(stage: Finetune | Distill, student: LoadedModel) -> float:
    """Return the fraction of the tokens at which the vocabulary head is computed."""
    if student.task != Task.MASKED_LM:
        return 0.0
    if isinstance(stage, Finetune):
        return stage.masking.probability
    on_logits = [objective for objective in stage.weighted if objective.reads == "logits"]
    if any(objective.rows == "distributions" for objective in on_logits):
        return 1.0
    return stage.masking.probability if on_logits else 0.0


def _weighted(stage: Finetune | Distill) -> list[Objective]:
    return stage.weighted if isinstance(stage, Distill) else []


# --- memory ---------------------------------------------------------------------------------------


def memory_bytes(outline: Outline, longest: int) -> dict[str, float]:
    """Estimate memory at its peak, by what it is for; `longest`: tokens of the longest sequence."""
    stage, student = _trained(outline)
    settings, config = stage.training, student.model.config
    tokens = (settings.micro_batch_size or settings.batch_size) * longest
    trained = trained_parameters(outline)
    kept = _work(student, longest)[2]
    if settings.gradient_checkpointing and kept:  # the layers' inputs, and what one layer keeps
        layers = config.num_hidden_layers
        kept = kept / layers + 4 * config.hidden_size * layers
    found = {
        "libraries": LIBRARIES,
        "teacher's weights": 4.0 * sum(t.model.num_parameters() for t in outline.teachers),
        "student's weights, gradients and optimizer": 12.0 * trained
        + 4.0 * student.model.num_parameters(),
        "activations": float(tokens * kept),
    }
    # Rows of keys of one token: relations and attention scores keep two float32 matrices of the
    # student per head (softened, and masked or squared), and one of each teacher.
    heads, matrices = config.num_attention_heads, 0
    for objective in _weighted(stage):
        if isinstance(objective, Relations):
            matrices += (objective.heads or heads) * len(objective.pairs)
        elif isinstance(objective, AttentionMse):
            matrices += heads * config.num_hidden_layers
    if matrices:
        each = 4.0 * longest * (2 + len(outline.teachers))
        found["attention's matrices"] = tokens * matrices * each
    rows = min(settings.chunk_size, tokens * _head_rows(stage, student))
    if rows:
        kinds = {type(objective) for objective in _weighted(stage)}
        # copies alive at once, counted; a second objective on all logits adds one, as does each
        # further teacher
        copies = 3 + (SoftTargets in kinds) + ({SoftTargets, LogitsMse} <= kinds)
        copies += max(len(outline.teachers) - 1, 0)
        found["logits of a chunk"] = rows * config.vocab_size * 4 * copies
    return found


def trained_parameters(outline: Outline) -> int:
    """Count the parameters that a training changes, projections that a loss learns included."""
    stage, student = _trained(outline)
    own = student.model.num_parameters(only_trainable=True)
    shapes = [
        shape
        for teacher in outline.teachers
        for shape in projection_shapes(student, teacher, _weighted(stage)).values()
    ]
    return own + sum(rows * columns for rows, columns in shapes)


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Time a large matrix product, the best in half a second: floating-point operations/s."""
    matrix = torch.ones(1024, 1024, device=device, dtype=dtype)
    timer = Timer("m @ m", globals={"m": matrix}, num_threads=torch.get_num_threads())
    return 2 * 1024**3 / min(timer.blocked_autorange(min_run_time=0.5).times)
