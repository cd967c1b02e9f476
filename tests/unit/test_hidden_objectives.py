"""Losses on hidden states and attention, against plain float64 loops over tokens and heads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from potstill import objectives
from potstill.hidden_objectives import Pairing, Taught, hidden_sum
from potstill.recipe import AttentionMse, HiddenMse, PatientHidden, Relations, VectorMse
from potstill.signals import EMBEDDINGS, Signals

GENERATOR = torch.Generator().manual_seed(0)
LENGTHS = [5, 3, 1]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def tokens_of(lengths: Sequence[int]) -> torch.Tensor:
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


TOKENS = tokens_of(LENGTHS)


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    total = sum(math.exp(score - top) for score in scores)
    return [math.exp(score - top) / total for score in scores]


def dot(one: torch.Tensor, other: torch.Tensor) -> float:
    return sum(float(a) * float(b) for a, b in zip(one, other, strict=True))


def test_vectors_by_hand() -> None:
    one, other = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    assert objectives.vector_mse(one, other).item() == pytest.approx((2 + 4) / 2)


def test_patient_is_the_distance_of_normalised_states_summed_over_layers() -> None:
    student, teacher = [normal(7, 6) for _ in range(2)], [normal(7, 6) for _ in range(2)]
    expected = 0.0
    for s_KD, t_KD in zip(student, teacher, strict=True):
        for s, t in zip(s_KD, t_KD, strict=True):
            length_s, length_t = math.sqrt(dot(s, s)), math.sqrt(dot(t, t))
            expected += sum((a / length_s - b / length_t) ** 2 for a, b in zip(s, t, strict=True))
    found = objectives.patient_hidden(student, teacher)
    assert found.item() == pytest.approx(float(expected) / 7, rel=1e-12)


def test_hidden_mse_is_a_mean_over_the_width_summed_over_layers() -> None:
    student, teacher = [normal(7, 6) for _ in range(3)], [normal(7, 6) for _ in range(3)]
    expected = 0.0
    for s_KD, t_KD in zip(student, teacher, strict=True):
        for s, t in zip(s_KD, t_KD, strict=True):
            expected += sum(float(a - b) ** 2 for a, b in zip(s, t, strict=True)) / 6
    found = objectives.hidden_mse(student, teacher)
    assert found.item() == pytest.approx(expected / 7, rel=1e-12)


def test_attention_scores_are_compared_at_real_tokens_and_keys() -> None:
    student, teacher = normal(3, 2, 5, 5), normal(3, 2, 5, 5)
    expected, rows = 0.0, 0
    for text, length in enumerate(LENGTHS):
        for query in range(length):
            rows += 1
            expected += sum(
                float(student[text, head, query, key] - teacher[text, head, query, key]) ** 2
                for head in range(2)
                for key in range(length)
            ) / (2 * length)
    found = objectives.attention_mse(student, teacher, TOKENS)
    assert found.item() == pytest.approx(expected / rows, rel=1e-12)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_relations_are_divergences_of_softmaxed_products(heads: int) -> None:
    student = (normal(3, 5, 8), normal(3, 5, 8))
    teacher = (normal(3, 5, 12), normal(3, 5, 12))  # of another width
    expected, rows = 0.0, 0
    for text, length in enumerate(LENGTHS):
        for query in range(length):
            rows += 1
            for head in range(heads):
                pair = []
                for left, right in (student, teacher):
                    size = left.shape[-1] // heads
                    part = slice(head * size, (head + 1) * size)
                    scores = [
                        dot(left[text, query, part], right[text, key, part]) / math.sqrt(size)
                        for key in range(length)
                    ]
                    pair.append(softmax(scores))
                own, other = pair
                expected += (
                    sum(t * math.log(t / s) for s, t in zip(own, other, strict=True)) / heads
                )
    found = objectives.relations(student, teacher, TOKENS, heads)
    assert found.item() == pytest.approx(expected / rows, rel=1e-10)


def test_padding_says_nothing() -> None:
    student, teacher = (normal(3, 5, 8), normal(3, 5, 8)), (normal(3, 5, 8), normal(3, 5, 8))
    before = objectives.relations(student, teacher, TOKENS, 2)
    for value in (*student, *teacher):
        value[~TOKENS] = 1e3
    torch.testing.assert_close(objectives.relations(student, teacher, TOKENS, 2), before)


def test_a_student_like_its_teacher_loses_nothing() -> None:
    states = [normal(7, 6), normal(7, 6)]
    scores, values = normal(3, 2, 5, 5), normal(3, 5, 8)
    assert objectives.patient_hidden(states, states).item() == 0
    assert objectives.hidden_mse(states, states).item() == 0
    assert objectives.vector_mse(states[0], states[0]).item() == 0
    assert objectives.attention_mse(scores, scores, TOKENS).item() == 0
    found = objectives.relations((values, values), (values, values), TOKENS, 2)
    assert found.item() == pytest.approx(0, abs=1e-15)


def test_shapes_that_differ_are_refused() -> None:
    for loss in (objectives.patient_hidden, objectives.hidden_mse):
        with pytest.raises(ValueError, match="hidden states of student"):
            loss([normal(7, 6)], [normal(7, 8)])
    with pytest.raises(ValueError, match="sentence vectors"):
        objectives.vector_mse(normal(7, 6), normal(7, 8))
    with pytest.raises(ValueError, match="attention scores"):
        objectives.attention_mse(normal(3, 2, 5, 5), normal(3, 4, 5, 5), TOKENS)
    with pytest.raises(ValueError, match="heads: 3 does not divide the width 8"):
        objectives.relations((normal(3, 5, 8),) * 2, (normal(3, 5, 12),) * 2, TOKENS, 3)


# --- sums of a batch ------------------------------------------------------------------------------


def signals(width: int) -> Signals:
    layers = {number: normal(3, 5, width) for number in (EMBEDDINGS, 0, 1)}
    qkv = {
        number: (normal(3, 5, width), normal(3, 5, width), normal(3, 5, width)) for number in (0, 1)
    }
    return Signals(layers[1], normal(3, width), None, layers, qkv)


def test_sums_are_the_means_times_their_rows() -> None:
    student, teacher = signals(8), signals(8)
    layers = ((0, 1), (1, 0))

    def total(objective: object, pairing: Pairing) -> float:
        taught = Taught(teacher, 1.0, {objective.kind: pairing})  # type: ignore[attr-defined]
        return hidden_sum(objective, student, taught, TOKENS).item()  # type: ignore[arg-type]

    def states(side: Signals, numbers: Sequence[int], chosen: torch.Tensor) -> list[torch.Tensor]:
        return [side.layers[number][chosen] for number in numbers]

    every = TOKENS.sum().item()
    first = torch.zeros_like(TOKENS)
    first[:, 0] = True
    found = total(PatientHidden(tokens="first"), Pairing(layers))
    expected = objectives.patient_hidden(
        states(student, (0, 1), first), states(teacher, (1, 0), first)
    )
    assert found == pytest.approx(3 * expected.item())
    found = total(PatientHidden(tokens="all"), Pairing(layers))
    expected = objectives.patient_hidden(
        states(student, (0, 1), TOKENS), states(teacher, (1, 0), TOKENS)
    )
    assert found == pytest.approx(every * expected.item())
    found = total(HiddenMse(), Pairing(((EMBEDDINGS, EMBEDDINGS), *layers)))
    expected = objectives.hidden_mse(
        states(student, (EMBEDDINGS, 0, 1), TOKENS), states(teacher, (EMBEDDINGS, 1, 0), TOKENS)
    )
    assert found == pytest.approx(every * expected.item())
    found = total(VectorMse(), Pairing())
    expected = objectives.vector_mse(student.features_KD, teacher.features_KD)  # type: ignore[arg-type]
    assert found == pytest.approx(3 * expected.item())
    found = total(Relations(pairs=["vv", "qk"]), Pairing(((1, 0),), 2))
    own, other = student.qkv[1], teacher.qkv[0]
    expected = objectives.relations((own[2], own[2]), (other[2], other[2]), TOKENS, 2)
    expected = expected + objectives.relations(own[:2], other[:2], TOKENS, 2)
    assert found == pytest.approx(every * expected.item())
    found = total(AttentionMse(), Pairing(((0, 1),), 2))

    def scores(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        halves = [value.unflatten(-1, (2, 4)).transpose(1, 2) for value in (query, key)]
        return halves[0] @ halves[1].mT / 2  # the root of a head's width

    expected = objectives.attention_mse(
        scores(*student.qkv[0][:2]), scores(*teacher.qkv[1][:2]), TOKENS
    )
    assert found == pytest.approx(every * expected.item())


def test_projections_lead_to_the_teacher_s_width() -> None:
    student, teacher, to = signals(6), signals(8), normal(8, 6)
    taught = Taught(teacher, 1.0, {"hidden_mse": Pairing(((0, 1),))}, {"hidden_mse": to})
    found = hidden_sum(HiddenMse(embeddings=False), student, taught, TOKENS)
    expected = objectives.hidden_mse(
        [student.layers[0][TOKENS] @ to.T], [teacher.layers[1][TOKENS]]
    )
    assert found.item() == pytest.approx(9 * expected.item())
