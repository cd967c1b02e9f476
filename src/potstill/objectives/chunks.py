"""Compute all losses on logits, and their gradients, in one pass over chunks of rows.

Logits of [rows x vocabulary] never exist as a whole: a chunk is computed, its losses and gradients
are added up, and it is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.data.sequences import IGNORED
from potstill.models import Signals
from potstill.models.signals import Readout, wide
from potstill.objectives.hidden import Taught
from potstill.recipe import GoldMse, HardTargets, LogitObjective, LogitsMse, SoftTargets
from potstill.recipe.objectives import Counted


@dataclass(frozen=True)
class Rows:
    """Hold which rows of a batch a loss is over: of its K distributions, or of its tokens.

    Attributes:
        counted_K: bool; the distributions that any loss is over.
        masked_K: bool; those of masked tokens, elsewhere the same.
        gold_K: their gold classes; -100 where there is none.
        tokens_BL: bool; which tokens are real: those that a token may attend to.
        hidden_BL: bool; the tokens that losses on hidden states are over.
        values_K: regression: what each row's one logit is to be; not a number where nobody knows.
    """

    counted_K: Tensor
    masked_K: Tensor
    gold_K: Tensor
    tokens_BL: Tensor
    hidden_BL: Tensor
    values_K: Tensor | None = None

    def count(self, counted: Counted) -> int:
        """Return how many rows an objective's sum is over, whose `rows` are these."""
        match counted:
            case "distributions":
                return int(self.counted_K.sum())
            case "masked":
                return int(self.masked_K.sum())
            case "gold":
                known = self.gold_K != IGNORED if self.values_K is None else ~self.values_K.isnan()
                return int(known.sum())
            case "tokens":
                return int(self.hidden_BL.sum())
            case "texts":
                return len(self.hidden_BL)
            case _:
                assert_never(counted)

    def kept(self, objective: SoftTargets | LogitsMse, chunk: slice) -> Tensor:
        """Return which rows of a chunk an objective is over (bool)."""
        return (self.masked_K if objective.rows == "masked" else self.counted_K)[chunk]


def logit_sums(
    objectives: Sequence[tuple[LogitObjective, float]],
    student: Signals,
    teachers: Sequence[Taught],
    rows: Rows,
    chunk_size: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted total of objectives on logits, and each one's plain sum over its rows.

    Soft targets follow the mean of the teachers' probabilities, hard ones its most likely class,
    logits_mse the mean of their logits. Args: as `total.objective_sums`.
    """
    assert student.features_KD is not None
    assert student.readout is not None
    logit_pass = _LogitPass(objectives, teachers, rows, chunk_size, student.readout.exact)
    inputs = [student.features_KD, student.readout.weight_VD, student.readout.bias]
    if not torch.is_grad_enabled():
        # a Function is asked for the gradients of parameters all the same
        inputs = [None if value is None else value.detach() for value in inputs]
    total, values = _ChunkedLogits.apply(*inputs, logit_pass)  # type: ignore[no-untyped-call]
    return total, {o.kind: value for (o, _), value in zip(objectives, values, strict=True)}


@dataclass(frozen=True)
class _LogitPass:
    objectives: Sequence[tuple[LogitObjective, float]]
    teachers: Sequence[Taught]
    rows: Rows
    chunk_size: int
    exact: bool  # the student's readout

    def answers(self, chunk: slice) -> _Answers:
        """Return the teachers' logits of a chunk; none where no objective asks for them."""
        asked = not all(objective.uses_gold for objective, _ in self.objectives)
        with torch.no_grad():
            found = [wide(taught.signals.logits(chunk)) for taught in self.teachers if asked]
        return _Answers(found, [taught.share for taught in self.teachers])


@dataclass(frozen=True)
class _Answers:
    """Hold the teachers' logits of a chunk, and each teacher's weight in the mean."""

    logits: list[Tensor]
    shares: list[float]


class _ChunkedLogits(torch.autograd.Function):
    """Compute losses and gradients by chunk in forward; backward only scales what is there.

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
        readout = Readout(weight_VD, bias, logit_pass.exact)
        for start in range(0, features_KD.shape[0], logit_pass.chunk_size):
            chunk = slice(start, min(start + logit_pass.chunk_size, features_KD.shape[0]))
            values += _one_chunk(features_KD[chunk], readout, logit_pass, chunk, grads)
        ctx.grads = grads
        scales = [scale for _, scale in logit_pass.objectives]
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
    """Return a chunk's losses, by objective; add its gradients to `grads` in place."""
    student_kV = wide(readout.logits(features_kD, chunk))
    answers, rows = logit_pass.answers(chunk), logit_pass.rows
    values: dict[str, Tensor] = {}
    hard: tuple[Tensor, Tensor] | None = None  # rows, and their gradients
    dense: list[Tensor] = []  # gradients of all rows
    # Those on gold first: they read few rows. Soft ones last: they overwrite all logits.
    for objective, scale in sorted(
        logit_pass.objectives,
        key=lambda one: (isinstance(one[0], SoftTargets), one[0].rows != "gold"),
    ):
        match objective:
            case HardTargets():
                value, hard = _hard_chunk(objective, student_kV, answers, rows.gold_K[chunk], scale)
            case LogitsMse():
                teacher_kV = _mean(answers.logits, answers.shares)
                difference_kV = student_kV - teacher_kV
                kept_k = rows.kept(objective, chunk)
                value, grad_kV = _mse_chunk_(difference_kV, readout.included(chunk), kept_k, scale)
                dense.append(grad_kV)
            case GoldMse():
                assert rows.values_K is not None
                wanted_k1 = wide(rows.values_K[chunk])[:, None]
                known_k = ~wanted_k1[:, 0].isnan()
                difference_kV = student_kV - wanted_k1.nan_to_num()
                value, grad_kV = _mse_chunk_(difference_kV, None, known_k, scale)
                dense.append(grad_kV)
            case SoftTargets():
                kept_k = rows.kept(objective, chunk)
                value, grad_kV = _soft_chunk_(objective, student_kV, answers, kept_k, scale)
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
    return torch.stack([values[objective.kind] for objective, _ in logit_pass.objectives])


def _mean(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return the weighted mean; of one, itself."""
    if len(values) == 1:
        return values[0]
    return torch.stack([share * v for share, v in zip(shares, values, strict=True)]).sum(0)


def _log_mean_(log_p: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return the log of the weighted mean of probabilities from their logs; overwrite the first."""
    if len(log_p) == 1:
        return log_p[0]
    total = log_p[0].add_(math.log(shares[0]))
    for share, other in zip(shares[1:], log_p[1:], strict=True):
        total = torch.logaddexp(total, other.add_(math.log(share)), out=total)
    return total


def _hard_chunk(
    objective: HardTargets,
    student_kV: Tensor,
    answers: _Answers,
    gold_k: Tensor,
    scale: float,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the sum of cross-entropies, and (their rows, scale * the gradient, q - one-hot)."""
    rows_h = (gold_k != IGNORED).nonzero()[:, 0]
    targets_h = gold_k[rows_h]
    if objective.target == "teacher":
        likely_hV = [teacher_kV[rows_h] for teacher_kV in answers.logits]
        if len(likely_hV) > 1:
            likely_hV = [_mean([torch.softmax(z_hV, -1) for z_hV in likely_hV], answers.shares)]
        targets_h = likely_hV[0].argmax(-1)
    log_student_hV = F.log_softmax(student_kV[rows_h], dim=-1)
    at_h1 = targets_h[:, None]
    value = -log_student_hV.gather(1, at_h1).sum()
    grad_hV = log_student_hV.exp_()
    grad_hV.scatter_add_(1, at_h1, grad_hV.new_full(at_h1.shape, -1.0))
    return value, (rows_h, grad_hV.mul_(scale))


def _mse_chunk_(
    difference_kV: Tensor, included_kV: Tensor | None, kept_k: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the sum over rows of the mean squared difference, and scale * its gradient.

    The gradient is 2 (s - t) / classes; classes that are not a row's own do not count.
    """
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
    answers: _Answers,
    kept_k: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return the sum of T² · D(p, q), and scale * its gradient, T (q - p) for both divergences.

    All logits are overwritten: what they hold afterwards means nothing.
    """
    temperature = objective.temperature
    log_student_kV = _log_softmax_(student_kV.div_(temperature))
    softened = [_log_softmax_(teacher_kV.div_(temperature)) for teacher_kV in answers.logits]
    log_teacher_kV = _log_mean_(softened, answers.shares)
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
    """Add what a chunk's gradient of logits gives for features, weight and bias."""
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
