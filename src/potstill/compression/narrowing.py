"""Narrower models, initialised from wide ones: hidden states projected, heads and FFN units chosen.

The narrow model's hidden states stand for the wide one's in the coordinates of their principal
components, P [D x d] with orthonormal columns: every map that reads hidden states becomes W P,
every one that writes them P^T W, and so embeddings E P. This is SliceGPT's rotation and slicing
(Ashkboos et al. 2024, arXiv 2401.15024), exact for what P keeps but for two things that its
architecture avoids and these have: layer norms with a gain for each channel, which become the mean
gain in the new coordinates, and activations that act on channels (the masked-LM head's, a
pooler's). A turn at random within the d dimensions spreads the components over the channels, so
that taking the mean out of a hidden state, as layer norms do, takes no component with it. Heads and
inner FFN units can't be turned: those with the largest weights are kept, and the maps that read
them are scaled to keep the size of their outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from potstill.models.families import FAMILIES, Family, family_of, layer_prefix, position_limit

TEXTS = 64  # whose hidden states are looked at
TOKENS = 64  # of each where they are random


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


@dataclass(frozen=True)
class Choice:
    """What a narrower model keeps, where it is another thing than the largest.

    Attributes:
        turned_Dd: orthonormal directions of hidden states.
        share: of the hidden states' squared length that lies in them.
        heads: scores of groups of heads [layers x groups]; None: the size of their weights.
    """

    turned_Dd: Tensor
    share: float
    heads: Tensor | None = None


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
                f"width: {widths.hidden} has no whole groups of {old.heads // groups} heads, which "
                f"share keys and values: take a multiple of {old.hidden // groups}"
            )
        narrow.num_key_value_heads = widths.heads * groups // old.heads
    result: PretrainedConfig = narrow
    return result


def _check(old: Widths, new: Widths) -> None:
    of_a_head = old.hidden // old.heads
    if new.heads * of_a_head != new.hidden:
        raise ValueError(
            f"width: {new.hidden} holds no whole heads of {of_a_head}, the width of the teacher's: "
            f"take a multiple of {of_a_head}"
        )
    for name, narrow, wide in (
        ("width", new.hidden, old.hidden),
        ("ffn", new.ffn, old.ffn),
    ):
        if not 1 <= narrow <= wide:
            raise ValueError(f"{name}: {narrow} is out of range: the teacher's is {wide}")


@torch.no_grad()
def narrowed(
    model: PreTrainedModel,
    widths: Widths,
    sample: Sequence[Sequence[int]] | None = None,
    choice: Choice | None = None,
    **constructor: Any,
) -> PreTrainedModel:
    """A narrower model of the same class, initialised from this one as the module says.

    Args:
        sample: see `hidden_moments`; read where `choice` is None.
        choice: what is kept; None: principal components, and the heads of the largest weights.
        constructor: options of the class beside its config.

    Raises:
        ValueError: as `narrow_config`.
    """
    narrow = type(model)(narrow_config(model.config, widths), **constructor)
    cut = _Cut(model, widths, sample, choice)
    shapes = {name: value.shape for name, value in narrow.state_dict().items()}
    state = {
        name: cut.parameter(name, value.detach().clone(), shapes[name])
        for name, value in model.state_dict().items()
    }
    missing, unexpected = narrow.load_state_dict(state, strict=False)
    assert not missing, missing
    assert not unexpected, unexpected
    narrow.tie_weights()
    return narrow


def principal_components(
    model: PreTrainedModel, width: int, sample: Sequence[Sequence[int]] | None = None
) -> tuple[Tensor, float]:
    """Orthonormal directions [D x width] that hold most of a model's hidden states, of all layers.

    They span the principal components, turned at random.

    Args:
        sample: see `hidden_moments`.

    Returns:
        The directions, and the share of the hidden states' squared length in them.
    """
    values, vectors = torch.linalg.eigh(hidden_moments(model, sample))
    kept = float(values[-width:].sum() / values.sum())
    return (vectors[:, -width:] @ turn_at_random(width)).float(), kept


def turn_at_random(width: int) -> Tensor:
    """The same orthonormal [width x width], float64, at every call."""
    generator = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    result: Tensor = turn
    return result


@torch.no_grad()
def hidden_moments(model: PreTrainedModel, sample: Sequence[Sequence[int]] | None = None) -> Tensor:
    """Second moments [D x D] of a model's hidden states of all layers, float64 on the CPU.

    Args:
        sample: texts as token ids, special tokens included; the first of them are read. None:
            sequences of random tokens, which tell less.
    """
    if sample is None:
        generator = torch.Generator().manual_seed(0)
        size, length = int(model.config.vocab_size), min(TOKENS, position_limit(model.config))
        sample = torch.randint(size, (TEXTS, length), generator=generator).tolist()
    was_training = model.training
    model.eval()  # dropout would blur what is looked at
    moments_DD = torch.zeros(model.config.hidden_size, model.config.hidden_size).double()
    for ids in sample[:TEXTS]:
        ids_1L = torch.tensor([ids], device=model.device)
        states = model.base_model(
            input_ids=ids_1L,
            attention_mask=torch.ones_like(ids_1L),
            output_hidden_states=True,
        ).hidden_states
        every_KD = torch.cat([state[0] for state in states]).double()
        moments_DD += (every_KD.T @ every_KD).cpu()
    model.train(was_training)
    return moments_DD


class _Cut:
    """What becomes of each axis of each parameter of a model in a narrower one."""

    def __init__(
        self,
        model: PreTrainedModel,
        widths: Widths,
        sample: Sequence[Sequence[int]] | None = None,
        choice: Choice | None = None,
    ) -> None:
        self.family: Family = FAMILIES[model.config.model_type]
        self.prefix = layer_prefix(model)
        self.widths, self.old = widths, widths_of(model.config)
        self.turned, self.share = torch.eye(self.old.hidden), 1.0
        if choice is not None:
            self.turned, self.share = choice.turned_Dd, choice.share
        elif widths.hidden != self.old.hidden:
            self.turned, self.share = principal_components(model, widths.hidden, sample)
        layers: Any = model.get_submodule(self.prefix.removesuffix("."))
        self.groups = head_groups(model.config)
        groups = widths.heads * self.groups // self.old.heads
        weights = [head_weights(layer, self.family, self.groups) for layer in layers]
        if choice is not None and choice.heads is not None:
            weights = list(choice.heads)
        if self.family.shared_heads:  # one table serves the heads of all layers
            weights = [torch.stack(weights).sum(0)] * len(weights)
        self.heads = [_largest(weight, groups) for weight in weights]
        units = [unit_weights(layer, self.family, self.old.ffn) for layer in layers]
        self.units = [_largest(weights, widths.ffn) for weights in units]

    def parameter(self, name: str, value: Tensor, shape: torch.Size) -> Tensor:
        """The narrow model's parameter of this name, of that shape."""
        if value.dim() == 1 and name.endswith(".weight"):  # a norm's gain
            return self._gain(value) if value.shape != shape else value
        for axis, size in enumerate(shape):
            if size == value.shape[axis]:
                continue
            index = self._kept(name, axis, value.shape[axis])
            if index is None:
                value = self._project(value, axis)
                continue
            chosen = value.index_select(axis, index.to(value.device))
            if axis == 1:  # a map that reads fewer heads or units
                chosen *= value.float().norm() / chosen.float().norm().clamp(min=1e-12)
            value = chosen
        return value

    def _gain(self, gain_D: Tensor) -> Tensor:
        """Norms divide by the root mean square of fewer channels, which hold `share` of it."""
        scale = (self.share * self.old.hidden / self.widths.hidden) ** 0.5
        turned = self.turned.to(gain_D)
        result: Tensor = (turned**2).T @ gain_D * scale
        return result

    def _project(self, value: Tensor, axis: int) -> Tensor:
        """From the wide model's channels to the narrow one's, along one axis."""
        turned = self.turned.to(value)
        result: Tensor = torch.tensordot(value, turned, dims=([axis], [0]))
        return result.movedim(-1, axis).contiguous()

    def _kept(self, name: str, axis: int, size: int) -> Tensor | None:
        """Indices of the heads or units that an axis keeps; None: it is one of hidden states."""
        if not name.startswith(self.prefix):
            # the table of relative positions has a column a head
            return self.heads[0] if size == self.old.heads else None
        number, _, rest = name.removeprefix(self.prefix).partition(".")
        path, layer = rest.rpartition(".")[0], int(number)
        *writers, reader = self.family.ffn
        if (path in writers and axis == 0) or (path == reader and axis == 1):
            return _tiled(self.units[layer], self.old.ffn, size)
        of_heads = path in self.family.qkv or path in self.family.positions_qk
        if (of_heads and axis == 0) or (path == self.family.attention_out and axis == 1):
            blocks = 3 if path in self.family.qkv and len(self.family.qkv) == 1 else 1
            return head_channels(self.heads[layer], self.groups, size, blocks)
        return None


def head_groups(config: PretrainedConfig) -> int:
    """How many groups of heads a layer has: those of a group share keys and values, and go or stay
    together. One head each but for grouped-query attention.
    """
    own = getattr(config, "num_key_value_heads", None)
    return int(own or widths_of(config).heads)


def head_channels(kept: Tensor, groups: int, size: int, blocks: int = 1) -> Tensor:
    """Numbers of the kept groups' channels on an axis of `size`.

    Args:
        kept: numbers of groups of heads, of `groups`.
        blocks: 3 where queries, keys and values stand one after the other.
    """
    width = size // blocks // groups
    index = (kept[:, None] * width + torch.arange(width)).flatten()
    return _tiled(index, size // blocks, size)


def head_weights(
    layer: nn.Module, family: Family, groups: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Of each group of heads [groups], on the CPU: the Euclidean norm of what it reads as values
    times the norm of what is read from it.
    """
    value: Any = layer.get_submodule(family.qkv[-1])
    out: Any = layer.get_submodule(family.attention_out)
    read = value.weight
    if len(family.qkv) == 1:
        read = read[2 * len(read) // 3 :]
    return _norms(read.unflatten(0, (groups, -1)).flatten(1), dtype) * _norms(
        out.weight.T.unflatten(0, (groups, -1)).flatten(1), dtype
    )


def unit_weights(
    layer: nn.Module, family: Family, width: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Of each inner unit of an FFN [width], on the CPU: the product of the Euclidean norms of all
    that it reads (of its gate, too, where there is one) and of what is read from it.
    """
    *writers, reader = family.ffn
    of: Callable[[str], Any] = layer.get_submodule
    total = _norms(of(reader).weight.T, dtype)
    for path in writers:
        for block in of(path).weight.split(width):  # two where one of them gates
            total = total * _norms(block, dtype)
    return total


def _norms(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(matrix.detach().to(dtype), dim=1)
    return norms.cpu()


def _largest(weights: Tensor, count: int) -> Tensor:
    return weights.topk(count).indices.sort().values


def _tiled(index: Tensor, length: int, size: int) -> Tensor:
    """The same indices in each of several blocks that stand one after the other."""
    assert size % length == 0, f"an axis of {size} is no multiple of {length}"
    return torch.cat([index + start for start in range(0, size, length)])
