"""ONNX files: their model folder, their weights, a session; nothing here imports torch.

A model is a folder, or an .onnx file in the folder onnx/ of one, whose config and tokenizer are
found two levels up.
"""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path, PurePath
from typing import Any

ONNX = "onnx"  # the folder in a model folder, and the ending
GRAPH = "model.onnx"  # the names that transformers.js and others look for
QUANTIZED = "model_quantized.onnx"
DATA = "_data"  # appended to a graph's name: its weights where one file can't hold them
INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # as transformers names them
MAX_LENGTH = "max_length"  # a graph's own property: tokens that it has positions for


def is_onnx(model: str | os.PathLike[str]) -> bool:
    """Return whether a path names an .onnx file, which need not exist."""
    return Path(model).suffix == f".{ONNX}"


def folder_of(graph: str | os.PathLike[str]) -> Path:
    """Find the model folder that an .onnx file belongs to, or refuse the file."""
    path = Path(graph).expanduser()
    if not path.is_file():
        raise ValueError(f"{path} was not found. Check the path of the .onnx file.")
    folder = path.absolute().parent.parent
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{path}: {folder} holds no config.json. Put the file into the folder {ONNX} of its "
            f"model folder, as FOLDER/{ONNX}/{path.name}."
        )
    return folder


def require_onnx() -> None:
    """Refuse to continue without the packages of the extra `onnx`."""
    for name in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"ONNX files need the package {name}. Install it with `pip install "
                "'potstill[onnx]'`."
            )


def graph_files(graph: Path) -> list[Path]:
    """List the files of a graph: itself, and those beside it that hold its weights."""
    from onnx.external_data_helper import uses_external_data

    outside = {
        entry.value
        for tensor in read_graph(graph).graph.initializer
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for name in outside:
        path = PurePath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise ValueError(
                f"{graph} names a file of weights outside of its folder ({name!r}). Save the graph "
                "again with its weights beside it."
            )
    return [graph, *(graph.parent / name for name in sorted(outside))]


def weight_bytes(model: Path) -> int:
    """Count the bytes of a graph's files, or of the weights in a model folder."""
    files = graph_files(model) if is_onnx(model) else model.glob("*.safetensors")
    return sum(path.stat().st_size for path in files)


def read_graph(graph: Path) -> Any:
    """Read an onnx.ModelProto without the weights that lie outside of the file."""
    require_onnx()
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(graph, load_external_data=False)
    except DecodeError:
        raise ValueError(
            f"{graph} is damaged or not an ONNX file. Export the model again."
        ) from None


def count_parameters(graph: Path) -> int:
    """Count the weights in a graph's initializers, each once; packed 4-bit ones as unpacked.

    Scales and zero points of quantized weights, single numbers and integers, such as shapes, are
    not counted.
    """
    from onnx import TensorProto, helper

    proto = read_graph(graph).graph
    packed, count = set[str](), 0
    for node in proto.node:
        if node.op_type == "MatMulNBits":
            sizes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            count += int(sizes["K"]) * int(sizes["N"])
            packed.update(node.input[1:4])
    whole = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
    for tensor in proto.initializer:
        beside = tensor.name in packed or tensor.name.endswith(("_scale", "_zero_point"))
        if tensor.dims and not beside and tensor.data_type not in whole:
            count += math.prod(tensor.dims)
    return count


def not_finite_in(graph: Any, folder: Path) -> list[str]:
    """Name a graph's weights and constants that hold NaN or infinity.

    Infinity as a single number, and matrices of 0 and minus infinity, are no weights: a graph masks
    with them. `folder` is that of the graph's file: weights may lie beside it.
    """
    import numpy as np
    from onnx import TensorProto

    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    constants = [
        (node.output[0], attribute.t)
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    names = []
    for name, tensor in [*((each.name, each) for each in graph.initializer), *constants]:
        if tensor.data_type not in kinds or not math.prod(tensor.dims):
            continue
        values = _values(tensor, folder)
        number = values.size == 1 and not np.isnan(values).any()
        mask = len(tensor.dims) > 1 and np.isin(values, (0.0, -np.inf)).all()
        if not (number or mask or np.isfinite(values).all()):
            names.append(str(name))
    return names


def _values(tensor: Any, folder: Path) -> Any:
    import numpy as np
    from onnx import helper, numpy_helper
    from onnx.external_data_helper import uses_external_data

    if not uses_external_data(tensor):
        return numpy_helper.to_array(tensor)
    # by hand: onnx itself follows no link, and the hub's cache is all links
    where = {entry.key: entry.value for entry in tensor.external_data}
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    size, offset = int(where.get("length") or 0), int(where.get("offset", 0))
    count = size // kind.itemsize if size else -1
    return np.fromfile(folder / where["location"], kind, count, offset=offset)


def open_session(graph: str | os.PathLike[str], threads: int) -> Any:
    """Open an onnxruntime.InferenceSession of a text encoder on the CPU."""
    require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors: warnings are of what is no fault
    try:
        session = onnxruntime.InferenceSession(
            os.fspath(graph), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own classes share no base but this one
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{graph}: onnxruntime cannot open the file ({first}). Export the model again."
        ) from None
    other = next((found.name for found in session.get_inputs() if found.name not in INPUTS), None)
    if other is not None:
        raise ValueError(
            f"{graph} takes an input {other}. Give a text encoder, which takes {', '.join(INPUTS)}."
        )
    return session
