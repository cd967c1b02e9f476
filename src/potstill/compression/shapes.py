"""The shape of a student: which layers and how wide, as asked for, or as a budget allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from transformers import PretrainedConfig

from potstill.compression.layer_maps import chosen_layers
from potstill.compression.narrowing import Widths, narrow_config, widths_of
from potstill.recipe import Student

# A budget takes depth before width until so few of the teacher's layers are left: what a layer
# knows it keeps whole, and a deep, narrow student is slower than a wide one of its size.
FEWEST_LAYERS = 1 / 3

# Parameters of a student of some depth and widths.
Count = Callable[[int, Widths], int]


@dataclass(frozen=True)
class Shape:
    """A student's shape.

    Attributes:
        layers: the teacher layer that each of its layers starts as.
        why: what was chosen and why, in words.
    """

    layers: list[int]
    widths: Widths
    why: str


def choose_shape(config: PretrainedConfig, wanted: Student, count: Count) -> Shape:
    """The layers and widths that a student gets.

    A budget (`at_most` parameters, or `ratio` of what a token costs: of the layers' parameters)
    takes the widest student that has a third of the teacher's layers within it, with as many layers
    as fit; below that, the one with the most layers of the narrowest.

    Args:
        config: the teacher's.
        count: see Count; asked for a few shapes.

    Raises:
        ValueError: layers or widths out of range, or a budget that no student keeps.
    """
    old, depth = widths_of(config), int(config.num_hidden_layers)
    if wanted.at_most is None and wanted.ratio is None:
        layers = chosen_layers(config, wanted.layers, wanted.depth)
        widths = _widths(old, wanted.width, wanted.ffn)
        narrow_config(config, widths)  # complains of widths that can't be
        return Shape(layers, widths, _told(old, depth, layers, widths, count))
    found, reason = _within(config, wanted, count)
    layers = chosen_layers(config, wanted.layers, found[0])
    return Shape(layers, found[1], f"{_told(old, depth, layers, found[1], count)}: {reason}")


def _widths(old: Widths, hidden: int | None, ffn: int | None) -> Widths:
    hidden = old.hidden if hidden is None else hidden
    heads = max(hidden * old.heads // old.hidden, 1)
    return Widths(hidden, heads, round(old.ffn * hidden / old.hidden) if ffn is None else ffn)


def _within(
    config: PretrainedConfig, wanted: Student, count: Count
) -> tuple[tuple[int, Widths], str]:
    """Depth and widths within the budget, and why these."""
    depth = int(config.num_hidden_layers)
    fewest = max(math.ceil(FEWEST_LAYERS * depth), 1)
    narrowest: tuple[int, Widths] | None = None
    for widths in _narrower(config):
        fitting = _deepest(depth, widths, widths_of(config), wanted, count)
        if fitting >= fewest:
            return (fitting, widths), _budget(wanted)
        if fitting >= 1:
            narrowest = fitting, widths
    if narrowest is None:
        smallest = count(1, list(_narrower(config))[-1])
        raise ValueError(
            f"{_budget(wanted)} is less than the smallest student of this teacher, one layer and "
            f"one head wide ({number_of(smallest)} parameters): allow more"
        )
    return narrowest, f"{_budget(wanted)}, with less than a third of the layers"


def _narrower(config: PretrainedConfig) -> Iterator[Widths]:
    """All widths of whole heads, from the teacher's down."""
    old = widths_of(config)
    groups = getattr(config, "num_key_value_heads", None)
    step = old.hidden // int(groups or old.heads)
    for hidden in range(old.hidden, 0, -step):
        widths = _widths(old, hidden, None)
        try:
            narrow_config(config, widths)
        except ValueError:  # a width that this family can't have
            continue
        yield widths


def _deepest(depth: int, widths: Widths, old: Widths, wanted: Student, count: Count) -> int:
    """Layers of a student of these widths within the budget; 0: not even one."""
    layer, rest = _layer_and_rest(widths, count)
    if wanted.at_most is not None:
        return min(depth, max(wanted.at_most - rest, 0) // layer)
    assert wanted.ratio is not None
    whole, _ = _layer_and_rest(old, count)
    return min(depth, math.floor(wanted.ratio * depth * whole / layer + 1e-9))


def _layer_and_rest(widths: Widths, count: Count) -> tuple[int, int]:
    """Parameters of a layer, and of all that is no layer."""
    # of the second and third, for the first may lack a norm
    two, three = count(2, widths), count(3, widths)
    return three - two, two - 2 * (three - two)


def _budget(wanted: Student) -> str:
    if wanted.at_most is not None:
        return f"at_most {number_of(wanted.at_most)} parameters"
    return f"ratio {wanted.ratio:g} of what a token costs the teacher"


def _told(old: Widths, depth: int, layers: list[int], new: Widths, count: Count) -> str:
    heads = "1 head" if new.heads == 1 else f"{new.heads} heads"
    narrow = f" of {old.hidden}, {heads}" if new.hidden != old.hidden else ""
    thin = f" of {old.ffn}" if new.ffn != old.ffn else ""
    return (
        f"{len(layers)} of {depth} layers ({', '.join(map(str, layers))}), width {new.hidden}"
        f"{narrow}, FFN {new.ffn}{thin}, {number_of(count(len(layers), new))} parameters"
    )


def number_of(count: int) -> str:
    """A number of parameters, in words."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return str(count)
