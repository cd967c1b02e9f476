"""ONNX graphs of a few nodes, written node by node: a lookup, products, a decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

V, D, F = 60, 32, 48


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Rows and columns of very different sizes, so that a scale for all of them would show."""
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.normal(size=(V, 1)))
    return {
        "table": (rng.normal(size=(V, D)) * spread).astype(np.float32),
        "up": (rng.normal(size=(D, F)) * np.exp(rng.normal(size=(1, F))) / 6).astype(np.float32),
        "down": (rng.normal(size=(F, D)) / 7).astype(np.float32),
        "bias": rng.normal(size=D).astype(np.float32),
    }


def graph(path: Path, arrays: dict[str, np.ndarray], decoder: str = "transpose") -> Path:
    """table[ids] up down + bias, and its product with the table, transposed.

    Args:
        decoder: how the table is written there: behind a "transpose", "twice", or "none" at all.
    """
    arrays = dict(arrays)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"], "lookup"),
        helper.make_node("MatMul", ["x", "up"], ["h"], "up"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "down"], ["d"], "down"),
        helper.make_node("Add", ["d", "bias"], ["logits" if decoder == "none" else "y"]),
    ]
    if decoder == "transpose":
        nodes.append(helper.make_node("Transpose", ["table"], ["tableT"], perm=[1, 0]))
    elif decoder == "twice":
        arrays["tableT"] = np.ascontiguousarray(arrays["table"].T)
    if decoder != "none":
        nodes.append(helper.make_node("MatMul", ["y", "tableT"], ["logits"], "decoder"))
    width = D if decoder == "none" else V
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", width])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save_model(model, path)
    return path


IDS = np.random.default_rng(3).integers(0, V, (2, 9))


def answer(path: Path, ids: np.ndarray = IDS) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["logits"], {"input_ids": ids})[0]
    return found


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    tensors: Any = onnx.load(path).graph.initializer
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}


def kinds_of(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]
