"""The shape of a student: which layers and how wide, as asked for, or as a budget allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from potstill.compression.layer_maps import chosen_layers
from potstill.compression.narrowing import narrow_config
from potstill.compression.parts import Encoder, Widths, head_groups
from potstill.recipe import Student

# A budget takes depth before width until so few of the teacher's layers are left: what a layer
# knows it keeps whole, and a deep, narrow student is slower than a wide one of its size.
FEWEST_LAYERS = 1 / 3

# Parameters of a student of some depth and widths.
Count = Callable[[int, Widths], int]


@dataclass(frozen=True)
class Shape:
    """Hold a student's shape."""

    layers: list[int]  # the teacher layer that each of its layers starts as
    widths: Widths
    why: str  # what was chosen and why, in words


def choose_shape(teacher: Encoder, wanted: Student, count: Count) -> Shape:
    """Choose the layers and widths that a student gets.

    A budget (`at_most` parameters, or `ratio` of what a token costs: of the layers' parameters)
    takes the widest student that has a third of the teacher's layers within it, with as many layers
    as fit; below that, the one with the most layers of the narrowest.

    Raises:
        ValueError: layers or widths out of range, or a budget that no student keeps.
    """
    config, old, why = teacher.model.config, teacher.widths, ""
    if wanted.at_most is None and wanted.ratio is None:
        depth, widths = wanted.depth, _widths(old, wanted.width or old.hidden, wanted.ffn)
    else:
        depth, widths, why = _within(teacher, wanted, count)
    layers = chosen_layers(config, teacher.family, wanted.layers, depth)
    narrow_config(config, teacher.family, widths)  # refuses widths that can't be
    heads = "1 head" if widths.heads == 1 else f"{widths.heads} heads"
    narrow = f" of {old.hidden}, {heads}" if widths.hidden != old.hidden else ""
    thin = f" of {old.ffn}" if widths.ffn != old.ffn else ""
    return Shape(
        layers,
        widths,
        f"{len(layers)} of {config.num_hidden_layers} layers ({', '.join(map(str, layers))}), "
        f"width {widths.hidden}{narrow}, FFN {widths.ffn}{thin}, "
        f"{number_of(count(len(layers), widths))} parameters{why}",
    )


def _widths(old: Widths, hidden: int, ffn: int | None = None) -> Widths:
    heads = max(hidden * old.heads // old.hidden, 1)
    return Widths(hidden, heads, round(old.ffn * hidden / old.hidden) if ffn is None else ffn)


def _within(teacher: Encoder, wanted: Student, count: Count) -> tuple[int, Widths, str]:
    """Choose depth and widths within the budget, and explain them."""
    depth = int(teacher.model.config.num_hidden_layers)
    if wanted.at_most is not None:
        budget = f"at_most {number_of(wanted.at_most)} parameters"
    else:
        budget = f"ratio {wanted.ratio:g} of what a token costs the teacher"
    narrowest: tuple[int, Widths] | None = None
    whole, _ = _layer_and_rest(teacher.widths, count)
    for widths in _narrower(teacher):
        layer, rest = _layer_and_rest(widths, count)
        if wanted.at_most is not None:
            fitting = min(depth, max(wanted.at_most - rest, 0) // layer)
        else:
            assert wanted.ratio is not None
            fitting = min(depth, math.floor(wanted.ratio * depth * whole / layer + 1e-9))
        if fitting >= max(math.ceil(FEWEST_LAYERS * depth), 1):
            return fitting, widths, f": {budget}"
        if fitting >= 1:
            narrowest = fitting, widths
    if narrowest is None:
        raise ValueError(
            f"{budget}: the smallest student of this teacher, one layer and one head wide, has "
            f"{number_of(count(1, widths))} parameters. Set a larger budget."
        )
    return *narrowest, f": {budget}, with less than a third of the layers"


def _narrower(teacher: Encoder) -> Iterator[Widths]:
    """Yield all widths of whole heads, from the teacher's down."""
    old, config = teacher.widths, teacher.model.config
    for hidden in range(old.hidden, 0, -(old.hidden // head_groups(config))):
        widths = _widths(old, hidden)
        try:
            narrow_config(config, teacher.family, widths)
        except ValueError:  # a width that this family can't have
            continue
        yield widths


def _layer_and_rest(widths: Widths, count: Count) -> tuple[int, int]:
    """Count the parameters of a layer, and of all that is outside the layers."""
    # of the second and third, for the first may lack a norm
    two, three = count(2, widths), count(3, widths)
    return three - two, two - 2 * (three - two)


def number_of(count: int) -> str:
    """Format a number of parameters."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return str(count)
