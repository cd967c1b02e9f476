"""Shapes that no config.json can say: other numbers of attention heads and of inner FFN units in
each layer.

They live in memory, and in the ONNX graph that is written from there. Heads and units are ranked
over all layers together, so that a layer that matters keeps more of them. A model without some of
its heads gives what the whole one gives with those heads' outputs set to zero.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.compression.narrowing import head_channels, head_groups, head_weights, widths_of
from potstill.compression.pruning import argument, cut, keep_units, own_family, slopes
from potstill.models.families import keep_heads, layers_of

KeptParts = Sequence[Tensor]  # of each layer, what stays: numbers in order, int64


def head_magnitude_scores(model: PreTrainedModel) -> Tensor:
    """Weight magnitudes of heads [layers x groups], float64 on the CPU.

    The Euclidean norm of what a head reads as values times the norm of what is read from it; heads
    that share keys and values count as one, for they go or stay together.
    """
    family, groups = own_family(model), head_groups(model.config)
    each = [head_weights(layer, family, groups, torch.float64) for layer in layers_of(model)]
    return torch.stack(each)


def head_taylor_scores(
    model: PreTrainedModel, batches: Iterable[Any], loss: Callable[[Any], Tensor]
) -> Tensor:
    """First-order importance of heads [layers x groups], float64 on the CPU.

    |d loss / d gate| of a factor of 1 on a head's output, of each text, summed over texts (Michel
    et al. 2019, arXiv 1905.10650, section 4.1). Groups as in `head_magnitude_scores`.

    Args:
        batches: what `loss` takes, one forward pass each.
        loss: runs `model` once on a batch of texts and gives its loss, a sum over texts.

    Raises:
        ValueError: no batch.
    """
    family, groups = own_family(model), head_groups(model.config)
    readers = [(layer.get_submodule(family.attention_out), argument) for layer in layers_of(model)]
    scores = torch.zeros(len(readers), groups, dtype=torch.float64)
    for found in slopes(model, readers, batches, loss, "; use magnitude"):
        for layer, (output_BLD, slope_BLD) in enumerate(found):
            change_BLD = output_BLD.double() * slope_BLD.double()
            per_text_BG = change_BLD.unflatten(-1, (groups, -1)).sum(dim=(1, 3))
            scores[layer] += per_text_BG.abs().sum(0).cpu()
    return scores


def kept_number(share: float, layers: int, each: int, key: str) -> int:
    """How many stay of `each` in all layers together: their share, and one a layer at least.

    Raises:
        ValueError: nothing would leave; `key` says where the share comes from.
    """
    assert 0 < share < 1, share
    count = max(round(share * layers * each), layers)
    if count == layers * each:
        raise ValueError(
            f"{key}: a share of {share:g} leaves all {each} of {layers} layers where they are: "
            "take a smaller one, or leave it out"
        )
    return count


def relative(scores: Tensor) -> Tensor:
    """Scores [layers x N] divided by the Euclidean norm of their layer's.

    Sizes of weights say nothing from one layer to another; changes of one loss do. (Michel et al.
    2019 and Molchanov et al. 2017 divide those, too; not to do so was better: see docs/LOG.md.)
    """
    norms = torch.linalg.vector_norm(scores, dim=1, keepdim=True)
    return scores / torch.where(norms > 0, norms, 1)


def ranked(scores: Tensor, count: int) -> KeptParts:
    """What stays of each layer where `count` of all stay, and the best of each layer in any case.

    Args:
        scores: [layers x N], not negative, comparable across layers.
        count: not less than there are layers.
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
    model: PreTrainedModel, heads: KeptParts | None = None, units: KeptParts | None = None
) -> PreTrainedModel:
    """A copy of the model, physically smaller, whose layers have those heads and units alone.

    Its config still says the old shape: it can be run and exported, not saved.

    Args:
        heads: of each layer the groups of heads that stay, one at least; None: all.
        units: the same of inner FFN units.
    """
    smaller = copy.deepcopy(model)
    family, groups = own_family(model), head_groups(model.config)
    old = widths_of(model.config)
    for layer, kept in zip(layers_of(smaller), heads or (), strict=heads is not None):
        assert len(kept), "a layer without a head"
        for path in (*family.qkv, *family.positions_qk):
            if (linear := _found(layer, path)) is None:
                continue
            blocks = 3 if path in family.qkv and len(family.qkv) == 1 else 1
            cut(linear, 0, head_channels(kept, groups, linear.out_features, blocks))
        reader = layer.get_submodule(family.attention_out)
        width = reader.in_features // old.heads
        cut(reader, 1, head_channels(kept, groups, reader.in_features))
        keep_heads(layer, family, head_channels(kept, groups, old.heads), width)
    if units is not None:
        keep_units(smaller, units)
    return smaller


def _found(layer: Any, path: str) -> Any:
    """A part of a layer; None where its settings leave it out."""
    try:
        return layer.get_submodule(path)
    except AttributeError:
        return None
