"""An .onnx file where a model folder could be: the same answers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_labels import examples, write_model

from conftest import sentences
from potstill.models import Runtime, load_model, save_model, task_of
from potstill.models.onnx_models import OnnxModel
from potstill.recipe import Task
from potstill.tasks import predict
from potstill.tasks.predictions import head_outputs
from tiny_graphs import exported, moved


@pytest.fixture(scope="module")
def encoder(sentence_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph whose folder says another pooling than the default."""
    folder = tmp_path_factory.mktemp("encoder")
    save_model(load_model(sentence_teacher, "sentence_embedding"), folder)
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text('{"word_embedding_dimension": 32, "pooling_mode_cls_token": true}')
    return exported(folder, "sentence_embedding")[1]


@pytest.fixture(scope="module")
def filler(masked_lm_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filler")
    save_model(moved(load_model(masked_lm_teacher, "masked_lm")), folder)
    return exported(folder, "masked_lm")[1]


def test_embeddings_are_those_of_the_folder(encoder: Path) -> None:
    folder, texts = encoder.parent.parent, [*sentences(9), "copper"]
    expected = predict(folder, texts, "sentence_embedding")
    np.testing.assert_allclose(predict(encoder, texts, "sentence_embedding"), expected, atol=1e-6)
    runtime = Runtime.open(encoder, "sentence_embedding")
    assert runtime.loaded.max_length == 64
    hidden = [hidden_BLD for _, hidden_BLD, _ in runtime.hidden(texts[:2])]
    expected_hidden = Runtime.open(folder, "sentence_embedding").hidden(texts[:2])
    for one, (_, two, mask_BL) in zip(hidden, expected_hidden, strict=True):
        torch.testing.assert_close(one[mask_BL.bool()], two[mask_BL.bool()])


def test_masks_are_filled_as_by_the_folder(filler: Path) -> None:
    texts = ["the copper [MASK] runs", "[MASK]"]
    found = predict(filler, texts, "masked_lm")
    expected = predict(filler.parent.parent, texts, "masked_lm")
    for [one], [two] in zip(found, expected, strict=True):
        assert one.tokens == two.tokens
        np.testing.assert_allclose(one.probabilities, two.probabilities, rtol=1e-4)


@pytest.mark.parametrize("task", ["classification", "multi_label", "token_classification"])
def test_heads_answer_as_the_folder_s(task: Task, tmp_path: Path) -> None:
    folder = write_model(task, tmp_path)
    _, graph = exported(folder, task)
    given = examples(task, 40)
    expected = head_outputs(load_model(folder, task), given)
    np.testing.assert_allclose(head_outputs(load_model(graph, task), given), expected, atol=1e-5)


def test_it_says_what_a_model_says(filler: Path) -> None:
    folder = filler.parent.parent
    loaded, source = load_model(filler, "masked_lm"), load_model(folder, "masked_lm")
    assert isinstance(loaded.model, OnnxModel)
    assert loaded.model.config.to_dict() | {"dtype": 0} == source.model.config.to_dict() | {
        "dtype": 0
    }
    assert loaded.model.num_parameters() == source.model.num_parameters()
    assert loaded.model.base_model is loaded.model
    assert loaded.tokenizer.get_vocab() == source.tokenizer.get_vocab()
    assert task_of(filler) == "masked_lm"


def test_inputs_that_are_left_out_are_as_in_transformers(filler: Path) -> None:
    graph, source = load_model(filler, "masked_lm"), load_model(filler.parent.parent, "masked_lm")
    ids_BL = torch.tensor([[2, 6, 7, 3], [2, 8, 9, 3]])
    with torch.no_grad():
        torch.testing.assert_close(
            graph.model(input_ids=ids_BL).logits, source.model(input_ids=ids_BL).logits
        )


def test_threads_are_those_of_torch(filler: Path) -> None:
    model = load_model(filler, "masked_lm").model
    assert isinstance(model, OnnxModel)
    options = model.session.get_session_options()
    assert options.intra_op_num_threads == torch.get_num_threads()
    assert options.inter_op_num_threads == 1


def test_a_graph_of_another_task(filler: Path) -> None:
    with pytest.raises(
        ValueError, match="has the outputs logits, and sentence_embedding needs sentence_emb"
    ):
        load_model(filler, "sentence_embedding")


def test_a_graph_whose_weights_are_not_finite(filler: Path, tmp_path: Path) -> None:
    shutil.copytree(filler.parent.parent, tmp_path / "model")
    graph = tmp_path / "model" / "onnx" / filler.name
    proto = onnx.load(graph)
    tensor = next(t for t in proto.graph.initializer if t.data_type == 1 and len(t.dims) == 2)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0, 0] = np.nan
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save_model(proto, graph)
    with pytest.raises(ValueError, match=f"{re.escape(tensor.name)} holds NaN or infinity"):
        load_model(graph, "masked_lm")
