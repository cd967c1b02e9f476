"""The gate: what it looks at, what it refuses, and how it says so."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from potstill.errors import ParityFailed
from potstill.graphs import check_parity
from potstill.graphs.parity import Gate, _alike, _corners, _explained
from potstill.models import LoadedModel, load_model, save_model
from potstill.recipe import Task
from tiny_graphs import exported, tokens_of


@pytest.fixture(scope="module")
def pair(
    masked_lm_teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LoadedModel, Path]:
    folder = tmp_path_factory.mktemp("source")
    save_model(load_model(masked_lm_teacher, "masked_lm"), folder)
    return exported(folder, "masked_lm")


def changed(graph: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy beside the graph, with something else in it."""
    model = onnx.load(graph)
    change(model)
    path = graph.with_name("changed.onnx")
    onnx.save_model(model, path)
    return path


def weight(model: onnx.ModelProto, part: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if part in tensor.name)


def scaled(part: str, factor: float) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = weight(model, part)
        values = numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return change


def test_corners(pair: tuple[LoadedModel, Path]) -> None:
    source, _ = pair
    shapes, pairs = {}, 0
    for name, batches in _corners(source, tokens_of(source.tokenizer)):
        for inputs in batches:
            assert set(inputs) == {"input_ids", "attention_mask", "token_type_ids"}
            shapes[name] = tuple(inputs["input_ids"].shape), bool(inputs["attention_mask"].all())
            pairs += int(inputs["token_type_ids"].any())
            # every text has a token, and padding is the tokenizer's
            assert inputs["attention_mask"][:, 0].all()
            padded = inputs["input_ids"][inputs["attention_mask"] == 0]
            assert (padded == source.tokenizer.pad_token_id).all()
    assert shapes["one text of one token"] == ((1, 1), True)
    assert shapes["one text of 64 tokens"] == ((1, 64), True)
    assert shapes["4 texts of one token"] == ((4, 1), True)
    assert shapes["4 texts, none padded"] == ((4, 32), True)
    assert shapes["4 texts, padded"][1] is False
    assert shapes["2 texts, padded to 64 tokens"] == ((2, 64), False)
    assert pairs == 1
    assert next(iter(shapes)) == "real text"


def test_a_faithful_graph_passes(pair: tuple[LoadedModel, Path]) -> None:
    source, graph = pair
    found = check_parity(
        source, graph, tokens_of(source.tokenizer), Gate(tolerance=1e-4, agreement=1.0)
    )
    assert found[0].corner == "real text"
    assert found[0].texts == 12
    assert all(0 <= one.difference["logits"] < 1e-5 for one in found)


def test_a_difference_is_told_relative_to_the_largest_output(
    pair: tuple[LoadedModel, Path],
) -> None:
    source, graph = pair
    # the logits' own bias, so that the difference is known
    other = changed(graph, lambda model: bias_moved(model, 0.5))
    text = tokens_of(source.tokenizer)
    found = check_parity(source, other, text)
    ids_BL = torch.tensor([text[i].tolist() for i in np.argsort(text.lengths, kind="stable")[:1]])
    one = next(c for c in found if c.corner == "one text of one token")
    with torch.no_grad():
        first = source.model(input_ids=ids_BL[:, :1]).logits
    assert one.difference["logits"] == pytest.approx(0.5 / float(first.abs().max()), rel=1e-3)
    with pytest.raises(ParityFailed) as caught:
        check_parity(source, other, text, Gate(tolerance=1e-4))
    assert re.fullmatch(
        r"changed\.onnx of .* failed the parity gate: its outputs differ by 0\.\d+ of the largest "
        r"\(.+\), and 0\.0001 is accepted\. Set a larger tolerance if that is enough\.",
        str(caught.value),
    )


def bias_moved(model: onnx.ModelProto, by: float) -> None:
    tensor = weight(model, "predictions.bias")
    values = numpy_helper.to_array(tensor).copy()
    values[7] += by
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def test_what_is_not_a_number_fails(pair: tuple[LoadedModel, Path]) -> None:
    source, graph = pair
    other = changed(graph, scaled("predictions.bias", float("nan")))
    with pytest.raises(ParityFailed, match="differ by inf of the largest"):
        check_parity(source, other, tokens_of(source.tokenizer), Gate(tolerance=1e9))
    with pytest.raises(ParityFailed, match=r"are missing, NaN or infinity \(real text\)\.$"):
        check_parity(source, other, tokens_of(source.tokenizer))


def test_a_graph_beside_the_graph_that_it_was_made_of(pair: tuple[LoadedModel, Path]) -> None:
    source, graph = pair
    other = changed(graph, lambda model: bias_moved(model, 0.5))
    text = tokens_of(source.tokenizer)
    one = check_parity(source, other, text)
    two = check_parity(load_model(graph, "masked_lm"), other, text)
    assert [found.corner for found in two] == [found.corner for found in one]
    for mine, own in zip(two, one, strict=True):
        assert mine.difference == pytest.approx(own.difference, rel=1e-3)


def test_agreement_takes_the_place_of_the_difference(pair: tuple[LoadedModel, Path]) -> None:
    source, graph = pair
    # doubled logits are far off, and say the same
    doubled = changed(graph, lambda model: double(model))
    text = tokens_of(source.tokenizer)
    found = check_parity(source, doubled, text, Gate(agreement=1.0))
    assert found[0].agreement == 1.0
    assert found[0].difference["logits"] == pytest.approx(1.0)
    other = changed(graph, lambda model: bias_moved(model, 1000))  # always the same token
    with pytest.raises(
        ParityFailed,
        match=r"agree in [\d.]+% on real text, and the lowest accepted agreement is 99\.99%\. ",
    ):
        check_parity(source, other, text, Gate(agreement=0.9999))


def double(model: onnx.ModelProto) -> None:
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "once"
    model.graph.node.append(onnx.helper.make_node("Add", ["once", "once"], ["logits"]))


def test_a_graph_of_one_shape_fails(masked_lm_teacher: Path, tmp_path: Path) -> None:
    source = load_model(masked_lm_teacher, "masked_lm")
    save_model(source, tmp_path)
    _, graph = exported(tmp_path, "masked_lm")
    model = onnx.load(graph)
    for given in model.graph.input:
        given.type.tensor_type.shape.dim[1].dim_value = 8
    onnx.save_model(model, graph)
    with pytest.raises(ParityFailed, match="failed the parity gate: it can't run ") as caught:
        check_parity(source, graph, tokens_of(source.tokenizer), Gate(tolerance=1e-4))
    assert "\n" not in str(caught.value)


def test_no_text(pair: tuple[LoadedModel, Path]) -> None:
    source, graph = pair
    nothing = tokens_of(source.tokenizer)
    nothing = replace(nothing, lengths=nothing.lengths[:0])
    with pytest.raises(ValueError, match="there is no held-out text to compare"):
        check_parity(source, graph, nothing)


@pytest.mark.parametrize(
    ("task", "one", "two", "expected"),
    [
        ("classification", [[0.0, 1.0], [2.0, 1.0]], [[0.0, 3.0], [1.0, 2.0]], [1, 0]),
        ("multi_label", [[0.1, -1.0], [2.0, 1.0]], [[3.0, 1.0], [0.5, 0.1]], [1, 0, 1, 1]),
        # the second text has one token: what lies after it is padding
        ("question_answering", [[0.0, 1.0], [2.0, 9.0]], [[1.0, 0.0], [2.0, 0.0]], [0, 1]),
    ],
)
def test_agreement_by_hand(
    task: Task, one: list[list[float]], two: list[list[float]], expected: list[int]
) -> None:
    real_BL = torch.tensor([[True, True], [True, False]])
    output = "start_logits" if task == "question_answering" else "logits"
    [found] = _alike(Task(task), output, (torch.tensor(one), torch.tensor(two)), real_BL)
    assert found.int().tolist() == expected


def test_agreement_of_values_is_the_variance_explained() -> None:
    # the mean of 1, 2, 6 is 3: 4 + 1 + 9 = 14; differences 1, 0, 1
    one, two = torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([[2.0], [2.0], [7.0]])
    assert _explained([(one[:2], two[:2]), (one[2:], two[2:])]) == pytest.approx(1 - 2 / 14)
    assert _explained([(one[:1], two[:1])]) is None  # nothing varies
    assert _explained([]) is None


def test_real_text_alone(pair: tuple[LoadedModel, Path]) -> None:
    source, graph = pair
    other = changed(graph, scaled("word_embeddings", 5.0))
    text = tokens_of(source.tokenizer)
    [found] = check_parity(source, other, text, Gate(texts=5, corners=False))
    assert (found.corner, found.texts) == ("real text", 5)
    with pytest.raises(ParityFailed, match="answers agree in"):
        check_parity(source, other, text, Gate(agreement=1.0, corners=False))


def test_agreement_of_vectors_is_their_cosine() -> None:
    one, two = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[2.0, 0.0], [4.0, -3.0]])
    real_BL = torch.ones(2, 5, dtype=torch.bool)
    [found] = _alike(Task.SENTENCE_EMBEDDING, "sentence_embedding", (one, two), real_BL)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0]))
    assert not _alike(Task.SENTENCE_EMBEDDING, "last_hidden_state", (one, two), real_BL)
    assert not _alike(Task.REGRESSION, "logits", (one, two), real_BL)
