"""Listen to layers: their outputs, and the queries, keys and values within them.

Forward hooks on the modules that are wanted and no others, so that attention runs as it always
does: nothing asks for attention probabilities, nor for the hidden states of all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.models.families import Family
from potstill.models.signals import EMBEDDINGS


@dataclass(frozen=True)
class Wanted:
    """List what to listen to in one model, by the numbers of its layers.

    Attributes:
        layers: Those whose outputs are wanted; EMBEDDINGS for what enters the first one.
        qkv: Those whose queries, keys and values are.
    """

    layers: frozenset[int] = frozenset()
    qkv: frozenset[int] = frozenset()

    def __or__(self, other: Wanted) -> Wanted:
        return Wanted(self.layers | other.layers, self.qkv | other.qkv)


NOTHING = Wanted()


@dataclass
class _Heard:
    layers: dict[int, Tensor] = field(default_factory=dict)
    projected: dict[int, dict[int, Tensor]] = field(default_factory=dict)

    @property
    def qkv(self) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        found = {}
        for layer, outputs in self.projected.items():
            if len(outputs) == 1:
                query, key, value = outputs[0].chunk(3, dim=-1)
            else:
                query, key, value = (outputs[part] for part in range(3))
            found[layer] = (query, key, value)
        return found


@contextmanager
def listening(model: PreTrainedModel, family: Family, wanted: Wanted) -> Iterator[_Heard]:
    """Keep what passes through a model's layers within the block.

    The tensors are those of the graph: losses on them train the layers up to there. A layer that
    is computed again in backward (gradient checkpointing) is heard the first time only, for the
    block has ended by then.
    """
    heard = _Heard()
    layers: Any = model.base_model.get_submodule(family.layers)
    with ExitStack() as hooks:
        for number in wanted.layers:
            if number == EMBEDDINGS:
                handle = layers[0].register_forward_pre_hook(
                    _keep_input(heard.layers), with_kwargs=True
                )
            else:
                handle = layers[number].register_forward_hook(_keep_output(heard.layers, number))
            hooks.callback(handle.remove)
        for number in wanted.qkv:
            kept = heard.projected.setdefault(number, {})
            for part, module in enumerate(_projections(model, family, number)):
                hooks.callback(module.register_forward_hook(_keep_output(kept, part)).remove)
        yield heard


def qkv_widths(model: PreTrainedModel, family: Family, layer: int) -> tuple[int, int, int]:
    """Return the widths of a layer's queries, keys and values."""
    maps = _projections(model, family, layer)
    rows = [int(module.get_parameter("weight").shape[0]) for module in maps]
    query, key, value = [rows[0] // 3] * 3 if len(rows) == 1 else rows
    return query, key, value


def _projections(model: PreTrainedModel, family: Family, layer: int) -> list[nn.Module]:
    module = model.base_model.get_submodule(f"{family.layers}.{layer}")
    return [module.get_submodule(path) for path in family.qkv]


def _keep_output(kept: dict[int, Tensor], key: int) -> Callable[..., None]:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        # DeBERTa's maps read relative positions afterwards: the first call is that of the tokens
        kept.setdefault(key, output[0] if isinstance(output, tuple) else output)

    return hook


def _keep_input(kept: dict[int, Tensor]) -> Callable[..., None]:
    def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        kept[EMBEDDINGS] = arguments[0] if arguments else named["hidden_states"]

    return hook
