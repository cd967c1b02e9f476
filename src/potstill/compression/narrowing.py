"""Narrower models, initialized from wide ones: hidden states projected, heads and FFN units chosen.

The narrow model's hidden states are the wide one's in the coordinates of their principal
components, P [D x d] with orthonormal columns: every map that reads hidden states becomes W P,
every one that writes them P^T W, and so embeddings E P. This is SliceGPT's rotation and slicing
(Ashkboos et al. 2024, arXiv 2401.15024), exact for what P keeps but for two things that its
architecture avoids and these have: layer norms with a gain for each channel, which become the mean
gain in the new coordinates, and activations that act on channels (the masked-LM head's, a
pooler's). A turn at random within the d dimensions spreads the components over the channels, so
that taking the mean out of a hidden state, as layer norms do, takes no component with it. Heads and
FFN units can't be turned: those with the largest weights are kept, and the maps that read them are
scaled to keep the size of their outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from potstill.compression.parts import Encoder, Widths, widths_of
from potstill.compression.scores import head_magnitudes, unit_magnitudes
from potstill.models.families import Family

TEXTS = 64  # whose hidden states are looked at
TOKENS = 64  # of each where they are random


@dataclass(frozen=True)
class Choice:
    """Hold what a narrower model keeps."""

    turned_Dd: Tensor  # orthonormal directions of the hidden states
    share: float  # of the hidden states' squared length in these directions
    heads: Tensor  # scores of groups of heads [layers x groups]


def narrow_config(config: PretrainedConfig, family: Family, widths: Widths) -> PretrainedConfig:
    """Copy a config with other widths; heads keep their size.

    Raises:
        ValueError: widths that no selection of whole heads and channels gives.
    """
    old = widths_of(config, family)
    head = old.hidden // old.heads
    if widths.heads * head != widths.hidden:
        raise ValueError(
            f"width: {widths.hidden} cuts through a head of size {head}. Set a multiple of {head}."
        )
    for name, new, wide in (("width", widths.hidden, old.hidden), ("ffn", widths.ffn, old.ffn)):
        if not 1 <= new <= wide:
            raise ValueError(
                f"{name}: {new} is out of range. The teacher's is {wide}: set at most that."
            )
    narrow: Any = copy.deepcopy(config)
    narrow.hidden_size, narrow.num_attention_heads = widths.hidden, widths.heads
    setattr(narrow, family.ffn_width, widths.ffn)
    for name in ("embedding_size", "pooler_hidden_size"):
        if getattr(config, name, None) == old.hidden:
            setattr(narrow, name, widths.hidden)
        elif getattr(config, name, None) == widths.hidden:  # a projection would disappear
            raise ValueError(
                f"width: {widths.hidden} is also this model's {name}. Set a larger or smaller one."
            )
    groups = getattr(config, "num_key_value_heads", None)
    if groups is not None:
        if widths.heads % (old.heads // groups):
            raise ValueError(
                f"width: {widths.hidden} cuts through a group of {old.heads // groups} heads that "
                f"share keys and values. Set a multiple of {old.hidden // groups}."
            )
        narrow.num_key_value_heads = widths.heads * groups // old.heads
    result: PretrainedConfig = narrow
    return result


@torch.no_grad()
def narrowed(
    encoder: Encoder, widths: Widths, choice: Choice, **constructor: Any
) -> PreTrainedModel:
    """Make a narrower model of the same class, initialized from this one as the module describes.

    Args:
        choice: What is kept of hidden states and heads; see `largest`.
        constructor: Options of the class besides its config.

    Raises:
        ValueError: as `narrow_config`.
    """
    model = encoder.model
    narrow = type(model)(narrow_config(model.config, encoder.family, widths), **constructor)
    cut = _Cut(encoder, widths, choice)
    shapes = {name: value.shape for name, value in narrow.state_dict().items()}
    load_state(
        narrow,
        {
            name: cut.parameter(name, value.detach().clone(), shapes[name])
            for name, value in model.state_dict().items()
        },
    )
    return narrow


def load_state(model: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Give a model all of its weights, and tie those that are tied."""
    with torch.no_grad():
        missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing, missing
    assert not unexpected, unexpected
    model.tie_weights()


def largest(encoder: Encoder, width: int, sample: Sequence[Sequence[int]] | None = None) -> Choice:
    """Choose the directions [D x width] that hold most of the hidden states, and the largest heads.

    The directions span the principal components, turned at random; all of them, where the width is
    the model's own.
    """
    heads = head_magnitudes(encoder, torch.float32)
    if width == encoder.widths.hidden:
        return Choice(torch.eye(width), 1.0, heads)
    values, vectors = torch.linalg.eigh(hidden_moments(encoder, sample))
    share = float(values[-width:].sum() / values.sum())
    return Choice((vectors[:, -width:] @ turn_at_random(width)).float(), share, heads)


def turn_at_random(width: int) -> Tensor:
    """Return the same orthonormal [width x width], float64, at every call."""
    generator = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    result: Tensor = turn
    return result


@torch.no_grad()
def hidden_moments(encoder: Encoder, sample: Sequence[Sequence[int]] | None = None) -> Tensor:
    """Return second moments [D x D] of a model's hidden states of all layers, float64 on the CPU.

    Args:
        sample: Gives texts as token ids, special tokens included; the first of them are read. None:
            sequences of random tokens, which represent text less well.
    """
    model = encoder.model
    if sample is None:
        generator = torch.Generator().manual_seed(0)
        limit = encoder.family.position_limit(model.config)
        size, length = int(model.config.vocab_size), min(TOKENS, limit)
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
    """Compute each parameter of a narrower model from the wide one's."""

    def __init__(self, encoder: Encoder, widths: Widths, choice: Choice) -> None:
        self.encoder, self.choice = encoder, choice
        self.prefix = encoder.family.layer_prefix(encoder.model)
        self.old = encoder.widths
        # norms divide by the root mean square of fewer channels, which hold `share` of it
        self.gain = (choice.share * self.old.hidden / widths.hidden) ** 0.5
        heads = choice.heads
        if encoder.family.shared_heads:  # one table serves the heads of all layers
            heads = heads.sum(0).expand_as(heads)
        groups = widths.heads * encoder.groups // self.old.heads
        units = unit_magnitudes(encoder, torch.float32)
        self.heads = heads.topk(groups).indices.sort().values
        self.units = units.topk(widths.ffn).indices.sort().values

    def parameter(self, name: str, value: Tensor, shape: torch.Size) -> Tensor:
        """Return the narrow model's parameter of this name, of that shape."""
        turned = self.choice.turned_Dd.to(value)
        if value.dim() == 1 and name.endswith(".weight"):  # a norm's gain
            return (turned**2).T @ value * self.gain if value.shape != shape else value
        for axis, size in enumerate(shape):
            if size == value.shape[axis]:
                continue
            index = self._kept(name, axis, value.shape[axis])
            if index is None:  # from the wide model's channels to the narrow one's
                value = torch.tensordot(value, turned, dims=([axis], [0]))
                value = value.movedim(-1, axis).contiguous()
                continue
            chosen = value.index_select(axis, index.to(value.device))
            if axis == 1:  # a map that reads fewer heads or units
                chosen *= value.float().norm() / chosen.float().norm().clamp(min=1e-12)
            value = chosen
        return value

    def _kept(self, name: str, axis: int, size: int) -> Tensor | None:
        """Return the heads or units that an axis keeps; None: it is one of hidden states."""
        if not name.startswith(self.prefix):
            # the table of relative positions has a column a head
            return self.heads[0] if size == self.old.heads else None
        number, _, rest = name.removeprefix(self.prefix).partition(".")
        heads, units = self.heads[int(number)], self.units[int(number)]
        return self.encoder.kept((rest.rpartition(".")[0], axis, size), heads, units)
