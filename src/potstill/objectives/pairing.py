"""What a student and a teacher have to compare: layers, heads, widths; what they can't is refused.

Shapes alone are read, so that models without weights do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import assert_never

from potstill.models import LoadedModel
from potstill.models.captures import Wanted, qkv_widths
from potstill.models.families import family_of
from potstill.models.signals import EMBEDDINGS
from potstill.objectives.hidden import EMBEDDINGS_PROJECTION, Pairing
from potstill.recipe import (
    AttentionMse,
    HiddenCosine,
    HiddenMse,
    HiddenObjective,
    LayerPairs,
    LogitObjective,
    Objective,
    PatientHidden,
    Relations,
    Task,
    VectorMse,
)


def check_pair(student: LoadedModel, teacher: LoadedModel, objectives: Sequence[Objective]) -> None:
    """Refuse a student that can't follow the teacher.

    Raises:
        ValueError: different vocabularies, or shapes that an objective can't compare.
    """
    sizes = student.model.config.vocab_size, teacher.model.config.vocab_size
    if student.task == Task.MASKED_LM and sizes[0] != sizes[1]:
        raise ValueError(
            f"{_called(student, 'student')} predicts {sizes[0]} tokens and "
            f"{_called(teacher, 'teacher')} "
            f"{sizes[1]}: their distributions can't be compared"
        )
    if student.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
        raise ValueError(
            f"{_called(student, 'student')} and {_called(teacher, 'teacher')} have different "
            "vocabularies: "
            "distillation needs the same tokenizer for both"
        )
    pair_up(student, teacher, objectives)


def _called(loaded: LoadedModel, role: str) -> str:
    """How a message calls a model: by its role, and its name where that says more."""
    return f"the {role}" if loaded.name == role else f"{role} {loaded.name}"


def pair_up(
    student: LoadedModel, teacher: LoadedModel, objectives: Sequence[Objective]
) -> dict[str, Pairing]:
    """Kind of objective -> what it compares in the two, of the objectives on hidden states.

    Raises:
        ValueError: layers that one of them has not, or widths or heads that don't fit.
    """
    return {
        objective.kind: _pairing(objective, student, teacher)
        for objective in objectives
        if not isinstance(objective, LogitObjective) and objective.weight > 0
    }


def wanted_of(
    objectives: Sequence[Objective], pairings: Mapping[str, Pairing], side: int
) -> Wanted:
    """What to listen to in the student (side 0) or the teacher (side 1)."""
    layers: set[int] = set()
    qkv: set[int] = set()
    for objective in objectives:
        numbers = {pair[side] for pair in pairings.get(objective.kind, Pairing()).layers}
        if isinstance(objective, (AttentionMse, Relations)):
            qkv |= numbers
        else:
            layers |= numbers
    return Wanted(frozenset(layers), frozenset(qkv))


def projection_shapes(
    student: LoadedModel, teacher: LoadedModel, objectives: Sequence[Objective]
) -> dict[str, tuple[int, int]]:
    """Name -> (teacher's width, student's width) of the maps to be learnt; none at equal widths."""
    shape = teacher.model.config.hidden_size, student.model.config.hidden_size
    names: list[str] = []
    for objective in objectives:
        if isinstance(objective, (HiddenMse, VectorMse)) and objective.weight > 0:
            names.append(objective.kind)
            if isinstance(objective, HiddenMse) and objective.embeddings:
                names.append(EMBEDDINGS_PROJECTION)
    return {} if shape[0] == shape[1] else dict.fromkeys(names, shape)


def compared_layers(
    pairs: LayerPairs, student_depth: int, teacher_depth: int, where: str
) -> list[tuple[int, int]]:
    """(student's layer, teacher's layer), for each layer of the student.

    `uniform` is g(m) = m N / M of TinyBERT (arXiv 1909.10351, section 3) and PKD's skip: the last
    layer of each of equal blocks; `last` PKD's last.

    Args:
        pairs: a rule, or the teacher's layers by number.
        student_depth: the layers to find one for.
        where: the recipe's key, for messages.

    Raises:
        ValueError: other numbers of layers than there are.
    """
    if isinstance(pairs, str):
        if student_depth > teacher_depth:
            raise ValueError(
                f"{where}: {student_depth} layers of the student can't each have one of the "
                f"teacher's {teacher_depth}; leave the objective out"
            )
        chosen = (
            [(i + 1) * teacher_depth // student_depth - 1 for i in range(student_depth)]
            if pairs == "uniform"
            else list(range(teacher_depth - student_depth, teacher_depth))
        )
        return list(enumerate(chosen))
    if len(pairs) != student_depth:
        raise ValueError(
            f"{where}: {len(pairs)} layers of the teacher are named, where {student_depth} of the "
            "student are compared; name one for each"
        )
    wrong = [layer for layer in pairs if layer >= teacher_depth]
    if wrong:
        raise ValueError(f"{where}: {_out_of_range(wrong[0], 'teacher', teacher_depth)}")
    if len(set(pairs)) < len(pairs):
        raise ValueError(f"{where}: {pairs} names a layer twice; name each once at most")
    return list(enumerate(pairs))


def _pairing(objective: HiddenObjective, student: LoadedModel, teacher: LoadedModel) -> Pairing:
    where = f"objectives.{objective.kind}"
    depths = student.model.config.num_hidden_layers, teacher.model.config.num_hidden_layers
    match objective:
        case HiddenCosine():
            _check_widths(objective.kind, student, teacher, "leave it out")
            return Pairing()
        case VectorMse():
            return Pairing()
        case PatientHidden():
            advice = "use hidden_mse, which learns a projection"
            _check_widths(objective.kind, student, teacher, advice)
            return Pairing(tuple(_patient_layers(objective, *depths)))
        case HiddenMse():
            layers = compared_layers(objective.layers, *depths, f"{where}.layers")
            first = [(EMBEDDINGS, EMBEDDINGS)] if objective.embeddings else []
            return Pairing((*first, *layers))
        case AttentionMse():
            layers = compared_layers(objective.layers, *depths, f"{where}.layers")
            return Pairing(tuple(layers), _attention_heads(student, teacher))
        case Relations():
            return _related(objective, student, teacher)
        case _:
            assert_never(objective)


def _patient_layers(
    objective: PatientHidden, student_depth: int, teacher_depth: int
) -> list[tuple[int, int]]:
    """All layers but the student's last, whose output the other losses are about."""
    where = "objectives.patient_hidden.layers"
    if student_depth < 2:
        raise ValueError(
            f"{where}: a student of one layer has none before its last; leave patient_hidden out"
        )
    if isinstance(objective.layers, str):
        return compared_layers(objective.layers, student_depth, teacher_depth, where)[:-1]
    return compared_layers(objective.layers, student_depth - 1, teacher_depth, where)


def _check_widths(kind: str, student: LoadedModel, teacher: LoadedModel, advice: str) -> None:
    widths = student.model.config.hidden_size, teacher.model.config.hidden_size
    if widths[0] != widths[1]:
        raise ValueError(
            f"{kind} compares hidden states of one width: the student's is {widths[0]}, "
            f"the teacher's {widths[1]}; {advice}"
        )


def _attention_heads(student: LoadedModel, teacher: LoadedModel) -> int:
    for loaded in (student, teacher):
        config = loaded.model.config
        if not family_of(config, loaded.name).plain_scores:
            raise ValueError(
                f"objectives.attention_mse: the attention scores of {loaded.name} "
                f"({config.model_type}) are not those of queries and keys alone, for positions "
                "are part of them; use relations instead"
            )
    heads = student.model.config.num_attention_heads, teacher.model.config.num_attention_heads
    if heads[0] != heads[1]:
        raise ValueError(
            f"objectives.attention_mse compares head with head: the student has {heads[0]}, the "
            f"teacher {heads[1]}; use relations, whose heads are their own"
        )
    return int(heads[0])


def _related(objective: Relations, student: LoadedModel, teacher: LoadedModel) -> Pairing:
    where = "objectives.relations"
    layers = []
    for key, loaded, chosen in (
        ("student", student, objective.student_layer),
        ("teacher", teacher, objective.teacher_layer),
    ):
        depth = loaded.model.config.num_hidden_layers
        if chosen is not None and chosen >= depth:
            raise ValueError(f"{where}.{key}_layer: {_out_of_range(chosen, key, depth)}")
        layers.append(depth - 1 if chosen is None else chosen)
    heads = objective.heads or int(student.model.config.num_attention_heads)
    used = {"qkv".index(letter) for pair in objective.pairs for letter in pair}
    widths: dict[int, str] = {}
    for loaded, layer in ((student, layers[0]), (teacher, layers[1])):
        found = qkv_widths(loaded.model, layer)
        if "qk" in objective.pairs and found[0] != found[1]:
            raise ValueError(
                f"{where}.pairs: qk relates queries and keys of one width, those of {loaded.name} "
                f"are {found[0]} and {found[1]}; use qq and kk"
            )
        widths |= {found[part]: loaded.name for part in sorted(used)}
    for width, name in widths.items():
        if width % heads:
            raise ValueError(
                f"{where}.heads: {heads} does not divide the width {width} of {name}; set a "
                f"divisor of {math.gcd(*widths)}"
            )
    return Pairing(((layers[0], layers[1]),), heads)


def _out_of_range(layer: int, whose: str, depth: int) -> str:
    return f"{layer} is out of range: the {whose}'s {depth} layers are 0 to {depth - 1}"
