"""Pruning of the hidden width: which directions of the hidden states stay, and which heads.

Heads keep their width, so their number falls with the model's. Of the directions, two choices: the
model's own channels, each with its own gain in every norm; or its principal components, which hold
more of the hidden states in as many dimensions, but share a mean gain (see narrowing). Either are
ranked by importance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.compression.graph_pruning import head_magnitude_scores, head_taylor_scores
from potstill.compression.narrowing import Choice, hidden_moments, turn_at_random
from potstill.compression.pruning import Importance, argument, own_family, result, slopes
from potstill.models.families import layers_of

Directions = Literal["channels", "components"]
Loss = Callable[[Any], Tensor]


def chosen_width(
    model: PreTrainedModel,
    width: int,
    directions: Directions,
    importance: Importance,
    sample: Sequence[Sequence[int]],
    batches: Callable[[], Iterable[Any]],
    loss: Loss,
) -> Choice:
    """What a model of `width` channels keeps of this one.

    Args:
        directions: what is ranked: channels, or principal components of hidden states.
        importance: "taylor" reads batches, "magnitude" weights (of components their variance).
        sample: see `narrowing.hidden_moments`.
        batches, loss: as in `pruning.taylor_scores`; batches once for directions, once for heads.

    Raises:
        ValueError: no batch for taylor, or no sample.
    """
    if not sample:
        raise ValueError("width: there is no text to look at hidden states of: give some")
    moments_DD = hidden_moments(model, sample)
    if directions == "components":
        sizes_D, basis_DD = torch.linalg.eigh(moments_DD)
    else:
        sizes_D, basis_DD = channel_magnitude_scores(model), torch.eye(len(moments_DD)).double()
    heads = head_magnitude_scores(model)
    if importance == "taylor":
        sizes_D = direction_taylor_scores(model, basis_DD, batches(), loss)
        heads = head_taylor_scores(model, batches(), loss)
    kept_Dd = basis_DD[:, sizes_D.topk(width).indices.sort().values]
    share = float((kept_Dd * (moments_DD @ kept_Dd)).sum() / moments_DD.trace())
    if directions == "components":
        kept_Dd = kept_Dd @ turn_at_random(width)
    return Choice(kept_Dd.float(), share, heads)


def channel_magnitude_scores(model: PreTrainedModel) -> Tensor:
    """Weight magnitudes of channels [D], float64 on the CPU.

    The Euclidean norm of all that layers write to a channel, and of its column of the word
    embeddings, times that of all that they read from it: what any of them is zero for says nothing.
    """
    family, width = own_family(model), int(model.config.hidden_size)
    table: Any = model.get_input_embeddings()
    written_D, read_D = torch.zeros(width).double(), torch.zeros(width).double()
    if table.embedding_dim == width:  # it is narrower where a projection follows
        written_D += table.weight.detach().double().square().sum(0).cpu()
    for layer in layers_of(model):
        *ffn_in, ffn_out = family.ffn
        for path in (family.attention_out, ffn_out):
            written_D += layer.get_submodule(path).weight.detach().double().square().sum(1).cpu()
        for path in (*family.qkv, *ffn_in):
            read_D += layer.get_submodule(path).weight.detach().double().square().sum(0).cpu()
    scores_D: Tensor = (written_D * read_D).sqrt()
    return scores_D


def direction_taylor_scores(
    model: PreTrainedModel, basis_DD: Tensor, batches: Iterable[Any], loss: Loss
) -> Tensor:
    """First-order Taylor importance of directions of the hidden states [D], float64 on the CPU.

    |sum over layers and a text's tokens of the hidden state's part along a direction times the
    loss's gradient to it|, summed over texts: to first order what the loss changes by when the
    direction is silent in all layers (Molchanov et al. 2017, arXiv 1611.06440, equation 7, of a
    part that all layers share).

    Args:
        basis_DD: orthonormal columns.
        batches, loss: as in `pruning.taylor_scores`.

    Raises:
        ValueError: no batch.
    """
    layers = layers_of(model)
    states = [(layers[0], argument), *((layer, result) for layer in layers)]
    scores_D = torch.zeros(len(basis_DD)).double()
    basis_DD = basis_DD.to(model.device)
    for found in slopes(model, states, batches, loss, "; use magnitude"):
        changes_BD = [
            ((state_BLD.double() @ basis_DD) * (slope_BLD.double() @ basis_DD)).sum(1)
            for state_BLD, slope_BLD in found
        ]
        scores_D += torch.stack(changes_BD).sum(0).abs().sum(0).cpu()
    return scores_D
