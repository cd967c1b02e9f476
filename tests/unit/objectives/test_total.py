"""The losses against plain float64 equations, and the chunked pass against the plain functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from potstill.data.sequences import IGNORED
from potstill.models import Signals
from potstill.models.signals import EXCLUDED, Readout
from potstill.objectives import (
    Rows,
    chunks,
    hard_targets,
    hidden_cosine,
    logits_mse,
    objective_sums,
    soft_targets,
)
from potstill.objectives.hidden import Taught
from potstill.recipe import HardTargets, HiddenCosine, LogitsMse, SoftTargets

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def plain_softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits)
    return weights / weights.sum(-1, keepdims=True)


def plain_soft(student: np.ndarray, teacher: np.ndarray, temperature: float, kl: bool) -> float:
    """T² · mean over rows of sum p_t (log p_t - log p_s), or of -sum p_t log p_s."""
    total = 0.0
    for student_row, teacher_row in zip(student, teacher, strict=True):
        p_s, p_t = (
            plain_softmax(student_row / temperature),
            plain_softmax(teacher_row / temperature),
        )
        for s, t in zip(p_s, p_t, strict=True):
            total += t * (np.log(t) - np.log(s)) if kl else -t * np.log(s)
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("divergence", ["kl", "cross_entropy"])
def test_soft_targets_is_the_equation(temperature: float, divergence: str) -> None:
    student, teacher = normal(5, 11), normal(5, 11) * 3
    value = soft_targets(student, teacher, temperature=temperature, divergence=divergence)
    expected = plain_soft(student.numpy(), teacher.numpy(), temperature, divergence == "kl")
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_soft_targets_gradient_is_t_times_the_difference_of_probabilities() -> None:
    student, teacher = normal(4, 7).requires_grad_(), normal(4, 7)
    soft_targets(student, teacher, temperature=3.0).backward()
    p_s = plain_softmax(student.detach().numpy() / 3)
    p_t = plain_softmax(teacher.numpy() / 3)
    np.testing.assert_allclose(student.grad.numpy(), 3.0 * (p_s - p_t) / 4, rtol=1e-10, atol=1e-14)


def test_soft_targets_of_equal_logits_is_zero_as_kl() -> None:
    logits = normal(3, 5)
    assert soft_targets(logits, logits, temperature=2.0).item() == pytest.approx(0, abs=1e-15)


def test_hard_targets_is_the_equation_and_leaves_ignored_rows_out() -> None:
    logits, targets = normal(4, 6), torch.tensor([2, IGNORED, 0, 5])
    p = plain_softmax(logits.numpy())
    expected = -(np.log(p[0, 2]) + np.log(p[2, 0]) + np.log(p[3, 5])) / 3
    assert hard_targets(logits, targets).item() == pytest.approx(expected, rel=1e-12)


def test_hard_targets_without_a_row_is_zero() -> None:
    assert hard_targets(normal(2, 3), torch.tensor([IGNORED, IGNORED])).item() == 0


@pytest.mark.parametrize("some", [False, True])
def test_logits_mse_is_the_equation(some: bool) -> None:
    student, teacher = normal(5, 7), normal(5, 7)
    included = torch.rand(5, 7, generator=GENERATOR) > 0.4 if some else None
    expected = 0.0
    for row in range(5):
        classes = [c for c in range(7) if included is None or included[row, c]]
        squares = [(student[row, c].item() - teacher[row, c].item()) ** 2 for c in classes]
        expected += sum(squares) / len(classes) / 5
    assert logits_mse(student, teacher, included).item() == pytest.approx(expected, rel=1e-12)


def test_logits_mse_by_hand() -> None:
    student, teacher = (
        torch.tensor([[1.0, 2.0], [0.0, 0.0]]),
        torch.tensor([[1.0, 4.0], [3.0, 1.0]]),
    )
    assert logits_mse(student, teacher).item() == (2.0 + 5.0) / 2
    assert logits_mse(student, student).item() == 0
    kept = torch.tensor([[True, False], [True, True]])
    assert logits_mse(student, teacher, kept).item() == (0.0 + 5.0) / 2


def test_hidden_cosine_is_the_equation() -> None:
    student, teacher = normal(6, 4), normal(6, 4)
    a, b = student.numpy(), teacher.numpy()
    cosines = [x @ y / (np.sqrt(x @ x) * np.sqrt(y @ y)) for x, y in zip(a, b, strict=True)]
    assert hidden_cosine(student, teacher).item() == pytest.approx(1 - np.mean(cosines), rel=1e-12)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature: 0 is not above 0"):
        soft_targets(normal(2, 3), normal(2, 3), temperature=0)
    with pytest.raises(ValueError, match="differ in shape"):
        soft_targets(normal(2, 3), normal(2, 4), temperature=1)
    with pytest.raises(ValueError, match="differ in shape"):
        hidden_cosine(normal(2, 3), normal(2, 4))


OBJECTIVES = {
    "triple": [
        SoftTargets(weight=5, temperature=2),
        HardTargets(weight=2, target="gold"),
        HiddenCosine(weight=1),
    ],
    "article": [
        SoftTargets(weight=5, temperature=2, divergence="cross_entropy"),
        HardTargets(weight=2, target="teacher"),
        HiddenCosine(weight=1),
    ],
    "masked": [SoftTargets(weight=1, positions="masked"), HardTargets(weight=1)],
    "hard": [HardTargets(weight=1)],
    "logits": [LogitsMse(weight=2)],
    "every": [
        LogitsMse(weight=3, positions="masked"),  # other rows than those of the soft targets
        SoftTargets(weight=5, temperature=2),
        HardTargets(weight=2, target="teacher"),
        HiddenCosine(weight=1),
    ],
}
K, D, V = 13, 6, 17


def problem(bias: str) -> tuple[Signals, Signals, Rows, torch.Tensor]:
    hidden_s = normal(3, 5, D).requires_grad_()
    tokens = torch.ones(3, 5, dtype=torch.bool)
    tokens[2, 3:] = False  # 13 real tokens
    weight_s, weight_t = normal(V, D).requires_grad_(), normal(V, D)
    shape = {"vector": (V,), "rows": (K, V), "none": None}[bias]
    bias_s = None if shape is None else normal(*shape)
    bias_t = None if shape is None else normal(*shape)
    if bias == "rows":  # as in a batch, where some texts are not compared
        for values in (bias_s, bias_t):
            values[:, 5:8] = values[3:6, 10:] = EXCLUDED
    if bias_s is not None:
        bias_s.requires_grad_()
    student = Signals(hidden_s, hidden_s[tokens] * 1.5, Readout(weight_s, bias_s))
    hidden_t = normal(3, 5, D)
    teacher = Signals(hidden_t, hidden_t[tokens], Readout(weight_t, bias_t))
    gold = torch.full((K,), IGNORED)
    gold[[1, 4, 12]] = torch.tensor([3, 0, 16])
    everywhere = torch.ones(K, dtype=torch.bool)
    return student, teacher, Rows(everywhere, gold != IGNORED, gold, tokens, tokens), tokens


def plain_total(name: str, student: Signals, teacher: Signals, rows: Rows, tokens: torch.Tensor):
    """The same objectives by the public functions, on whole logits."""
    everywhere = slice(0, K)
    z_s = student.readout.logits(student.features_KD, everywhere)
    z_t = teacher.readout.logits(teacher.features_KD, everywhere)
    total, means = 0.0, {}
    for objective in OBJECTIVES[name]:
        if objective.kind == "soft_targets":
            kept = rows.kept(objective, everywhere)
            value = soft_targets(z_s[kept], z_t[kept], objective.temperature, objective.divergence)
        elif objective.kind == "hard_targets":
            targets = rows.gold_K
            if objective.target == "teacher":
                targets = torch.where(targets == IGNORED, IGNORED, z_t.argmax(-1))
            value = hard_targets(z_s, targets)
        elif objective.kind == "logits_mse":
            included = student.readout.included(everywhere)
            kept = rows.kept(objective, everywhere)
            included = None if included is None else included[kept]
            value = logits_mse(z_s[kept], z_t[kept], included)
        else:
            value = hidden_cosine(student.hidden_BLD[tokens], teacher.hidden_BLD[tokens])
        means[objective.kind] = value.item()
        total = total + objective.weight * value
    return total, means


def leaves(student: Signals) -> list[torch.Tensor]:
    found = [student.hidden_BLD, student.readout.weight_VD]
    return [*found, student.readout.bias] if student.readout.bias is not None else found


def test_no_gradients_are_computed_where_none_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, rows, _ = problem("vector")
    chosen = [(objective, 0.1) for objective in OBJECTIVES["triple"]]
    asked: list[list[bool]] = []
    monkeypatch.setattr(
        chunks,
        "_add_gradients_",
        lambda grads, *_: asked.append([g is not None for g in grads]),
    )
    with torch.no_grad():
        objective_sums(chosen, student, [Taught(teacher)], rows, 5)
    assert asked == []
    objective_sums(chosen, student, [Taught(teacher)], rows, 5)
    assert asked == [[True] * 3] * 3


def test_the_teacher_is_not_asked_for_logits_that_nothing_reads() -> None:
    student, teacher, rows, _ = problem("none")
    unreadable = Signals(teacher.hidden_BLD, teacher.features_KD, Readout(normal(V, D + 1)))
    chosen = [(HardTargets(weight=1), 0.1), (HiddenCosine(weight=1), 0.1)]
    objective_sums(chosen, student, [Taught(unreadable)], rows, 5)


@pytest.mark.parametrize("bias", ["vector", "rows", "none"])
@pytest.mark.parametrize("chunk_size", [1, 4, 13, 100])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_chunked_losses_and_gradients_are_those_of_the_plain_functions(
    name: str, chunk_size: int, bias: str
) -> None:
    student, teacher, rows, tokens = problem(bias)
    counts = {
        "soft_targets": 3 if name == "masked" else 13,
        "logits_mse": 3 if name == "every" else 13,
        "hard_targets": 3,
        "hidden_cosine": 13,
    }
    assert {o.kind: rows.count(o.rows) for o in OBJECTIVES[name]}.items() <= counts.items()
    chosen = [(o, o.weight / counts[o.kind]) for o in OBJECTIVES[name]]
    total, sums = objective_sums(chosen, student, [Taught(teacher)], rows, chunk_size)
    expected, means = plain_total(name, student, teacher, rows, tokens)
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert {k: v.item() / counts[k] for k, v in sums.items()} == pytest.approx(means, rel=1e-12)
    wanted = torch.autograd.grad(expected, leaves(student), retain_graph=True, allow_unused=True)
    # 0.5 *: a gradient from above that is not 1 must scale what forward has computed
    found = torch.autograd.grad(0.5 * total, leaves(student), allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, 0.5 * other, rtol=1e-10, atol=1e-13)


def test_gradients_are_those_of_finite_differences() -> None:
    student, teacher, rows, tokens = problem("vector")
    chosen = list(zip(OBJECTIVES["triple"], (0.3, 0.7, 0.2), strict=True))

    def total(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        signals = Signals(hidden, hidden[tokens], Readout(weight, bias))
        return objective_sums(chosen, signals, [Taught(teacher)], rows, chunk_size=5)[0]

    point = leaves(student)
    gradient = torch.autograd.grad(total(*point), point)
    for number, leaf in enumerate(point):
        direction = normal(*leaf.shape)
        step = 1e-6
        ahead, behind = (
            total(*[p + sign * step * direction if i == number else p for i, p in enumerate(point)])
            for sign in (1, -1)
        )
        slope = ((ahead - behind) / (2 * step)).item()
        assert slope == pytest.approx((gradient[number] * direction).sum().item(), rel=1e-6)


def test_a_frozen_readout_gets_no_gradient_but_the_features_do() -> None:
    student, _, rows, _ = problem("vector")
    frozen = Signals(
        student.hidden_BLD,
        student.features_KD,
        Readout(student.readout.weight_VD.detach(), student.readout.bias),
    )
    total, _ = objective_sums([(*OBJECTIVES["hard"], 1.0)], frozen, [], rows, chunk_size=4)
    grad_hidden, grad_bias = torch.autograd.grad(total, [student.hidden_BLD, student.readout.bias])
    assert grad_hidden.abs().sum() > 0
    assert grad_bias.abs().sum() > 0


def test_bfloat16_autocast_stays_close_to_float32() -> None:
    student, teacher, rows, _ = problem("vector")

    def single(signals: Signals) -> Signals:
        readout = Readout(signals.readout.weight_VD.float(), signals.readout.bias.float())
        return Signals(signals.hidden_BLD.float(), signals.features_KD.float(), readout)

    chosen = [(objective, 1.0) for objective in OBJECTIVES["triple"]]
    arguments = (chosen, single(student), [Taught(single(teacher))], rows, 5)
    plain, _ = objective_sums(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = objective_sums(*arguments)
        (grad,) = torch.autograd.grad(mixed, [student.readout.weight_VD])
    (expected,) = torch.autograd.grad(plain, [student.readout.weight_VD])
    assert mixed.item() == pytest.approx(plain.item(), rel=0.02)
    assert torch.cosine_similarity(grad.flatten(), expected.flatten(), dim=0) > 0.999
