"""Float ONNX graphs in, quantised ones out: int8, 4-bit weights, float16.

onnxruntime's quantisation does the products. Lookups of embeddings and tables that are shared with
a decoder are done here: onnxruntime gives a whole table one scale, and keeps tied ones twice.

Where a weight is int8, it is symmetric, with a scale for each output channel of a product and for
each row of a table: w = scale * q, scale = max |w| / qmax (Krishnamoorthi 2018, arXiv 1806.08342).
"""

from __future__ import annotations

import fnmatch
import os
import platform
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

import numpy as np

from potstill.errors import NotFinite
from potstill.graphs.layers import Layer, layers_of, normalised, quiet
from potstill.graphs.lookups import quantize_lookups
from potstill.models.finite import refuse_not_finite, some_not_finite
from potstill.recipe import Quantize
from potstill.storage.machine import is_out_of_memory, read_cpu
from potstill.storage.onnx_files import not_finite_in, require_onnx

VNNI = frozenset({"avx512_vnni", "avx_vnni"})

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Range:
    """The bits of int8 weights that are used, and why.

    Attributes:
        reduced: 7 bits, -64 to 64.
        why: one clause for the result.
    """

    reduced: bool
    why: str

    @property
    def largest(self) -> int:
        return 64 if self.reduced else 127


def weight_range(
    wanted: bool | str, flags: Collection[str] | None = None, machine: str | None = None
) -> Range:
    """Choose 7 or 8 bits for the weights of int8 products.

    Without VNNI, x86 adds two products of uint8 and int8 in 16 bits, which saturate:
    2 * 255 * 127 > 32767; weights of 7 bits can't.

    Args:
        wanted: True or False as the user said; "auto": by the CPU.
        flags, machine: of the CPU; None: of this one.
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
    """A float graph made ready, once for many variants: read and brought into one form.

    Args:
        path: a float .onnx file.
        settings: of the stage; `model` and `writes` are not read.

    Attributes:
        layers: that can be quantised.
        fixed: names of those that stay in float because the settings say so.

    Raises:
        ValueError: no graph, one that is quantised already, one without layers to quantise, or
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
            raise ValueError(f"{path} has int8 weights already: quantise the float graph")
        refuse_not_finite(str(path), not_finite_in(model.graph, path.parent))
        self.model = normalised(model)
        self.layers = layers_of(self.model)
        if not settings.embeddings:
            self.layers = [layer for layer in self.layers if layer.kind != "lookup"]
        if not self.layers:
            raise ValueError(f"{path} has no layer with constant weights that could be quantised")
        self.fixed = self._asked_for()

    def _asked_for(self) -> list[str]:
        """Names of the layers that stay in float because the settings say so."""
        names = [layer.name for layer in self.layers]
        for pattern in self.settings.float_layers:
            if not fnmatch.filter(names, pattern):
                raise ValueError(
                    f"float_layers: no layer of {self.path.name} is called '{pattern}'; they are "
                    f"called as {names[0]} and {names[-1]}"
                )
        patterns = self.settings.float_layers
        return [name for name in names if any(fnmatch.fnmatch(name, p) for p in patterns)]

    def write(
        self,
        target: Path,
        floats: Collection[str] = (),
        samples: Sequence[Inputs] = (),
    ) -> None:
        """Write a quantised graph, whole or not at all.

        Args:
            floats: names of layers that stay as they are, beside those in `fixed`.
            samples: inputs by name, for `static`: real text.

        Raises:
            ValueError: onnxruntime can't quantise the graph, or no samples.
            NotFinite: the quantised weights or their scales hold NaN or infinity.
            OSError: the disk is full.
        """
        import onnx

        kept = {*floats, *self.fixed}
        chosen = [layer for layer in self.layers if layer.name not in kept]
        try:
            with quiet():
                model = self._quantised(chosen, samples)
        except Exception as error:
            if is_out_of_memory(error) or isinstance(error, (ValueError, OSError)):
                raise
            first = str(error).strip().splitlines()[0] if str(error).strip() else "no reason"
            raise ValueError(
                f"{self.path}: onnxruntime can't quantise this graph with method "
                f"{self.settings.method}: {type(error).__name__}: {first}"
            ) from error
        names = not_finite_in(model.graph, target.parent)
        if names:
            raise NotFinite(f"{target}: {some_not_finite(names)}, so nothing is written")
        onnx.helper.set_model_props(
            model, {entry.key: entry.value for entry in self.model.metadata_props}
        )
        partial = target.with_name(f".{target.name}.partial")
        try:
            onnx.save_model(model, partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def _quantised(self, chosen: Sequence[Layer], samples: Sequence[Inputs]) -> Any:
        method = self.settings.method
        match method:
            case "fp16":
                return _float16(self.model)
            case "dynamic":
                model = _dynamic(self.model, _products(chosen), self.range.reduced)
            case "static":
                if not samples:
                    raise ValueError(f"{self.path}: static quantisation needs text to calibrate on")
                model = _static(
                    self.model, _products(chosen), self.range.reduced, samples, self.settings
                )
            case "4bit":
                # A tied decoder shares its table with the lookup, so both are int8.
                tied = [layer for layer in _products(chosen) if layer.tied]
                rest = [layer for layer in _products(chosen) if not layer.tied]
                model = _dynamic(self.model, tied, self.range.reduced)
                model = _weights_of_4_bits(model, rest, self.settings.block)
            case _:
                assert_never(method)
        quantize_lookups(model, chosen, self.layers)
        return model


def _products(layers: Iterable[Layer]) -> list[Layer]:
    return [layer for layer in layers if layer.kind != "lookup"]


# --- products, by onnxruntime ---------------------------------------------------------------------


def _dynamic(model: Any, products: Sequence[Layer], reduced: bool) -> Any:
    """Activations uint8, by tensor and anew for every input; weights int8 by output channel."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if not products:  # an empty list would mean all
        return copy
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        quantize_dynamic(
            copy,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=reduced,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=[layer.name for layer in products],
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        return _cleared(onnx.load(path), model)


class _Samples:
    """What onnxruntime calls a calibration data reader."""

    def __init__(self, samples: Sequence[Inputs]) -> None:
        self._left: Iterator[Inputs] = iter(samples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        found = next(self._left, None)
        return dict(found) if found is not None else None


def _static(
    model: Any,
    products: Sequence[Layer],
    reduced: bool,
    samples: Sequence[Inputs],
    settings: Quantize,
) -> Any:
    """Activations uint8 with ranges seen on real text; weights int8 by output channel."""
    import onnx
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if not products:
        return copy
    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        quantize_static(
            copy,
            path,
            _Samples(samples),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=reduced,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=[layer.name for layer in products],
            calibrate_method=methods[settings.calibration],
            extra_options={
                # products go on in float: biases, GELU and layer norms read them
                "OpTypesToExcludeOutputQuantization": ["MatMul"],
                "DefaultTensorType": onnx.TensorProto.FLOAT,
            },
        )
        return _cleared(onnx.load(path), model)


def _weights_of_4_bits(model: Any, products: Sequence[Layer], block: int) -> Any:
    """Weights in blocks of 4-bit numbers with a scale and a zero point each; activations float."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    if not products:
        return model
    names = {layer.name for layer in products}
    others = [n.name for n in model.graph.node if n.op_type == "MatMul" and n.name not in names]
    # accuracy level 4: activations are quantised to int8 by block inside the product
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
    """Weights and arithmetic in float16, inputs and outputs as they were; for GPUs."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return convert_float_to_float16(copy, keep_io_types=True)


def _cleared(made: Any, source: Any) -> Any:
    del made.graph.value_info[:]
    made.producer_name = source.producer_name
    return made
