"""How important each FFN unit, head, layer or direction of a model is.

By magnitude: from the Euclidean norms of a part's weights. By Taylor: to first order, by how much
the loss changes when the part is silent: |sum of the part times the loss's gradient to it| for each
text, summed over texts (Molchanov et al. 2017, arXiv 1611.06440; 2019, arXiv 1906.10771). All
scores are float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from potstill.compression.parts import Encoder

# From a module's arguments and output: the part that would go, and the tensor that it belongs to.
Look = Callable[[tuple[Tensor, ...], Any], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Evidence:
    """Hold what Taylor scores are computed on: batches of texts, and the model's loss on one.

    The loss is a sum over texts. Scores of no batch are a ValueError.
    """

    batches: Callable[[], Iterable[Any]]
    loss: Callable[[Any], Tensor]


def unit_magnitudes(encoder: Encoder, dtype: torch.dtype = torch.float64) -> Tensor:
    """Score FFN units by their weights [layers x F].

    The product of the norms of what a unit reads (of its gate, too) and of what is read from it.
    """
    *writers, reader = encoder.family.ffn
    width, scores = encoder.widths.ffn, []
    for layer in encoder.layers:
        total = _norms(layer.get_submodule(reader).weight.T, dtype)
        for path in writers:
            for block in layer.get_submodule(path).weight.split(width):  # two where one gates
                total = total * _norms(block, dtype)
        scores.append(total)
    return torch.stack(scores)


def head_magnitudes(encoder: Encoder, dtype: torch.dtype = torch.float64) -> Tensor:
    """Score groups of heads by their weights [layers x groups].

    The norm of what a group reads as values times the norm of what is read from it.
    """
    family, scores = encoder.family, []
    for layer in encoder.layers:
        read = layer.get_submodule(family.qkv[-1]).weight
        if len(family.qkv) == 1:
            read = read[2 * len(read) // 3 :]
        written = layer.get_submodule(family.attention_out).weight.T
        by_group = [part.unflatten(0, (encoder.groups, -1)).flatten(1) for part in (read, written)]
        scores.append(_norms(by_group[0], dtype) * _norms(by_group[1], dtype))
    return torch.stack(scores)


def channel_magnitudes(encoder: Encoder) -> Tensor:
    """Score channels of the hidden states by their weights [D].

    The norm of all that layers write to a channel, and of its column of the word embeddings, times
    the norm of all that they read from it.
    """
    family, width = encoder.family, encoder.widths.hidden
    table: Any = encoder.model.get_input_embeddings()
    written_D, read_D = torch.zeros(width).double(), torch.zeros(width).double()
    if table.embedding_dim == width:  # it is narrower where a projection follows
        written_D += table.weight.detach().double().square().sum(0).cpu()
    *ffn_in, ffn_out = family.ffn
    for layer in encoder.layers:
        for path in (family.attention_out, ffn_out):
            written_D += layer.get_submodule(path).weight.detach().double().square().sum(1).cpu()
        for path in (*family.qkv, *ffn_in):
            read_D += layer.get_submodule(path).weight.detach().double().square().sum(0).cpu()
    scores_D: Tensor = (written_D * read_D).sqrt()
    return scores_D


def _norms(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(matrix.detach().to(dtype), dim=1)
    return norms.cpu()


def unit_taylor(encoder: Encoder, evidence: Evidence) -> Tensor:
    """Score FFN units by Taylor [layers x F]."""
    readers = [(reader, _argument) for reader in encoder.maps(encoder.family.ffn[-1])]
    return _taylor(
        encoder, readers, evidence, lambda change: change.sum(dim=tuple(range(1, change.dim() - 1)))
    )


def head_taylor(encoder: Encoder, evidence: Evidence) -> Tensor:
    """Score groups of heads by Taylor [layers x groups].

    The gradient to a factor of 1 on a head's output (Michel et al. 2019, arXiv 1905.10650, 4.1).
    """
    readers = [(out, _argument) for out in encoder.maps(encoder.family.attention_out)]
    by_group = (encoder.groups, -1)
    return _taylor(
        encoder, readers, evidence, lambda change: change.unflatten(-1, by_group).sum(dim=(1, 3))
    )


def layer_taylor(encoder: Encoder, evidence: Evidence) -> Tensor:
    """Score whole layers by Taylor [layers]: the part is what a layer adds to its input."""

    def added(arguments: tuple[Tensor, ...], output: Any) -> tuple[Tensor, Tensor]:
        whole, _ = _result(arguments, output)
        return whole - arguments[0], whole

    layers = [(layer, added) for layer in encoder.layers]
    return _taylor(encoder, layers, evidence, lambda change: change.flatten(1).sum(1))


def direction_taylor(encoder: Encoder, basis_DD: Tensor, evidence: Evidence) -> Tensor:
    """Score directions of the hidden states, orthonormal columns of a basis, by Taylor [D].

    A direction is silent in all layers at once: the sum over layers comes before the magnitude.
    """
    layers = encoder.layers
    states: list[tuple[nn.Module, Look]] = [(layers[0], _argument)]
    states += [(layer, _result) for layer in layers]
    scores_D = torch.zeros(len(basis_DD)).double()
    basis_DD = basis_DD.to(encoder.model.device)
    for found in _slopes(encoder, states, evidence):
        changes_BD = [
            ((state_BLD.double() @ basis_DD) * (slope_BLD.double() @ basis_DD)).sum(1)
            for state_BLD, slope_BLD in found
        ]
        scores_D += torch.stack(changes_BD).sum(0).abs().sum(0).cpu()
    return scores_D


def _taylor(
    encoder: Encoder,
    parts: Sequence[tuple[nn.Module, Look]],
    evidence: Evidence,
    per_text: Callable[[Tensor], Tensor],
) -> Tensor:
    """Sum |per_text(part times gradient)| over texts, for each part."""
    scores = torch.zeros((), dtype=torch.float64)
    for found in _slopes(encoder, parts, evidence):
        changes = [per_text(part.double() * slope.double()) for part, slope in found]
        scores = scores + torch.stack([change.abs().sum(0).cpu() for change in changes])
    return scores


def _argument(arguments: tuple[Tensor, ...], _: Any) -> tuple[Tensor, Tensor]:
    return arguments[0], arguments[0]


def _result(_: tuple[Tensor, ...], output: Any) -> tuple[Tensor, Tensor]:
    given = output if isinstance(output, Tensor) else output[0]
    return given, given


def _slopes(
    encoder: Encoder, parts: Sequence[tuple[nn.Module, Look]], evidence: Evidence
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield, for every batch, each part and the loss's gradient to the tensor it belongs to."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def note(number: int, look: Look, _: Any, arguments: tuple[Tensor, ...], output: Any) -> None:
        seen[number] = look(arguments, output)

    model, count = encoder.model, 0
    was_training = model.training
    hooks = [
        module.register_forward_hook(partial(note, number, look))
        for number, (module, look) in enumerate(parts)
    ]
    try:
        model.eval()  # dropout would blur what is looked at
        for count, batch in enumerate(evidence.batches(), start=1):  # noqa: B007
            seen.clear()
            with torch.enable_grad():
                value = evidence.loss(batch)
            found = [seen[number] for number in range(len(parts))]
            slopes = torch.autograd.grad(value, [whole for _, whole in found])
            yield [(part.detach(), slope) for (part, _), slope in zip(found, slopes, strict=True)]
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    if not count:
        raise ValueError(
            "importance: taylor needs training text, and there is none. Add text to the recipe's "
            "data, or set importance to magnitude."
        )
