"""All losses on logits in one pass over chunks of rows, with their gradients.

Logits of [rows x vocabulary] never exist as a whole: a chunk is computed, its losses and gradients
are added up, and it is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.data.sequences import IGNORED
from potstill.models import Signals
from potstill.models.signals import Readout, wide
from potstill.recipe import GoldMse, HardTargets, LogitObjective, LogitsMse, SoftTargets

# --- several of them, in chunks -------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Which of the K rows a loss is over, and their gold targets."""

    # rows of soft_targets and of logits_mse (bool); those of the hard ones have a target not -100
    soft_K: Tensor
    mse_K: Tensor
    gold_K: Tensor
    # regression: what each row's one logit is to be; not a number where nobody knows
    values_K: Tensor | None = None

    @property
    def golden(self) -> int:
        """Rows that have a gold target."""
        if self.values_K is not None:
            return int((~self.values_K.isnan()).sum())
        return int((self.gold_K != IGNORED).sum())


def logit_sums(
    objectives: Sequence[LogitObjective],
    student: Signals,
    teachers: Sequence[tuple[float, Signals]],
    rows: Rows,
    scales: Mapping[str, float],
    chunk_size: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted total of objectives on logits, and each one's plain sum over its rows.

    Args:
        teachers: (share, signals); the shares sum to 1. Soft targets follow the mean of their
            probabilities, hard ones its most likely class, logits_mse the mean of their logits.
        scales: kind -> factor of its sum in the total.
        chunk_size: rows of logits that exist at a time.
    """
    assert student.features_KD is not None
    assert student.readout is not None
    logit_pass = _LogitPass(objectives, teachers, rows, scales, chunk_size, student.readout)
    inputs = [student.features_KD, student.readout.weight_VD, student.readout.bias]
    if not torch.is_grad_enabled():
        # a Function is asked for the gradients of parameters all the same
        inputs = [None if value is None else value.detach() for value in inputs]
    total, values = _ChunkedLogits.apply(*inputs, logit_pass)  # type: ignore[no-untyped-call]
    return total, {o.kind: value for o, value in zip(objectives, values, strict=True)}


@dataclass(frozen=True)
class _LogitPass:
    objectives: Sequence[LogitObjective]
    teachers: Sequence[tuple[float, Signals]]
    rows: Rows
    scales: Mapping[str, float]
    chunk_size: int
    student: Readout

    @property
    def shares(self) -> list[float]:
        return [share for share, _ in self.teachers]

    @property
    def _asks_teachers(self) -> bool:
        return any(
            o.target == "teacher" if isinstance(o, HardTargets) else not isinstance(o, GoldMse)
            for o in self.objectives
        )

    def teacher_logits(self, chunk: slice) -> list[Tensor]:
        """The teachers' logits of a chunk; none where no objective asks for them."""
        if not self._asks_teachers:
            return []
        found = []
        for _, signals in self.teachers:
            assert signals.features_KD is not None
            assert signals.readout is not None
            with torch.no_grad():
                found.append(wide(signals.readout.logits(signals.features_KD[chunk], chunk)))
        return found


class _ChunkedLogits(torch.autograd.Function):
    """Losses and their gradients, chunk by chunk, in forward; backward only scales what is there.

    The gradient of the readout's weight accumulates in place (addmm), so one buffer of its size is
    all that stays; the logits of a chunk are freed before the next. Gradients of logits are written
    out instead of left to autograd, which keeps seven tensors of a chunk's size where four do.
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
        values = wide(features_KD.new_zeros(len(logit_pass.objectives)))
        readout = Readout(weight_VD, bias, logit_pass.student.exact)
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


def _one_chunk(
    features_kD: Tensor,
    readout: Readout,
    logit_pass: _LogitPass,
    chunk: slice,
    grads: list[Tensor | None],
) -> Tensor:
    """Losses of one chunk, as a vector over objectives; adds its gradients to `grads` in place."""
    student_kV = wide(readout.logits(features_kD, chunk))
    teachers, shares = logit_pass.teacher_logits(chunk), logit_pass.shares
    rows = logit_pass.rows
    values: dict[str, Tensor] = {}
    hard: tuple[Tensor, Tensor] | None = None  # rows, and their gradients
    dense: list[Tensor] = []  # gradients of all rows
    for objective in sorted(logit_pass.objectives, key=_order):
        scale = logit_pass.scales[objective.kind]
        match objective:
            case HardTargets():
                gold_k = rows.gold_K[chunk]
                value, hard = _hard_chunk(objective, student_kV, teachers, shares, gold_k, scale)
            case LogitsMse():
                included_kV = readout.included(chunk)
                kept_k = rows.mse_K[chunk]
                value, grad_kV = _mse_chunk(
                    student_kV, _mean(teachers, shares), included_kV, kept_k, scale
                )
                dense.append(grad_kV)
            case GoldMse():
                assert rows.values_K is not None
                wanted_k1 = wide(rows.values_K[chunk])[:, None]
                known_k = ~wanted_k1[:, 0].isnan()
                value, grad_kV = _mse_chunk(
                    student_kV, wanted_k1.nan_to_num(), None, known_k, scale
                )
                dense.append(grad_kV)
            case SoftTargets():
                kept_k = rows.soft_K[chunk]
                value, grad_kV = _soft_chunk_(
                    objective, student_kV, teachers, shares, kept_k, scale
                )
                dense.append(grad_kV)
            case _:
                assert_never(objective)
        values[objective.kind] = value
    if any(grad is not None for grad in grads):
        grad_kV = dense.pop() if dense else student_kV.zero_()
        for other_kV in dense:
            grad_kV.add_(other_kV)
        if hard is not None:
            grad_kV.index_add_(0, *hard)
        _add_gradients_(grads, grad_kV, features_kD, readout.weight_VD, chunk)
    return torch.stack([values[objective.kind] for objective in logit_pass.objectives])


def _order(objective: LogitObjective) -> int:
    """Hard ones first: they read few rows. Soft ones last: they overwrite all logits."""
    return [HardTargets, GoldMse, LogitsMse, SoftTargets].index(type(objective))


def _mean(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The weighted mean; of one, itself."""
    if len(values) == 1:
        return values[0]
    return torch.stack([share * v for share, v in zip(shares, values, strict=True)]).sum(0)


def _log_mean_(log_p: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """log of the weighted mean of probabilities, from their logarithms; overwrites the first."""
    if len(log_p) == 1:
        return log_p[0]
    total = log_p[0].add_(math.log(shares[0]))
    for share, other in zip(shares[1:], log_p[1:], strict=True):
        total = torch.logaddexp(total, other.add_(math.log(share)), out=total)
    return total


def _hard_chunk(
    objective: HardTargets,
    student_kV: Tensor,
    teachers: Sequence[Tensor],
    shares: Sequence[float],
    gold_k: Tensor,
    scale: float,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Sum of cross-entropies, and (the rows that have one, scale * its gradient, q - one-hot)."""
    rows_h = (gold_k != IGNORED).nonzero()[:, 0]
    targets_h = gold_k[rows_h]
    if objective.target == "teacher":
        likely_hV = [teacher_kV[rows_h] for teacher_kV in teachers]
        if len(likely_hV) > 1:
            likely_hV = [_mean([torch.softmax(z_hV, -1) for z_hV in likely_hV], shares)]
        targets_h = likely_hV[0].argmax(-1)
    log_student_hV = F.log_softmax(student_kV[rows_h], dim=-1)
    at_h1 = targets_h[:, None]
    value = -log_student_hV.gather(1, at_h1).sum()
    grad_hV = log_student_hV.exp_()
    grad_hV.scatter_add_(1, at_h1, grad_hV.new_full(at_h1.shape, -1.0))
    return value, (rows_h, grad_hV.mul_(scale))


def _mse_chunk(
    student_kV: Tensor,
    teacher_kV: Tensor,
    included_kV: Tensor | None,
    kept_k: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Sum over rows of the mean squared difference, and scale * its gradient, 2 (s - t) / classes.

    Of classes that are not a row's own, neither difference nor number counts.
    """
    difference_kV = student_kV - teacher_kV
    classes_k1 = difference_kV.new_full((len(kept_k), 1), difference_kV.shape[1])
    if included_kV is not None:
        difference_kV.mul_(included_kV)
        classes_k1 = included_kV.sum(-1, keepdim=True).clamp(min=1).to(difference_kV.dtype)
    difference_kV.mul_(kept_k[:, None])
    value = (difference_kV.square().sum(-1, keepdim=True) / classes_k1).sum()
    return value, difference_kV.mul_(2 * scale / classes_k1)


def _soft_chunk_(
    objective: SoftTargets,
    student_kV: Tensor,
    teachers: Sequence[Tensor],
    shares: Sequence[float],
    kept_k: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Sum of T² · D(p, q), and scale * its gradient, T (q - p): the same for both divergences.

    All logits are overwritten: what they hold afterwards means nothing.
    """
    temperature = objective.temperature
    log_student_kV = _log_softmax_(student_kV.div_(temperature))
    softened = [_log_softmax_(teacher_kV.div_(temperature)) for teacher_kV in teachers]
    log_teacher_kV = _log_mean_(softened, shares)
    teacher_p_kV = log_teacher_kV.exp()
    terms_kV = (
        log_teacher_kV.sub_(log_student_kV)
        if objective.divergence == "kl"
        else torch.neg(log_student_kV, out=log_teacher_kV)
    )
    values_k = terms_kV.mul_(teacher_p_kV).sum(-1)
    grad_kV = log_student_kV.exp_().sub_(teacher_p_kV).mul_(scale * temperature)
    if not bool(kept_k.all()):
        values_k, grad_kV = values_k.mul_(kept_k), grad_kV.mul_(kept_k[:, None])
    return values_k.sum() * temperature**2, grad_kV


def _log_softmax_(logits_kV: Tensor) -> Tensor:
    return torch.log_softmax(logits_kV, -1, out=logits_kV)


def _add_gradients_(
    grads: list[Tensor | None],
    grad_kV: Tensor,
    features_kD: Tensor,
    weight_VD: Tensor,
    chunk: slice,
) -> None:
    """From the gradient of a chunk's logits to those of features, weight and bias."""
    grad_features, grad_weight, grad_bias = grads
    if grad_features is not None:
        grad_features[chunk] = grad_kV.to(weight_VD.dtype) @ weight_VD
    if grad_weight is not None:
        grad_weight.addmm_(grad_kV.T.to(grad_weight.dtype), features_kD.to(grad_weight.dtype))
    if grad_bias is not None:
        if grad_bias.dim() == 2:
            grad_bias[chunk] = grad_kV
        else:
            grad_bias += grad_kV.sum(0)
