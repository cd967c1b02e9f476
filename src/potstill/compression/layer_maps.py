"""Layer maps: which teacher layer each student layer starts as."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from potstill.models.families import Family
from potstill.recipe import LayerRule


def layer_map(
    rule: LayerRule | Sequence[int], teacher_depth: int, depth: int | None = None
) -> list[int]:
    """Return the teacher layer that each student layer starts as.

    Args:
        rule: `alternate` spreads over the whole depth, ends included (of 12 the [0, 2, 4, 7, 9,
            11] of the DistilBERT reference); `uniform` takes the last layer of each of `depth`
            equal blocks (PKD's skip, Sun et al. 2019); `first`, `last`; or the numbers themselves,
            counted from 0.
        teacher_depth: The number of the teacher's layers.
        depth: The number of student layers, for a rule; None: half of the teacher's, rounded up.

    Raises:
        ValueError: a depth or a number out of range, or a layer named twice.
    """
    if not isinstance(rule, str):
        layers = list(rule)
        wrong = [layer for layer in layers if not 0 <= layer < teacher_depth]
        if wrong:
            raise ValueError(
                f"layers: {wrong[0]} is out of range. The teacher's {teacher_depth} layers are 0 "
                f"to {teacher_depth - 1}."
            )
        if not layers or len(set(layers)) < len(layers):
            raise ValueError(f"layers: {layers} must list at least one layer and none twice.")
        if depth not in (None, len(layers)):
            raise ValueError(f"depth: it is {depth}, but layers lists {len(layers)}. Omit depth.")
        return layers
    depth = (teacher_depth + 1) // 2 if depth is None else depth
    if not 1 <= depth <= teacher_depth:
        raise ValueError(f"depth: {depth} is out of range. The teacher has {teacher_depth} layers.")
    match rule:
        case "first":
            return list(range(depth))
        case "last":
            return list(range(teacher_depth - depth, teacher_depth))
        case "uniform":
            return [(i + 1) * teacher_depth // depth - 1 for i in range(depth)]
        case "alternate":
            # Python rounds halves to even, which gives [0, 2, 5] of 6
            return [round(i * (teacher_depth - 1) / max(depth - 1, 1)) for i in range(depth)]


def typed_layer_map(
    rule: LayerRule | Sequence[int], types: Sequence[str], depth: int | None = None
) -> list[int]:
    """Return the layer map of layers of several types, whose first one fits only the first place.

    A rule gives each student layer one of the type that the teacher has at that place, so that the
    pattern stays as it was: `alternate` takes those nearest to where it would take them without
    types, in order.

    Raises:
        ValueError: as `layer_map`, or a map whose first layer isn't layer 0, or has it elsewhere.
    """
    if rule == "alternate":
        wanted = layer_map("first", len(types), depth)  # checks depth
        return _nearest_of_type([types[i] for i in wanted], types)
    chosen = layer_map(rule, len(types), depth)
    if chosen[0] != 0:
        named = f"'{rule}'" if isinstance(rule, str) else chosen
        raise ValueError(
            f"layers: {named} begins with layer {chosen[0]}, and only layer 0, which has no "
            "attention norm, fits there. Set alternate, first, or numbers that begin with 0."
        )
    return chosen


def _nearest_of_type(wanted: Sequence[str], types: Sequence[str]) -> list[int]:
    """Choose rising teacher layers of the wanted types, from 0, as evenly spread as possible.

    Exact, by dynamic programming over (student layer, teacher layer): the sum of distances.
    """
    spread = [i * (len(types) - 1) / max(len(wanted) - 1, 1) for i in range(len(wanted))]
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [0])}  # by the teacher layer taken last
    for i in range(1, len(wanted)):
        following: dict[int, tuple[float, list[int]]] = {}
        for layer, kind in enumerate(types):
            before = [found for last, found in best.items() if last < layer]
            if kind == wanted[i] and before:
                cost, path = min(before)
                following[layer] = (cost + abs(layer - spread[i]), [*path, layer])
        best = following
    return min(best.values())[1]


def chosen_layers(
    config: Any, family: Family, layers: LayerRule | Sequence[int], depth: int | None = None
) -> list[int]:
    """Return the layer map of a teacher: `layer_map`, or `typed_layer_map` where types differ.

    Raises:
        ValueError: as those.
    """
    if family.first_layer_is_special:
        return typed_layer_map(layers, config.layer_types, depth)
    return layer_map(layers, config.num_hidden_layers, depth)
