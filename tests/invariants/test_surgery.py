"""The oracle of every family: the teacher with its layers sliced in place is the student."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from potstill.compression import make_student
from potstill.compression.layer_maps import chosen_layers
from potstill.models.families import FAMILIES
from tiny_families import HEADS, MISSING, NAMES, family_model

ALL, UNEVEN = list(range(6)), [0, 1, 5]
PAIRS = [(name, head) for name in NAMES for head in HEADS if (name, head) not in MISSING]


def sliced(teacher: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    oracle = copy.deepcopy(teacher)
    path, _, name = FAMILIES[teacher.config.model_type].layers.rpartition(".")
    holder = oracle.base_model.get_submodule(path)
    setattr(holder, name, nn.ModuleList([getattr(holder, name)[i] for i in layers]))
    oracle.config.num_hidden_layers = len(layers)
    if getattr(oracle.config, "layer_types", None):
        oracle.config.layer_types = [teacher.config.layer_types[i] for i in layers]
    return oracle.eval()


def outputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """At real tokens, of a padded batch whose texts are longer than any attention window."""
    pad = int(model.config.pad_token_id)
    ids_BL = torch.randint(4, 53, (3, 30), generator=torch.Generator().manual_seed(5))
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, 17:] = 0
    mask_BL[2, 1:] = 0
    ids_BL[mask_BL == 0] = pad
    with torch.no_grad():
        found = model(input_ids=ids_BL, attention_mask=mask_BL)
    return {
        name: value[mask_BL.bool()] if value.shape[:2] == mask_BL.shape else value
        for name, value in found.items()
        if isinstance(value, torch.Tensor) and name != "pooler_output"
    }


@pytest.mark.parametrize(("name", "head"), PAIRS)
@pytest.mark.parametrize("layers", [ALL, "alternate", UNEVEN], ids=str)
def test_a_student_is_its_sliced_teacher(name: str, head: str, layers: list[int] | str) -> None:
    teacher = family_model(name, head)
    chosen = chosen_layers(teacher.config, FAMILIES[name], layers)
    student = make_student(teacher, layers)
    if name != "bert":  # which becomes DistilBERT: its own tests say when
        assert type(student) is type(teacher)
    expected, found = outputs(sliced(teacher, chosen)), outputs(student)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4)
    assert max(float(value.std()) for value in expected.values()) > 0.05


@pytest.mark.parametrize("name", NAMES)
def test_a_student_of_all_layers_is_its_teacher_after_saving(name: str, tmp_path: Path) -> None:
    teacher = family_model(name, "masked_lm")
    student = make_student(teacher, ALL, family="bert" if name == "bert" else None)
    student.save_pretrained(tmp_path)
    loaded = HEADS["masked_lm"].from_pretrained(tmp_path).eval()
    torch.testing.assert_close(
        outputs(loaded)["logits"], outputs(teacher)["logits"], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", NAMES)
def test_tied_weights_stay_tied_and_untied_ones_untied(name: str) -> None:
    for tied in (True, False):
        teacher = family_model(name, "masked_lm", tie_word_embeddings=tied)
        student = make_student(teacher)
        decoder, table = student.get_output_embeddings().weight, student.get_input_embeddings()
        assert (decoder.data_ptr() == table.weight.data_ptr()) is tied
        torch.testing.assert_close(decoder, teacher.get_output_embeddings().weight)


def test_mpnet_s_relative_table_is_shared_and_comes_along() -> None:
    teacher = family_model("mpnet", "headless")
    student = make_student(teacher, UNEVEN)
    table = "encoder.relative_attention_bias.weight"
    torch.testing.assert_close(student.state_dict()[table], teacher.state_dict()[table])


@pytest.mark.parametrize("changes", [{"conv_kernel_size": 3}, {"legacy": False}], ids=str)
def test_deberta_s_variants(changes: dict[str, object]) -> None:
    teacher = family_model("deberta-v2", "masked_lm", **changes)
    student = make_student(teacher, UNEVEN)
    torch.testing.assert_close(
        outputs(student)["logits"], outputs(sliced(teacher, UNEVEN))["logits"]
    )
