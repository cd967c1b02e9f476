"""Quantized graphs against computations in numpy, float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potstill.errors import NotFinite
from potstill.graphs.quantization import FloatGraph, quantized_rows, weight_range
from potstill.graphs.sensitivity import divergence
from potstill.recipe import Quantize
from small_graphs import IDS, D, V, answer, arrays_of, graph, kinds_of, weights


def quantized(source: Path, target: str = "q.onnx", floats: Any = (), **settings: Any) -> Path:
    path = source.with_name(target)
    made = FloatGraph(source, Quantize(**{"reduce_range": True, **settings}))
    made.write(path, floats, [{"input_ids": IDS}])
    return path


def product(x_NI: np.ndarray, weight_IO: np.ndarray, largest: int) -> np.ndarray:
    """Dynamic int8: activations uint8 with one scale, weights int8 by column; in float64.

    x = s (q - z) with s = (max - min) / 255 and z = round(-min / s), the range holding 0;
    w = t q with t = max |w| / `largest`, a column.
    """
    low, high = min(float(x_NI.min()), 0.0), max(float(x_NI.max()), 0.0)
    scale = (high - low) / 255
    zero = np.clip(np.rint(-low / scale), 0, 255)
    activations = np.clip(np.rint(x_NI / scale) + zero, 0, 255) - zero
    scales_O = np.abs(weight_IO).max(axis=0) / largest
    integers = np.clip(np.rint(weight_IO / scales_O), -largest, largest)
    result: np.ndarray = scale * (activations @ integers) * scales_O
    return result


def test_dynamic_int8_is_what_numpy_computes(tmp_path: Path) -> None:
    """With weights of 7 bits: of 8 the sums saturate where the CPU has no VNNI, as this test finds
    on such a one when it is given `reduce_range=False` and 127."""
    arrays, largest = weights(), 64
    path = quantized(graph(tmp_path / "float.onnx", arrays, "none"))
    rows, scales = quantized_rows(arrays["table"])
    x_NI = (rows.astype(np.float64) * scales)[IDS.ravel()]
    inner = np.maximum(product(x_NI, arrays["up"].astype(np.float64), largest), 0)
    expected = product(inner, arrays["down"].astype(np.float64), largest) + arrays["bias"]
    given = answer(path).reshape(expected.shape)
    # a value that lies between two integers may be rounded either way: one step of 255
    step = np.abs(expected).max() / 255
    assert np.abs(given - expected).max() < 2 * step
    assert np.abs(given - expected).mean() < 0.05 * step


@pytest.mark.parametrize(("reduced", "largest"), [(False, 127), (True, 64)])
def test_weights_are_int8_by_output_channel(tmp_path: Path, reduced: bool, largest: int) -> None:
    arrays = weights()
    source = graph(tmp_path / "float.onnx", arrays, "none")
    found = arrays_of(quantized(source, reduce_range=reduced))
    for name in ("up", "down"):
        integers, scales = found[f"{name}_quantized"], found[f"{name}_scale"]
        assert integers.dtype == np.int8
        assert scales.shape == (arrays[name].shape[1],)
        back = integers.astype(np.float64) * scales
        half_a_step = np.abs(arrays[name]).max(axis=0) / largest / 2
        assert (np.abs(back - arrays[name]) <= half_a_step * 1.001).all()
        assert name not in found
        assert np.abs(integers).max() == largest


def test_rows_of_a_table_come_back_within_half_a_step() -> None:
    table = weights()["table"].astype(np.float64)
    table[7] = 0
    rows, scales = quantized_rows(table)
    assert rows.dtype == np.int8
    assert scales.shape == (V, 1)
    largest = np.abs(table).max(axis=1, keepdims=True)
    assert (np.abs(rows * scales.astype(np.float64) - table) <= largest / 127 / 2 * 1.0001).all()
    assert (rows[7] == 0).all()
    assert (np.abs(rows).max(axis=1) == np.where(largest[:, 0] > 0, 127, 0)).all()


@pytest.mark.parametrize("decoder", ["transpose", "twice"])
@pytest.mark.parametrize("method", ["dynamic", "static", "4bit"])
def test_one_int8_table_serves_lookup_and_decoder(
    tmp_path: Path, decoder: str, method: str
) -> None:
    path = quantized(graph(tmp_path / "float.onnx", weights(), decoder), method=method)
    big = [array for array in arrays_of(path).values() if array.size >= V * D]
    assert [array.shape for array in big if array.size == V * D] == [(V, D)]
    assert next(array for array in big if array.size == V * D).dtype == np.int8


def test_the_shared_table_answers_as_two_tables_do(tmp_path: Path) -> None:
    """Two tables: the decoder's own, and the lookup's with the decoder's numbers."""
    arrays = weights()
    source = graph(tmp_path / "float.onnx", arrays, "twice")
    shared = quantized(source, "shared.onnx")
    found = arrays_of(shared)
    [name] = [name for name in found if found[name].shape == (V, D)]
    scale = found[name.removesuffix("_quantized") + "_scale"]
    arrays["tableT"] = np.ascontiguousarray(arrays["table"].T)
    arrays["table"] = (found[name].astype(np.float32) * scale).astype(np.float32)
    # `graph` would write the transpose of the new table: the decoder keeps the old numbers
    apart = graph(tmp_path / "apart.onnx", arrays, "none")
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(apart)
    model.graph.node[-1].output[0] = "y"
    model.graph.node.append(helper.make_node("MatMul", ["y", "old"], ["logits"], "decoder"))
    model.graph.initializer.append(numpy_helper.from_array(arrays["tableT"], "old"))
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = V
    onnx.save_model(model, apart)
    two = quantized(apart, "two.onnx", floats=["lookup"])
    np.testing.assert_allclose(answer(shared), answer(two), rtol=1e-5, atol=1e-5)


def test_onnxruntime_multiplies_with_the_shared_table_in_int8(tmp_path: Path) -> None:
    import onnxruntime

    path = quantized(graph(tmp_path / "float.onnx", weights()))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "as_run.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    run = kinds_of(tmp_path / "as_run.onnx")
    assert "Transpose" not in run
    assert "MatMul" not in run
    integer = [kind for kind in run if kind in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")]
    assert len(integer) == 3


def test_a_decoder_kept_in_float_shares_its_float_table(tmp_path: Path) -> None:
    source = graph(tmp_path / "float.onnx", weights(), "twice")
    path = quantized(source, floats=["decoder"])
    tables = [a for a in arrays_of(path).values() if a.size == V * D]
    assert [(table.shape, table.dtype) for table in tables] == [((V, D), np.dtype(np.float32))]
    assert path.stat().st_size < source.stat().st_size


def test_all_layers_in_float_give_the_float_answers(tmp_path: Path) -> None:
    source = graph(tmp_path / "float.onnx", weights(), "twice")
    path = quantized(source, float_layers=["*"])
    np.testing.assert_allclose(answer(path), answer(source), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "most"), [("dynamic", 1e-3), ("static", 1e-3), ("4bit", 0.05), ("fp16", 1e-5)]
)
def test_every_method_answers_nearly_as_float_does(
    tmp_path: Path, method: str, most: float
) -> None:
    source = graph(tmp_path / "float.onnx", weights())
    path = quantized(source, method=method)
    apart = divergence([answer(source)], [answer(path)])
    assert 0 < apart < most
    assert path.stat().st_size < 0.75 * source.stat().st_size


def test_four_bits_go_through_the_kernel_of_four_bits(tmp_path: Path) -> None:
    path = quantized(graph(tmp_path / "float.onnx", weights(), "none"), method="4bit", block=16)
    assert kinds_of(path).count("MatMulNBits") == 2


@pytest.mark.parametrize("method", ["dynamic", "static", "4bit"])
def test_a_layer_that_is_asked_to_stays_in_float(tmp_path: Path, method: str) -> None:
    """By its name in the settings, or in the search for the layers that hurt."""
    source = graph(tmp_path / "float.onnx", weights(), "none")
    for given in ({"float_layers": ["down"]}, {"floats": ["down"]}):
        path = quantized(source, method=method, **given)
        np.testing.assert_array_equal(arrays_of(path)["down"], weights()["down"])
        assert "up" not in arrays_of(path)


def test_embeddings_stay_in_float_on_request(tmp_path: Path) -> None:
    path = quantized(graph(tmp_path / "float.onnx", weights(), "none"), embeddings=False)
    assert arrays_of(path)["table"].dtype == np.float32


def test_the_range_of_weights_is_chosen_by_the_cpu() -> None:
    assert weight_range("auto", {"avx2"}, "x86_64").reduced
    assert not weight_range("auto", {"avx2", "avx512_vnni"}, "x86_64").reduced
    assert not weight_range("auto", {"avx_vnni"}, "AMD64").reduced
    assert not weight_range("auto", set(), "aarch64").reduced
    assert weight_range(True, {"avx_vnni"}, "x86_64").reduced
    assert not weight_range(False, {"avx2"}, "x86_64").reduced


def test_what_can_not_be_quantized_is_told_in_a_sentence(tmp_path: Path) -> None:
    source = graph(tmp_path / "float.onnx", weights())
    path = quantized(source)
    for broken, says in ((path, "int8 weights already"), (tmp_path / "no.onnx", "can't be read")):
        if broken.name == "no.onnx":
            broken.write_bytes(b"this is no graph")
        with pytest.raises(ValueError, match=says):
            FloatGraph(broken, Quantize())
    with pytest.raises(
        ValueError, match=r"^float_layers: no layer of float\.onnx matches 'nobody'\. Use"
    ):
        FloatGraph(source, Quantize(float_layers=["nobody"]))
    with pytest.raises(ValueError, match="needs text to calibrate on"):
        FloatGraph(source, Quantize(method="static")).write(tmp_path / "s.onnx")
    assert not list(tmp_path.glob(".*"))
    assert not (tmp_path / "s.onnx").exists()


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    arrays = weights()
    arrays["up"][0, 0] = np.nan
    source = graph(tmp_path / "m.onnx", arrays)
    with pytest.raises(ValueError, match=r"m\.onnx: up holds NaN or infinity\. Use a model"):
        FloatGraph(source, Quantize())


def test_a_graph_that_becomes_no_numbers_is_not_written(tmp_path: Path) -> None:
    """The step between 4-bit numbers of such a block is no float32 any more."""
    arrays = weights()
    arrays["up"][0, 0], arrays["up"][1, 0] = 3e38, -3e38
    source = FloatGraph(graph(tmp_path / "m.onnx", arrays), Quantize(method="4bit", block=32))
    with pytest.raises(NotFinite, match=r"q\.onnx: .* NaN or infinity, so nothing is written"):
        source.write(tmp_path / "q.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_float16_cuts_what_is_too_large(tmp_path: Path) -> None:
    arrays = weights()
    arrays["up"][0, 0] = 1e6
    target = quantized(graph(tmp_path / "m.onnx", arrays), method="fp16")
    assert arrays_of(target)["up"].astype(np.float64).max() == 65504
