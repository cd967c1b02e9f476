"""Narrower models: fewer channels, heads and inner FFN units, the most important ones kept.

A narrow model's weights are a selection of the wide one's, so that layer norms, which act on each
channel alone, and the residual connections, which add channels of the same number, stay what they
were (weight subcloning, Samragh et al. 2023, arXiv 2312.09299). What is kept has the largest
weights; maps that lose inputs are scaled to keep the size of their outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from potstill.families import FAMILIES, Family, family_of, layer_prefix


@dataclass(frozen=True)
class Widths:
    """What is narrow or wide about an encoder.

    Attributes:
        hidden: channels of the hidden states.
        heads: attention heads of a layer.
        ffn: inner units of a feed-forward network.
    """

    hidden: int
    heads: int
    ffn: int


def widths_of(config: PretrainedConfig) -> Widths:
    """The widths that a config says."""
    family = family_of(config, config.model_type)
    ffn = getattr(config, family.ffn_width)
    return Widths(config.hidden_size, config.num_attention_heads, ffn)


def narrow_config(config: PretrainedConfig, widths: Widths) -> PretrainedConfig:
    """The same architecture with other widths; heads keep their own.

    Raises:
        ValueError: widths that no selection of whole heads and channels gives.
    """
    old, family = widths_of(config), family_of(config, config.model_type)
    _check(old, widths)
    narrow: Any = copy.deepcopy(config)
    narrow.hidden_size, narrow.num_attention_heads = widths.hidden, widths.heads
    setattr(narrow, family.ffn_width, widths.ffn)
    for name in ("embedding_size", "pooler_hidden_size"):
        if getattr(config, name, None) == old.hidden:
            setattr(narrow, name, widths.hidden)
        elif getattr(config, name, None) == widths.hidden:  # a projection would disappear
            raise ValueError(
                f"width: {widths.hidden} is also this model's {name}: take a larger or smaller one"
            )
    groups = getattr(config, "num_key_value_heads", None)
    if groups is not None:
        if widths.heads % (old.heads // groups):
            raise ValueError(
                f"width: {widths.heads} heads are no whole groups of {old.heads // groups} that "
                "share keys and values"
            )
        narrow.num_key_value_heads = widths.heads * groups // old.heads
    result: PretrainedConfig = narrow
    return result


def _check(old: Widths, new: Widths) -> None:
    of_a_head = old.hidden // old.heads
    if new.heads * of_a_head != new.hidden:
        raise ValueError(
            f"width: {new.hidden} is not {new.heads} heads of {of_a_head}, the width of the "
            f"teacher's heads: take a multiple of {of_a_head}"
        )
    for name, narrow, wide in (
        ("width", new.hidden, old.hidden),
        ("ffn", new.ffn, old.ffn),
    ):
        if not 1 <= narrow <= wide:
            raise ValueError(f"{name}: {narrow} is out of range: the teacher's is {wide}")


@torch.no_grad()
def narrowed(model: PreTrainedModel, widths: Widths, **constructor: Any) -> PreTrainedModel:
    """A narrower model of the same class whose weights are a selection of this one's.

    Args:
        constructor: options of the class beside its config.

    Raises:
        ValueError: as `narrow_config`.
    """
    narrow = type(model)(narrow_config(model.config, widths), **constructor)
    kept = _Kept(model, widths)
    shapes = {name: value.shape for name, value in narrow.state_dict().items()}
    maps = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not model.get_output_embeddings()
    }
    state = {}
    for name, value in model.state_dict().items():
        cut = value.detach().clone()
        for axis, size in enumerate(shapes[name]):
            if size == cut.shape[axis]:
                continue
            index = kept.index(name, axis, cut.shape[axis]).to(cut.device)
            selected = cut.index_select(axis, index)
            if axis == 1 and name in maps:  # the same output from fewer inputs
                selected *= cut.float().norm() / selected.float().norm().clamp(min=1e-12)
            cut = selected
        state[name] = cut
    missing, unexpected = narrow.load_state_dict(state, strict=False)
    assert not missing, missing
    assert not unexpected, unexpected
    narrow.tie_weights()
    return narrow


class _Kept:
    """Which channels, heads and inner units of a model a narrower one keeps, in their order."""

    def __init__(self, model: PreTrainedModel, widths: Widths) -> None:
        self.family: Family = FAMILIES[model.config.model_type]
        self.prefix = layer_prefix(model)
        self.widths, self.old = widths, widths_of(model.config)
        layers: Any = model.get_submodule(self.prefix.removesuffix("."))
        self.channels = _largest(self._channel_weights(model), widths.hidden)
        # Keys and values that several heads share go or stay together.
        self.groups = int(getattr(model.config, "num_key_value_heads", None) or self.old.heads)
        groups = widths.heads * self.groups // self.old.heads
        weights = [self._head_weights(layer) for layer in layers]
        if self.family.shared_heads:  # one table serves the heads of all layers
            weights = [torch.stack(weights).sum(0)] * len(weights)
        self.heads = [_largest(weight, groups) for weight in weights]
        self.units = [_largest(self._unit_weights(layer), widths.ffn) for layer in layers]

    def index(self, name: str, axis: int, size: int) -> Tensor:
        """Kept indices of an axis of a parameter."""
        if not name.startswith(self.prefix):
            if size == self.old.heads:  # the table of relative positions, a column a head
                return self.heads[0]
            return _tiled(self.channels, self.old.hidden, size)
        number, _, rest = name.removeprefix(self.prefix).partition(".")
        path, layer = rest.rpartition(".")[0], int(number)
        *writers, reader = self.family.ffn
        if (path in writers and axis == 0) or (path == reader and axis == 1):
            return _tiled(self.units[layer], self.old.ffn, size)
        of_heads = path in self.family.qkv or path in self.family.positions_qk
        if (of_heads and axis == 0) or (path == self.family.attention_out and axis == 1):
            return self._of_heads(self.heads[layer], size)
        return _tiled(self.channels, self.old.hidden, size)

    def _of_heads(self, groups: Tensor, size: int) -> Tensor:
        """Channels of the kept groups of heads: of keys and values, of queries, or of all three."""
        blocks = 3 if len(self.family.qkv) == 1 and size == 3 * self.old.hidden else 1
        width = size // blocks // self.groups
        index = (groups[:, None] * width + torch.arange(width)).flatten()
        return _tiled(index, size // blocks, size)

    def _channel_weights(self, model: PreTrainedModel) -> Tensor:
        """Each channel's share of the weights, summed over all matrices that read or write it."""
        total = torch.zeros(self.old.hidden)
        for name, value in model.state_dict().items():
            if value.dim() != 2:
                continue
            for axis in (0, 1):
                if value.shape[axis] == self.old.hidden and not self._of_another_axis(name, axis):
                    squares = value.detach().float().square().sum(1 - axis).cpu()
                    total += squares / squares.sum().clamp(min=1e-12)
        return total

    def _of_another_axis(self, name: str, axis: int) -> bool:
        """Whether an axis that is as long as the hidden states is one of heads or inner units."""
        path = name.removeprefix(self.prefix).partition(".")[2].rpartition(".")[0]
        if not name.startswith(self.prefix):
            return False
        *writers, reader = self.family.ffn
        written = (*self.family.qkv, *self.family.positions_qk, *writers)
        return (axis == 0 and path in written) or (
            axis == 1 and path in (reader, self.family.attention_out)
        )

    def _head_weights(self, layer: nn.Module) -> Tensor:
        """Norm of what a group of heads reads as values times the norm of what is read from it."""
        value: Any = layer.get_submodule(self.family.qkv[-1])
        out: Any = layer.get_submodule(self.family.attention_out)
        read = value.weight
        if len(self.family.qkv) == 1:
            read = read[2 * len(read) // 3 :]
        return _norms(read.unflatten(0, (self.groups, -1)).flatten(1)) * _norms(
            out.weight.T.unflatten(0, (self.groups, -1)).flatten(1)
        )

    def _unit_weights(self, layer: nn.Module) -> Tensor:
        """Product of the norms of all that an inner unit reads and of what is read from it."""
        *writers, reader = self.family.ffn
        of: Callable[[str], Any] = layer.get_submodule
        total = _norms(of(reader).weight.T)
        for path in writers:
            for block in of(path).weight.split(self.old.ffn):  # two where one of them gates
                total = total * _norms(block)
        return total


def _norms(matrix: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(matrix.detach().float(), dim=1)
    return norms.cpu()


def _largest(weights: Tensor, count: int) -> Tensor:
    return weights.topk(count).indices.sort().values


def _tiled(index: Tensor, length: int, size: int) -> Tensor:
    """The same indices in each of several blocks that stand one after the other."""
    assert size % length == 0, f"an axis of {size} is no multiple of {length}"
    return torch.cat([index + start for start in range(0, size, length)])
