"""The losses, as pure functions, and the one pass that computes several of them in chunks of rows.

The public functions return means over rows. Inside, every loss is a sum over rows: the loop divides
by the counts of the whole batch over all micro-batches and processes, so that accumulation changes
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.recipe import HardTargets, HiddenCosine, Objective, SoftTargets
from potstill.signals import Readout, Signals

Divergence = Literal["kl", "cross_entropy"]
IGNORED = -100  # a target that takes part in no loss, as in torch's cross_entropy


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
    _check_same_shape(student_logits_KV, teacher_logits_KV, "logits")
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


def hidden_cosine(student_hidden_KD: Tensor, teacher_hidden_KD: Tensor) -> Tensor:
    """Mean over rows of 1 - cos(student, teacher): DistilBERT's L_cos (arXiv 1910.01108, section
    2).

    Args:
        student_hidden_KD, teacher_hidden_KD: hidden states of the same K tokens, of the same width
            D.

    Returns:
        A scalar from 0 to 2.

    Raises:
        ValueError: shapes that differ.
    """
    _check_same_shape(student_hidden_KD, teacher_hidden_KD, "hidden states")
    return _cosine_rows(student_hidden_KD, teacher_hidden_KD).sum() / _rows(student_hidden_KD)


def _rows(values: Tensor) -> int:
    return max(values.shape[0], 1)


def _check_same_shape(student: Tensor, teacher: Tensor, what: str) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"{what} of student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ "
            "in shape: "
            "this objective needs the same rows and the same width"
        )


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


def _cosine_rows(student_KD: Tensor, teacher_KD: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(student_KD, teacher_KD, dim=-1)


# --- the sum of several, in chunks ----------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Which of the K rows a loss is over, and their gold targets."""

    # rows of the soft targets (bool); rows of the hard ones are those whose target is not -100
    soft_K: Tensor
    gold_K: Tensor


def objective_sums(
    objectives: Sequence[Objective],
    student: Signals,
    teacher: Signals | None,
    rows: Rows,
    tokens_BL: Tensor,
    scales: Mapping[str, float],
    chunk_size: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted total of the objectives, and each one's plain sum over its rows.

    Args:
        tokens_BL: real tokens (bool), the rows of `hidden_cosine`.
        scales: kind -> factor of its sum in the total (weight / count over the whole batch).
        chunk_size: rows of logits that exist at a time.

    Returns:
        total: scalar with a gradient; sums: kind -> scalar without one.

    Raises:
        ValueError: hidden states of different widths.
    """
    total = student.hidden_BLD.new_zeros(())
    sums: dict[str, Tensor] = {}
    on_logits: list[SoftTargets | HardTargets] = []
    for objective in objectives:
        match objective:
            case SoftTargets() | HardTargets():
                on_logits.append(objective)
            case HiddenCosine():
                assert teacher is not None
                hidden_s, hidden_t = student.hidden_BLD[tokens_BL], teacher.hidden_BLD[tokens_BL]
                _check_same_shape(hidden_s, hidden_t, "hidden states")
                value = _cosine_rows(_wide(hidden_s), _wide(hidden_t)).sum()
                sums[objective.kind] = value.detach()
                total = total + scales[objective.kind] * value
            case _:
                assert_never(objective)
    if on_logits:
        assert student.features_KD is not None
        assert student.readout is not None
        logit_pass = _LogitPass(on_logits, teacher, rows, scales, chunk_size)
        bias = student.readout.bias
        logit_total, values = _ChunkedLogits.apply(  # type: ignore[no-untyped-call]
            student.features_KD, student.readout.weight_VD, bias, logit_pass
        )
        total = total + logit_total
        sums |= {objective.kind: value for objective, value in zip(on_logits, values, strict=True)}
    return total, sums


@dataclass(frozen=True)
class _LogitPass:
    objectives: Sequence[SoftTargets | HardTargets]
    teacher: Signals | None
    rows: Rows
    scales: Mapping[str, float]
    chunk_size: int

    def sums(self, logits_kV: Tensor, chunk: slice) -> list[Tensor]:
        """Each objective's sum over one chunk of rows."""
        teacher_kV = self._teacher_logits(chunk)
        result = []
        for objective in self.objectives:
            match objective:
                case SoftTargets():
                    assert teacher_kV is not None
                    kept = self.rows.soft_K[chunk]
                    whole = bool(kept.all())
                    student_rows = logits_kV if whole else logits_kV[kept]
                    teacher_rows = teacher_kV if whole else teacher_kV[kept]
                    values = _soft_rows(
                        student_rows, teacher_rows, objective.temperature, objective.divergence
                    )
                case HardTargets():
                    targets = self.rows.gold_K[chunk]
                    kept = targets != IGNORED
                    targets = targets[kept]
                    if objective.target == "teacher":
                        assert teacher_kV is not None
                        targets = teacher_kV[kept].argmax(-1)
                    values = _hard_rows(logits_kV[kept], targets)
                case _:
                    assert_never(objective)
            result.append(values.sum())
        return result

    def _teacher_logits(self, chunk: slice) -> Tensor | None:
        if self.teacher is None:
            return None
        features, readout = self.teacher.features_KD, self.teacher.readout
        if features is None or readout is None:
            return None
        with torch.no_grad():
            return _wide(readout.logits(features[chunk], chunk))


class _ChunkedLogits(torch.autograd.Function):
    """Computes losses and their gradients chunk by chunk in forward; backward only scales what is
    there.

    The gradient of the readout's weight accumulates in place (addmm), so one buffer of its size is
    all that stays; the logits of a chunk are freed before the next.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features_KD: Tensor,
        weight_VD: Tensor,
        bias: Tensor | None,
        logit_pass: _LogitPass,
    ) -> tuple[Tensor, Tensor]:
        grads = [
            torch.zeros_like(value) if value is not None and needed else None
            for value, needed in zip(
                (features_KD, weight_VD, bias), ctx.needs_input_grad[:3], strict=True
            )
        ]
        values = _wide(features_KD.new_zeros(len(logit_pass.objectives)))
        readout = Readout(weight_VD, bias)
        for start in range(0, features_KD.shape[0], logit_pass.chunk_size):
            chunk = slice(start, min(start + logit_pass.chunk_size, features_KD.shape[0]))
            values += _one_chunk(features_KD[chunk], readout, logit_pass, chunk, grads)
        ctx.grads = grads
        scales = [logit_pass.scales[objective.kind] for objective in logit_pass.objectives]
        total = (values * values.new_tensor(scales)).sum()
        ctx.mark_non_differentiable(values)
        return total, values

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Any, ...]:
        grads = ctx.grads
        assert grads is not None, "a second backward through one chunked pass"
        ctx.grads = None  # half of the memory at the peak of backward would be these
        if float(grad_total) != 1.0:
            grads = [
                None if grad is None else grad.mul_(grad_total.to(grad.dtype)) for grad in grads
            ]
        return (*grads, None)


def _wide(values: Tensor) -> Tensor:
    """Losses are computed in float32 at least, whatever the matrix products were computed in."""
    return values if values.dtype == torch.float64 else values.float()


def _one_chunk(
    features_kD: Tensor,
    readout: Readout,
    logit_pass: _LogitPass,
    chunk: slice,
    grads: list[Tensor | None],
) -> Tensor:
    """Losses of one chunk, as a vector over objectives; adds its gradients to `grads` in place."""
    logits = _wide(readout.logits(features_kD, chunk)).requires_grad_()
    with torch.enable_grad():
        sums = logit_pass.sums(logits, chunk)
        weighted = torch.stack(
            [
                logit_pass.scales[objective.kind] * value
                for objective, value in zip(logit_pass.objectives, sums, strict=True)
            ]
        ).sum()
    grad_features, grad_weight, grad_bias = grads
    if any(grad is not None for grad in grads):
        (grad_logits,) = torch.autograd.grad(weighted, logits)
        if grad_features is not None:
            grad_features[chunk] = grad_logits.to(readout.weight_VD.dtype) @ readout.weight_VD
        if grad_weight is not None:
            grad_weight.addmm_(
                grad_logits.T.to(grad_weight.dtype), features_kD.to(grad_weight.dtype)
            )
        if grad_bias is not None:
            if grad_bias.dim() == 2:
                grad_bias[chunk] = grad_logits
            else:
                grad_bias += grad_logits.sum(0)
    return torch.stack([value.detach() for value in sums])
