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
    """Mean over rows of 1 - cos(student, teacher): L_cos of DistilBERT (arXiv 1910.01108, sec. 2).

    Args:
        student_hidden_KD, teacher_hidden_KD: hidden states of the same K tokens, both D wide.

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
            "in shape: this objective needs the same rows and the same width"
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
        logit_pass = _LogitPass(on_logits, teacher, rows, scales, chunk_size, student.readout.exact)
        inputs = [student.features_KD, student.readout.weight_VD, student.readout.bias]
        if not torch.is_grad_enabled():
            # a Function is asked for the gradients of parameters all the same
            inputs = [None if value is None else value.detach() for value in inputs]
        logit_total, values = _ChunkedLogits.apply(*inputs, logit_pass)  # type: ignore[no-untyped-call]
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
    exact: bool  # see Readout

    @property
    def _asks_teacher(self) -> bool:
        return any(isinstance(o, SoftTargets) or o.target == "teacher" for o in self.objectives)

    def teacher_logits(self, chunk: slice) -> Tensor | None:
        """The teacher's logits of a chunk; None where no objective asks for them."""
        if self.teacher is None or not self._asks_teacher:
            return None
        features, readout = self.teacher.features_KD, self.teacher.readout
        if features is None or readout is None:
            return None
        with torch.no_grad():
            return _wide(readout.logits(features[chunk], chunk))


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
        values = _wide(features_KD.new_zeros(len(logit_pass.objectives)))
        readout = Readout(weight_VD, bias, logit_pass.exact)
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
    student_kV = _wide(readout.logits(features_kD, chunk))
    teacher_kV = logit_pass.teacher_logits(chunk)
    values: dict[str, Tensor] = {}
    hard: tuple[Tensor, Tensor] | None = None  # rows, and their gradients
    grad_kV: Tensor | None = None
    # Hard ones first: they read few rows, and the soft ones overwrite all logits.
    for objective in sorted(logit_pass.objectives, key=lambda o: isinstance(o, SoftTargets)):
        scale = logit_pass.scales[objective.kind]
        match objective:
            case HardTargets():
                gold_k = logit_pass.rows.gold_K[chunk]
                value, rows_h, grad_hV = _hard_chunk(
                    objective, student_kV, teacher_kV, gold_k, scale
                )
                values[objective.kind], hard = value, (rows_h, grad_hV)
            case SoftTargets():
                assert teacher_kV is not None
                kept_k = logit_pass.rows.soft_K[chunk]
                values[objective.kind], grad_kV = _soft_chunk_(
                    objective, student_kV, teacher_kV, kept_k, scale
                )
            case _:
                assert_never(objective)
    if any(grad is not None for grad in grads):
        grad_kV = student_kV.zero_() if grad_kV is None else grad_kV
        if hard is not None:
            grad_kV.index_add_(0, *hard)
        _add_gradients_(grads, grad_kV, features_kD, readout.weight_VD, chunk)
    return torch.stack([values[objective.kind] for objective in logit_pass.objectives])


def _hard_chunk(
    objective: HardTargets,
    student_kV: Tensor,
    teacher_kV: Tensor | None,
    gold_k: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of cross-entropies, the rows that have one, and scale * its gradient, q - one-hot."""
    rows_h = (gold_k != IGNORED).nonzero()[:, 0]
    targets_h = gold_k[rows_h]
    if objective.target == "teacher":
        assert teacher_kV is not None
        targets_h = teacher_kV[rows_h].argmax(-1)
    log_student_hV = F.log_softmax(student_kV[rows_h], dim=-1)
    at_h1 = targets_h[:, None]
    value = -log_student_hV.gather(1, at_h1).sum()
    grad_hV = log_student_hV.exp_()
    grad_hV.scatter_add_(1, at_h1, grad_hV.new_full(at_h1.shape, -1.0))
    return value, rows_h, grad_hV.mul_(scale)


def _soft_chunk_(
    objective: SoftTargets, student_kV: Tensor, teacher_kV: Tensor, kept_k: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Sum of T² · D(p, q), and scale * its gradient, T (q - p): the same for both divergences.

    Both logits are overwritten: what they hold afterwards means nothing.
    """
    temperature = objective.temperature
    log_student_kV = _log_softmax_(student_kV.div_(temperature))
    log_teacher_kV = _log_softmax_(teacher_kV.div_(temperature))
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
