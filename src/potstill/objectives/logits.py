"""Compute the losses on logits; chunks.py computes several of them at once.

The public functions return means over rows. Inside, every loss is a sum over rows: the loop divides
by the counts of the whole batch over all micro-batches and processes, so that accumulation changes
nothing.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from potstill.data.sequences import IGNORED
from potstill.models.signals import check_same_shape
from potstill.recipe import SoftTargets

__all__ = ["hard_targets", "logits_mse", "soft_targets", "temperature_at"]

Divergence = Literal["kl", "cross_entropy"]
temperature_at = SoftTargets.temperature_at


def soft_targets(
    student_logits_KV: Tensor,
    teacher_logits_KV: Tensor,
    temperature: float,
    divergence: Divergence = "kl",
) -> Tensor:
    """Return the mean over rows of T² · D(softmax(teacher / T), softmax(student / T)).

    Hinton et al. 2015 (arXiv 1503.02531) section 2: both are softened by the same T, and T² keeps
    the size of the gradients when T changes. `divergence` "kl" is KL(teacher || student);
    "cross_entropy" is larger by the entropy of the teacher, with the same gradient.

    Args:
        student_logits_KV, teacher_logits_KV: K distributions over V classes.
        temperature: T > 0.
        divergence: "kl" (default) or "cross_entropy".

    Returns:
        A scalar in nats, times T².

    Raises:
        ValueError: The temperature is not above 0, or the shapes differ.
    """
    check_same_shape(student_logits_KV, teacher_logits_KV, "logits")
    if temperature <= 0:
        raise ValueError(f"temperature: {temperature:g} is not above 0. Give a positive number.")
    log_student = F.log_softmax(student_logits_KV / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher_logits_KV / temperature, dim=-1)
    if divergence == "kl":
        log_student = log_student - log_teacher
    values_K = -(log_teacher.exp() * log_student).sum(-1) * temperature**2
    return mean_over(values_K)


def hard_targets(student_logits_KV: Tensor, targets_K: Tensor) -> Tensor:
    """Return the mean cross-entropy with one-hot targets, over rows whose target is not -100.

    It is the masked-LM loss of DistilBERT (arXiv 1910.01108, section 2) when targets are the
    original tokens; with the teacher's most likely tokens it is the article's variant. T = 1.

    Args:
        student_logits_KV: K distributions over V classes.
        targets_K: class indices; -100 leaves a row out.

    Returns:
        A scalar in nats; 0 when every row is left out.
    """
    kept = (targets_K != IGNORED).sum().clamp(min=1)
    losses_K = F.cross_entropy(student_logits_KV, targets_K, ignore_index=IGNORED, reduction="none")
    return losses_K.sum() / kept


def logits_mse(
    student_logits_KV: Tensor, teacher_logits_KV: Tensor, included_KV: Tensor | None = None
) -> Tensor:
    """Return the mean over rows of the mean over classes of the logits' squared difference.

    It is the loss of Ba and Caruana 2014 (arXiv 1312.6184) section 2: regression on the teacher's
    logits.

    Args:
        student_logits_KV, teacher_logits_KV: K rows of logits over V classes.
        included_KV: the classes (bool) that each row is about; None: all.

    Raises:
        ValueError: The shapes differ.
    """
    check_same_shape(student_logits_KV, teacher_logits_KV, "logits")
    squares_KV = (student_logits_KV - teacher_logits_KV).square()
    if included_KV is None:
        return mean_over(squares_KV.mean(-1))
    return mean_over((squares_KV * included_KV).sum(-1) / included_KV.sum(-1).clamp(min=1))


def mean_over(rows_K: Tensor) -> Tensor:
    """Return the mean over rows; of none, 0."""
    return rows_K.sum() / max(len(rows_K), 1)
