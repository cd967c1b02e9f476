"""Float ONNX graphs in, quantized ones out: int8, 4-bit weights, float16.

onnxruntime's quantization does the products. Lookups of embeddings and tables that are shared with
a decoder are done here: onnxruntime gives a whole table one scale, and keeps tied ones twice.

Where a weight is int8, it is symmetric, with a scale for each output channel of a product and for
each row of a table: w = scale * q, scale = max |w| / qmax (Krishnamoorthi 2018, arXiv 1806.08342).
"""

from __future__ import annotations

import copy
import fnmatch
import platform
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, assert_never

import numpy as np

from potstill.errors import NotFinite
from potstill.graphs.layers import (
    Layer,
    drop_unused,
    layers_of,
    normalized,
    quiet,
    share_table,
    tensors_of,
)
from potstill.models.finite import refuse_not_finite, some_not_finite
from potstill.recipe import Quantize
from potstill.storage.files import written_whole
from potstill.storage.machine import is_out_of_memory, read_cpu
from potstill.storage.onnx_files import not_finite_in, require_onnx

QUANTIZED_VALUES, SCALE = "_quantized", "_scale"  # what onnxruntime appends to a weight's name
VNNI = frozenset({"avx512_vnni", "avx_vnni"})

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Range:
    """Hold the bits of int8 weights that are used, and why."""

    reduced: bool  # 7 bits, -64 to 64; else 8, -127 to 127
    why: str  # one clause for the result


def weight_range(
    wanted: bool | str, flags: Collection[str] | None = None, machine: str | None = None
) -> Range:
    """Choose 7 or 8 bits for the weights of int8 products.

    Without VNNI, x86 adds two products of uint8 and int8 in 16 bits, which saturate:
    2 * 255 * 127 > 32767; weights of 7 bits can't.

    Args:
        wanted: True or False as asked for; "auto": by the CPU, whose flags and architecture may be
            given.
    """
    if isinstance(wanted, bool):
        return Range(wanted, "as asked for")
    found = read_cpu()[1] if flags is None else flags
    kind = (platform.machine() if machine is None else machine).lower()
    if kind not in ("x86_64", "amd64", "i686", "i386"):
        return Range(False, f"{kind} adds int8 products in 32 bits")
    if VNNI & set(found):
        return Range(False, "this CPU has VNNI, which adds int8 products in 32 bits")
    return Range(True, "this CPU has no VNNI, and its 16-bit sums would saturate with 8 bits")


class FloatGraph:
    """Hold a float graph made ready, once for many variants: read and brought into one form.

    Args:
        path: A float .onnx file.
        settings: The stage's; `model` and `writes` are not read.

    Attributes:
        layers: Those that can be quantized.
        fixed: Names of those that stay in float because the settings list them.

    Raises:
        ValueError: no graph, one that is quantized already, one without layers to quantize, or
            onnxruntime is not installed, or weights that are not finite.
    """

    def __init__(self, path: Path, settings: Quantize) -> None:
        require_onnx()
        import onnx

        self.path, self.settings = path, settings
        self.range = weight_range(settings.reduce_range)
        try:
            model = onnx.load(path)
        except Exception as error:  # protobuf's own, and files of external weights
            if is_out_of_memory(error) or isinstance(error, OSError):
                raise
            raise ValueError(f"{path} can't be read as an ONNX graph: {error}") from None
        if any(tensor.data_type in (2, 3) for tensor in model.graph.initializer):
            raise ValueError(f"{path} has int8 weights already. Quantize the float graph.")
        refuse_not_finite(str(path), not_finite_in(model.graph, path.parent))
        self.model = normalized(model)
        every = layers_of(self.model)
        self.layers = [each for each in every if settings.embeddings or each.kind != "lookup"]
        if not self.layers:
            raise ValueError(f"{path} has no layer with constant weights that could be quantized.")
        names = [layer.name for layer in self.layers]
        for pattern in settings.float_layers:
            if not fnmatch.filter(names, pattern):
                raise ValueError(
                    f"float_layers: no layer of {path.name} matches '{pattern}'. Use names such as "
                    f"{names[0]} and {names[-1]}."
                )
        patterns = settings.float_layers
        self.fixed = [name for name in names if any(fnmatch.fnmatch(name, p) for p in patterns)]

    def write(
        self, target: Path, floats: Collection[str] = (), samples: Sequence[Inputs] = ()
    ) -> None:
        """Write a quantized graph, whole or not at all.

        Args:
            floats: Names of layers that stay as they are, besides those in `fixed`.
            samples: Inputs by name, for `static`: real text.

        Raises:
            ValueError: onnxruntime can't quantize the graph, or no samples.
            NotFinite: the quantized weights or their scales hold NaN or infinity.
            OSError: the disk is full.
        """
        import onnx

        kept = {*floats, *self.fixed}
        chosen = [layer for layer in self.layers if layer.name not in kept]
        try:
            with quiet():
                model = self._quantized(chosen, samples)
        except Exception as error:
            if is_out_of_memory(error) or isinstance(error, (ValueError, OSError)):
                raise
            first = str(error).strip().splitlines()[0] if str(error).strip() else "no reason"
            raise ValueError(
                f"{self.path}: onnxruntime can't quantize this graph with method "
                f"{self.settings.method}: {type(error).__name__}: {first}"
            ) from error
        names = not_finite_in(model.graph, target.parent)
        if names:
            raise NotFinite(f"{target}: {some_not_finite(names)}, so nothing is written")
        onnx.helper.set_model_props(
            model, {entry.key: entry.value for entry in self.model.metadata_props}
        )
        with written_whole(target) as temporary:
            onnx.save_model(model, temporary)

    def _quantized(self, chosen: Sequence[Layer], samples: Sequence[Inputs]) -> Any:
        from onnxruntime.quantization import quantize_dynamic

        products = [layer for layer in chosen if layer.kind == "product"]
        method = self.settings.method
        match method:
            case "fp16":
                return _float16(self.model)
            case "dynamic":
                # activations become uint8 by tensor, with a range of every input
                model = self._int8(products, quantize_dynamic)
            case "static":
                model = self._static(products, samples)
            case "4bit":
                # A tied decoder shares its table with the lookup, so both are int8.
                tied = [layer for layer in products if layer.tied]
                model = self._int8(tied, quantize_dynamic)
                rest = [layer for layer in products if not layer.tied]
                model = _weights_of_4_bits(model, rest, self.settings.block)
            case _:
                assert_never(method)
        quantize_lookups(model, chosen, self.layers)
        return model

    def _static(self, products: Sequence[Layer], samples: Sequence[Inputs]) -> Any:
        """Quantize activations to uint8 with ranges of real text; weights as `_int8` does."""
        from onnxruntime.quantization import (
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )

        if not samples:
            raise ValueError(f"{self.path}: method static needs text to calibrate on. Add text.")
        left = iter(samples)
        methods = {method.name.lower(): method for method in CalibrationMethod}
        quantize = partial(
            quantize_static,
            calibration_data_reader=SimpleNamespace(get_next=lambda: next(left, None)),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            calibrate_method=methods[self.settings.calibration],
        )
        # products go on in float: biases, GELU and layer norms read them
        return self._int8(products, quantize, OpTypesToExcludeOutputQuantization=["MatMul"])

    def _int8(
        self, products: Sequence[Layer], quantize: Callable[..., None], **options: Any
    ) -> Any:
        """Quantize weights of products to int8 by output channel, by onnxruntime."""
        import onnx
        from onnxruntime.quantization import QuantType

        model = copy.deepcopy(self.model)
        if not products:  # an empty list would mean all
            return model
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "quantized.onnx"
            quantize(
                model_input=model,
                model_output=path,
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                reduce_range=self.range.reduced,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=[layer.name for layer in products],
                extra_options={**options, "DefaultTensorType": onnx.TensorProto.FLOAT},
            )
            return _cleared(onnx.load(path), self.model)


def _weights_of_4_bits(model: Any, products: Sequence[Layer], block: int) -> Any:
    """Store weights in blocks of 4-bit numbers with a scale and a zero point per block."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    if not products:
        return model
    names = {layer.name for layer in products}
    others = [n.name for n in model.graph.node if n.op_type == "MatMul" and n.name not in names]
    # accuracy level 4: activations are quantized to int8 by block inside the product
    quantizer = MatMulNBitsQuantizer(
        model,
        bits=4,
        block_size=block,
        is_symmetric=False,
        accuracy_level=4,
        nodes_to_exclude=others,  # nodes_to_include only adds to all of the op type
        op_types_to_quantize=("MatMul",),
    )
    quantizer.process()
    return _cleared(quantizer.model.model, model)


def _float16(model: Any) -> Any:
    """Convert weights and arithmetic to float16, inputs and outputs as they were; for GPUs."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(copy.deepcopy(model), keep_io_types=True)


def _cleared(made: Any, source: Any) -> Any:
    del made.graph.value_info[:]
    made.producer_name = source.producer_name
    return made


# --- tables of embeddings -------------------------------------------------------------------------


def quantized_rows(table_VD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize a table to symmetric int8 [V x D] by row, with float32 scales [V x 1].

    table = scale * int8, which lies in -127..127.
    """
    largest_V1 = np.abs(table_VD).max(axis=1, keepdims=True).astype(np.float32)
    scale_V1 = np.where(largest_V1 > 0, largest_V1 / 127, 1).astype(np.float32)
    return np.rint(table_VD / scale_V1).astype(np.int8), scale_V1


def quantize_lookups(model: Any, chosen: Sequence[Layer], layers: Sequence[Layer]) -> None:
    """Give lookups int8 tables; a decoder that is tied to one multiplies with the same table.

    The decoder's weight becomes Transpose(table), which onnxruntime folds when it opens the graph.
    The weight of a decoder that stays in float does, too: it is there once.

    Args:
        chosen: The layers, of all `layers`, to quantize.
    """
    graph, names = model.graph, {layer.name for layer in chosen}
    tied = {layer.tied: layer for layer in layers if layer.tied}
    done: dict[str, tuple[str, str]] = {}
    for lookup in layers:
        decoder = tied.get(lookup.name) if lookup.kind == "lookup" else None
        if decoder is not None and decoder.name not in names:
            if decoder.weight in tensors_of(graph):
                share_table(graph, decoder.weight, lookup.weight, f"{decoder.weight}_from_table")
        elif lookup.kind == "lookup" and lookup.name in names:
            if lookup.weight not in done:
                done[lookup.weight] = _int8_table(graph, lookup, decoder)
            _look_up_int8(graph, lookup, *done[lookup.weight])
    drop_unused(graph)


def _int8_table(graph: Any, lookup: Layer, decoder: Layer | None) -> tuple[str, str]:
    """Make the int8 table [V x D] and its scales [V x 1]; return their names."""
    from onnx import numpy_helper

    tensors = tensors_of(graph)
    table, scale = f"{lookup.weight}_rows{QUANTIZED_VALUES}", f"{lookup.weight}_rows{SCALE}"
    weight = f"{decoder.weight}{QUANTIZED_VALUES}" if decoder is not None else ""
    if decoder is not None and weight in tensors:
        int8_VD = np.ascontiguousarray(numpy_helper.to_array(tensors[weight]).T)
        scales = numpy_helper.to_array(tensors[f"{decoder.weight}{SCALE}"])
        scale_V1 = scales.reshape(-1, 1).astype(np.float32)
        share_table(graph, weight, table, f"{weight}_from_table")
    else:
        int8_VD, scale_V1 = quantized_rows(numpy_helper.to_array(tensors[lookup.weight]))
    graph.initializer.append(numpy_helper.from_array(int8_VD, table))
    graph.initializer.append(numpy_helper.from_array(scale_V1, scale))
    return table, scale


def _look_up_int8(graph: Any, lookup: Layer, table: str, scale: str) -> None:
    """Look up rows of int8 and multiply them by their scales, in operators of the standard."""
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
