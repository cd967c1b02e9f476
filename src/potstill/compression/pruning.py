"""Structured pruning: what matters least leaves a model, the rest stays as it is.

FFN units and the hidden width leave all layers alike, so that config.json lists the shape and plain
transformers loads it. Heads and units may also leave in a different number per layer: such a shape
lives in memory, and in the ONNX graph that is written from there. Either gives what the whole model
gives with the outputs of those heads and units set to zero.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import repeat

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.compression.narrowing import Choice, hidden_moments, turn_at_random
from potstill.compression.parts import Encoder
from potstill.compression.scores import (
    Evidence,
    channel_magnitudes,
    direction_taylor,
    head_magnitudes,
    head_taylor,
)
from potstill.recipe import Prune

KeptParts = Sequence[Tensor]  # of each layer, what stays: numbers in order, int64


def units_to_keep(ffn: int | float, width: int) -> int:
    """Return how many FFN units stay of `width`: a number, or a fraction between 0 and 1 of them.

    Raises:
        ValueError: out of range, or nothing would be pruned.
    """
    if isinstance(ffn, float):
        if not 0 < ffn < 1:
            raise ValueError(f"ffn: {ffn:g} is out of range. Set a fraction between 0 and 1.")
        ffn = max(round(ffn * width), 1)
    if not 1 <= ffn <= width:
        raise ValueError(
            f"ffn: {ffn} is out of range. The model's intermediate (FFN) size is {width}: set a "
            "smaller one."
        )
    if ffn == width:
        raise ValueError(
            f"ffn: {ffn} is the model's intermediate (FFN) size already. Set a smaller one."
        )
    return ffn


def prune_ffn(encoder: Encoder, scores: Tensor, units: int) -> PreTrainedModel:
    """Copy a model with the FFN units of each layer that score highest [layers x F], in order."""
    assert 1 <= units <= scores.shape[1], units
    kept = [score_F.topk(units).indices.sort().values for score_F in scores]
    pruned = reshaped(encoder, units=kept)
    setattr(pruned.config, encoder.family.ffn_width, units)
    return pruned


def chosen_width(
    encoder: Encoder, width: int, stage: Prune, sample: Sequence[Sequence[int]], evidence: Evidence
) -> Choice:
    """Choose what a model of `width` channels keeps of this one.

    Heads keep their size, so their number falls with the width. A direction is one of the model's
    own channels, each with its own gain in every norm; or a principal component, which holds more
    of the hidden states in as many dimensions, but shares a mean gain (see narrowing).

    Args:
        stage: Lists `directions` and `importance`; magnitude ranks components by their variance.
        sample: Gives texts as token ids; see `narrowing.hidden_moments`.
        evidence: Is read twice for taylor: for directions and for heads.

    Raises:
        ValueError: no batch for taylor, or no sample.
    """
    if not sample:
        raise ValueError("width: it needs training text, and there is none. Add text to the data.")
    moments_DD = hidden_moments(encoder, sample)
    components = stage.directions == "components"
    if components:
        sizes_D, basis_DD = torch.linalg.eigh(moments_DD)
    else:
        sizes_D, basis_DD = channel_magnitudes(encoder), torch.eye(len(moments_DD)).double()
    heads = head_magnitudes(encoder)
    if stage.importance == "taylor":
        sizes_D = direction_taylor(encoder, basis_DD, evidence)
        heads = head_taylor(encoder, evidence)
    kept_Dd = basis_DD[:, sizes_D.topk(width).indices.sort().values]
    share = float((kept_Dd * (moments_DD @ kept_Dd)).sum() / moments_DD.trace())
    if components:
        kept_Dd = kept_Dd @ turn_at_random(width)
    return Choice(kept_Dd.float(), share, heads)


def kept_number(share: float, layers: int, each: int, key: str) -> int:
    """Return how many parts stay in all layers: a fraction of them, at least one per layer.

    Raises:
        ValueError: nothing would leave; `key` is the recipe's for the fraction.
    """
    assert 0 < share < 1, share
    count = max(round(share * layers * each), layers)
    if count == layers * each:
        raise ValueError(
            f"{key}: {share:g} removes nothing from {layers} layers of {each}. Set a smaller "
            f"fraction, or omit {key}."
        )
    return count


def relative(scores: Tensor) -> Tensor:
    """Divide scores [layers x N] by the Euclidean norm of their layer's.

    Sizes of weights can't be compared from one layer to another; changes of one loss can. (Michel
    et al. 2019 and Molchanov et al. 2017 divide those, too; not to do so was better: docs/LOG.md.)
    """
    norms = torch.linalg.vector_norm(scores, dim=1, keepdim=True)
    return scores / torch.where(norms > 0, norms, 1)


def ranked(scores: Tensor, count: int) -> KeptParts:
    """Choose the best `count` parts of all layers [layers x N], and in any case each layer's best.

    Scores are not negative, and comparable across layers.
    """
    layers, each = scores.shape
    order = scores.clone()
    order[torch.arange(layers), scores.argmax(1)] = torch.inf
    chosen = torch.zeros(scores.numel(), dtype=torch.bool)
    # a stable sort, so that equal ones are chosen alike everywhere
    chosen[order.flatten().sort(descending=True, stable=True).indices[:count]] = True
    return [row.nonzero().flatten() for row in chosen.view(layers, each)]


@torch.no_grad()
def reshaped(
    encoder: Encoder, heads: KeptParts | None = None, units: KeptParts | None = None
) -> PreTrainedModel:
    """Copy a model with these groups of heads and FFN units in each layer; None: all of them.

    The copy's config still lists the old shape: it can be run and exported, not saved.
    """
    smaller = Encoder(copy.deepcopy(encoder.model), encoder.family)
    for layer, own_heads, own_units in zip(
        smaller.layers, heads or repeat(None), units or repeat(None), strict=False
    ):
        smaller.keep(layer, own_heads, own_units)
    return smaller.model
