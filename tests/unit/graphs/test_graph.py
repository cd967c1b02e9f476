"""What an exported graph says of itself; whether it answers right is what parity tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoModelForMaskedLM

from conftest import sentences, tiny_tokenizer
from potstill.graphs import graph, write_graph
from potstill.graphs.graph import OPSET, Exporter
from potstill.models import load_model, save_model
from potstill.storage.onnx_files import count_parameters, graph_files, open_session
from tiny_graphs import exported, moved


@pytest.fixture
def encoder(sentence_teacher: Path, tmp_path: Path) -> Path:
    save_model(load_model(sentence_teacher, "sentence_embedding"), tmp_path / "encoder")
    return tmp_path / "encoder"


def logits(graph: Path, texts: list[str]) -> np.ndarray:
    inputs = tiny_tokenizer()(texts, padding=True, return_tensors="np")
    return open_session(graph, 1).run(["logits"], dict(inputs))[0]


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_a_sentence_encoder_s_graph(encoder: Path, exporter: Exporter) -> None:
    source, graph = exported(encoder, "sentence_embedding", exporter=exporter)
    session = open_session(graph, 1)
    assert [given.name for given in session.get_inputs()] == [
        "input_ids", "attention_mask", "token_type_ids",
    ]  # fmt: skip
    assert all(given.type == "tensor(int64)" for given in session.get_inputs())
    assert [gives.name for gives in session.get_outputs()] == [
        "last_hidden_state", "sentence_embedding",
    ]  # fmt: skip
    assert {entry.domain: entry.version for entry in onnx.load(graph).opset_import}[""] == OPSET
    assert session.get_modelmeta().custom_metadata_map == {
        "max_length": "64", "task": "sentence_embedding",
    }  # fmt: skip
    texts = ["copper", " ".join(sentences(1))]
    tokens = tiny_tokenizer()(texts, padding=True, return_tensors="pt")
    given = {name: value.numpy() for name, value in tokens.items()}
    hidden, vectors = session.run(None, given)
    with torch.no_grad():
        expected = source.model(**tokens).last_hidden_state.numpy()
    real = tokens["attention_mask"].numpy().astype(bool)
    np.testing.assert_allclose(hidden[real], expected[real], atol=1e-5)
    for row in range(2):  # the mean of the text's own tokens, at length 1
        mean = expected[row][real[row]].mean(0)
        np.testing.assert_allclose(vectors[row], mean / np.linalg.norm(mean), atol=1e-5)


def test_a_model_in_training_is_exported_without_dropout(
    masked_lm_teacher: Path, tmp_path: Path
) -> None:
    source = load_model(masked_lm_teacher, "masked_lm")
    source.model.train()
    graph = write_graph(source, tmp_path)
    assert source.model.training
    assert source.model.config._attn_implementation == "sdpa"
    inputs = tiny_tokenizer()(["the copper [MASK]"], return_tensors="pt")
    with torch.no_grad():
        expected = AutoModelForMaskedLM.from_pretrained(masked_lm_teacher).eval()(**inputs).logits
    np.testing.assert_allclose(logits(graph, ["the copper [MASK]"]), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_a_tied_table_is_kept_once(
    masked_lm_teacher: Path, tmp_path: Path, exporter: Exporter
) -> None:
    source = moved(load_model(masked_lm_teacher, "masked_lm"))
    graph = write_graph(source, tmp_path, exporter)
    assert count_parameters(graph) == source.model.num_parameters()
    table = [
        tensor.name
        for tensor in onnx.load(graph).graph.initializer
        if sorted(tensor.dims) == sorted(source.model.get_input_embeddings().weight.shape)
    ]
    assert len(table) == 1


def test_weights_that_one_file_can_t_hold_lie_beside_it(
    masked_lm_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load_model(masked_lm_teacher, "masked_lm")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = write_graph(source, tmp_path / "one")
    monkeypatch.setattr(graph, "LARGEST", 1000)
    two = write_graph(source, tmp_path / "two")
    assert [path.name for path in graph_files(one)] == ["model.onnx"]
    assert sorted(path.name for path in two.parent.iterdir()) == ["model.onnx", "model.onnx_data"]
    assert graph_files(two) == [two, two.parent / "model.onnx_data"]
    np.testing.assert_array_equal(logits(one, ["the still"]), logits(two, ["the still"]))


class Bessel(torch.nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(values)


def test_what_onnx_can_t_say_is_a_sentence(sentence_teacher: Path, tmp_path: Path) -> None:
    odd = replace(load_model(sentence_teacher, "sentence_embedding"), name="odd")
    layer = odd.model.get_submodule("encoder.layer.0.intermediate")
    layer.intermediate_act_fn = Bessel()
    with pytest.raises(ValueError, match=r"^odd: the model can't be written as an ONNX graph") as e:
        write_graph(odd, tmp_path)
    assert "bessel_j0" in str(e.value)
    assert "\n" not in str(e.value)
