"""Multiply-adds, against counts by hand and one method against the other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potstill.benchmarking.multiply_adds import GraphCounter, of_model
from potstill.graphs.quantization import FloatGraph
from potstill.models import load_model
from potstill.recipe import Quantize
from tiny_families import family_model
from tiny_graphs import exported

LENGTH = 11
D, FFN, V, LAYERS = 24, 40, 53, 6  # of tiny_families
LAYER = 4 * LENGTH * D**2 + 2 * LENGTH**2 * D + 2 * LENGTH * D * FFN


def counted(model: Any) -> int:
    ids_BL = torch.randint(5, V, (1, LENGTH))
    return of_model(model, lambda: model(input_ids=ids_BL))


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("bert", "masked_lm", LAYERS * LAYER + LENGTH * D * D + LENGTH * D * V),
        ("bert", "classification", LAYERS * LAYER + D * D + D * 3),  # the first token's pooler
        ("distilbert", "headless", LAYERS * LAYER),
        # embeddings of 16, widened
        ("electra", "headless", LAYERS * LAYER + LENGTH * 16 * D),
        # a gate beside what writes the inner width
        ("modernbert", "headless", LAYERS * (LAYER + LENGTH * D * FFN)),
        # two heads of keys and values for four of queries: half of two projections less
        ("eurobert", "headless", LAYERS * (LAYER + LENGTH * D * FFN - LENGTH * D * D)),
    ],
)
def test_of_a_model_by_hand(name: str, head: str, expected: int) -> None:
    model = family_model(name, head)
    before = model.config._attn_implementation
    assert counted(model) == expected
    assert model.config._attn_implementation == before


def graph_inputs(counter: GraphCounter, batch: int, length: int) -> dict[str, np.ndarray]:
    names = [given.name for given in counter.proto.graph.input]  # ids, mask, types: all of them 1
    return {name: np.ones((batch, length), dtype=np.int64) for name in names}


def test_of_a_graph_as_of_its_model_and_of_smaller_numbers(
    masked_lm_teacher: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(masked_lm_teacher, folder)
    loaded, graph = exported(folder, "masked_lm")
    config = loaded.model.config
    width, inner = config.hidden_size, config.intermediate_size
    layer = 4 * LENGTH * width**2 + 2 * LENGTH**2 * width + 2 * LENGTH * width * inner
    head = LENGTH * width * (width + config.vocab_size)
    expected = config.num_hidden_layers * layer + head
    ids_BL = torch.ones(1, LENGTH, dtype=torch.int64)
    model = load_model(folder, "masked_lm").model
    assert of_model(model, lambda: model(input_ids=ids_BL)) == expected
    counter = GraphCounter(graph)
    assert counter.count(graph_inputs(counter, 1, LENGTH)) == expected
    assert counter.count(graph_inputs(counter, 3, LENGTH)) == 3 * expected
    # how numbers are written does not change how many are multiplied
    for method in ("dynamic", "static", "4bit", "fp16"):
        path = folder / "onnx" / f"{method}.onnx"
        samples = [graph_inputs(counter, 1, LENGTH)]
        FloatGraph(graph, Quantize(method=method)).write(path, [], samples)
        counter = GraphCounter(path)
        assert counter.count(graph_inputs(counter, 1, LENGTH)) == expected, method


def test_of_products_that_are_turned(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    # [4 x 2] transposed is [2 x 4], times [4 x 5]: 2 * 4 * 5; times [5 x 3]: 2 * 5 * 3
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["y"], transA=1),
        helper.make_node("MatMul", ["y", "v"], ["z"]),
        helper.make_node("Relu", ["z"], ["out"]),
    ]
    weights = [
        helper.make_tensor("w", TensorProto.FLOAT, (4, 5), np.ones(20)),
        helper.make_tensor("v", TensorProto.FLOAT, (5, 3), np.ones(15)),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, (4, 2))
    result = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    path = tmp_path / "turned.onnx"
    made = helper.make_graph(nodes, "turned", [given], [result], weights)
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    x = {"x": np.ones((4, 2), dtype=np.float32)}
    assert GraphCounter(path).count(x) == 2 * 4 * 5 + 2 * 5 * 3


def test_a_graph_with_other_products_is_not_counted(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    node = helper.make_node("Einsum", ["x", "x"], ["out"], equation="ij,kj->ik")
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, (4, 2))
    result = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    path = tmp_path / "einsum.onnx"
    made = helper.make_graph([node], "einsum", [given], [result])
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    assert GraphCounter(path).count({"x": np.ones((4, 2), dtype=np.float32)}) is None
