"""The losses on logits, and the one pass that computes several of them in chunks of rows.

The public functions return means over rows. Inside, every loss is a sum over rows: the loop divides
by the counts of the whole batch over all micro-batches and processes, so that accumulation changes
nothing.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from potstill.data.sequences import IGNORED
from potstill.models.signals import check_same_shape
from potstill.recipe import SoftTargets

Divergence = Literal["kl", "cross_entropy"]


def soft_targets(
    student_logits_KV: Tensor,
    teacher_logits_KV: Tensor,
    temperature: float,
    divergence: Divergence = "kl",
) -> Tensor:
    """Mean over rows of T² · D(softmax(teacher / T), softmax(student / T)).

    Hinton et al. 2015 (arXiv 1503.02531) section 2: both are softened by the same T, and T² keeps
    the size of the gradients when T changes. `divergence` "kl" is KL(teacher || student);
    "cross_entropy" is larger by the entropy of the teacher, with the same gradient.

    Args:
        student_logits_KV, teacher_logits_KV: K distributions over V classes.
        temperature: T > 0.

    Returns:
        A scalar in nats, times T².

    Raises:
        ValueError: a temperature that is not above 0, or logits of different shapes.
    """
    check_same_shape(student_logits_KV, teacher_logits_KV, "logits")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature:g}: it must be above 0")
    total = _soft_rows(student_logits_KV, teacher_logits_KV, temperature, divergence).sum()
    return total / _rows(student_logits_KV)


def hard_targets(student_logits_KV: Tensor, targets_K: Tensor) -> Tensor:
    """Mean cross-entropy with one-hot targets, over the rows whose target is not -100.

    The masked-LM loss of DistilBERT (arXiv 1910.01108, section 2) when targets are the original
    tokens; with the teacher's most likely tokens it is the article's variant. T = 1.

    Args:
        student_logits_KV: K distributions over V classes.
        targets_K: class indices; -100 leaves a row out.

    Returns:
        A scalar in nats; 0 when every row is left out.
    """
    kept = (targets_K != IGNORED).sum().clamp(min=1)
    return _hard_rows(student_logits_KV, targets_K).sum() / kept


def logits_mse(
    student_logits_KV: Tensor, teacher_logits_KV: Tensor, included_KV: Tensor | None = None
) -> Tensor:
    """Mean over rows of the mean over classes of the squared difference of the logits.

    Ba and Caruana 2014 (arXiv 1312.6184), the loss of section 2: regression on the teacher's
    logits.

    Args:
        student_logits_KV, teacher_logits_KV: K rows of logits over V classes.
        included_KV: the classes (bool) that each row is about; None: all.

    Raises:
        ValueError: logits of different shapes.
    """
    check_same_shape(student_logits_KV, teacher_logits_KV, "logits")
    squares_KV = (student_logits_KV - teacher_logits_KV).square()
    if included_KV is None:
        return squares_KV.mean(-1).sum() / _rows(squares_KV)
    rows_K = (squares_KV * included_KV).sum(-1) / included_KV.sum(-1).clamp(min=1)
    return rows_K.sum() / _rows(squares_KV)


def temperature_at(settings: SoftTargets, step: int, steps: int) -> float:
    """The temperature of a step, counted from 0, of a training of so many.

    From `temperature` at the first to `final_temperature` at the last, in a line or half a cosine.
    """
    start, end = settings.temperature, settings.final_temperature
    if end is None:
        return start
    done = min(step / max(steps - 1, 1), 1.0)
    left = (1 + math.cos(math.pi * done)) / 2 if settings.schedule == "cosine" else 1 - done
    return end + (start - end) * left


def _rows(values: Tensor) -> int:
    return max(values.shape[0], 1)


def _soft_rows(
    student_KV: Tensor, teacher_KV: Tensor, temperature: float, divergence: Divergence
) -> Tensor:
    log_student = F.log_softmax(student_KV / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher_KV / temperature, dim=-1)
    if divergence == "kl":
        log_student = log_student - log_teacher
    return -(log_teacher.exp() * log_student).sum(-1) * temperature**2


def _hard_rows(student_KV: Tensor, targets_K: Tensor) -> Tensor:
    return F.cross_entropy(student_KV, targets_K, ignore_index=IGNORED, reduction="none")
