"""Temperatures over time, and several teachers, against plain float64 loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from potstill.data.sequences import IGNORED
from potstill.models import Signals
from potstill.models.signals import EXCLUDED, Readout
from potstill.objectives import Rows, objective_sums, temperature_at
from potstill.objectives.hidden import Taught
from potstill.recipe import GoldMse, HardTargets, HiddenCosine, LogitsMse, Objective, SoftTargets

GENERATOR = torch.Generator().manual_seed(0)
K, D, V = 6, 4, 5
SHARES = (0.5, 0.2, 0.3)


# --- temperature ----------------------------------------------------------------------------------


def test_a_constant_temperature() -> None:
    assert [temperature_at(SoftTargets(temperature=3), step, 4) for step in range(4)] == [3.0] * 4


def test_a_linear_temperature_by_hand() -> None:
    settings = SoftTargets(temperature=8, schedule="linear", final_temperature=2)
    found = [temperature_at(settings, step, 5) for step in range(5)]
    assert found == [8.0, 6.5, 5.0, 3.5, 2.0]


def test_a_cosine_temperature_by_hand() -> None:
    settings = SoftTargets(temperature=1, schedule="cosine", final_temperature=5)
    found = [temperature_at(settings, step, 5) for step in range(5)]
    half = math.sqrt(2)  # 4 * cos(45°) / 2
    assert found == pytest.approx([1.0, 3 - half, 3.0, 3 + half, 5.0])


def test_a_training_of_one_step_has_the_first_temperature() -> None:
    for schedule in ("linear", "cosine"):
        settings = SoftTargets(temperature=4, schedule=schedule, final_temperature=1)
        assert temperature_at(settings, 0, 1) == 4.0


# --- teachers -------------------------------------------------------------------------------------


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def all_rows(gold_K: torch.Tensor, values_K: torch.Tensor | None = None) -> Rows:
    everywhere = torch.ones(K, dtype=torch.bool)
    return Rows(everywhere, everywhere, gold_K, everywhere[None], everywhere[None], values_K)


def model(grouped: bool) -> Signals:
    """Whose logits are its features; grouped: two groups of three, a text not with itself."""
    bias, classes = None, V
    if grouped:
        number = torch.arange(K)
        same = (number[:, None] // 3 == number // 3) & (number[:, None] != number)
        bias, classes = torch.where(same, 0.0, EXCLUDED).double(), K
    features = normal(K, classes).requires_grad_()
    return Signals(normal(1, K, D), features, Readout(torch.eye(classes).double(), bias))


def plain_rows(signals: Signals, grouped: bool, temperature: float) -> list[dict[int, float]]:
    """Row -> its own classes -> their probabilities."""
    found = []
    for row, values in enumerate((signals.features_KD / temperature).tolist()):
        classes = list(range(V))
        if grouped:
            classes = [c for c in range(K) if c // 3 == row // 3 and c != row]
        weights = {c: math.exp(values[c]) for c in classes}
        found.append({c: w / sum(weights.values()) for c, w in weights.items()})
    return found


def plain_mean(teachers: Sequence[Signals], grouped: bool, temperature: float) -> list[Any]:
    rows = [plain_rows(teacher, grouped, temperature) for teacher in teachers]
    return [
        {c: sum(s * r[k][c] for s, r in zip(SHARES, rows, strict=True)) for c in rows[0][k]}
        for k in range(K)
    ]


def plain_loss(
    objective: Objective, student: Signals, teachers: Sequence[Signals], grouped: bool
) -> float:
    total = 0.0
    for k in range(K):
        if isinstance(objective, LogitsMse):
            classes = plain_rows(student, grouped, 1.0)[k]
            for c in classes:
                mean = sum(
                    s * t.features_KD[k, c].item() for s, t in zip(SHARES, teachers, strict=True)
                )
                total += (student.features_KD[k, c].item() - mean) ** 2 / len(classes)
            continue
        heat = objective.temperature if isinstance(objective, SoftTargets) else 1.0
        p = plain_mean(teachers, grouped, heat)[k]
        q = plain_rows(student, grouped, heat)[k]
        if isinstance(objective, HardTargets):
            total -= math.log(q[max(p, key=lambda c: p[c])])
            continue
        for c in p:
            reference = math.log(p[c]) if objective.divergence == "kl" else 0.0
            total += heat**2 * p[c] * (reference - math.log(q[c]))
    return total


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    "objective",
    [
        SoftTargets(temperature=2),
        SoftTargets(temperature=3, divergence="cross_entropy"),
        HardTargets(target="teacher"),
        LogitsMse(),
    ],
)
def test_losses_on_logits_follow_the_mean_of_the_teachers(
    objective: Objective, grouped: bool
) -> None:
    student, *teachers = (model(grouped) for _ in range(4))
    rows = all_rows(torch.zeros(K, dtype=torch.long))
    taught = [Taught(t, share) for t, share in zip(teachers, SHARES, strict=True)]

    def total(features: torch.Tensor) -> torch.Tensor:
        signals = Signals(student.hidden_BLD, features, student.readout)
        return objective_sums([(objective, 0.7)], signals, taught, rows, 4)[0]

    expected = 0.7 * plain_loss(objective, student, teachers, grouped)
    assert total(student.features_KD).item() == pytest.approx(expected, rel=1e-9)
    (gradient,) = torch.autograd.grad(total(student.features_KD), [student.features_KD])
    direction = normal(*gradient.shape)
    ahead, behind = (
        total(student.features_KD + sign * 1e-6 * direction).item() for sign in (1, -1)
    )
    slope = (gradient * direction).sum().item()
    assert (ahead - behind) / 2e-6 == pytest.approx(slope, rel=1e-5)


def test_the_most_likely_class_is_that_of_the_mean_not_of_the_majority() -> None:
    """Two teachers find class 0 a little likelier, the third is sure of class 1."""
    student = model(grouped=False)
    logits = torch.zeros(3, K, V, dtype=torch.float64)
    logits[:2, :, 0], logits[2, :, 1] = 0.5, 9.0
    readout = student.readout
    taught = [
        Taught(Signals(student.hidden_BLD, z, readout), share)
        for z, share in zip(logits, SHARES, strict=True)
    ]
    rows = all_rows(torch.zeros(K, dtype=torch.long))
    _, sums = objective_sums([(HardTargets(target="teacher"), 1.0)], student, taught, rows, 3)
    expected = -torch.log_softmax(student.features_KD, -1)[:, 1].sum()
    assert sums["hard_targets"].item() == pytest.approx(expected.item(), rel=1e-12)


def test_losses_on_hidden_states_are_the_mean_of_those_to_each_teacher() -> None:
    student, *teachers = (model(grouped=False) for _ in range(4))
    rows = all_rows(torch.full((K,), IGNORED))

    def cosine(taught: list[Taught]) -> float:
        _, sums = objective_sums([(HiddenCosine(), 1.0)], student, taught, rows, 4)
        return sums["hidden_cosine"].item()

    each = [cosine([Taught(teacher)]) for teacher in teachers]
    expected = sum(share * value for share, value in zip(SHARES, each, strict=True))
    together = cosine([Taught(t, share) for t, share in zip(teachers, SHARES, strict=True)])
    assert together == pytest.approx(expected, rel=1e-12)


def test_one_teacher_twice_is_one_teacher() -> None:
    student, teacher = model(grouped=True), model(grouped=True)
    rows = all_rows(torch.zeros(K, dtype=torch.long))
    chosen: list[tuple[Objective, float]] = [
        (objective, 0.3)
        for objective in (SoftTargets(), HardTargets(target="teacher"), LogitsMse(), HiddenCosine())
    ]
    found = []
    for taught in ([Taught(teacher)], [Taught(teacher, 0.25), Taught(teacher, 0.75)]):
        total, _ = objective_sums(chosen, student, taught, rows, 4)
        (gradient,) = torch.autograd.grad(total, [student.features_KD])
        found.append((total.item(), gradient))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-10, atol=1e-13)


# --- gold values ----------------------------------------------------------------------------------


def test_the_squared_difference_from_gold_values() -> None:
    """Sum and gradients against autograd in float64, where one row's value is not known."""
    features = normal(K, D).requires_grad_()
    weight, bias = normal(1, D).requires_grad_(), normal(1).requires_grad_()
    wanted = normal(K)
    wanted[2] = math.nan
    nobody = torch.full((K,), IGNORED)
    rows = all_rows(nobody, wanted)
    student = Signals(features[None], features, Readout(weight, bias))
    total, sums = objective_sums([(GoldMse(weight=3.0), 3.0)], student, [], rows, chunk_size=4)
    torch.autograd.backward(total)
    found = [tensor.grad.clone() for tensor in (features, weight, bias)]  # type: ignore[union-attr]
    known = [row for row in range(K) if row != 2]
    plain = [tensor.detach().clone().requires_grad_() for tensor in (features, weight, bias)]
    logits = (plain[0] @ plain[1].T + plain[2])[:, 0]
    expected = ((logits[known] - wanted[known]) ** 2).sum()
    torch.autograd.backward(3 * expected)
    assert float(sums["gold_mse"]) == pytest.approx(float(expected.detach()))
    for ours, reference in zip(found, plain, strict=True):
        torch.testing.assert_close(ours, reference.grad)
    assert rows.count("gold") == K - 1
