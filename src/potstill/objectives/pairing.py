"""Pair the layers, heads and widths that a student and a teacher are compared at.

Shapes alone are read, so models without weights will do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import assert_never

from potstill.models import LoadedModel
from potstill.models.captures import Wanted, qkv_widths
from potstill.models.signals import EMBEDDINGS
from potstill.objectives.hidden import Pairing
from potstill.recipe import (
    AttentionMse,
    HiddenMse,
    HiddenObjective,
    LayerPairs,
    Objective,
    PatientHidden,
    Relations,
    Task,
)


def check_pair(student: LoadedModel, teacher: LoadedModel, objectives: Sequence[Objective]) -> None:
    """Refuse a student whose vocabulary, or a shape that is compared, is not the teacher's."""
    names = [
        f"the {role}" if loaded.name == role else f"{role} {loaded.name}"
        for role, loaded in (("student", student), ("teacher", teacher))
    ]
    sizes = student.model.config.vocab_size, teacher.model.config.vocab_size
    if student.task == Task.MASKED_LM and sizes[0] != sizes[1]:
        raise ValueError(
            f"{names[0]} predicts {sizes[0]} tokens and {names[1]} {sizes[1]}, so their "
            "distributions can't be compared. Make the student from this teacher with make_student."
        )
    if student.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
        raise ValueError(
            f"{names[0]} and {names[1]} have different vocabularies. Distillation needs one "
            "tokenizer for both: make the student from this teacher with make_student."
        )
    pair_up(student, teacher, objectives)


def pair_up(
    student: LoadedModel, teacher: LoadedModel, objectives: Sequence[Objective]
) -> dict[str, Pairing]:
    """Return what each objective on hidden states compares in the two, by its kind."""
    return {
        objective.kind: _pairing(objective, student, teacher)
        for objective in objectives
        if objective.reads != "logits" and objective.weight > 0
    }


def wanted_of(pairings: Mapping[str, Pairing], side: int) -> Wanted:
    """Return what to listen to in the student (side 0) or the teacher (side 1)."""
    layers: set[int] = set()
    qkv: set[int] = set()
    for pairing in pairings.values():  # one with heads is of queries, keys and values
        (qkv if pairing.heads else layers).update(pair[side] for pair in pairing.layers)
    return Wanted(frozenset(layers), frozenset(qkv))


def projection_shapes(
    student: LoadedModel, teacher: LoadedModel, objectives: Sequence[Objective]
) -> dict[str, tuple[int, int]]:
    """Return name -> (teacher's width, student's) of the maps to learn; {} at equal widths."""
    shape = teacher.model.config.hidden_size, student.model.config.hidden_size
    names = [name for o in objectives if o.weight > 0 for name in o.projections]
    return {} if shape[0] == shape[1] else dict.fromkeys(names, shape)


def compared_layers(
    pairs: LayerPairs, student_depth: int, teacher_depth: int, where: str
) -> list[tuple[int, int]]:
    """Return (student's layer, teacher's layer) for each layer of the student.

    `uniform` is g(m) = m N / M of TinyBERT (arXiv 1909.10351, section 3) and PKD's skip: the last
    layer of each of equal blocks; `last` PKD's last. `pairs` may also name the teacher's layers;
    `where` is the recipe's key, for messages.
    """
    numbers = range(teacher_depth)
    if isinstance(pairs, str):
        if student_depth > teacher_depth:
            raise ValueError(
                f"{where}: {student_depth} layers of the student can't each have one of the "
                f"teacher's {teacher_depth}. Omit the objective."
            )
        uniform = [(i + 1) * teacher_depth // student_depth - 1 for i in range(student_depth)]
        last = numbers[teacher_depth - student_depth :]
        return list(enumerate(uniform if pairs == "uniform" else last))
    if len(pairs) != student_depth:
        raise ValueError(
            f"{where}: it names {len(pairs)} layers of the teacher, and {student_depth} of the "
            "student are compared. Name one for each."
        )
    for layer in pairs:
        _check_range(layer, "teacher", teacher_depth, where)
    if len(set(pairs)) < len(pairs):
        raise ValueError(f"{where}: {pairs} names a layer twice. Name each at most once.")
    return list(enumerate(pairs))


def _pairing(objective: HiddenObjective, student: LoadedModel, teacher: LoadedModel) -> Pairing:
    where = f"objectives.{objective.kind}"
    own, other = student.model.config, teacher.model.config
    if objective.same_width and own.hidden_size != other.hidden_size:
        raise ValueError(
            f"{where}: it compares hidden states of one width, and the student's are "
            f"{own.hidden_size} wide, the teacher's {other.hidden_size}. Omit it, or use "
            "hidden_mse, which learns a projection."
        )
    if objective.reads != "layers":
        return Pairing()
    where, depth, depth_t = f"{where}.layers", own.num_hidden_layers, other.num_hidden_layers
    match objective:
        case PatientHidden():  # all but the student's last, which other losses are about
            if depth < 2:
                raise ValueError(
                    f"{where}: a student of one layer has none before its last. Omit the objective."
                )
            by_rule = isinstance(objective.layers, str)
            chosen = depth if by_rule else depth - 1
            layers = compared_layers(objective.layers, chosen, depth_t, where)
            return Pairing(tuple(layers[: depth - 1]))
        case HiddenMse():
            layers = compared_layers(objective.layers, depth, depth_t, where)
            first = [(EMBEDDINGS, EMBEDDINGS)] if objective.embeddings else []
            return Pairing((*first, *layers))
        case AttentionMse():
            layers = compared_layers(objective.layers, depth, depth_t, where)
            return Pairing(tuple(layers), _attention_heads(student, teacher))
        case Relations():
            return _related(objective, student, teacher)
        case _:
            assert_never(objective)


def _attention_heads(student: LoadedModel, teacher: LoadedModel) -> int:
    where = "objectives.attention_mse"
    for loaded in (student, teacher):
        config = loaded.model.config
        if not loaded.family.plain_scores:
            raise ValueError(
                f"{where}: the attention scores of {loaded.name} ({config.model_type}) depend on "
                "positions beside queries and keys. Use relations instead."
            )
    heads = student.model.config.num_attention_heads, teacher.model.config.num_attention_heads
    if heads[0] != heads[1]:
        raise ValueError(
            f"{where}: it compares head with head, and the student has {heads[0]}, the teacher "
            f"{heads[1]}. Use relations, which has heads of its own."
        )
    return int(heads[0])


def _related(objective: Relations, student: LoadedModel, teacher: LoadedModel) -> Pairing:
    where = "objectives.relations"
    heads = objective.heads or int(student.model.config.num_attention_heads)
    used = {"qkv".index(letter) for pair in objective.pairs for letter in pair}
    layers: list[int] = []
    widths: dict[int, str] = {}
    for role, loaded, chosen in (
        ("student", student, objective.student_layer),
        ("teacher", teacher, objective.teacher_layer),
    ):
        depth = loaded.model.config.num_hidden_layers
        layers.append(depth - 1 if chosen is None else chosen)
        _check_range(layers[-1], role, depth, f"{where}.{role}_layer")
    for loaded, layer in zip((student, teacher), layers, strict=True):
        found = qkv_widths(loaded.model, loaded.family, layer)
        if "qk" in objective.pairs and found[0] != found[1]:
            raise ValueError(
                f"{where}.pairs: qk relates queries and keys of one width, and those of "
                f"{loaded.name} are {found[0]} and {found[1]} wide. Use qq and kk."
            )
        widths |= {found[part]: loaded.name for part in sorted(used)}
    for width, name in widths.items():
        if width % heads:
            raise ValueError(
                f"{where}.heads: {heads} does not divide the width {width} of {name}. Set a "
                f"divisor of {math.gcd(*widths)}."
            )
    return Pairing(((layers[0], layers[1]),), heads)


def _check_range(layer: int, whose: str, depth: int, where: str) -> None:
    if layer >= depth:
        raise ValueError(
            f"{where}: {layer} is out of range. The {whose}'s {depth} layers are 0 to {depth - 1}."
        )
