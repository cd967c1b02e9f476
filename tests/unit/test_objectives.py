"""The losses against plain float64 equations, and the chunked pass against the plain functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from potstill import logit_objectives
from potstill.hidden_objectives import Taught
from potstill.objectives import (
    IGNORED,
    Rows,
    hard_targets,
    hidden_cosine,
    logits_mse,
    objective_sums,
    soft_targets,
    temperature_at,
)
from potstill.recipe import HardTargets, HiddenCosine, LogitsMse, SoftTargets
from potstill.signals import Readout, Signals

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


def test_hidden_cosine_is_the_equation() -> None:
    student, teacher = normal(6, 4), normal(6, 4)
    a, b = student.numpy(), teacher.numpy()
    cosines = [x @ y / (np.sqrt(x @ x) * np.sqrt(y @ y)) for x, y in zip(a, b, strict=True)]
    assert hidden_cosine(student, teacher).item() == pytest.approx(1 - np.mean(cosines), rel=1e-12)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature is 0"):
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
}
K, D, V = 13, 6, 17


def problem(bias: str) -> tuple[Signals, Signals, Rows, torch.Tensor]:
    hidden_s = normal(3, 5, D).requires_grad_()
    tokens = torch.ones(3, 5, dtype=torch.bool)
    tokens[2, 3:] = False  # 13 real tokens
    weight_s, weight_t = normal(V, D).requires_grad_(), normal(V, D)
    shape = {"vector": (V,), "rows": (K, V), "none": None}[bias]
    bias_s = None if shape is None else normal(*shape).requires_grad_()
    bias_t = None if shape is None else normal(*shape)
    student = Signals(hidden_s, hidden_s[tokens] * 1.5, Readout(weight_s, bias_s))
    hidden_t = normal(3, 5, D)
    teacher = Signals(hidden_t, hidden_t[tokens], Readout(weight_t, bias_t))
    gold = torch.full((K,), IGNORED)
    gold[[1, 4, 12]] = torch.tensor([3, 0, 16])
    return student, teacher, Rows(*(torch.ones(2, K, dtype=torch.bool)), gold), tokens


def plain_total(name: str, student: Signals, teacher: Signals, rows: Rows, tokens: torch.Tensor):
    """The same objectives by the public functions, on whole logits."""
    everywhere = slice(0, K)
    z_s = student.readout.logits(student.features_KD, everywhere)
    z_t = teacher.readout.logits(teacher.features_KD, everywhere)
    total, means = 0.0, {}
    for objective in OBJECTIVES[name]:
        if objective.kind == "soft_targets":
            kept = rows.soft_K
            value = soft_targets(z_s[kept], z_t[kept], objective.temperature, objective.divergence)
        elif objective.kind == "hard_targets":
            targets = rows.gold_K
            if objective.target == "teacher":
                targets = torch.where(targets == IGNORED, IGNORED, z_t.argmax(-1))
            value = hard_targets(z_s, targets)
        else:
            value = hidden_cosine(student.hidden_BLD[tokens], teacher.hidden_BLD[tokens])
        means[objective.kind] = value.item()
        total = total + objective.weight * value
    return total, means


def leaves(student: Signals) -> list[torch.Tensor]:
    found = [student.hidden_BLD, student.readout.weight_VD]
    return [*found, student.readout.bias] if student.readout.bias is not None else found


def test_no_gradients_are_computed_where_none_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, rows, tokens = problem("vector")
    scales = {o.kind: 0.1 for o in OBJECTIVES["triple"]}
    asked: list[list[bool]] = []
    monkeypatch.setattr(
        logit_objectives,
        "_add_gradients_",
        lambda grads, *_: asked.append([g is not None for g in grads]),
    )
    with torch.no_grad():
        objective_sums(OBJECTIVES["triple"], student, [Taught(teacher)], rows, tokens, scales, 5)
    assert asked == []
    objective_sums(OBJECTIVES["triple"], student, [Taught(teacher)], rows, tokens, scales, 5)
    assert asked == [[True] * 3] * 3


def test_the_teacher_is_not_asked_for_logits_that_nothing_reads() -> None:
    student, teacher, rows, tokens = problem("none")
    unreadable = Signals(teacher.hidden_BLD, teacher.features_KD, Readout(normal(V, D + 1)))
    chosen = [HardTargets(weight=1), HiddenCosine(weight=1)]
    scales = {"hard_targets": 0.1, "hidden_cosine": 0.1}
    objective_sums(chosen, student, [Taught(unreadable)], rows, tokens, scales, 5)


@pytest.mark.parametrize("bias", ["vector", "rows", "none"])
@pytest.mark.parametrize("chunk_size", [1, 4, 13, 100])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_chunked_losses_and_gradients_are_those_of_the_plain_functions(
    name: str, chunk_size: int, bias: str
) -> None:
    student, teacher, rows, tokens = problem(bias)
    if name == "masked":
        masked_K = rows.gold_K != IGNORED
        rows = Rows(masked_K, masked_K, rows.gold_K)
    counts = {"soft_targets": int(rows.soft_K.sum()), "hard_targets": 3, "hidden_cosine": 13}
    scales = {o.kind: o.weight / counts[o.kind] for o in OBJECTIVES[name]}
    total, sums = objective_sums(
        OBJECTIVES[name], student, [Taught(teacher)], rows, tokens, scales, chunk_size
    )
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
    scales = {"soft_targets": 0.3, "hard_targets": 0.7, "hidden_cosine": 0.2}

    def total(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        signals = Signals(hidden, hidden[tokens], Readout(weight, bias))
        return objective_sums(
            OBJECTIVES["triple"], signals, [Taught(teacher)], rows, tokens, scales, chunk_size=5
        )[0]

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
    student, _, rows, tokens = problem("vector")
    frozen = Signals(
        student.hidden_BLD,
        student.features_KD,
        Readout(student.readout.weight_VD.detach(), student.readout.bias),
    )
    total, _ = objective_sums(
        OBJECTIVES["hard"], frozen, [], rows, tokens, {"hard_targets": 1.0}, chunk_size=4
    )
    grad_hidden, grad_bias = torch.autograd.grad(total, [student.hidden_BLD, student.readout.bias])
    assert grad_hidden.abs().sum() > 0
    assert grad_bias.abs().sum() > 0


def test_bfloat16_autocast_stays_close_to_float32() -> None:
    student, teacher, rows, tokens = problem("vector")

    def single(signals: Signals) -> Signals:
        readout = Readout(signals.readout.weight_VD.float(), signals.readout.bias.float())
        return Signals(signals.hidden_BLD.float(), signals.features_KD.float(), readout)

    scales = {"soft_targets": 1.0, "hard_targets": 1.0, "hidden_cosine": 1.0}
    taught = [Taught(single(teacher))]
    arguments = (OBJECTIVES["triple"], single(student), taught, rows, tokens, scales, 5)
    plain, _ = objective_sums(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = objective_sums(*arguments)
        (grad,) = torch.autograd.grad(mixed, [student.readout.weight_VD])
    (expected,) = torch.autograd.grad(plain, [student.readout.weight_VD])
    assert mixed.item() == pytest.approx(plain.item(), rel=0.02)
    assert torch.cosine_similarity(grad.flatten(), expected.flatten(), dim=0) > 0.999


# --- logits by mean squares, several teachers, temperatures ---------------------------------------


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
@pytest.mark.parametrize("bias", ["vector", "none"])
def test_logits_mse_and_its_gradients_are_those_of_the_plain_function(
    bias: str, chunk_size: int
) -> None:
    student, teacher, rows, tokens = problem(bias)
    masked_K = rows.gold_K != IGNORED
    rows = Rows(masked_K, masked_K, rows.gold_K)
    whole = slice(0, K)
    z_s = student.readout.logits(student.features_KD, whole)[masked_K]
    z_t = teacher.readout.logits(teacher.features_KD, whole)[masked_K]
    by_hand = sum(
        sum(float(a - b) ** 2 for a, b in zip(s, t, strict=True)) / V
        for s, t in zip(z_s, z_t, strict=True)
    )
    plain = logits_mse(z_s, z_t)
    assert plain.item() == pytest.approx(by_hand / 3, rel=1e-12)
    chosen, scales = [LogitsMse(positions="masked")], {"logits_mse": 1 / 3}
    total, sums = objective_sums(
        chosen, student, [Taught(teacher)], rows, tokens, scales, chunk_size
    )
    assert sums["logits_mse"].item() == pytest.approx(by_hand, rel=1e-12)
    wanted = torch.autograd.grad(plain, leaves(student), retain_graph=True, allow_unused=True)
    found = torch.autograd.grad(total, leaves(student), allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def test_logits_mse_leaves_excluded_classes_out() -> None:
    """In a batch, a text is not compared with itself, nor with those of other groups."""
    student, teacher = normal(3, 4), normal(3, 4)
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    expected = sum(
        sum(float(student[i, j] - teacher[i, j]) ** 2 for j in range(4) if mask[i, j])
        / int(mask[i].sum())
        for i in range(3)
    )
    found = logits_mse(student.clone(), teacher.clone(), mask)
    assert found.item() == pytest.approx(expected / 3, rel=1e-12)


def test_several_teachers_are_followed_in_their_mean() -> None:
    student, one, rows, tokens = problem("vector")
    _, two, _, _ = problem("vector")
    shares = (0.25, 0.75)
    taught = [Taught(t, share) for t, share in zip((one, two), shares, strict=True)]
    chosen = [
        SoftTargets(temperature=2.0),
        HardTargets(target="teacher"),
        LogitsMse(),
        HiddenCosine(),
    ]
    scales = dict.fromkeys(("soft_targets", "hard_targets", "logits_mse", "hidden_cosine"), 1.0)
    _, sums = objective_sums(chosen, student, taught, rows, tokens, scales, 5)
    whole = slice(0, K)
    z_s = student.readout.logits(student.features_KD, whole)
    z_1, z_2 = (t.readout.logits(t.features_KD, whole) for t in (one, two))
    soft = 0.25 * (z_1 / 2).softmax(-1) + 0.75 * (z_2 / 2).softmax(-1)
    log_s = (z_s / 2).log_softmax(-1)
    expected = 4 * (soft * (soft.log() - log_s)).sum()
    assert sums["soft_targets"].item() == pytest.approx(expected.item(), rel=1e-10)
    likely = (0.25 * z_1.softmax(-1) + 0.75 * z_2.softmax(-1)).argmax(-1)
    hard = -z_s.log_softmax(-1)[torch.arange(K), likely][rows.gold_K != IGNORED].sum()
    assert sums["hard_targets"].item() == pytest.approx(hard.item(), rel=1e-10)
    mean = 0.25 * z_1 + 0.75 * z_2
    squares = (z_s - mean).square().mean(-1).sum()
    assert sums["logits_mse"].item() == pytest.approx(squares.item(), rel=1e-10)
    cosines = sum(
        share
        * (1 - torch.cosine_similarity(student.hidden_BLD, t.hidden_BLD, dim=-1))[tokens].sum()
        for t, share in zip((one, two), shares, strict=True)
    )
    assert sums["hidden_cosine"].item() == pytest.approx(cosines.item(), rel=1e-10)


def test_a_teacher_beside_itself_is_one_teacher() -> None:
    student, teacher, rows, tokens = problem("rows")
    scales = {o.kind: 0.3 for o in OBJECTIVES["triple"]}
    arguments = rows, tokens, scales, 5
    alone, _ = objective_sums(OBJECTIVES["triple"], student, [Taught(teacher)], *arguments)
    twice = [Taught(teacher, 0.4), Taught(teacher, 0.6)]
    both, _ = objective_sums(OBJECTIVES["triple"], student, twice, *arguments)
    assert both.item() == pytest.approx(alone.item(), rel=1e-12)
    for one, other in zip(
        torch.autograd.grad(both, leaves(student), retain_graph=True),
        torch.autograd.grad(alone, leaves(student)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [4.0, 3.25, 2.5, 1.75, 1.0]),
        # 1 + 3 (1 + cos(pi x)) / 2 at quarters
        ("cosine", [4.0, 3.560660, 2.5, 1.439340, 1.0]),
    ],
)
def test_temperatures_along_a_training(schedule: str, expected: list[float]) -> None:
    settings = SoftTargets(temperature=4.0, final_temperature=1.0, schedule=schedule)  # type: ignore[arg-type]
    found = [temperature_at(settings, step, 5) for step in range(5)]
    assert found == pytest.approx(expected, abs=1e-6)
    assert temperature_at(SoftTargets(temperature=3.0), 2, 5) == 3.0
