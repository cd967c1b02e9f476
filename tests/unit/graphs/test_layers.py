"""Layers of ONNX graphs: what exporters write in several ways is brought into one form."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from potstill.graphs.layers import LEAST, layers_of, normalized, quiet
from small_graphs import D, F, V, answer, graph, weights


@pytest.mark.parametrize("decoder", ["transpose", "twice"])
def test_a_tied_decoder_is_found_however_it_is_written(tmp_path: Path, decoder: str) -> None:
    path = graph(tmp_path / "float.onnx", weights(), decoder)
    layers = {layer.name: layer for layer in layers_of(normalized(onnx.load(path)))}
    assert list(layers) == ["lookup", "up", "down", "decoder"]
    assert {name: layer.shape for name, layer in layers.items()} == {
        "lookup": (V, D),
        "up": (D, F),
        "down": (F, D),
        "decoder": (D, V),
    }
    assert layers["decoder"].tied == "lookup"
    assert layers["up"].tied is None


def test_a_decoder_with_other_numbers_is_not_tied(tmp_path: Path) -> None:
    path = graph(tmp_path / "float.onnx", weights(), "twice")
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "tableT":
            array = numpy_helper.to_array(tensor).copy()
            array[3, 5] += 1e-3
            tensor.CopyFrom(numpy_helper.from_array(array, "tableT"))
    assert all(layer.tied is None for layer in layers_of(normalized(model)))


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("biased", [True, False])
def test_gemms_and_identities_become_products_of_the_same_numbers(
    tmp_path: Path, transposed: int, biased: bool
) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(40, 30)).astype(np.float32)
    stored = np.ascontiguousarray(weight.T) if transposed else weight
    bias = rng.normal(size=30).astype(np.float32)
    x = rng.normal(size=(4, 40)).astype(np.float32)
    inputs = ["x", "same", "bias"] if biased else ["x", "same"]
    nodes = [
        helper.make_node("Identity", ["weight"], ["same"]),
        helper.make_node("Gemm", inputs, ["y"], transB=transposed),
    ]
    made = helper.make_graph(
        nodes,
        "gemm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 30])],
        [numpy_helper.from_array(stored, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    one = normalized(model)
    onnx.checker.check_model(one)
    assert [node.op_type for node in one.graph.node] == (
        ["MatMul", "Add"] if biased else ["MatMul"]
    )
    [layer] = layers_of(one)
    assert layer.shape == (40, 30)
    import onnxruntime

    session = onnxruntime.InferenceSession(one.SerializeToString())
    expected = x.astype(np.float64) @ weight.astype(np.float64) + (bias if biased else 0)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, atol=1e-4)


def test_a_scaled_gemm_is_left_alone() -> None:
    weight = numpy_helper.from_array(np.ones((40, 30), np.float32), "weight")
    made = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weight"], ["y"], alpha=0.5)],
        "gemm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 30])],
        [weight],
    )
    one = normalized(helper.make_model(made))
    assert [node.op_type for node in one.graph.node] == ["Gemm"]


def test_the_function_is_the_same_and_the_source_is_not_changed(tmp_path: Path) -> None:
    path = graph(tmp_path / "float.onnx", weights())
    model = onnx.load(path)
    before = model.SerializeToString()
    onnx.save_model(normalized(model), tmp_path / "one.onnx")
    assert model.SerializeToString() == before
    np.testing.assert_allclose(answer(tmp_path / "one.onnx"), answer(path), rtol=1e-6)


@pytest.mark.parametrize(("count", "kept"), [(2, []), (LEAST, ["c"])])
def test_nodes_have_names_and_large_constants_are_weights(count: int, kept: list[str]) -> None:
    value = numpy_helper.from_array(np.ones(count, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["c"], value=value),
        helper.make_node("Add", ["x", "c"], ["y"], "same"),
        helper.make_node("Add", ["y", "c"], ["z"], "same"),
    ]
    value_info = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "names",
        [value_info("x", TensorProto.FLOAT, [count])],
        [value_info("z", TensorProto.FLOAT, [count])],
    )
    graph_of = normalized(helper.make_model(made)).graph
    names = [node.name for node in graph_of.node]
    assert len(names) == len(set(names)) == 3 - len(kept)
    assert [tensor.name for tensor in graph_of.initializer] == kept


def test_tools_that_set_logging_up_leave_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level, root.manager.disable
    with quiet():
        root.addHandler(logging.StreamHandler())
        root.setLevel(logging.DEBUG)
        logging.getLogger("onnxruntime.quantization").warning("noise")
    assert (root.handlers, root.level, root.manager.disable) == (before[0], *before[1:])
    assert not caplog.records
