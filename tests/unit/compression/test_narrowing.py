"""Narrowing against the wide model whose dropped parts are silent."""

from __future__ import annotations

import pytest
import torch
from tiny_pruning import encoder_of
from transformers import PreTrainedModel

from potstill.compression import narrowing
from potstill.compression.narrowing import largest
from potstill.compression.parts import Widths
from potstill.models.families import FAMILIES
from tiny_families import HEADS, MISSING, NAMES, family_model

PAIRS = [(name, head) for name in NAMES for head in HEADS if (name, head) not in MISSING]


def narrowed(model: PreTrainedModel, widths: Widths) -> PreTrainedModel:
    encoder = encoder_of(model)
    return narrowing.narrowed(
        encoder, widths, largest(encoder, min(widths.hidden, encoder.widths.hidden))
    )


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
    assert encoder_of(narrow).widths == Widths(12, 2, 20)
    with torch.no_grad():
        found = narrow(**inputs(int(model.config.pad_token_id)))
    assert all(value.isfinite().all() for value in found.values() if torch.is_tensor(value))
    assert found[0].shape[0] == 3
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_model_as_wide_as_before_is_the_same(name: str) -> None:
    model = family_model(name, "masked_lm", layers=2)
    same = narrowed(model, encoder_of(model).widths).eval()
    batch = inputs(int(model.config.pad_token_id))
    with torch.no_grad():
        torch.testing.assert_close(same(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("name", NAMES)
def test_inner_units_that_say_nothing_go_first(name: str) -> None:
    """Silence some, then narrow: outputs stay, and whatever number they had."""
    model = family_model(name, "headless", layers=3)
    row, old = FAMILIES[name], encoder_of(model).widths
    with torch.no_grad():
        for layer in model.get_submodule(row.layers):
            layer.get_submodule(row.ffn[-1]).weight[:, [0, 7, 9, 30]] = 0
    narrow = narrowed(model, Widths(old.hidden, old.heads, old.ffn - 4)).eval()
    batch = inputs(int(model.config.pad_token_id))
    with torch.no_grad():
        expected, found = model(**batch)[0], narrow(**batch)[0]
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-4)


def test_units_and_heads_with_the_largest_weights_are_kept_in_their_order() -> None:
    model = family_model("bert", "headless", layers=1)
    layer = model.encoder.layer[0]
    with torch.no_grad():
        layer.output.dense.weight[:, [3, 11, 2]] *= 50
        for head in (1, 3):  # of four, six wide
            layer.attention.self.value.weight[6 * head : 6 * head + 6] *= 50
        layer.attention.self.value.bias.copy_(torch.arange(24.0))
        layer.intermediate.dense.bias.copy_(torch.arange(40.0))
    kept = narrowed(model, Widths(12, 2, 3)).encoder.layer[0]
    assert kept.intermediate.dense.bias.tolist() == [2, 3, 11]
    assert kept.attention.self.value.bias.tolist() == [*range(6, 12), *range(18, 24)]


def flat(name: str, rank: int) -> PreTrainedModel:
    """A model whose hidden states all lie in `rank` dimensions, at any layer: no other is written.

    Gains are all alike, for a norm can't keep to a few directions otherwise; in these dimensions
    the mean of the channels is 0, so that taking it out changes nothing.
    """
    model = family_model(name, "headless", layers=2)
    generator = torch.Generator().manual_seed(7)
    some = torch.randn(24, rank, generator=generator)
    basis, _ = torch.linalg.qr(some - some.mean(0))
    onto = basis @ basis.T
    row, prefix = FAMILIES[name], FAMILIES[name].layer_prefix(model)
    writers = (row.ffn[-1], row.attention_out)
    with torch.no_grad():
        for key, value in model.named_parameters():
            path = key.removeprefix(prefix).partition(".")[2].rpartition(".")[0]
            if value.dim() == 1 and key.endswith(".weight"):
                value.fill_(1.5)
            elif not key.startswith(prefix):  # tables
                value.copy_(value @ onto)
            elif path in writers or "norm" in key.lower():
                value.copy_(onto @ value)
    return model


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta", "eurobert"])
def test_hidden_states_that_need_few_dimensions_lose_little(name: str) -> None:
    """Half of the channels hold all there is: as many heads and units as before keep the rest."""
    model = flat(name, rank=12)
    choice = largest(encoder_of(model), 12)
    turned = choice.turned_Dd
    assert choice.share == pytest.approx(1)
    torch.testing.assert_close(turned.T @ turned, torch.eye(12), rtol=1e-5, atol=1e-5)
    batch = inputs(int(model.config.pad_token_id))
    with torch.no_grad():
        wide = model(**batch, output_hidden_states=True).hidden_states[0]
        narrow = narrowed(model, Widths(12, 2, 40)).eval()
        found = narrow(**batch, output_hidden_states=True).hidden_states[0]
    real = batch["attention_mask"].bool()
    # embeddings and their norm, in the other coordinates: only the mean over 12 channels is lost
    expected = wide[real] @ turned
    loss = 1 - torch.cosine_similarity(found[real], expected, dim=-1)
    assert float(loss.mean()) < 0.1
    assert float(found[real].norm() / expected.norm()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("silent", [0, 1])
def test_narrowing_is_exact_where_nothing_that_says_something_goes(silent: int) -> None:
    """EuroBERT has no biases and norms that take no mean out: in few dimensions, with half of the
    heads silent, the narrow model gives the wide one's logits, through all layers.
    """
    model = family_model("eurobert", "masked_lm", layers=3, rms_norm_eps=1e-12)
    basis, _ = torch.linalg.qr(torch.randn(24, 12, generator=torch.Generator().manual_seed(7)))
    onto = basis @ basis.T
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ onto)
        for key, value in model.named_parameters():
            if key.endswith(("o_proj.weight", "down_proj.weight")):
                value.copy_(onto @ value)
            elif value.dim() == 1:  # in other coordinates gains are all the same
                value.fill_(1.5)
        for layer in model.model.layers:  # two heads, 12 wide together, share keys and values
            layer.self_attn.o_proj.weight[:, 12 * silent : 12 * silent + 12] = 0
    batch = inputs(int(model.config.pad_token_id))
    with torch.no_grad():
        expected = model(**batch).logits
        found = narrowed(model, Widths(12, 2, 40)).eval()(**batch).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], rtol=1e-3, atol=1e-3)


def test_the_same_model_gives_the_same_narrow_one() -> None:
    model = family_model("bert", "masked_lm", layers=2)
    torch.manual_seed(1)
    one = narrowed(model, Widths(12, 2, 20)).state_dict()
    torch.manual_seed(2)
    two = narrowed(model, Widths(12, 2, 20)).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_maps_that_read_fewer_units_keep_the_size_of_their_outputs() -> None:
    model = family_model("bert", "headless", layers=1)
    narrow = narrowed(model, Widths(24, 4, 10))
    wide, cut = model.encoder.layer[0].output.dense, narrow.encoder.layer[0].output.dense
    assert float(cut.weight.detach().norm() / wide.weight.detach().norm()) == pytest.approx(1)


HEAD = r"width: 14 cuts through a head of size 6\. Set a multiple of 6\.$"
GROUP = r"width: 18 cuts through a group of 2 heads that .* Set a multiple of 12\.$"
OTHER = r"width: 12 is also this model's embedding_size\. Set a larger or smaller one\.$"


def out_of_range(key: str, value: int, of: int) -> str:
    return rf"{key}: {value} is out of range\. The teacher's is {of}: set at most that\.$"


@pytest.mark.parametrize(
    ("name", "widths", "message"),
    [
        ("bert", Widths(14, 2, 20), HEAD),
        ("bert", Widths(30, 5, 20), out_of_range("width", 30, 24)),
        ("bert", Widths(12, 2, 0), out_of_range("ffn", 0, 40)),
        ("bert", Widths(12, 2, 41), out_of_range("ffn", 41, 40)),
        ("electra", Widths(12, 2, 20), OTHER),
        ("eurobert", Widths(18, 3, 20), GROUP),
    ],
)
def test_widths_that_can_not_be(name: str, widths: Widths, message: str) -> None:
    changes = {"embedding_size": 12} if name == "electra" else {}
    with pytest.raises(ValueError, match=message):
        narrowed(family_model(name, "headless", layers=1, **changes), widths)
