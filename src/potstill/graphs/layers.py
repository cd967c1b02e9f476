"""The layers of an ONNX graph that hold weights: found, brought into one form, and shared.

Exporters write the same product in several ways: as Gemm or MatMul, with weights behind a
Transpose or an Identity, or a tied decoder's table twice. Quantisation wants one.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

LEAST = 1024  # numbers in a weight, below which its scales would cost what its bytes save
QUANTIZED_VALUES, SCALE, ZERO_POINT = "_quantized", "_scale", "_zero_point"


@dataclass(frozen=True)
class Layer:
    """One layer that can be quantised.

    Attributes:
        name: of its node, unique in the graph.
        kind: "product" or "lookup".
        weight: the name of its weight: [in x out] of products, [rows x width] of lookups.
        shape: of the weight.
        tied: of a product, the lookup whose table is this weight, transposed.
    """

    name: str
    kind: str
    weight: str
    shape: tuple[int, ...]
    tied: str | None = None


def normalised(model: Any) -> Any:
    """A copy in which products are MatMuls with weights of their own and all nodes have names.

    Value infos are dropped: what an exporter guessed of shapes makes quantisation stumble.
    The function that the graph computes is the same.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    del graph.value_info[:]
    _constants_to_initializers(graph)
    _skip_identities(graph)
    _fold_transposes(graph)
    _gemms_to_matmuls(graph)
    _name_nodes(graph)
    drop_unused(graph)
    return copy


def layers_of(model: Any) -> list[Layer]:
    """Layers with a constant weight of LEAST numbers or more, in the graph's order."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    lookups = [
        Layer(node.name, "lookup", node.input[0], tuple(weights[node.input[0]].dims))
        for node in graph.node
        if _is_lookup(node, weights)
    ]
    found = {layer.name: layer for layer in lookups}
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in weights:
            continue
        tensor = weights[node.input[1]]
        if len(tensor.dims) != 2 or tensor.data_type != 1 or np.prod(tensor.dims) < LEAST:
            continue
        tied = _tied_lookup(tensor, lookups, weights)
        found[node.name] = Layer(node.name, "product", tensor.name, tuple(tensor.dims), tied)
    return [found[node.name] for node in graph.node if node.name in found]


def _is_lookup(node: Any, weights: dict[str, Any]) -> bool:
    if node.op_type != "Gather" or node.input[0] not in weights:
        return False
    table = weights[node.input[0]]
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    return bool(
        axis == 0 and len(table.dims) == 2 and table.data_type == 1 and np.prod(table.dims) >= LEAST
    )


def _tied_lookup(tensor: Any, lookups: list[Layer], weights: dict[str, Any]) -> str | None:
    """The lookup whose table is this weight, transposed."""
    from onnx import numpy_helper

    wanted = tuple(reversed(tensor.dims))
    for lookup in lookups:
        if lookup.shape == wanted and np.array_equal(
            numpy_helper.to_array(weights[lookup.weight]).T, numpy_helper.to_array(tensor)
        ):
            return lookup.name
    return None


def drop_unused(graph: Any) -> None:
    """Remove initializers that no node reads."""
    read = {name for node in graph.node for name in node.input}
    read |= {output.name for output in graph.output}
    for place in range(len(graph.initializer) - 1, -1, -1):
        if graph.initializer[place].name not in read:
            del graph.initializer[place]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep onnxruntime's tools from logging, and from setting logging up for everybody."""
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)


# --- one form -------------------------------------------------------------------------------------


def _constants_to_initializers(graph: Any) -> None:
    """Weights alone: small constants (the 0.5 of a GELU) are no parameters of the model."""
    kept = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type != "Constant" or value is None or np.prod(value.dims) < LEAST:
            kept.append(node)
            continue
        tensor = graph.initializer.add()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
    _set_nodes(graph, kept)


def _skip_identities(graph: Any) -> None:
    """Weights behind an Identity: torch's older exporter writes tied or equal ones so."""
    weights = {tensor.name for tensor in graph.initializer}
    outputs = {output.name for output in graph.output}
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        if (
            node.op_type == "Identity"
            and node.input[0] in weights
            and node.output[0] not in outputs
        ):
            renamed[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    _set_nodes(graph, kept)


def _fold_transposes(graph: Any) -> None:
    """Transposed 2-dimensional weights become weights of their own, each of them once."""
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    made: dict[str, str] = {}
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        source = weights.get(node.input[0]) if node.op_type == "Transpose" else None
        if source is None or len(source.dims) != 2:
            kept.append(node)
            continue
        perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), [1, 0])
        if perm == [0, 1]:
            renamed[node.output[0]] = source.name
            continue
        if source.name not in made:
            made[source.name] = node.output[0]
            array = np.ascontiguousarray(numpy_helper.to_array(source).T)
            graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        renamed[node.output[0]] = made[source.name]
    _set_nodes(graph, kept)


def _gemms_to_matmuls(graph: Any) -> None:
    """x W + b of heads and poolers as MatMul and Add, which dynamic quantisation knows."""
    from onnx import helper, numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        plain = node.op_type == "Gemm" and node.input[1] in weights
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        plain = plain and not attributes.get("transA", 0)
        if not plain or attributes.get("alpha", 1.0) != 1 or attributes.get("beta", 1.0) != 1:
            kept.append(node)
            continue
        weight = node.input[1]
        if attributes.get("transB", 0):
            weight = f"{weight}_transposed"
            if weight not in weights:
                array = np.ascontiguousarray(numpy_helper.to_array(weights[node.input[1]]).T)
                weights[weight] = numpy_helper.from_array(array, weight)
                graph.initializer.append(weights[weight])
        biased = len(node.input) > 2 and bool(node.input[2])
        product = f"{node.output[0]}_product" if biased else node.output[0]
        kept.append(helper.make_node("MatMul", [node.input[0], weight], [product], node.name))
        if biased:
            kept.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]]))
    _set_nodes(graph, kept)


def _name_nodes(graph: Any) -> None:
    seen = Counter(node.name for node in graph.node)
    for number, node in enumerate(graph.node):
        if not node.name or seen[node.name] > 1:
            node.name = f"{node.op_type}_{number}"


def _set_nodes(graph: Any, nodes: list[Any]) -> None:
    copies = [type(node)() for node in nodes]
    for copy, node in zip(copies, nodes, strict=True):
        copy.CopyFrom(node)
    del graph.node[:]
    graph.node.extend(copies)
