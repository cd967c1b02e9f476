"""The losses on hidden states and attention, against plain float64 loops over lists."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill.models import Signals
from potstill.models.signals import EMBEDDINGS
from potstill.objectives import attention_mse, hidden_mse, patient_hidden, relations, vector_mse
from potstill.objectives.hidden import Pairing, Taught, hidden_sum
from potstill.recipe import (
    AttentionMse,
    HiddenCosine,
    HiddenMse,
    PatientHidden,
    Relations,
    VectorMse,
)

GENERATOR = torch.Generator().manual_seed(0)
LENGTHS = (5, 2, 4)  # real tokens of three texts, padded to five


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def real_tokens() -> Tensor:
    return torch.arange(5)[None] < torch.tensor(LENGTHS)[:, None]


# --- plain ----------------------------------------------------------------------------------------


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def plain_distance(a: list[float], b: list[float], normalised: bool = False) -> float:
    size_a, size_b = (math.sqrt(dot(v, v)) if normalised else 1.0 for v in (a, b))
    return sum((x / size_a - y / size_b) ** 2 for x, y in zip(a, b, strict=True))


def plain_score(left: Tensor, right: Tensor, heads: int, head: int) -> float:
    """Of one token's vector with another's, in one head."""
    width = len(left) // heads
    part = slice(head * width, (head + 1) * width)
    return dot(left[part].tolist(), right[part].tolist()) / math.sqrt(width)


def plain_attention_mse(q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor, heads: int) -> float:
    total = 0.0
    for text, length in enumerate(LENGTHS):
        for query in range(length):
            for key in range(length):
                for head in range(heads):
                    own = plain_score(q_s[text, query], k_s[text, key], heads, head)
                    other = plain_score(q_t[text, query], k_t[text, key], heads, head)
                    total += (own - other) ** 2 / (length * heads)
    return total / sum(LENGTHS)


def plain_softmax(scores: list[float]) -> list[float]:
    weights = [math.exp(score) for score in scores]
    return [weight / sum(weights) for weight in weights]


def plain_relation(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], heads: int
) -> float:
    total = 0.0
    for text, length in enumerate(LENGTHS):
        for query in range(length):
            for head in range(heads):
                p_s, p_t = (
                    plain_softmax(
                        [
                            plain_score(left[text, query], right[text, key], heads, head)
                            for key in range(length)
                        ]
                    )
                    for left, right in (student, teacher)
                )
                total += sum(t * math.log(t / s) for s, t in zip(p_s, p_t, strict=True)) / heads
    return total / sum(LENGTHS)


# --- the public functions -------------------------------------------------------------------------


def test_vector_mse_is_the_mean_of_squared_distances() -> None:
    student, teacher = normal(4, 3), normal(4, 3)
    pairs = zip(student.tolist(), teacher.tolist(), strict=True)
    expected = sum(plain_distance(a, b) for a, b in pairs) / 4
    assert vector_mse(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    by_hand = vector_mse(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert by_hand.item() == 2.0


def test_patient_hidden_is_the_equation() -> None:
    student, teacher = [normal(4, 3) for _ in range(2)], [normal(4, 3) * 5 for _ in range(2)]
    expected = 0.0
    for own, other in zip(student, teacher, strict=True):
        for a, b in zip(own.tolist(), other.tolist(), strict=True):
            expected += plain_distance(a, b, normalised=True) / 4
    assert patient_hidden(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    # at a right angle 2, whatever the lengths
    by_hand = patient_hidden([torch.tensor([[3.0, 0.0]])], [torch.tensor([[0.0, 0.5]])])
    assert by_hand.item() == 2.0


def test_hidden_mse_is_the_equation() -> None:
    student, teacher = [normal(4, 3) for _ in range(2)], [normal(4, 3) for _ in range(2)]
    expected = 0.0
    for own, other in zip(student, teacher, strict=True):
        for a, b in zip(own.tolist(), other.tolist(), strict=True):
            expected += plain_distance(a, b) / 3 / 4
    assert hidden_mse(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def by_head(values_BLD: Tensor, heads: int) -> Tensor:
    return torch.stack(values_BLD.chunk(heads, dim=-1), dim=1)


def test_attention_mse_is_the_equation() -> None:
    heads, width = 2, 6
    q_s, k_s, q_t, k_t = (normal(3, 5, width) for _ in range(4))
    scores = [
        by_head(q, heads) @ by_head(k, heads).transpose(-1, -2) / math.sqrt(width / heads)
        for q, k in ((q_s, k_s), (q_t, k_t))
    ]
    found = attention_mse(scores[0], scores[1], real_tokens()).item()
    assert found == pytest.approx(plain_attention_mse(q_s, k_s, q_t, k_t, heads), rel=1e-12)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_relations_are_the_equation_for_different_widths(heads: int) -> None:
    student = normal(3, 5, 4), normal(3, 5, 4)
    teacher = normal(3, 5, 8), normal(3, 5, 8)
    found = relations(student, teacher, real_tokens(), heads).item()
    assert found == pytest.approx(plain_relation(student, teacher, heads), rel=1e-12)


def test_a_relation_by_hand() -> None:
    """Two tokens, one head of width 1: the student's scores are all 0, its relation is even."""
    student = (torch.zeros(1, 2, 1, dtype=torch.float64),) * 2
    left = torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)
    right = torch.tensor([[[0.0], [math.log(3)]]], dtype=torch.float64)
    # of token 0 even as well; of token 1 the scores 0 and log 3, so 1/4 and 3/4
    expected = (math.log(1 / 2) / 4 + math.log(3 / 2) * 3 / 4) / 2
    both = torch.ones(1, 2, dtype=torch.bool)
    assert relations(student, (left, right), both, 1).item() == pytest.approx(expected, rel=1e-12)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sentence vectors of student .* differ in shape"):
        vector_mse(normal(2, 3), normal(2, 4))
    for function in (patient_hidden, hidden_mse):
        with pytest.raises(ValueError, match=r"hidden states of student .* differ in shape"):
            function([normal(2, 3)], [normal(2, 4)])
    with pytest.raises(ValueError, match=r"attention scores of student .* differ in shape"):
        attention_mse(normal(1, 2, 5, 5), normal(1, 4, 5, 5), real_tokens()[:1])
    with pytest.raises(ValueError, match="3 does not divide the width 8"):
        relations((normal(3, 5, 6),) * 2, (normal(3, 5, 8),) * 2, real_tokens(), 3)


# --- sums of a batch ------------------------------------------------------------------------------


def signals(width: int, layers: int) -> Signals:
    """Padding is not a number: nothing may read it."""
    padding = ~real_tokens()[..., None]

    def padded() -> Tensor:
        return normal(3, 5, width).masked_fill(padding, 1e6).requires_grad_()

    return Signals(
        padded(),
        vectors_BD=normal(3, width),
        layers={layer: padded() for layer in range(-1, layers)},
        qkv={layer: (padded(), padded(), padded()) for layer in range(layers)},
    )


PAIRS = ((0, 1), (1, 3))


def plain_hidden(
    student: Signals, teacher: Signals, tokens: str, each: Callable[..., float]
) -> Any:
    total = 0.0
    for layer_s, layer_t in PAIRS:
        for text, length in enumerate(LENGTHS):
            for token in range(length if tokens == "all" else 1):
                own = student.layers[layer_s][text, token].tolist()
                other = teacher.layers[layer_t][text, token].tolist()
                total += each(own, other)
    return total


@pytest.mark.parametrize("tokens", ["first", "all"])
def test_sum_of_patient_hidden(tokens: str) -> None:
    student, teacher = signals(4, 2), signals(4, 4)
    objective = PatientHidden(tokens=tokens)
    taught = Taught(teacher, pairings={"patient_hidden": Pairing(PAIRS)})
    found = hidden_sum(objective, student, taught, *[real_tokens()] * 2).item()
    expected = plain_hidden(
        student, teacher, tokens, lambda a, b: plain_distance(a, b, normalised=True)
    )
    assert found == pytest.approx(expected, rel=1e-12)


def test_sum_of_hidden_mse_with_embeddings_and_projections() -> None:
    student, teacher = signals(4, 2), signals(6, 4)
    maps = {"hidden_mse": normal(6, 4), "hidden_mse_embeddings": normal(6, 4)}
    pairs = ((EMBEDDINGS, EMBEDDINGS), *PAIRS)
    taught = Taught(teacher, pairings={"hidden_mse": Pairing(pairs)}, projections=maps)
    found = hidden_sum(HiddenMse(), student, taught, *[real_tokens()] * 2).item()

    def each(name: str, a: list[float], b: list[float]) -> float:
        mapped = [dot(row, a) for row in maps[name].tolist()]
        return plain_distance(mapped, b) / 6

    expected = plain_hidden(student, teacher, "all", lambda a, b: each("hidden_mse", a, b))
    for text, length in enumerate(LENGTHS):
        for token in range(length):
            own = student.layers[EMBEDDINGS][text, token].tolist()
            other = teacher.layers[EMBEDDINGS][text, token].tolist()
            expected += each("hidden_mse_embeddings", own, other)
    assert found == pytest.approx(expected, rel=1e-12)


def test_sum_of_the_cosine_of_vectors() -> None:
    """One row a text, whatever its length, against the equation in float64."""
    student, teacher = signals(4, 1), signals(4, 1)
    assert student.vectors_BD is not None
    assert teacher.vectors_BD is not None
    expected = 0.0
    for a, b in zip(student.vectors_BD.tolist(), teacher.vectors_BD.tolist(), strict=True):
        expected += 1 - dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))
    found = hidden_sum(HiddenCosine(of="pooled"), student, Taught(teacher), *[real_tokens()] * 2)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    tokens = hidden_sum(HiddenCosine(), student, Taught(teacher), *[real_tokens()] * 2)
    assert abs(tokens.item() - expected) > 0.01


def test_sum_of_vector_mse_with_a_projection() -> None:
    student, teacher = signals(4, 0), signals(6, 0)
    weight = normal(6, 4)
    taught = Taught(teacher, projections={"vector_mse": weight})
    found = hidden_sum(VectorMse(), student, taught, *[real_tokens()] * 2).item()
    expected = 0.0
    for a, b in zip(student.vectors_BD.tolist(), teacher.vectors_BD.tolist(), strict=True):
        expected += plain_distance([dot(row, a) for row in weight.tolist()], b)
    assert found == pytest.approx(expected, rel=1e-12)


def test_sum_of_attention_mse() -> None:
    student, teacher = signals(4, 2), signals(8, 4)
    taught = Taught(teacher, pairings={"attention_mse": Pairing(PAIRS, heads=2)})
    found = hidden_sum(AttentionMse(), student, taught, *[real_tokens()] * 2).item()
    expected = sum(
        plain_attention_mse(*student.qkv[s][:2], *teacher.qkv[t][:2], heads=2) for s, t in PAIRS
    )
    assert found == pytest.approx(sum(LENGTHS) * expected, rel=1e-12)


@pytest.mark.parametrize("pairs", [["qq", "kk", "vv"], ["qk", "vv"], ["kk"]])
def test_sum_of_relations(pairs: list[str]) -> None:
    student, teacher = signals(4, 2), signals(8, 4)
    with torch.no_grad():  # so large a score has no softmax in plain float64
        for found in (student, teacher):
            for values in found.qkv.values():
                for value in values:
                    value.masked_fill_(~real_tokens()[..., None], 50.0)
    taught = Taught(teacher, pairings={"relations": Pairing(((1, 2),), heads=2)})
    total = hidden_sum(Relations(pairs=pairs), student, taught, *[real_tokens()] * 2)
    expected = 0.0
    for left, right in pairs:
        i, j = "qkv".index(left), "qkv".index(right)
        own = student.qkv[1][i], student.qkv[1][j]
        other = teacher.qkv[2][i], teacher.qkv[2][j]
        expected += plain_relation(own, other, heads=2)
    assert total.item() == pytest.approx(sum(LENGTHS) * expected, rel=1e-12)
    total.backward()
    for part, name in enumerate("qkv"):
        gradient = student.qkv[1][part].grad
        read = any(name in pair for pair in pairs)
        assert (gradient is not None) == read
        if gradient is not None:
            assert gradient[real_tokens()].abs().sum() > 0
            assert gradient[~real_tokens()].abs().sum() == 0  # padding takes no part


def test_equal_models_have_no_loss() -> None:
    model = signals(4, 3)
    pairings = {
        "patient_hidden": Pairing(((0, 0), (1, 1))),
        "hidden_mse": Pairing(((-1, -1), (0, 0), (2, 2))),
        "attention_mse": Pairing(((0, 0), (2, 2)), heads=2),
        "relations": Pairing(((2, 2),), heads=2),
    }
    taught = Taught(model, pairings=pairings)
    for objective in (PatientHidden(), HiddenMse(), AttentionMse(), Relations(), VectorMse()):
        found = hidden_sum(objective, model, taught, *[real_tokens()] * 2).item()
        assert found == pytest.approx(0, abs=1e-12), objective.kind
