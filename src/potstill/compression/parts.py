"""The parts of an encoder that compression removes: FFN units, attention heads, layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from potstill.models.families import Family, keep_heads


@dataclass(frozen=True)
class Widths:
    """Hold the sizes that a narrower encoder has less of."""

    hidden: int  # channels of the hidden states
    heads: int  # attention heads per layer
    ffn: int  # intermediate (FFN) size


def widths_of(config: PretrainedConfig, family: Family) -> Widths:
    """Return the widths that a config lists."""
    ffn = getattr(config, family.ffn_width)
    return Widths(config.hidden_size, config.num_attention_heads, ffn)


def head_groups(config: PretrainedConfig) -> int:
    """Count the groups of heads per layer: the heads of a group share keys and values.

    They stay or go together. Each head is a group, except in grouped-query attention.
    """
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


@dataclass(frozen=True)
class Encoder:
    """Hold a model and its family, which names the model's parts."""

    model: PreTrainedModel
    family: Family

    @property
    def layers(self) -> Any:
        return self.model.base_model.get_submodule(self.family.layers)

    @property
    def widths(self) -> Widths:
        return widths_of(self.model.config, self.family)

    @property
    def groups(self) -> int:
        return head_groups(self.model.config)

    def maps(self, path: str) -> list[Any]:
        """Return the linear map at this path in each layer."""
        return [layer.get_submodule(path) for layer in self.layers]

    def kept(
        self, axis: tuple[str, int, int], heads: Tensor | None, units: Tensor | None
    ) -> Tensor | None:
        """Return the indices that an axis (a map's path below its layer, axis, size) keeps.

        None if the axis holds neither groups of heads nor units, or all of them stay.
        """
        path, number, size = axis
        *writers, reader = self.family.ffn
        qkv = self.family.qkv
        if (path, number) == (reader, 1) or (path in writers and number == 0):
            # a map that gates writes its units twice
            return None if units is None else _tiled(units, self.widths.ffn, size)
        if (path, number) == (self.family.attention_out, 1) or (
            path in (*qkv, *self.family.positions_qk) and number == 0
        ):
            blocks = 3 if path in qkv and len(qkv) == 1 else 1
            return None if heads is None else self.head_channels(heads, size, blocks)
        return None

    def head_channels(self, heads: Tensor, size: int, blocks: int = 1) -> Tensor:
        """Return the channels of some groups of heads on an axis of `size`, in each block of it."""
        width = size // blocks // self.groups
        index = (heads[:, None] * width + torch.arange(width)).flatten()
        return _tiled(index, size // blocks, size)

    def keep(self, layer: nn.Module, heads: Tensor | None, units: Tensor | None) -> None:
        """Cut a layer, in place, to some groups of heads and FFN units; see `kept`."""
        assert heads is None or len(heads), "a layer without a head"
        reader: Any = layer.get_submodule(self.family.attention_out)
        width = reader.in_features // self.widths.heads
        for path, linear in layer.named_modules():
            for axis in (0, 1) if isinstance(linear, nn.Linear) else ():
                index = self.kept((path, axis, linear.weight.shape[axis]), heads, units)
                if index is not None:
                    cut(linear, axis, index)
        if heads is not None:
            keep_heads(layer, self.family, self.head_channels(heads, self.widths.heads), width)


def cut(linear: nn.Linear, axis: int, kept: Tensor) -> None:
    """Keep some outputs (axis 0) or inputs (axis 1) of a linear map, in place."""
    kept = kept.to(linear.weight.device)
    linear.weight = nn.Parameter(linear.weight.detach().index_select(axis, kept))
    if axis == 1:
        linear.in_features = len(kept)
        return
    linear.out_features = len(kept)
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach().index_select(0, kept))


def _tiled(index: Tensor, length: int, size: int) -> Tensor:
    """Repeat indices in each block of an axis."""
    assert size % length == 0, f"{size} is not a multiple of {length}"
    return torch.cat([index + start for start in range(0, size, length)])
