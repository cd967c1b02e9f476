"""Tables of embeddings in int8, one table where a decoder shares it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from potstill.graphs.layers import QUANTIZED_VALUES, SCALE, Layer, drop_unused

# --- tables of embeddings -------------------------------------------------------------------------


def quantised_rows(table_VD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 by row.

    Returns:
        int8 [V x D] in -127..127 and float32 scales [V x 1], so that table = scale * int8.
    """
    largest_V1 = np.abs(table_VD).max(axis=1, keepdims=True).astype(np.float32)
    scale_V1 = np.where(largest_V1 > 0, largest_V1 / 127, 1).astype(np.float32)
    return np.rint(table_VD / scale_V1).astype(np.int8), scale_V1


def quantize_lookups(model: Any, chosen: Sequence[Layer], layers: Sequence[Layer]) -> None:
    """Give lookups int8 tables; a decoder that is tied to one multiplies with the same table.

    The decoder's weight becomes Transpose(table), which onnxruntime folds when it opens the graph.
    Of a decoder that stays in float the table does, too: it is there once.
    """
    names = {layer.name for layer in chosen}
    tied = {layer.tied: layer for layer in layers if layer.tied}
    done: dict[str, tuple[str, str]] = {}
    for lookup in layers:
        decoder = tied.get(lookup.name) if lookup.kind == "lookup" else None
        if decoder is not None and decoder.name not in names:
            _share_float(model.graph, lookup, decoder)
        elif lookup.kind == "lookup" and lookup.name in names:
            if lookup.weight not in done:
                done[lookup.weight] = _int8_table(model.graph, lookup, decoder)
            _look_up_int8(model.graph, lookup, *done[lookup.weight])
    drop_unused(model.graph)


def _int8_table(graph: Any, lookup: Layer, decoder: Layer | None) -> tuple[str, str]:
    """Names of the int8 table [V x D] and of its scales [V x 1], both made here."""
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    table, scale = f"{lookup.weight}_rows{QUANTIZED_VALUES}", f"{lookup.weight}_rows{SCALE}"
    weight = f"{decoder.weight}{QUANTIZED_VALUES}" if decoder is not None else ""
    if decoder is not None and weight in tensors:
        int8_VD = np.ascontiguousarray(numpy_helper.to_array(tensors[weight]).T)
        scales = numpy_helper.to_array(tensors[f"{decoder.weight}{SCALE}"])
        scale_V1 = scales.reshape(-1, 1).astype(np.float32)
        _transposed(graph, weight, table)
    else:
        int8_VD, scale_V1 = quantised_rows(numpy_helper.to_array(tensors[lookup.weight]))
    graph.initializer.append(numpy_helper.from_array(int8_VD, table))
    graph.initializer.append(numpy_helper.from_array(scale_V1, scale))
    return table, scale


def _share_float(graph: Any, lookup: Layer, decoder: Layer) -> None:
    if any(tensor.name == decoder.weight for tensor in graph.initializer):
        _transposed(graph, decoder.weight, lookup.weight)


def _transposed(graph: Any, name: str, table: str) -> None:
    """Replace an initializer by the transpose of another."""
    from onnx import helper

    names = [tensor.name for tensor in graph.initializer]
    del graph.initializer[names.index(name)]
    node = helper.make_node("Transpose", [table], [name], f"{name}_from_table", perm=[1, 0])
    graph.node.insert(0, node)


def _look_up_int8(graph: Any, lookup: Layer, table: str, scale: str) -> None:
    """Rows of int8 times their scales, in operators of the standard."""
    from onnx import TensorProto, helper

    place = [node.name for node in graph.node].index(lookup.name)
    ids, output, name = graph.node[place].input[1], graph.node[place].output[0], lookup.name
    rows, scales, floats = (f"{output}_{part}" for part in ("rows", "row_scales", "row_floats"))
    made = [
        helper.make_node("Gather", [table, ids], [rows], f"{name}_rows"),
        helper.make_node("Gather", [scale, ids], [scales], f"{name}_row_scales"),
        helper.make_node("Cast", [rows], [floats], f"{name}_row_floats", to=TensorProto.FLOAT),
        helper.make_node("Mul", [floats, scales], [output], name),
    ]
    del graph.node[place]
    for offset, new in enumerate(made):
        graph.node.insert(place + offset, new)
