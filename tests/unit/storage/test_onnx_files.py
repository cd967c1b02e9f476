"""What an .onnx file weighs and belongs to, without PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from potstill.storage.onnx_files import (
    count_parameters,
    folder_of,
    graph_files,
    is_onnx,
    not_finite_in,
    open_session,
    read_graph,
    weight_bytes,
)


def graph_with(
    *tensors: onnx.TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()
) -> onnx.ModelProto:
    given = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    gives = helper.make_tensor_value_info("logits", TensorProto.INT64, ["batch", "length"])
    same = helper.make_node("Identity", ["input_ids"], ["logits"])
    graph = helper.make_graph([*nodes, same], "tiny", [given], [gives], list(tensors))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def tensor(name: str, kind: type, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.zeros(shape, dtype=kind), name)


def placed(model: onnx.ModelProto, folder: Path) -> Path:
    (folder / "onnx").mkdir()
    (folder / "config.json").write_text("{}")
    path = folder / "onnx" / "model.onnx"
    onnx.save_model(model, path)
    return path


def test_a_graph_s_model_folder_is_two_levels_up(tmp_path: Path) -> None:
    path = placed(graph_with(), tmp_path)
    assert folder_of(path) == tmp_path
    assert is_onnx(path)
    assert not is_onnx(tmp_path)
    with pytest.raises(
        ValueError, match=r"other\.onnx was not found\. Check the path of the \.onnx file\.$"
    ):
        folder_of(tmp_path / "onnx" / "other.onnx")
    (tmp_path / "config.json").unlink()
    with pytest.raises(
        ValueError, match=r"holds no config\.json\. .* as FOLDER/onnx/model\.onnx\.$"
    ):
        folder_of(path)


def test_parameters_are_weights_once(tmp_path: Path) -> None:
    packed = helper.make_node(
        "MatMulNBits", ["x", "w4", "w4_s"], ["y"], domain="com.microsoft", K=64, N=3, bits=4
    )
    model = graph_with(
        tensor("w", np.float32, 5, 7),
        tensor("w_quantized", np.int8, 11, 2),
        tensor("w_scale", np.float32, 2),
        tensor("w_zero_point", np.int8, 2),
        tensor("shape", np.int64, 4),
        tensor("w4", np.uint8, 3, 2, 16),
        tensor("w4_s", np.float32, 6),
        nodes=(packed,),
    )
    assert count_parameters(placed(model, tmp_path)) == 5 * 7 + 11 * 2 + 64 * 3


def test_weights_outside_of_the_file_are_weighed(tmp_path: Path) -> None:
    model = graph_with(numpy_helper.from_array(np.ones((64, 64), dtype=np.float32), "w"))
    path = placed(model, tmp_path)
    inside = weight_bytes(path)
    assert graph_files(path) == [path]
    assert inside == path.stat().st_size > 64 * 64 * 4
    onnx.save_model(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    assert graph_files(path) == [path, path.parent / "weights"]
    assert path.stat().st_size < 1000
    assert weight_bytes(path) == path.stat().st_size + 64 * 64 * 4
    assert count_parameters(path) == 64 * 64


@pytest.mark.parametrize("where", ["../weights", "/weights", "a/../../weights"])
def test_weights_outside_of_the_folder_are_refused(where: str, tmp_path: Path) -> None:
    model = graph_with(numpy_helper.from_array(np.ones((64, 64), dtype=np.float32), "w"))
    path = placed(model, tmp_path)
    onnx.save_model(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    proto = read_graph(path)
    next(e for e in proto.graph.initializer[0].external_data if e.key == "location").value = where
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ValueError, match=rf"model\.onnx names .* outside .* \('{where}'\)\. Save"):
        graph_files(path)


def test_files_that_are_no_graphs(tmp_path: Path) -> None:
    path = placed(graph_with(), tmp_path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(
        ValueError, match=r"is damaged or not an ONNX file\. Export the model again\.$"
    ):
        read_graph(path)
    with pytest.raises(ValueError, match="onnxruntime cannot open the file") as caught:
        open_session(path, 1)
    assert "\n" not in str(caught.value)


def test_a_graph_that_takes_something_else(tmp_path: Path) -> None:
    model = graph_with()
    model.graph.input[0].name = "pixels"
    model.graph.node[0].input[0] = "pixels"
    with pytest.raises(
        ValueError, match=r"takes an input pixels\. Give a text encoder, which takes input_ids, "
    ):
        open_session(placed(model, tmp_path), 1)


def test_without_the_extra_a_sentence_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = placed(graph_with(), tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ValueError, match=r"onnxruntime\. Install it with `pip install 'potstill\[onnx\]'`\.$"
    ):
        open_session(path, 1)
    with pytest.raises(ValueError, match=r"`pip install 'potstill\[onnx\]'`\.$"):
        read_graph(path)


def test_torch_is_not_needed(tmp_path: Path) -> None:
    path = placed(graph_with(), tmp_path)
    code = (
        "import sys; from potstill.storage.onnx_files import *; from pathlib import Path; "
        f"open_session(Path({str(path)!r}), 1); count_parameters(Path({str(path)!r})); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("outside", [False, True])
def test_weights_of_a_graph_that_are_not_finite(outside: bool, tmp_path: Path) -> None:
    arrays = {name: np.ones((4, 4), np.float32) for name in ("whole", "nan", "inf", "minus")}
    arrays["nan"][1, 2] = np.nan
    arrays["inf"][0, 0] = np.inf
    arrays["minus"][0, 0] = -np.inf
    arrays["half"] = np.full((2, 2), np.nan, np.float16)
    # what a graph computes with beside weights: a mask, the end of a range
    arrays["mask"] = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    arrays["single"] = np.array(-np.inf, np.float32)
    # biases: of one value, and one that is 0 but for an infinity, which is no mask
    arrays["bias"] = np.array([np.nan], np.float32)
    arrays["biases"] = np.array([0, -np.inf, 0], np.float32)
    arrays["ids"] = np.ones((4, 4), np.int64)
    model = graph_with(*(numpy_helper.from_array(each, name) for name, each in arrays.items()))
    path = placed(model, tmp_path)
    if outside:
        settings = {"location": "weights", "size_threshold": 0}
        onnx.save_model(model, path, save_as_external_data=True, **settings)
    proto = read_graph(path)
    assert not_finite_in(proto.graph, path.parent) == [
        "nan",
        "inf",
        "minus",
        "half",
        "bias",
        "biases",
    ]


def test_a_constant_of_a_graph_that_is_no_number() -> None:
    bad = helper.make_node(
        *("Constant", [], ["offset"]),
        value=numpy_helper.from_array(np.array([1, np.nan], np.float32), "value"),
    )
    whole = helper.make_node(
        *("Constant", [], ["least"]),
        value=numpy_helper.from_array(np.array(-np.inf, np.float32), "value"),
    )
    graph = helper.make_graph([bad, whole], "constants", [], [])
    assert not_finite_in(graph, Path()) == ["offset"]
