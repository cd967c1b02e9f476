"""Compute the losses on hidden states, attention and sentence vectors.

The public functions return means over rows (tokens or texts) of sums over layers, as the papers
have them. Inside, every loss is a sum over rows, for the reason that chunks.py gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import assert_never

import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.models import Signals
from potstill.models.signals import EMBEDDINGS, check_same_shape, wide
from potstill.objectives.logits import mean_over
from potstill.recipe import (
    AttentionMse,
    HiddenCosine,
    HiddenMse,
    HiddenObjective,
    PatientHidden,
    RelationPair,
    Relations,
    VectorMse,
)

__all__ = [
    "attention_mse",
    "hidden_cosine",
    "hidden_mse",
    "patient_hidden",
    "relations",
    "vector_mse",
]


def hidden_cosine(student_hidden_KD: Tensor, teacher_hidden_KD: Tensor) -> Tensor:
    """Return the mean over rows of 1 - cos(student, teacher).

    It is L_cos of DistilBERT (Sanh et al. 2019, arXiv 1910.01108) section 2.

    Args:
        student_hidden_KD, teacher_hidden_KD: hidden states of the same K tokens, or the vectors
            of the same K texts, both D wide.

    Returns:
        A scalar from 0 to 2.

    Raises:
        ValueError: The shapes differ.
    """
    check_same_shape(student_hidden_KD, teacher_hidden_KD, "hidden states")
    return mean_over(_cosine_rows(student_hidden_KD, teacher_hidden_KD))


def vector_mse(student_vectors_BD: Tensor, teacher_vectors_BD: Tensor) -> Tensor:
    """Return the mean over texts of the squared distance of their sentence vectors.

    It is eq. 1 of Reimers and Gurevych 2020 (arXiv 2004.09813), with the sum over the width instead
    of its mean: for unit vectors it is 2 - 2 cos.

    Args:
        student_vectors_BD, teacher_vectors_BD: vectors of the same B texts, both D wide.

    Raises:
        ValueError: The shapes differ.
    """
    check_same_shape(student_vectors_BD, teacher_vectors_BD, "sentence vectors")
    return mean_over((student_vectors_BD - teacher_vectors_BD).square().sum(-1))


def patient_hidden(
    student_hidden_KD: Sequence[Tensor], teacher_hidden_KD: Sequence[Tensor]
) -> Tensor:
    """Return the mean over rows of the squared distance of normalized hidden states.

    It is summed over layers: L_PT of PKD (Sun et al. 2019, arXiv 1908.09355) eq. 7, where a row is
    a text's first token.

    Args:
        student_hidden_KD, teacher_hidden_KD: for each pair of layers, hidden states of the same K
            tokens, both D wide.

    Raises:
        ValueError: The shapes differ.
    """
    return _over_layers(_patient_rows, student_hidden_KD, teacher_hidden_KD)


def hidden_mse(student_hidden_KD: Sequence[Tensor], teacher_hidden_KD: Sequence[Tensor]) -> Tensor:
    """Return the mean over tokens of the mean squared difference of hidden states.

    It is summed over layers: L_hidn and L_embd of TinyBERT (Jiao et al. 2020, arXiv 1909.10351)
    eqs. 8 and 9. Where widths differ, project the student's hidden states first.

    Args:
        student_hidden_KD, teacher_hidden_KD: as `patient_hidden`'s; the embeddings are a layer.

    Raises:
        ValueError: The shapes differ.
    """
    return _over_layers(_mse_rows, student_hidden_KD, teacher_hidden_KD)


def attention_mse(
    student_scores_BHLL: Tensor, teacher_scores_BHLL: Tensor, tokens_BL: Tensor
) -> Tensor:
    """Return the mean squared difference of one layer's attention scores before the softmax.

    The mean is over real tokens, heads and real keys: L_attn of TinyBERT (arXiv 1909.10351) eq. 7.
    Padding takes no part; a text counts by its tokens.

    Args:
        student_scores_BHLL, teacher_scores_BHLL: q k^T / sqrt(d), of queries x keys, by head.
        tokens_BL: which tokens are real (bool).

    Raises:
        ValueError: The shapes differ.
    """
    check_same_shape(student_scores_BHLL, teacher_scores_BHLL, "attention scores")
    return mean_over(_score_rows(student_scores_BHLL, teacher_scores_BHLL, tokens_BL, tokens_BL))


def relations(
    student_BLD: tuple[Tensor, Tensor],
    teacher_BLD: tuple[Tensor, Tensor],
    tokens_BL: Tensor,
    heads: int,
) -> Tensor:
    """Return the mean over real tokens and heads of KL(teacher's relation || student's).

    It is section 3 of MiniLMv2 (Wang et al. 2021, arXiv 2012.15828): a relation is softmax(A B^T /
    sqrt(d)) of queries with queries, keys with keys or values with values, in heads of width d.
    With queries and keys it is the attention distribution of MiniLM (Wang et al. 2020, arXiv
    2002.10957) section 3.1, with values its value relation, section 3.2. Widths may differ.

    Args:
        student_BLD, teacher_BLD: the two that are related, such as (queries, queries).
        tokens_BL: which tokens are real (bool); padding takes no part.
        heads: number of relation heads; must divide both widths.

    Returns:
        A scalar in nats.

    Raises:
        ValueError: The heads don't divide a width.
    """
    for values_BLD in (*student_BLD, *teacher_BLD):
        if values_BLD.shape[-1] % heads:
            raise ValueError(
                f"heads: {heads} does not divide the width {values_BLD.shape[-1]}. Give a divisor."
            )
    return mean_over(_relation_rows(student_BLD, teacher_BLD, tokens_BL, tokens_BL, heads))


# --- sums over rows -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairing:
    """Hold what an objective compares in one student and one teacher.

    Attributes:
        layers: (student's, teacher's), counted from 0; EMBEDDINGS is what enters the first one.
        heads: of attention, the same in both, or of relations; 0: hidden states are compared.
    """

    layers: tuple[tuple[int, int], ...] = ()
    heads: int = 0


@dataclass(frozen=True)
class Taught:
    """Hold one teacher's side of a batch.

    Attributes:
        share: its share of all teachers; shares sum to 1.
        pairings: kind of objective -> what it compares.
        projections: name -> learned map [teacher's width x student's], where widths differ.
    """

    signals: Signals
    share: float = 1.0
    pairings: Mapping[str, Pairing] = field(default_factory=dict)
    projections: Mapping[str, Tensor] = field(default_factory=dict)


def hidden_sum(
    objective: HiddenObjective,
    student: Signals,
    taught: Taught,
    tokens_BL: Tensor,
    rows_BL: Tensor,
) -> Tensor:
    """Return an objective's sum over its rows, against one teacher.

    `tokens_BL` and `rows_BL` are the tokens that are real, and those with a loss. The first token
    of a text is a row wherever an objective is over it alone.
    """
    teacher = taught.signals
    pairing = taught.pairings.get(objective.kind, Pairing())
    match objective:
        case HiddenCosine():
            pooled = objective.of == "pooled"
            hidden_s = _vectors(student) if pooled else student.hidden_BLD[rows_BL]
            hidden_t = _vectors(teacher) if pooled else teacher.hidden_BLD[rows_BL]
            check_same_shape(hidden_s, hidden_t, "hidden states")
            return _cosine_rows(wide(hidden_s), wide(hidden_t)).sum()
        case VectorMse():
            own_BD = _projected(_vectors(student), taught.projections.get(objective.kind))
            return (wide(own_BD) - wide(_vectors(teacher))).square().sum()
        case PatientHidden():
            number_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
            first_BL = (number_L == 0).expand_as(tokens_BL)
            chosen_BL = rows_BL if objective.tokens == "all" else first_BL
            states = _layer_states(student, teacher, pairing, chosen_BL)
            rows = [_patient_rows(own_KD, other_KD) for _, own_KD, other_KD in states]
        case HiddenMse():
            rows = []
            for layer, own_KD, other_KE in _layer_states(student, teacher, pairing, rows_BL):
                name = "hidden_mse_embeddings" if layer == EMBEDDINGS else "hidden_mse"
                own_KE = wide(_projected(own_KD, taught.projections.get(name)))
                rows.append(_mse_rows(own_KE, other_KE))
        case AttentionMse():
            rows = []
            for layer_s, layer_t in pairing.layers:
                own_BHLL = _scores(*_related(student, layer_s, "qk"), pairing.heads)
                other_BHLL = _scores(*_related(teacher, layer_t, "qk"), pairing.heads)
                rows.append(_score_rows(own_BHLL, other_BHLL, tokens_BL, rows_BL))
        case Relations():
            ((layer_s, layer_t),) = pairing.layers
            rows = []
            for pair in objective.pairs:
                own, other = _related(student, layer_s, pair), _related(teacher, layer_t, pair)
                rows.append(_relation_rows(own, other, tokens_BL, rows_BL, pairing.heads))
        case _:
            assert_never(objective)
    return torch.stack([rows_K.sum() for rows_K in rows]).sum()


def _layer_states(
    student: Signals, teacher: Signals, pairing: Pairing, chosen_BL: Tensor
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (student's layer, its hidden states, the teacher's) of the chosen tokens."""
    for layer_s, layer_t in pairing.layers:
        own_KD, other_KD = student.layers[layer_s][chosen_BL], teacher.layers[layer_t][chosen_BL]
        yield layer_s, wide(own_KD), wide(other_KD)


def _vectors(signals: Signals) -> Tensor:
    assert signals.vectors_BD is not None
    return signals.vectors_BD


def _related(signals: Signals, layer: int, pair: RelationPair) -> tuple[Tensor, Tensor]:
    left, right = ("qkv".index(letter) for letter in pair)
    return signals.qkv[layer][left], signals.qkv[layer][right]


def _projected(values_KD: Tensor, weight_ED: Tensor | None) -> Tensor:
    return values_KD if weight_ED is None else F.linear(values_KD, weight_ED)


def _over_layers(
    rows: Callable[[Tensor, Tensor], Tensor], student: Sequence[Tensor], teacher: Sequence[Tensor]
) -> Tensor:
    """Return the sum over layers of the mean over rows."""
    pairs = list(zip(student, teacher, strict=True))
    for student_KD, teacher_KD in pairs:
        check_same_shape(student_KD, teacher_KD, "hidden states")
    return torch.stack([mean_over(rows(own_KD, other_KD)) for own_KD, other_KD in pairs]).sum()


def _cosine_rows(student_KD: Tensor, teacher_KD: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(student_KD, teacher_KD, dim=-1)


def _patient_rows(student_KD: Tensor, teacher_KD: Tensor) -> Tensor:
    return (F.normalize(student_KD, dim=-1) - F.normalize(teacher_KD, dim=-1)).square().sum(-1)


def _mse_rows(student_KD: Tensor, teacher_KD: Tensor) -> Tensor:
    return (student_KD - teacher_KD).square().mean(-1)


def _scores(left_BLD: Tensor, right_BLD: Tensor, heads: int) -> Tensor:
    """Return left right^T / sqrt(d), by head: [B x H x L x L]."""
    left_BHLd, right_BHLd = (
        value.unflatten(-1, (heads, -1)).transpose(1, 2) for value in (left_BLD, right_BLD)
    )
    scores_BHLL = left_BHLd @ right_BHLd.transpose(-1, -2)
    return wide(scores_BHLL) / math.sqrt(left_BHLd.shape[-1])


def _score_rows(
    student_BHLL: Tensor, teacher_BHLL: Tensor, tokens_BL: Tensor, rows_BL: Tensor
) -> Tensor:
    """Return one value per row: the mean over heads and real keys."""
    square_BHLL = (student_BHLL - teacher_BHLL).square() * tokens_BL[:, None, None, :]
    keys_B1 = tokens_BL.sum(-1, keepdim=True).clamp(min=1)
    return (square_BHLL.sum(-1).mean(1) / keys_B1)[rows_BL]


def _relation_rows(
    student_BLD: tuple[Tensor, Tensor],
    teacher_BLD: tuple[Tensor, Tensor],
    tokens_BL: Tensor,
    rows_BL: Tensor,
    heads: int,
) -> Tensor:
    """Return one value per row: the mean over relation heads of the divergence."""
    log_s_BHLL, log_t_BHLL = (
        F.log_softmax(
            _scores(*pair, heads).masked_fill(~tokens_BL[:, None, None, :], _NO_KEY), dim=-1
        )
        for pair in (student_BLD, teacher_BLD)
    )
    divergence_BHL = (log_t_BHLL.exp() * (log_t_BHLL - log_s_BHLL)).sum(-1)
    return divergence_BHL.mean(1)[rows_BL]


# A score that no softmax gives weight to, yet finite: 0 * the difference of two is 0.
_NO_KEY = -1e30
