"""Which layers, heads and widths are compared, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM

from conftest import tiny_config, tiny_tokenizer
from potstill.compression import make_student
from potstill.models import LoadedModel
from potstill.models.captures import Wanted
from potstill.models.families import FAMILIES
from potstill.models.signals import EMBEDDINGS
from potstill.objectives.hidden import Pairing
from potstill.objectives.pairing import (
    check_pair,
    compared_layers,
    pair_up,
    projection_shapes,
    wanted_of,
)
from potstill.recipe import (
    AttentionMse,
    HiddenCosine,
    HiddenMse,
    Objective,
    PatientHidden,
    Relations,
    SoftTargets,
    Task,
    VectorMse,
)
from tiny_families import family_model
from tiny_tokenizers import family_tokenizer


def model(name: str, layers: int = 4, **changes: Any) -> LoadedModel:
    with torch.device("meta"):
        found = BertForMaskedLM(tiny_config(layers, **changes))
    return LoadedModel(found, tiny_tokenizer(), Task.MASKED_LM, name)


TEACHER = model("teacher", 12)
STUDENT = model("student", 6)
NARROW = model("narrow", 6, hidden_size=24)


def layers(objective: Objective, student: LoadedModel, teacher: LoadedModel) -> list[int]:
    """The teacher's, in the order of the student's."""
    pairs = pair_up(student, teacher, [objective])[objective.kind].layers
    assert [pair[0] for pair in pairs] == list(range(len(pairs)))
    return [pair[1] for pair in pairs]


def test_layers_of_pkd() -> None:
    """Section 3.2 of the paper, counted from 1: skip {2, 4, 6, 8, 10}, last {7, 8, 9, 10, 11}."""
    assert layers(PatientHidden(), STUDENT, TEACHER) == [1, 3, 5, 7, 9]
    assert layers(PatientHidden(layers="last"), STUDENT, TEACHER) == [6, 7, 8, 9, 10]
    assert layers(PatientHidden(layers=[0, 1, 2, 3, 11]), STUDENT, TEACHER) == [0, 1, 2, 3, 11]


def test_layers_of_tinybert() -> None:
    """g(m) = 3 m for 4 of 12 layers (section 4.2 of the paper), counted from 1."""
    four = model("four", 4)
    assert layers(AttentionMse(), four, TEACHER) == [2, 5, 8, 11]
    pairs = pair_up(four, TEACHER, [HiddenMse()])["hidden_mse"].layers
    assert pairs == ((EMBEDDINGS, EMBEDDINGS), (0, 2), (1, 5), (2, 8), (3, 11))
    assert layers(HiddenMse(embeddings=False, layers="last"), four, TEACHER) == [8, 9, 10, 11]


def test_uneven_depths_and_equal_ones() -> None:
    assert [t for _, t in compared_layers("uniform", 5, 12, "x")] == [1, 3, 6, 8, 11]
    assert compared_layers("uniform", 3, 3, "x") == compared_layers("last", 3, 3, "x")


def test_relations_are_of_the_last_layers_or_of_those_named() -> None:
    assert pair_up(STUDENT, TEACHER, [Relations()]) == {"relations": Pairing(((5, 11),), heads=4)}
    chosen = Relations(teacher_layer=9, student_layer=2, heads=8)
    assert pair_up(NARROW, TEACHER, [chosen]) == {"relations": Pairing(((2, 9),), heads=8)}


def test_only_what_is_compared_is_listened_to() -> None:
    objectives = [SoftTargets(), HiddenCosine(), HiddenMse(layers="last"), Relations()]
    pairings = pair_up(STUDENT, TEACHER, objectives)
    assert wanted_of(pairings, 0) == Wanted(frozenset(range(-1, 6)), frozenset({5}))
    assert wanted_of(pairings, 1) == Wanted(frozenset({EMBEDDINGS, *range(6, 12)}), frozenset({11}))
    assert pair_up(STUDENT, TEACHER, [SoftTargets()]) == {}


def test_projections_are_learnt_where_widths_differ() -> None:
    objectives = [HiddenMse(), VectorMse(), Relations()]
    assert projection_shapes(STUDENT, TEACHER, objectives) == {}
    assert projection_shapes(NARROW, TEACHER, objectives) == {
        "hidden_mse": (32, 24),
        "hidden_mse_embeddings": (32, 24),
        "vector_mse": (32, 24),
    }
    without = HiddenMse(embeddings=False)
    assert set(projection_shapes(NARROW, TEACHER, [without])) == {"hidden_mse"}
    check_pair(NARROW, TEACHER, objectives)


WIDTHS = ".* student's are 24 wide, the teacher's 32. Omit it, or use hidden_mse, which"
SINGLE = model("single", 1)
DEEP = model("deep", 13)
TWELVE = model("twelve", 6, num_attention_heads=8)


@pytest.mark.parametrize(
    ("objective", "student", "message"),
    [
        (
            HiddenCosine(),
            NARROW,
            "^objectives.hidden_cosine: " + WIDTHS,
        ),
        (
            PatientHidden(),
            NARROW,
            "^objectives.patient_hidden: " + WIDTHS,
        ),
        (PatientHidden(), SINGLE, r"patient_hidden\.layers: a student of one layer has none"),
        (HiddenMse(), DEEP, r"hidden_mse\.layers: 13 layers of the student .* teacher's 12"),
        (PatientHidden(layers="last"), DEEP, r"patient_hidden\.layers: 13 layers of the student"),
        (
            PatientHidden(layers=[1, 2, 3, 4, 5, 6]),
            STUDENT,
            r"patient_hidden\.layers: it names 6 layers of the teacher, and 5 of the student",
        ),
        (
            AttentionMse(layers=[0]),
            STUDENT,
            r"attention_mse\.layers: it names 1 layers .* and 6 of the",
        ),
        (
            HiddenMse(layers=[0, 1, 2, 3, 4, 12]),
            STUDENT,
            r"hidden_mse\.layers: 12 is out of range\. The teacher's 12 layers are 0 to 11",
        ),
        (HiddenMse(layers=[0, 1, 2, 3, 4, 4]), STUDENT, r"names a layer twice"),
        (AttentionMse(), TWELVE, r"the student has 8, the teacher 4\. Use relations"),
        (
            Relations(teacher_layer=12),
            STUDENT,
            r"teacher_layer: 12 is out of range\. The teacher's",
        ),
        (
            Relations(student_layer=6),
            STUDENT,
            r"student_layer: 6 is out of range\. The student's 6",
        ),
        (
            Relations(heads=3),
            NARROW,
            r"relations\.heads: 3 does not divide the width 32 of teacher\. Set a divisor of 8",
        ),
        (Relations(heads=16), NARROW, r"16 does not divide the width 24 of narrow\. Set a divisor"),
    ],
)
def test_what_a_pair_can_not_compare(
    objective: Objective, student: LoadedModel, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_pair(student, TEACHER, [objective])
    weightless = objective.model_copy(update={"weight": 0.0})
    check_pair(student, TEACHER, [SoftTargets(), weightless])  # it is left out of the training


def test_scores_with_positions_in_them_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(FAMILIES["bert"], plain_scores=False)
    monkeypatch.setitem(FAMILIES, "bert", row)
    with pytest.raises(
        ValueError, match=r"attention scores of student \(bert\) depend on positions"
    ):
        check_pair(replace(STUDENT), TEACHER, [AttentionMse()])  # with the row of today
    check_pair(replace(STUDENT), TEACHER, [Relations()])


# --- other families -------------------------------------------------------------------------------


def loaded(name: str, layers: int, **changes: Any) -> LoadedModel:
    model = family_model(name, "headless", layers=layers, **changes)
    return LoadedModel(model, family_tokenizer(name), Task.SENTENCE_EMBEDDING, name)


def pair(name: str = "bert", **student: Any) -> tuple[LoadedModel, LoadedModel]:
    teacher = loaded(name, 6)
    made = make_student(
        teacher.model, **{"family": "bert", **student} if name == "bert" else student
    )
    return LoadedModel(made, teacher.tokenizer, teacher.task, "student"), teacher


@pytest.mark.parametrize("name", ["mpnet", "deberta-v2", "modernbert", "nomic_bert", "eurobert"])
def test_scores_with_positions_are_not_compared(name: str) -> None:
    with pytest.raises(ValueError, match=r"attention scores of student .*\. Use relations instead"):
        check_pair(*pair(name), [AttentionMse()])


def test_keys_of_fewer_heads_are_not_related_to_queries() -> None:
    with pytest.raises(ValueError, match=r"pairs: qk relates queries and keys of one width"):
        check_pair(*pair("eurobert"), [Relations(pairs=["qk"])])
    check_pair(*pair("eurobert"), [Relations()])


def test_other_vocabularies_are_refused() -> None:
    student = loaded("electra", 2)
    with pytest.raises(ValueError, match="have different vocabularies"):
        check_pair(student, loaded("roberta", 2), [])
