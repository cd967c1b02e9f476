"""Narrowing against the wide model whose dropped parts are silent."""

from __future__ import annotations

import pytest
import torch

from potstill.families import FAMILIES
from potstill.narrowing import Widths, narrowed, widths_of
from tiny_families import HEADS, MISSING, NAMES, family_model

PAIRS = [(name, head) for name in NAMES for head in HEADS if (name, head) not in MISSING]


def inputs(pad: int) -> dict[str, torch.Tensor]:
    ids_BL = torch.randint(5, 53, (3, 20), generator=torch.Generator().manual_seed(5))
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, 11:] = 0
    ids_BL[mask_BL == 0] = pad
    return {"input_ids": ids_BL, "attention_mask": mask_BL}


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_a_narrow_model_has_the_widths_it_was_asked_for(name: str, head: str) -> None:
    model = family_model(name, head, layers=3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    narrow = narrowed(model, Widths(12, 2, 20)).eval()
    assert type(narrow) is type(model)
    assert widths_of(narrow.config) == Widths(12, 2, 20)
    with torch.no_grad():
        found = narrow(**inputs(int(model.config.pad_token_id)))
    assert all(value.isfinite().all() for value in found.values() if torch.is_tensor(value))
    assert found[0].shape[0] == 3
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_model_as_wide_as_before_is_the_same(name: str) -> None:
    model = family_model(name, "masked_lm", layers=2)
    same = narrowed(model, widths_of(model.config)).eval()
    batch = inputs(int(model.config.pad_token_id))
    with torch.no_grad():
        torch.testing.assert_close(same(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("name", NAMES)
def test_inner_units_that_say_nothing_go_first(name: str) -> None:
    """Silence some, then narrow: outputs stay, and whatever number they had."""
    model = family_model(name, "headless", layers=3)
    row, old = FAMILIES[name], widths_of(model.config)
    with torch.no_grad():
        for layer in model.get_submodule(row.layers):
            layer.get_submodule(row.ffn[-1]).weight[:, [0, 7, 9, 30]] = 0
    narrow = narrowed(model, Widths(old.hidden, old.heads, old.ffn - 4)).eval()
    batch = inputs(int(model.config.pad_token_id))
    with torch.no_grad():
        expected, found = model(**batch)[0], narrow(**batch)[0]
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-4)


def test_what_has_the_largest_weights_is_kept_in_its_order() -> None:
    model = family_model("bert", "headless", layers=1, type_vocab_size=1)
    layer = model.encoder.layer[0]
    loud = [1, 2, 5, 8, 9, 13, 14, 15, 19, 20, 22, 23]
    with torch.no_grad():
        layer.output.dense.weight[:, [3, 11, 2]] *= 50
        for head in (1, 3):  # of four, six wide
            layer.attention.self.value.weight[6 * head : 6 * head + 6] *= 50
        for name, value in model.named_parameters():
            if value.dim() == 2 and (name.startswith("embeddings.") or "intermediate" in name):
                value[:, loud] *= 50
        numbers = torch.arange(24.0)
        model.embeddings.LayerNorm.weight.copy_(numbers)
        layer.attention.self.value.bias.copy_(numbers)
        layer.intermediate.dense.bias.copy_(torch.arange(40.0))
    narrow = narrowed(model, Widths(12, 2, 3))
    kept = narrow.encoder.layer[0]
    assert narrow.embeddings.LayerNorm.weight.tolist() == loud
    assert kept.intermediate.dense.bias.tolist() == [2, 3, 11]
    assert kept.attention.self.value.bias.tolist() == [*range(6, 12), *range(18, 24)]


def test_outputs_keep_their_size() -> None:
    model = family_model("bert", "headless", layers=2)
    narrow = narrowed(model, Widths(12, 2, 10))
    wide, cut = model.encoder.layer[0].output.dense, narrow.encoder.layer[0].output.dense
    rows = cut.weight.shape[0] / wide.weight.shape[0]
    # half of the rows go, and what is left of each is scaled up to the size of the whole
    assert float(cut.weight.norm() / wide.weight.norm()) == pytest.approx(rows**0.5, rel=0.1)


@pytest.mark.parametrize(
    ("name", "widths", "message"),
    [
        ("bert", Widths(14, 2, 20), "width: 14 is not 2 heads of 6, .* take a multiple of 6"),
        ("bert", Widths(30, 5, 20), "width: 30 is out of range: the teacher's is 24"),
        ("bert", Widths(12, 2, 0), "ffn: 0 is out of range: the teacher's is 40"),
        ("bert", Widths(12, 2, 41), "ffn: 41 is out of range: the teacher's is 40"),
        ("electra", Widths(12, 2, 20), "width: 12 is also this model's embedding_size"),
        ("eurobert", Widths(18, 3, 20), "width: 3 heads are no whole groups of 2"),
    ],
)
def test_widths_that_can_not_be(name: str, widths: Widths, message: str) -> None:
    changes = {"embedding_size": 12} if name == "electra" else {}
    with pytest.raises(ValueError, match=message):
        narrowed(family_model(name, "headless", layers=1, **changes), widths)
