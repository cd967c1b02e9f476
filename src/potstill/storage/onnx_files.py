"""ONNX files: which model folder they are of, what they weigh. Nothing here imports torch.

A model is a folder, or an .onnx file in the folder onnx/ of one, whose config and tokenizer are
found two levels up.
"""

from __future__ import annotations

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
    """Whether a path names an .onnx file, there or not."""
    return Path(model).suffix == f".{ONNX}"


def folder_of(graph: str | os.PathLike[str]) -> Path:
    """The model folder that an .onnx file is of.

    Raises:
        ValueError: there is no such file, or no config.json two levels up.
    """
    path = Path(graph).expanduser()
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    folder = path.absolute().parent.parent
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{path}: {folder} holds no config.json: an .onnx file is read with the model folder "
            f"that it lies in, as FOLDER/{ONNX}/{path.name}"
        )
    return folder


def require_onnx() -> None:
    """Refuse what can't be done without the extra.

    Raises:
        ValueError: onnx or onnxruntime is not installed.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401  (a slow import that comes anyway)
    except ImportError as error:
        raise ValueError(
            f"ONNX files need the package {error.name}: pip install 'potstill[onnx]'"
        ) from None
    del onnx


def graph_files(graph: Path) -> list[Path]:
    """The files of a graph: itself, and those that hold weights outside of it.

    Raises:
        ValueError: as `read_graph`, or weights that lie outside of the graph's folder.
    """
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
                f"{graph} names a file of weights outside of its folder ({name!r}): save the graph "
                "again with its weights beside it"
            )
    return [graph, *(graph.parent / name for name in sorted(outside))]


def weight_bytes(model: Path) -> int:
    """Bytes of a graph's files, or of the weights in a model folder."""
    files = graph_files(model) if is_onnx(model) else model.glob("*.safetensors")
    return sum(path.stat().st_size for path in files)


def read_graph(graph: Path) -> Any:
    """An onnx.ModelProto without the weights that lie outside of the file.

    Raises:
        ValueError: the file is no ONNX graph.
    """
    require_onnx()
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(graph, load_external_data=False)
    except DecodeError:
        raise ValueError(f"{graph} is damaged, or no ONNX file") from None


def count_parameters(graph: Path) -> int:
    """Numbers in a graph's initialisers: weights, each once, without the scales and zero points of
    quantised ones, and without single and whole numbers, such as shapes.

    4-bit weights are packed: they count as what they stand for.
    """
    import math

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
        beside = tensor.name.endswith(("_scale", "_zero_point"))
        single = not tensor.dims
        if not (single or beside or tensor.name in packed or tensor.data_type in whole):
            count += math.prod(tensor.dims)
    return count


def not_finite_in(graph: Any, folder: Path) -> list[str]:
    """Names of a graph's weights and constants that hold NaN or infinity.

    Infinity as a single number, and matrices of 0 and minus infinity, are no weights: a graph masks
    with them.

    Args:
        graph: An onnx.GraphProto.
        folder: Where its file is, for weights that lie outside of it.
    """
    import math

    import numpy as np
    from onnx import TensorProto

    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    names = []
    constants = [
        (node.output[0], attribute.t)
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
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
    from onnx import helper, numpy_helper
    from onnx.external_data_helper import uses_external_data

    if not uses_external_data(tensor):
        return numpy_helper.to_array(tensor)
    import numpy as np

    # by hand: onnx itself follows no link, and the hub's cache is all links
    where = {entry.key: entry.value for entry in tensor.external_data}
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    with (folder / where["location"]).open("rb") as stream:
        stream.seek(int(where.get("offset", 0)))
        size = int(where.get("length") or -1)
        return np.frombuffer(stream.read(size), kind)


def open_session(graph: str | os.PathLike[str], threads: int) -> Any:
    """An onnxruntime.InferenceSession on the CPU.

    Raises:
        ValueError: onnxruntime is not installed or can't read the file, or the graph takes other
            inputs than text encoders do.
    """
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
        raise ValueError(f"{graph}: onnxruntime can't open it: {first}") from None
    for found in session.get_inputs():
        if found.name not in INPUTS:
            raise ValueError(
                f"{graph} takes an input {found.name}: a text encoder takes {', '.join(INPUTS)}"
            )
    return session
