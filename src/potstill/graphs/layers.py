"""The layers of an ONNX graph that hold weights: found, brought into one form, and shared.

Exporters write the same product in several ways: as Gemm or MatMul, with weights behind a
Transpose or an Identity, or a tied decoder's table twice. Quantization wants one.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

LEAST = 1024  # numbers in a weight, below which its scales would cost what its bytes save


@dataclass(frozen=True)
class Layer:
    """Hold one layer that can be quantized."""

    name: str  # its node's, unique in the graph
    kind: Literal["product", "lookup"]
    weight: str  # name of its weight: [in x out] of products, [rows x width] of lookups
    shape: tuple[int, ...]  # the weight's
    tied: str | None = None  # for a product, the lookup whose table is this weight, transposed


def normalized(model: Any) -> Any:
    """Copy a model so that products are MatMuls with weights of their own and all nodes have names.

    Value infos are dropped: what an exporter guessed of shapes makes quantization stumble.
    The function that the graph computes is the same.
    """
    model = copy.deepcopy(model)
    graph = model.graph
    del graph.value_info[:]
    for rule in (_constant, _identity, _transpose, _gemm):
        _rewrite(graph, rule)
    seen = Counter(node.name for node in graph.node)
    for number, node in enumerate(graph.node):
        if not node.name or seen[node.name] > 1:
            node.name = f"{node.op_type}_{number}"
    drop_unused(graph)
    return model


def layers_of(model: Any) -> list[Layer]:
    """List the layers with a constant weight of at least LEAST numbers, in the graph's order."""
    weights = {
        name: tensor
        for name, tensor in tensors_of(model.graph).items()
        if len(tensor.dims) == 2 and tensor.data_type == 1 and np.prod(tensor.dims) >= LEAST
    }
    lookups = [
        node
        for node in model.graph.node
        if node.op_type == "Gather" and node.input[0] in weights and not _of(node).get("axis", 0)
    ]
    first = {node.input[0]: node.name for node in lookups[::-1]}  # lookup by table
    tables = dict.fromkeys(node.input[0] for node in lookups)
    found, looked_up = [], {node.name for node in lookups}
    for node in model.graph.node:
        if node.name in looked_up:
            name = node.input[0]
            found.append(Layer(node.name, "lookup", name, tuple(weights[name].dims)))
        elif node.op_type == "MatMul" and node.input[1] in weights:
            name = node.input[1]
            table = transposed_of(weights[name], [weights[table] for table in tables])
            shape = tuple(weights[name].dims)
            found.append(Layer(node.name, "product", name, shape, first.get(table or "")))
    return found


# --- tensors and nodes ----------------------------------------------------------------------------


def tensors_of(graph: Any) -> dict[str, Any]:
    """Return a graph's weights and constants by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def transposed_of(weight: Any, tables: Iterable[Any]) -> str | None:
    """Return the name of the first table whose transpose is this weight; None without one."""
    from onnx.numpy_helper import to_array

    shape = list(weight.dims)[::-1]
    for table in tables:
        alike = len(shape) == 2 and list(table.dims) == shape
        if alike and np.array_equal(to_array(table).T, to_array(weight)):
            return str(table.name)
    return None


def share_table(graph: Any, weight: str, table: str, node: str) -> None:
    """Replace a weight by the transpose of a table, computed in a node of that name."""
    from onnx import helper

    graph.initializer.remove(tensors_of(graph)[weight])
    graph.node.insert(0, helper.make_node("Transpose", [table], [weight], node, perm=[1, 0]))


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


class _Pass:
    """Hold what one pass over a graph knows of its tensors."""

    def __init__(self, graph: Any) -> None:
        self.graph, self.weights = graph, tensors_of(graph)
        self.renamed: dict[str, str] = {}  # output of a node that goes -> what takes its place
        self.transposes: dict[str, str] = {}  # weight -> the same, transposed

    def transposed(self, source: str, name: str) -> str:
        """Return a weight's transpose, added under this name unless it is there."""
        from onnx import numpy_helper

        if source not in self.transposes:
            array = np.ascontiguousarray(numpy_helper.to_array(self.weights[source]).T)
            self.graph.initializer.append(numpy_helper.from_array(array, name))
        return self.transposes.setdefault(source, name)


def _rewrite(graph: Any, rule: Callable[[_Pass, Any], list[Any]]) -> None:
    """Replace each node by those that a rule makes of it."""
    state, nodes = _Pass(graph), list[Any]()
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = state.renamed.get(name, name)
        nodes += rule(state, node)
    nodes = copy.deepcopy(nodes)
    del graph.node[:]
    graph.node.extend(nodes)


def _of(node: Any) -> dict[str, Any]:
    """Return a node's attributes."""
    from onnx import helper

    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def _constant(state: _Pass, node: Any) -> list[Any]:
    """Make weights of large constants; small ones (the 0.5 of a GELU) are not parameters."""
    value = _of(node).get("value") if node.op_type == "Constant" else None
    if value is None or np.prod(value.dims) < LEAST:
        return [node]
    tensor = state.graph.initializer.add()
    tensor.CopyFrom(value)
    tensor.name = node.output[0]
    return []


def _identity(state: _Pass, node: Any) -> list[Any]:
    """Skip an Identity before a weight: torch's older exporter writes tied or equal ones so."""
    outputs = {output.name for output in state.graph.output}
    plain = node.op_type == "Identity" and node.input[0] in state.weights
    if not plain or node.output[0] in outputs:
        return [node]
    state.renamed[node.output[0]] = node.input[0]
    return []


def _transpose(state: _Pass, node: Any) -> list[Any]:
    """Fold transposed 2-dimensional weights into weights of their own, each of them once."""
    source = state.weights.get(node.input[0]) if node.op_type == "Transpose" else None
    if source is None or len(source.dims) != 2:
        return [node]
    same, output = _of(node).get("perm", [1, 0]) == [0, 1], node.output[0]
    state.renamed[output] = source.name if same else state.transposed(source.name, output)
    return []


def _gemm(state: _Pass, node: Any) -> list[Any]:
    """Write x W + b of heads and poolers as MatMul and Add, which dynamic quantization knows."""
    from onnx import helper

    known = _of(node)
    plain = node.op_type == "Gemm" and node.input[1] in state.weights and not known.get("transA")
    if not plain or known.get("alpha", 1.0) != 1 or known.get("beta", 1.0) != 1:
        return [node]
    weight = node.input[1]
    if known.get("transB"):
        weight = state.transposed(weight, f"{weight}_transposed")
    biased = len(node.input) > 2 and bool(node.input[2])
    product = f"{node.output[0]}_product" if biased else node.output[0]
    made = [helper.make_node("MatMul", [node.input[0], weight], [product], node.name)]
    if biased:
        made.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]]))
    return made
