"""Which shape a student gets, against parameters counted by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tiny_pruning import encoder_of
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
)

from potstill.compression import make_student
from potstill.compression.parts import Widths
from potstill.compression.shapes import Shape, number_of
from potstill.compression.students import Surgery
from potstill.recipe import Student
from tiny_families import NAMES, family_model


def base(kind: str) -> Any:
    with torch.device("meta"):
        if kind == "modernbert":
            return ModernBertForMaskedLM(ModernBertConfig())
        return BertForMaskedLM(BertConfig())


def student_shape(teacher: PreTrainedModel, wanted: Student) -> Shape:
    return Surgery(encoder_of(teacher), wanted).shape()


def asked(**settings: Any) -> Student:
    return Student.model_validate(settings)


def bert_layer(width: int) -> int:
    """Parameters of a layer: four attention maps, an FFN of four times the width, two norms."""
    return 4 * (width**2 + width) + 2 * 4 * width**2 + 4 * width + width + 4 * width


@pytest.mark.parametrize(
    ("settings", "layers", "widths"),
    [
        ({}, [0, 2, 4, 7, 9, 11], Widths(768, 12, 3072)),
        ({"depth": 4, "layers": "first"}, [0, 1, 2, 3], Widths(768, 12, 3072)),
        ({"width": 384}, [0, 2, 4, 7, 9, 11], Widths(384, 6, 1536)),
        ({"depth": 2, "width": 384, "ffn": 512}, [0, 11], Widths(384, 6, 512)),
        ({"ratio": "half"}, [0, 2, 4, 7, 9, 11], Widths(768, 12, 3072)),
        ({"ratio": 1 / 3}, [0, 4, 7, 11], Widths(768, 12, 3072)),
        # a fifth of 12 layers is 2.4, less than a third: narrower, until four fit
        ({"ratio": "fifth"}, [0, 4, 7, 11], Widths(576, 9, 2304)),
        ({"at_most": "500 M"}, list(range(12)), Widths(768, 12, 3072)),
        ({"at_most": "67 M"}, [0, 2, 4, 7, 9, 11], Widths(768, 12, 3072)),
        ({"at_most": 20_000_000}, [0, 4, 7, 11], Widths(384, 6, 1536)),
    ],
)
def test_shapes_of_bert_base(settings: Any, layers: list[int], widths: Widths) -> None:
    shape = student_shape(base("bert"), asked(**settings))
    assert (shape.layers, shape.widths) == (layers, widths)


def test_a_budget_is_kept_and_used() -> None:
    for budget in (15e6, 30e6, 60e6):
        shape = student_shape(base("bert"), asked(at_most=budget))
        with torch.device("meta"):
            student = make_student(base("bert"), at_most=int(budget))
        assert student.num_parameters() <= budget
        # another layer would be too many, as counted by hand
        assert len(shape.layers) == 12 or (
            student.num_parameters() + bert_layer(shape.widths.hidden) > budget
        )


@pytest.mark.parametrize("name", NAMES)
def test_every_family_has_half(name: str) -> None:
    teacher = family_model(name, "masked_lm")
    shape = student_shape(teacher, asked(ratio="half"))
    assert len(shape.layers) == 3
    assert make_student(teacher, ratio="half").config.num_hidden_layers == 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("depth", [1, 2])
def test_a_budget_for_a_teacher_of_few_layers(name: str, depth: int) -> None:
    teacher = family_model(name, "masked_lm", layers=depth)
    whole = student_shape(teacher, asked(at_most=teacher.num_parameters()))
    assert len(whole.layers) == depth
    assert whole.widths == encoder_of(teacher).widths
    less = make_student(teacher, at_most=teacher.num_parameters() - 1)
    assert less.num_parameters() < teacher.num_parameters()


def test_layer_types_count_in_a_budget() -> None:
    shape = student_shape(base("modernbert"), asked(ratio="half"))
    assert shape.layers[0] == 0
    assert len(shape.layers) == 11


def test_what_was_chosen_is_told() -> None:
    shape = student_shape(base("bert"), asked(at_most="20 M"))
    # four layers of 1,774,464; tables of 30522 + 512 rows of 384; a norm; a head of a map, a norm
    # and a bias a token
    total = 4 * bert_layer(384) + 31034 * 384 + 2 * 384 + 384**2 + 3 * 384 + 30522
    assert shape.why == (
        "4 of 12 layers (0, 4, 7, 11), width 384 of 768, 6 heads, FFN 1536 of 3072, "
        f"{total / 1e6:.2f} M parameters: at_most 20 M parameters"
    )
    shape = student_shape(base("bert"), asked())
    # 66,985,530 with its masked-LM head
    assert shape.why == (
        "6 of 12 layers (0, 2, 4, 7, 9, 11), width 768, FFN 3072, 66.99 M parameters"
    )


def test_a_budget_that_no_student_keeps() -> None:
    expected = (
        r"at_most 100 k parameters: the smallest student .*one head wide, has \d.* Set a larger"
    )
    with pytest.raises(ValueError, match=expected):
        student_shape(base("bert"), asked(at_most="100 k"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 400}, "width: 400 cuts through a head of size 64. Set a multiple of 64."),
        ({"width": 832}, "width: 832 is out of range. The teacher's is 768: set at most that."),
        ({"ffn": 4000}, "ffn: 4000 is out of range. The teacher's is 3072: set at most that."),
        ({"depth": 13}, "depth: 13 is out of range. The teacher has 12 layers."),
        ({"at_most": "15 M", "ratio": 0.5}, "at_most: it and ratio both choose"),
        ({"at_most": "15 M", "depth": 3}, "at_most: it chooses the shape. Omit depth."),
        ({"ratio": 0.5, "width": 64, "layers": [0]}, "shape. Omit width and layers."),
        ({"at_most": "15 apples"}, "at_most: "),
        ({"ratio": 2}, "ratio: "),
    ],
)
def test_what_can_not_be_asked_for(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_student(base("bert"), **settings)


def test_random_students_have_the_shape_alone() -> None:
    teacher = family_model("bert", "masked_lm")
    torch.manual_seed(4)
    one = make_student(teacher, initialise="random", width=12)
    torch.manual_seed(4)
    same = make_student(teacher, initialise="random", width=12)
    copied = make_student(teacher, width=12)
    shapes = {name: value.shape for name, value in copied.state_dict().items()}
    assert {name: value.shape for name, value in one.state_dict().items()} == shapes
    name = "distilbert.transformer.layer.0.ffn.lin1.weight"
    assert torch.equal(one.state_dict()[name], same.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], copied.state_dict()[name])
    assert float(one.state_dict()[name].std()) == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize(
    ("count", "told"), [(999, "999"), (1500, "1.5 k"), (66_985_530, "66.99 M"), (1.1e9, "1.1 G")]
)
def test_numbers_in_words(count: int, told: str) -> None:
    assert number_of(int(count)) == told
