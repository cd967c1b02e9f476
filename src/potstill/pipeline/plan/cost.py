"""What a training costs, before it starts: tokens from a sample, time and memory by arithmetic.

No weights are read: models are on the meta device.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch

from potstill.compression.importance import BATCH
from potstill.models import LoadedModel
from potstill.models.families import layer_prefix
from potstill.objectives.pairing import projection_shapes
from potstill.pipeline.context import Outline
from potstill.pipeline.plan.text import Text
from potstill.recipe import (
    AttentionMse,
    Distill,
    Finetune,
    LogitObjective,
    LogitsMse,
    Objective,
    Prune,
    Relations,
    SoftTargets,
    Task,
    Training,
)
from potstill.training.teacher_cache import why_live
from potstill.training.trainee import is_trained

LIBRARIES = 400e6  # bytes that Python, torch and transformers take before any model
# Training's floating-point operations a second, as a share of a large matrix product's. Measured
# on two CPU cores with MiniLM: sentence distillation from 6 to 3 layers and masked-LM training of 6
# layers both give 0.57.
EFFICIENCY = 0.57
# Copies of a chunk's logits alive at once, counted: with soft targets, without, and what a second
# objective on all logits and each further teacher add.
LOGIT_COPIES = {True: 4, False: 3}


# --- cost -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What one training stage takes."""

    steps: int | None  # of one training; None: not known
    tokens: float | None  # real ones
    tokens_per_second: float
    memory: dict[str, float]  # bytes at the peak, by what they are for
    checkpoints: float  # bytes on disk while it runs
    trainings: int = 1
    asking: float = 0.0  # seconds in which teachers are asked, once, where their answers are kept

    @property
    def seconds(self) -> float | None:
        if self.tokens is None:
            return None
        return self.trainings * self.tokens / self.tokens_per_second + self.asking


def cost_of(outline: Outline, text: Text, matmul: float) -> Cost:
    """The cost of a training stage; `matmul`: operations a second of a large matrix product."""
    stage = outline.stage
    assert isinstance(stage, (Finetune, Distill))
    assert outline.model is not None
    per_epoch = text.per_epoch
    if isinstance(stage, Finetune) and text.labelled is not None:
        per_epoch = text.labelled
    steps, tokens = steps_and_tokens(stage.training, per_epoch, text.mean)
    asking = 0.0
    if per_epoch is not None and tokens is not None:
        epochs = stage.repeats * tokens / (per_epoch * text.mean)
        if isinstance(stage, Distill) and why_live(stage, outline.model.task, epochs) is None:
            forward = sum(2 * _layer_weights(teacher) for teacher in outline.teachers)
            asking = per_epoch * text.mean * forward / (EFFICIENCY * matmul)
            outline = replace(outline, teachers=())
    return Cost(
        steps=steps,
        tokens=tokens,
        trainings=stage.repeats,
        asking=asking,
        tokens_per_second=EFFICIENCY * matmul / flops_per_token(outline),
        memory=memory_bytes(outline, text.longest),
        # weights and two moments of the optimizer; two are kept, and the best where it is wanted
        checkpoints=12.0
        * trained_parameters(outline)
        * (3 if stage.training.keep == "best" else 2),
    )


def pruning_cost(stage: Prune, loaded: LoadedModel, text: Text, matmul: float) -> Cost:
    """What the gradients of a prune stage's importance take, once for each thing that is cut."""
    count = min(stage.texts, text.per_epoch or stage.texts)
    tokens = count * text.mean
    passes = sum(part is not None for part in (stage.layers, stage.ffn))
    passes += 2 * (stage.width is not None)  # of directions, and of heads
    # forward, backward to activations, and the two forward passes that tell what pruning cost
    flops = 2.0 * _layer_weights(loaded) * (2 * passes + 1)
    activations = _activation_bytes(loaded, Training(max_steps=1, dropout=False), text.longest)
    return Cost(
        steps=math.ceil(count / BATCH),
        tokens=tokens,
        tokens_per_second=EFFICIENCY * matmul / flops,
        memory={
            "libraries": LIBRARIES,
            "weights, before and after": 8.0 * loaded.model.num_parameters(),
            "activations": BATCH * text.longest * activations,
        },
        checkpoints=0.0,
    )


def steps_and_tokens(
    training: Training, per_epoch: float | None, mean: float
) -> tuple[int | None, float | None]:
    """Optimizer steps and real tokens until the first limit.

    None where only the size of the corpus could tell; without it, the steps are an upper bound.
    """
    steps = [training.max_steps] if training.max_steps is not None else []
    if training.max_tokens is not None:
        steps.append(math.ceil(training.max_tokens / (training.batch_size * mean)))
    if per_epoch is None:
        return (min(steps), min(steps) * training.batch_size * mean) if steps else (None, None)
    batches = max(math.ceil(per_epoch / training.batch_size), 1)
    sequences = min(per_epoch / batches, training.batch_size)  # the last batch is a smaller one
    if training.max_tokens is not None:
        steps[-1] = math.ceil(training.max_tokens / (sequences * mean))
    if training.epochs is not None:
        steps.append(max(math.ceil(training.epochs * batches), 1))
    return min(steps), min(steps) * sequences * mean


def flops_per_token(outline: Outline) -> float:
    """Floating-point operations of a training step for each real token.

    2 a weight and token for a forward pass, and twice that for a backward one; the vocabulary head
    at the rows that the objectives read. Attention's own products are within EFFICIENCY.
    """
    stage, student = outline.stage, outline.model
    assert isinstance(stage, (Finetune, Distill))
    assert student is not None
    passes = 4 if stage.training.gradient_checkpointing else 3
    layers = 2 * _layer_weights(student) * (1 if _head_only(stage) else passes)
    layers += sum(2 * _layer_weights(teacher) for teacher in outline.teachers)
    rows = _head_rows(stage, student)
    heads = 3 * _head_weights(student)
    heads += sum(_head_weights(teacher) for teacher in outline.teachers)
    return float(layers + rows * 2 * heads)


def _head_only(stage: Finetune | Distill) -> bool:
    return isinstance(stage, Finetune) and stage.train == "head"


def _head_rows(stage: Finetune | Distill, student: LoadedModel) -> float:
    """Share of the tokens at which the vocabulary head is computed."""
    if student.task != Task.MASKED_LM:
        return 0.0
    weighted = _weighted(stage)
    if weighted and not any(isinstance(o, LogitObjective) for o in weighted):
        return 0.0
    dense = [o for o in weighted if isinstance(o, (SoftTargets, LogitsMse))]
    return 1.0 if any(o.positions == "all" for o in dense) else stage.masking.probability


def _weighted(stage: Finetune | Distill) -> list[Objective]:
    return [o for o in stage.objectives if o.weight > 0] if isinstance(stage, Distill) else []


def _layer_weights(loaded: LoadedModel) -> int:
    prefix = layer_prefix(loaded.model)
    named = loaded.model.named_parameters()
    return sum(p.numel() for name, p in named if name.startswith(prefix))


def _head_weights(loaded: LoadedModel) -> int:
    config = loaded.model.config
    return int(config.hidden_size * (config.vocab_size + config.hidden_size))


def memory_bytes(outline: Outline, longest: int) -> dict[str, float]:
    """Memory at its peak, by what it is for; `longest`: tokens of the longest sequence."""
    stage, student = outline.stage, outline.model
    assert isinstance(stage, (Finetune, Distill))
    assert student is not None
    settings = stage.training
    tokens = (settings.micro_batch_size or settings.batch_size) * longest
    trained = trained_parameters(outline)
    frozen = student.model.num_parameters() - trained
    teachers = sum(teacher.model.num_parameters() for teacher in outline.teachers)
    found = {
        "libraries": LIBRARIES,
        "teacher's weights": 4.0 * teachers,
        "student's weights, gradients and optimizer": 16.0 * trained + 4.0 * frozen,
        "activations": 0.0
        if _head_only(stage)
        else tokens * _activation_bytes(student, settings, longest),
    }
    if matrices := _matrix_bytes(outline, longest):
        found["attention's matrices"] = tokens * matrices
    rows = min(settings.chunk_size, tokens * _head_rows(stage, student))
    if rows:
        kinds = {type(objective) for objective in _weighted(stage)}
        copies = LOGIT_COPIES[SoftTargets in kinds] + ({SoftTargets, LogitsMse} <= kinds)
        copies += max(len(outline.teachers) - 1, 0)
        found["logits of a chunk"] = rows * student.model.config.vocab_size * 4 * copies
    return found


def _matrix_bytes(outline: Outline, length: int) -> float:
    """What relations and attention scores keep of one token: a row of keys a head, float32.

    Of the student's matrix backward needs two (softened, and masked or squared), of each teacher's
    one.
    """
    assert outline.model is not None
    heads, matrices = outline.model.model.config.num_attention_heads, 0
    for objective in _weighted(outline.stage) if isinstance(outline.stage, Distill) else []:
        if isinstance(objective, Relations):
            matrices += (objective.heads or heads) * len(objective.pairs)
        elif isinstance(objective, AttentionMse):
            matrices += heads * outline.model.model.config.num_hidden_layers
    return float(4 * length * matrices * (2 + len(outline.teachers)))


def _activation_bytes(loaded: LoadedModel, settings: Training, length: int) -> float:
    """What backward needs of one token, as counted in what autograd keeps: float32."""
    config = loaded.model.config
    width, inner = config.hidden_size, _inner(loaded)
    layer = 8 * width + 2 * inner
    if settings.dropout:  # masks, and attention's probabilities, which are not kept without it
        layer = 10 * width + 2 * inner + 3 * config.num_attention_heads * length
    layers = config.num_hidden_layers
    kept = layers * width + layer if settings.gradient_checkpointing else layers * layer
    return float(4 * (kept + 2 * width))


def _inner(loaded: LoadedModel) -> int:
    config = loaded.model.config
    return int(getattr(config, "intermediate_size", None) or config.hidden_dim)


def trained_parameters(outline: Outline) -> int:
    """How many parameters a training changes: of its model, and projections that a loss learns."""
    assert isinstance(outline.stage, (Finetune, Distill))
    assert outline.model is not None
    stage, loaded = outline.stage, outline.model
    named = loaded.model.named_parameters()
    own = sum(p.numel() for name, p in named if is_trained(stage, loaded, name))
    shapes = [
        shape
        for teacher in outline.teachers
        for shape in projection_shapes(loaded, teacher, _weighted(stage)).values()
    ]
    return own + sum(rows * columns for rows, columns in shapes)


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product: the best in half a second."""
    left = torch.ones(1024, 1024, device=device, dtype=dtype)
    best, spent = math.inf, 0.0
    while spent < 0.5:
        start = time.perf_counter()
        (left @ left).sum().item()  # the number waits for a GPU to be done
        seconds = time.perf_counter() - start
        best, spent = min(best, seconds), spent + seconds
    return 2 * 1024**3 / best
