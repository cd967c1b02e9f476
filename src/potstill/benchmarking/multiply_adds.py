"""Multiply-adds of one pass: those of its matrix products, counted as they run.

A product of [M x K] with [K x N] has M·K·N of them, so one BERT layer has 4·L·D² (queries, keys,
values, output), 2·L²·D (scores, mixture) and 2·L·D·F (feed-forward network). Lookups, norms,
activations, softmax and adding biases are no products: they are left out, as is usual.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.storage.onnx_files import read_graph

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Products; of each, the last axis of the first input is summed over (with transA the one before).
_PRODUCTS = {
    *("MatMul", "Gemm", "MatMulInteger", "MatMulNBits", "QLinearMatMul", "QGemm"),
    *("FusedMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
}
# What multiplies in ways that are not counted here: a sum without it would be too small.
_UNCOUNTED = {
    *("Attention", "QAttention", "MultiHeadAttention", "GroupQueryAttention", "PackedAttention"),
    *("Conv", "ConvInteger", "QLinearConv", "ConvTranspose", "Einsum", "FusedGemm"),
    *("EmbedLayerNormalization", "LSTM", "GRU", "RNN", "LongformerAttention"),
    *("If", "Loop", "Scan"),
}
_FIRST, _RESULT = "multiply_adds_first_", "multiply_adds_result_"


def of_model(model: PreTrainedModel, run: Callable[[], object]) -> int:
    """Multiply-adds of `run`, which calls a PyTorch model once.

    Attention is computed the plain way meanwhile: torch's counter knows no fused one of the CPU.
    The model is frozen: the counter's hooks fail on weights that want gradients.
    """
    from torch.utils.flop_counter import FlopCounterMode

    model.requires_grad_(False)
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with FlopCounterMode(display=False) as counter:
            run()
    finally:
        model.set_attn_implementation(before)
    return int(counter.get_total_flops()) // 2  # a multiplication and an addition each


class GraphCounter:
    """Multiply-adds of an ONNX graph; the graph is opened once more, with shapes as outputs.

    The shapes are those that the products have as they run: nothing is inferred.
    """

    def __init__(self, graph: Path) -> None:
        from onnx import TensorProto, helper

        self.graph = graph
        self.proto = read_graph(graph)
        nodes = list(self.proto.graph.node)
        # node.domain tells nothing: exporters and runtimes write the same names in several
        self.countable = not self.proto.functions and not any(
            node.op_type in _UNCOUNTED for node in nodes
        )
        self.axes: list[int] = []
        self.session: Any = None
        if not self.countable:
            return
        del self.proto.graph.output[:]
        for node in nodes:
            if node.op_type not in _PRODUCTS:
                continue
            number = len(self.axes)
            self.axes.append(_summed_axis(node))
            for source, name in ((node.input[0], _FIRST), (node.output[0], _RESULT)):
                told = f"{name}{number}"
                self.proto.graph.node.append(helper.make_node("Shape", [source], [told]))
                self.proto.graph.output.append(
                    helper.make_tensor_value_info(told, TensorProto.INT64, None)
                )

    def count(self, inputs: Mapping[str, Any]) -> int | None:
        """Of one pass; None for a graph whose products can't all be counted.

        Args:
            inputs: as the graph takes them, by name.
        """
        if not self.countable:
            return None
        if self.session is None:
            self.session = self._open()
        wanted = [output.name for output in self.session.get_outputs()]
        found = dict(zip(wanted, self.session.run(wanted, dict(inputs)), strict=True))
        return sum(
            int(found[f"{_FIRST}{number}"][axis]) * math.prod(map(int, found[f"{_RESULT}{number}"]))
            for number, axis in enumerate(self.axes)
        )

    def _open(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Fusing would take the products away whose shapes are asked for.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(self.graph.parent)
        )
        return onnxruntime.InferenceSession(
            self.proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


def _summed_axis(node: Any) -> int:
    """The axis of a product's first input that is summed over."""
    from onnx import helper

    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return -2 if attributes.get("transA", 0) else -1
