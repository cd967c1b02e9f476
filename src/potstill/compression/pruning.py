"""Structured pruning: inner units of the feed-forward networks leave, what is kept stays as it is.

All layers keep as many units, so that config.json says the shape and plain transformers loads it.
A pruned model gives what the whole one gives with those units' activations set to zero.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.compression.narrowing import unit_weights, widths_of
from potstill.models.families import Family, family_of, layers_of

Importance = Literal["taylor", "magnitude"]
# Of a module's arguments and output: what would leave, and what it is part of.
Part = Callable[[tuple[Tensor, ...], Any], tuple[Tensor, Tensor]]


def units_to_keep(ffn: int | float, width: int) -> int:
    """Inner units that stay of `width`: a number of them, or a share between 0 and 1.

    Raises:
        ValueError: out of range, or nothing would be pruned.
    """
    if isinstance(ffn, float):
        if not 0 < ffn < 1:
            raise ValueError(f"ffn: a share of {ffn:g} is out of range: take one between 0 and 1")
        ffn = max(round(ffn * width), 1)
    if not 1 <= ffn <= width:
        raise ValueError(f"ffn: {ffn} is out of range: the model's is {width}")
    if ffn == width:
        raise ValueError(f"ffn: the model's is {width} already, so there is nothing to prune")
    return ffn


def magnitude_scores(model: PreTrainedModel) -> Tensor:
    """Weight magnitudes of inner FFN units [layers x F], float64 on the CPU.

    The product of the Euclidean norms of what a unit reads (of its gate, too, where there is one)
    and of what is read from it: a unit that any of them is zero for says nothing.
    """
    family, width = own_family(model), widths_of(model.config).ffn
    each = [unit_weights(layer, family, width, torch.float64) for layer in layers_of(model)]
    return torch.stack(each)


def taylor_scores(
    model: PreTrainedModel, batches: Iterable[Any], loss: Callable[[Any], Tensor]
) -> Tensor:
    """First-order Taylor importance of inner FFN units [layers x F], float64 on the CPU.

    |sum over a text's tokens of activation times the loss's gradient to it|, summed over texts: to
    first order what the loss changes by when the unit is silent (Molchanov et al. 2017, arXiv
    1611.06440, equations 6 to 8; 2019, arXiv 1906.10771).

    Args:
        batches: what `loss` takes, one forward pass each.
        loss: runs `model` once on a batch of texts and gives its loss, a sum over texts.

    Raises:
        ValueError: no batch.
    """
    readers = [(reader, argument) for _, reader in ffns(model)]
    scores = torch.zeros(len(readers), widths_of(model.config).ffn, dtype=torch.float64)
    for found in slopes(model, readers, batches, loss, "; use magnitude"):
        for layer, (unit, slope) in enumerate(found):
            change = unit.double() * slope.double()
            per_text_BF = change.sum(dim=tuple(range(1, change.dim() - 1)))
            scores[layer] += per_text_BF.abs().sum(0).cpu()
    return scores


def layer_taylor_scores(
    model: PreTrainedModel, batches: Iterable[Any], loss: Callable[[Any], Tensor]
) -> Tensor:
    """First-order Taylor importance of whole layers [layers], float64 on the CPU.

    |sum over a text's tokens and channels of (output - input) times the loss's gradient to the
    output|, summed over texts: to first order what the loss changes by when the layer is skipped
    (Molchanov et al. 2019, arXiv 1906.10771, with a layer's contribution as the unit).

    Args:
        batches, loss: as in `taylor_scores`.

    Raises:
        ValueError: no batch.
    """
    layers = layers_of(model)
    scores = torch.zeros(len(layers), dtype=torch.float64)

    def added(arguments: tuple[Tensor, ...], output: Any) -> tuple[Tensor, Tensor]:
        _, after = result(arguments, output)
        return after - arguments[0], after

    for found in slopes(model, [(layer, added) for layer in layers], batches, loss):
        for layer, (contribution, slope) in enumerate(found):
            change = contribution.double() * slope.double()
            scores[layer] += change.flatten(1).sum(1).abs().sum().cpu()
    return scores


def argument(arguments: tuple[Tensor, ...], _: Any) -> tuple[Tensor, Tensor]:
    """A `Part`: what a module reads."""
    return arguments[0], arguments[0]


def result(_: tuple[Tensor, ...], output: Any) -> tuple[Tensor, Tensor]:
    """A `Part`: what a module gives, the first of several."""
    given = output if isinstance(output, Tensor) else output[0]
    return given, given


def slopes(
    model: PreTrainedModel,
    parts: Sequence[tuple[nn.Module, Part]],
    batches: Iterable[Any],
    loss: Callable[[Any], Tensor],
    hint: str = "",
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Of every batch and each part of a model: what would leave, and the loss's gradient to what it
    is part of.

    Args:
        parts: modules with what is looked at of their arguments and output.
        hint: what to do where there is no batch.

    Raises:
        ValueError: no batch.
    """
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def note(
        number: int, part: Part, _: nn.Module, arguments: tuple[Tensor, ...], output: Any
    ) -> None:
        seen[number] = part(arguments, output)

    was_training, count = model.training, 0
    hooks = [
        module.register_forward_hook(partial(note, number, part))
        for number, (module, part) in enumerate(parts)
    ]
    try:
        model.eval()  # dropout would blur what is looked at
        for count, batch in enumerate(batches, start=1):  # noqa: B007
            seen.clear()
            with torch.enable_grad():
                value = loss(batch)
            found = [seen[number] for number in range(len(parts))]
            gradients = torch.autograd.grad(value, [whole for _, whole in found])
            yield [
                (part.detach(), slope) for (part, _), slope in zip(found, gradients, strict=True)
            ]
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    if not count:
        raise ValueError(f"importance taylor: there is no text to take gradients on{hint}")


def prune_ffn(model: PreTrainedModel, scores: Tensor, units: int) -> PreTrainedModel:
    """A copy of the model with the `units` highest-scored inner units of each layer, in order.

    Args:
        scores: [layers x F].

    Raises:
        ValueError: more units than there are, or none.
    """
    family, width = own_family(model), widths_of(model.config).ffn
    if not 1 <= units <= width:
        raise ValueError(f"ffn: {units} is out of range: the model's is {width}")
    pruned = copy.deepcopy(model)
    keep_units(pruned, [score_F.topk(units).indices.sort().values for score_F in scores])
    setattr(pruned.config, family.ffn_width, units)
    return pruned


def keep_units(model: PreTrainedModel, kept: Sequence[Tensor]) -> None:
    """Cut a model's FFNs, in place, to some of their inner units; its config is left as it is.

    Args:
        kept: of each layer the numbers of the units that stay, int64.
    """
    width = widths_of(model.config).ffn
    for (writers, reader), units in zip(ffns(model), kept, strict=True):
        for writer in writers:
            blocks = range(0, writer.out_features, width)  # two where one of them gates
            cut(writer, 0, torch.cat([units + start for start in blocks]))
        cut(reader, 1, units)


def ffns(model: PreTrainedModel) -> Sequence[tuple[list[nn.Linear], nn.Linear]]:
    """Of each layer: the maps that write its inner units, and the one that reads them."""
    family = own_family(model)
    of = [[layer.get_submodule(path) for path in family.ffn] for layer in layers_of(model)]
    return [(maps[:-1], maps[-1]) for maps in of]


def own_family(model: PreTrainedModel) -> Family:
    return family_of(model.config, model.config.model_type)


def cut(linear: nn.Linear, axis: int, kept: Tensor) -> None:
    kept = kept.to(linear.weight.device)
    linear.weight = nn.Parameter(linear.weight.detach().index_select(axis, kept))
    if axis == 0:
        linear.out_features = len(kept)
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias.detach().index_select(0, kept))
    else:
        linear.in_features = len(kept)
