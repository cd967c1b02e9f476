"""Surgery against the oracle: the teacher with its layers sliced in place."""

from __future__ import annotations

import copy
import warnings
from typing import Literal

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from potstill.compression import make_student
from potstill.compression.layer_maps import layer_map, typed_layer_map
from tiny_families import family_model


def config(layers: int = 6, **changes: object) -> BertConfig:
    return BertConfig(
        vocab_size=53,
        hidden_size=24,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=32,
        **{"num_labels": 3, **changes},
    )


def perturbed(model: PreTrainedModel) -> PreTrainedModel:
    """Every parameter away from its initial value, so that one that is not copied shows."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def sliced(teacher: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    oracle = copy.deepcopy(teacher)
    encoder = oracle.base_model.encoder if hasattr(oracle.base_model, "encoder") else None
    holder, name = (encoder, "layer") if encoder else (oracle.base_model.transformer, "layer")
    setattr(holder, name, nn.ModuleList([getattr(holder, name)[i] for i in layers]))
    oracle.config.num_hidden_layers = len(layers)
    return oracle.eval()


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 53, (3, 20), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    mask[2, 1:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def outputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        found = model(**inputs())
    real = inputs()["attention_mask"].bool()
    per_token = {"logits", "last_hidden_state", "start_logits", "end_logits"}
    return {
        name: value[real] if name in per_token and value.shape[:2] == real.shape else value
        for name, value in found.items()
        if isinstance(value, torch.Tensor) and name != "pooler_output"
    }


MAPS = [list(range(6)), [0, 2, 5], [0, 1, 5], [4]]
HEADS = [
    (BertForMaskedLM, "DistilBertForMaskedLM"),
    (BertForTokenClassification, "DistilBertForTokenClassification"),
    (BertForQuestionAnswering, "DistilBertForQuestionAnswering"),
]


@pytest.mark.parametrize("layers", MAPS, ids=str)
@pytest.mark.parametrize(("teacher_class", "student_class"), HEADS)
def test_bert_to_distilbert_is_the_sliced_teacher(
    teacher_class: type, student_class: str, layers: list[int]
) -> None:
    labels = 2 if teacher_class is BertForQuestionAnswering else 3
    teacher = perturbed(teacher_class(config(num_labels=labels)))
    student = make_student(teacher, layers, family="distilbert")
    assert type(student).__name__ == student_class
    expected = outputs(sliced(teacher, layers))
    found = outputs(student)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("pooler", [True, False])
def test_headless_teacher_gives_headless_student(pooler: bool) -> None:
    teacher = perturbed(BertModel(config(), add_pooling_layer=pooler))
    student = make_student(teacher, [0, 3, 5])
    assert type(student).__name__ == "DistilBertModel"
    expected = outputs(sliced(teacher, [0, 3, 5]))["last_hidden_state"]
    torch.testing.assert_close(
        outputs(student)["last_hidden_state"], expected, rtol=1e-5, atol=2e-5
    )


@pytest.mark.parametrize(
    "teacher_class",
    [BertModel, BertForMaskedLM, BertForSequenceClassification, BertForTokenClassification],
)
@pytest.mark.parametrize("layers", MAPS, ids=str)
def test_bert_to_bert_is_the_sliced_teacher(teacher_class: type, layers: list[int]) -> None:
    teacher = perturbed(teacher_class(config()))
    student = make_student(teacher, layers, family="bert")
    assert type(student) is teacher_class
    for name, value in outputs(sliced(teacher, layers)).items():
        torch.testing.assert_close(outputs(student)[name], value, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("layers", [[0, 1, 2], [2, 0]], ids=str)
def test_distilbert_teacher_is_sliced(layers: list[int]) -> None:
    tiny = DistilBertConfig(
        vocab_size=53, dim=24, n_layers=3, n_heads=4, hidden_dim=40, max_position_embeddings=32
    )
    teacher = perturbed(DistilBertForMaskedLM(tiny))
    student = make_student(teacher, layers)
    torch.testing.assert_close(
        outputs(student)["logits"], outputs(sliced(teacher, layers))["logits"]
    )


def test_task_teachers_keep_their_family_unless_asked() -> None:
    teacher = perturbed(BertForSequenceClassification(config()))
    assert type(make_student(teacher)) is BertForSequenceClassification
    with pytest.raises(ValueError, match="another function"):
        make_student(teacher, family="distilbert")


def test_a_pair_teacher_stays_bert_with_a_warning() -> None:
    teacher = perturbed(BertForMaskedLM(config()))
    with pytest.warns(UserWarning, match="text pairs"):
        student = make_student(teacher, pairs=True)
    assert type(student) is BertForMaskedLM
    pair = {**inputs(), "token_type_ids": torch.ones(3, 20, dtype=torch.long)}
    with torch.no_grad():
        torch.testing.assert_close(
            student(**pair).logits, sliced(teacher, [0, 2, 5])(**pair).logits
        )


def test_a_pair_teacher_does_not_give_the_distilbert_that_was_asked_for() -> None:
    teacher = perturbed(BertForMaskedLM(config()))
    with pytest.raises(
        ValueError,
        match=r"family: DistilBERT can't express .* it reads text pairs, .* no token types\. Set",
    ):
        make_student(teacher, pairs=True, family="distilbert")


def test_single_texts_need_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_student(perturbed(BertForMaskedLM(config())))


def test_another_epsilon_stays_bert_and_is_refused_for_distilbert() -> None:
    teacher = perturbed(BertForMaskedLM(config(layer_norm_eps=1e-5)))
    with pytest.warns(UserWarning, match=r"layer_norm_eps is 1e-05.*\. The student stays BERT\.$"):
        assert type(make_student(teacher)) is BertForMaskedLM
    with pytest.raises(ValueError, match="layer_norm_eps is 1e-05"):
        make_student(teacher, family="distilbert")


def test_tied_weights_stay_tied_and_untied_ones_untied() -> None:
    tied = make_student(perturbed(BertForMaskedLM(config())))
    decoder = tied.get_output_embeddings().weight
    assert decoder.data_ptr() == tied.get_input_embeddings().weight.data_ptr()
    teacher = perturbed(BertForMaskedLM(config(tie_word_embeddings=False)))
    untied = make_student(teacher)
    assert untied.config.tie_word_embeddings is False
    torch.testing.assert_close(
        untied.get_output_embeddings().weight, teacher.get_output_embeddings().weight
    )


def test_teacher_and_student_share_no_memory() -> None:
    teacher = perturbed(BertForMaskedLM(config()))
    before = copy.deepcopy(teacher.state_dict())
    student = make_student(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    for name, value in teacher.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_label_names_come_along() -> None:
    labels = {0: "O", 1: "B-PER", 2: "I-PER"}
    teacher = perturbed(BertForTokenClassification(config(id2label=labels)))
    assert make_student(teacher, family="distilbert").config.id2label == labels


def test_bert_base_gives_the_papers_size() -> None:
    teacher = BertModel(BertConfig())
    student = make_student(teacher)
    before, after = teacher.num_parameters(), student.num_parameters()
    # embeddings (30522 + 512) x 768 and a norm; six layers of 7,087,872 (Devlin et al. 2019's
    # shapes)
    assert after == (30522 + 512 + 2) * 768 + 6 * 7_087_872
    assert (
        before == after + 2 * 768 + 6 * 7_087_872 + 768 * 768 + 768
    )  # token types, layers, pooler
    assert after / before == pytest.approx(0.60, abs=0.01)


@pytest.mark.parametrize(
    ("rule", "depth", "teacher", "expected"),
    [
        ("alternate", None, 12, [0, 2, 4, 7, 9, 11]),
        ("alternate", None, 6, [0, 2, 5]),
        ("alternate", 1, 6, [0]),
        ("alternate", 6, 6, [0, 1, 2, 3, 4, 5]),
        ("uniform", None, 12, [1, 3, 5, 7, 9, 11]),
        ("uniform", 3, 6, [1, 3, 5]),
        ("first", 4, 12, [0, 1, 2, 3]),
        ("last", 4, 12, [8, 9, 10, 11]),
        ("first", None, 5, [0, 1, 2]),
        ([3, 1], None, 6, [3, 1]),
    ],
)
def test_layer_maps(rule: object, depth: int | None, teacher: int, expected: list[int]) -> None:
    assert layer_map(rule, teacher, depth) == expected


@pytest.mark.parametrize(
    ("rule", "depth", "message"),
    [
        ([0, 6], None, r"layers: 6 is out of range\. The teacher's 6 layers are 0 to 5\.$"),
        ([1, 1], None, "none twice"),
        ([], None, "at least one layer"),
        ([0, 1], 3, r"depth: it is 3, but layers lists 2\. Omit depth\.$"),
        ("first", 7, r"depth: 7 is out of range\. The teacher has 6 layers\.$"),
    ],
)
def test_maps_that_do_not_fit_are_refused(rule: object, depth: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer_map(rule, 6, depth)


@pytest.mark.parametrize(
    ("rule", "depth", "expected"),
    [
        # of 22 layers every third sees all tokens: those stay at every third place
        ("alternate", 11, [0, 2, 4, 6, 8, 10, 12, 14, 17, 18, 20]),
        ("alternate", 22, list(range(22))),
        ("alternate", 1, [0]),
        ("first", 4, [0, 1, 2, 3]),
        ([0, 4, 7], None, [0, 4, 7]),
    ],
)
def test_layers_of_several_types(rule: object, depth: int | None, expected: list[int]) -> None:
    types = ["full" if i % 3 == 0 else "sliding" for i in range(22)]
    found = typed_layer_map(rule, types, depth)  # type: ignore[arg-type]
    if rule == "alternate":
        assert [types[i] for i in found] == types[: len(found)]
    assert found == expected


@pytest.mark.parametrize("rule", ["last", "uniform", [1, 2], [2, 0]], ids=str)
def test_a_first_layer_of_its_own_kind_stays_first(rule: object) -> None:
    with pytest.raises(ValueError, match=r"only layer 0, .* fits there\. Set alternate, first, or"):
        typed_layer_map(rule, ["full", "sliding", "sliding", "full"], None)  # type: ignore[arg-type]


def test_layer_types_out_of_their_pattern_are_told() -> None:
    teacher = family_model("modernbert", "headless")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_student(teacher)
        make_student(teacher, [0, 4, 5])
    with pytest.warns(UserWarning, match="break the pattern of the teacher's layer types"):
        student = make_student(teacher, [0, 3])
    assert student.config.layer_types == ["full_attention", "full_attention"]


@pytest.mark.parametrize("name", ["roberta", "distilbert"])
def test_another_family_is_for_bert_teachers(name: str) -> None:
    with pytest.raises(ValueError, match=f"a teacher of the family {name} can't give a bert"):
        make_student(family_model(name, "masked_lm"), family="bert")


def test_a_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"decoder \(gpt2\)"):
        make_student(GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=20)))


@pytest.mark.parametrize("initialise", ["teacher", "random"])
def test_a_teacher_whose_weights_are_not_finite(initialise: Literal["teacher", "random"]) -> None:
    teacher = family_model("bert", "masked_lm")
    name = "bert.encoder.layer.0.output.dense.bias"
    with torch.no_grad():
        teacher.get_parameter(name)[1] = float("nan")
    with pytest.raises(ValueError, match=f"^the teacher: {name} holds NaN or infinity"):
        make_student(teacher, initialise=initialise)
