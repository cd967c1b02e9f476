"""What is compared with what, and what is refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from potstill.captures import Wanted
from potstill.models import LoadedModel
from potstill.pairing import check_pair, compared_layers, pair_up, projection_shapes, wanted_of
from potstill.recipe import (
    AttentionMse,
    HiddenCosine,
    HiddenMse,
    Objective,
    PatientHidden,
    Relations,
    VectorMse,
)
from potstill.signals import EMBEDDINGS
from potstill.students import make_student
from tiny_families import family_model
from tiny_tokenizers import family_tokenizer


def loaded(name: str, layers: int, **changes: Any) -> LoadedModel:
    model = family_model(name, "headless", layers=layers, **changes)
    return LoadedModel(model, family_tokenizer(name), "sentence_embedding", name)


def pair(name: str = "bert", **student: Any) -> tuple[LoadedModel, LoadedModel]:
    teacher = loaded(name, 6)
    made = make_student(
        teacher.model, **{"family": "bert", **student} if name == "bert" else student
    )
    return LoadedModel(made, teacher.tokenizer, teacher.task, "student"), teacher


@pytest.mark.parametrize(
    ("rule", "student", "teacher", "expected"),
    [
        ("uniform", 3, 6, [(0, 1), (1, 3), (2, 5)]),
        ("uniform", 4, 12, [(0, 2), (1, 5), (2, 8), (3, 11)]),
        ("uniform", 4, 6, [(0, 0), (1, 2), (2, 3), (3, 5)]),
        ("last", 3, 6, [(0, 3), (1, 4), (2, 5)]),
        ([5, 0], 2, 6, [(0, 5), (1, 0)]),
    ],
)
def test_layers_of_unequal_depths(rule: Any, student: int, teacher: int, expected: Any) -> None:
    assert compared_layers(rule, student, teacher, "x") == expected


@pytest.mark.parametrize(
    ("rule", "student", "message"),
    [
        ([0, 1, 6], 3, "x: 6 is out of range: the teacher's 6 layers are 0 to 5"),
        ([0, 1], 3, "x: 2 layers of the teacher are named, where 3 of the student are compared"),
        ([1, 1, 2], 3, r"x: \[1, 1, 2\] names a layer twice"),
        ("uniform", 7, "x: 7 layers of the student can't each have one of the teacher's 6"),
    ],
)
def test_layers_that_can_not_be_compared(rule: Any, student: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compared_layers(rule, student, 6, "x")


def test_each_objective_hears_what_it_compares() -> None:
    chosen: list[Objective] = [
        PatientHidden(),
        HiddenMse(layers=[0, 4, 5]),
        AttentionMse(layers="last"),
        Relations(teacher_layer=4),
        HiddenCosine(),
    ]
    pairings = pair_up(*pair(), chosen)
    # PKD leaves the last student layer out: two of three, of the teacher's every second
    assert pairings["patient_hidden"].layers == ((0, 1), (1, 3))
    assert pairings["hidden_mse"].layers == ((EMBEDDINGS, EMBEDDINGS), (0, 0), (1, 4), (2, 5))
    assert pairings["attention_mse"].layers == ((0, 3), (1, 4), (2, 5))
    assert pairings["relations"].layers == ((2, 4),)
    assert (pairings["attention_mse"].heads, pairings["relations"].heads) == (4, 4)
    student = wanted_of(chosen, pairings, 0)
    teacher = wanted_of(chosen, pairings, 1)
    assert student == Wanted(frozenset({EMBEDDINGS, 0, 1, 2}), frozenset({0, 1, 2}))
    assert teacher == Wanted(frozenset({EMBEDDINGS, 0, 1, 3, 4, 5}), frozenset({3, 4, 5}))


def test_one_layer_is_heard_for_relations_alone() -> None:
    chosen: list[Objective] = [Relations()]
    pairings = pair_up(*pair("modernbert"), chosen)
    assert wanted_of(chosen, pairings, 1) == Wanted(qkv=frozenset({5}))


def test_projections_are_for_other_widths_alone() -> None:
    chosen: list[Objective] = [HiddenMse(), VectorMse(), Relations(heads=2)]
    assert projection_shapes(*pair(), chosen) == {}
    found = projection_shapes(*pair(width=12), chosen)
    assert found == dict.fromkeys(("hidden_mse", "hidden_mse_embeddings", "vector_mse"), (24, 12))
    without: list[Objective] = [HiddenMse(embeddings=False)]
    assert list(projection_shapes(*pair(width=12), without)) == ["hidden_mse"]


@pytest.mark.parametrize(
    ("objective", "student", "message"),
    [
        (HiddenCosine(), {"width": 12}, "the student's is 12, the teacher's 24; leave it out"),
        (PatientHidden(), {"width": 12}, "use hidden_mse, which learns a projection"),
        (PatientHidden(), {"depth": 1}, "a student of one layer has none before its last"),
        (
            PatientHidden(layers=[0]),
            {},
            "patient_hidden.layers: 1 layers .* where 2 of",
        ),
        (HiddenMse(layers=[0, 1, 9]), {}, "hidden_mse.layers: 9 is out of range"),
        (
            AttentionMse(),
            {"width": 12},
            "head with head: the student has 2, the teacher 4",
        ),
        (
            Relations(teacher_layer=6),
            {},
            "relations.teacher_layer: 6 is out of range",
        ),
        (
            Relations(student_layer=3),
            {},
            "relations.student_layer: 3 is out of range",
        ),
        (
            Relations(heads=5),
            {},
            "relations.heads: 5 does not divide .* divisor of 24",
        ),
        (Relations(heads=8), {"width": 12}, "8 does not divide the width 12 .* a divisor of 12"),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_what_shapes_can_not_serve(
    objective: Objective, student: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_pair(*pair(**student), [objective])


@pytest.mark.parametrize("name", ["mpnet", "deberta-v2", "modernbert", "nomic_bert", "eurobert"])
def test_scores_with_positions_are_not_compared(name: str) -> None:
    with pytest.raises(ValueError, match=r"attention scores of student .*; use relations instead"):
        check_pair(*pair(name), [AttentionMse()])


def test_keys_of_fewer_heads_are_not_related_to_queries() -> None:
    with pytest.raises(ValueError, match=r"pairs: qk relates queries and keys of one width"):
        check_pair(*pair("eurobert"), [Relations(pairs=["qk"])])
    check_pair(*pair("eurobert"), [Relations()])


def test_other_vocabularies_are_refused() -> None:
    student = loaded("electra", 2)
    with pytest.raises(ValueError, match="have different vocabularies"):
        check_pair(student, loaded("roberta", 2), [])
