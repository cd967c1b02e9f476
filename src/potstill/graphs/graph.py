"""Writing a model as an ONNX graph: the whole of it, head, pooling and normalisation included."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from potstill.errors import NotFinite
from potstill.models import LoadedModel
from potstill.models.families import takes_token_types
from potstill.models.finite import some_not_finite
from potstill.models.sentence_modules import pool
from potstill.recipe import Task
from potstill.storage.machine import is_out_of_memory
from potstill.storage.onnx_files import DATA, GRAPH, MAX_LENGTH, not_finite_in, require_onnx

Exporter = Literal["torchscript", "dynamo"]
OPSET = 18
# Protocol buffers end at 2 GiB; what is not a weight needs some of it.
LARGEST = 2**31 - 2**26
_BATCH, _LENGTH = "batch", "length"  # what the two dynamic dimensions are called


def write_graph(loaded: LoadedModel, folder: Path, exporter: Exporter = "torchscript") -> Path:
    """Write a model as `folder`/model.onnx, in float32, batch and length dynamic.

    It takes what the model takes of input_ids, attention_mask and token_type_ids (int64 [B x L]),
    and gives `output_names`. Weights that one file can't hold lie beside it, in model.onnx_data.

    Args:
        folder: must exist; nothing else may be in it.
        exporter: torch's two. The default was chosen by measurement: see docs/LOG.md.

    Raises:
        ValueError: onnx is not installed, or the model does what ONNX can't say.
        OSError: the disk is full.
    """
    require_onnx()
    module = _Graph(loaded).eval()
    path = folder / GRAPH
    with torch.no_grad(), warnings.catch_warnings(), _one_sentence(loaded.name):
        # of tracing: what it warns of, batches and lengths that become constants, is what the
        # parity gate looks for; and of the older exporter's age
        warnings.simplefilter("ignore")
        if exporter == "torchscript":
            _by_torchscript(module, path)
        else:
            _by_dynamo(module, path)
    _finish(path, loaded)
    return path


def input_names(config: Any) -> list[str]:
    """What a model's graph takes."""
    types = ["token_type_ids"] if takes_token_types(config) else []
    return ["input_ids", "attention_mask", *types]


def output_names(task: Task) -> list[str]:
    """What a task's graph gives: names as transformers and sentence-transformers use them."""
    if task.is_encoder:
        return ["last_hidden_state", "sentence_embedding"]
    return ["start_logits", "end_logits"] if task.head == "spans" else ["logits"]


def answers(loaded: LoadedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a PyTorch model gives, by the names of `output_names`."""
    output = loaded.model(**inputs)
    sentence = loaded.sentence
    if sentence is None:
        return {name: getattr(output, name) for name in output_names(loaded.task)}
    hidden_BLD = output.last_hidden_state
    vectors_BD = pool(hidden_BLD, inputs["attention_mask"], sentence.pooling)
    if sentence.normalize:
        vectors_BD = F.normalize(vectors_BD, dim=-1)
    return {"last_hidden_state": hidden_BLD, "sentence_embedding": vectors_BD}


class _Graph(nn.Module):
    """A model that takes and gives tensors by their places, as exporters want it."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(loaded.model).cpu()
        # plain products and softmax: what runtimes know how to fuse
        self.model.set_attn_implementation("eager")
        self.loaded = LoadedModel(
            self.model, loaded.tokenizer, loaded.task, loaded.name, loaded.sentence
        )
        self.inputs = input_names(self.model.config)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        inputs = dict(zip(self.inputs, given, strict=True))
        return tuple(answers(self.loaded, inputs).values())

    def sample(self) -> tuple[Tensor, ...]:
        """Two texts, the second one padded."""
        config = self.model.config
        length = min(8, self.loaded.max_length)
        ids_BL = torch.arange(2 * length).reshape(2, length) % config.vocab_size
        pad = config.pad_token_id
        if pad is not None:
            ids_BL = torch.where(ids_BL == pad, (pad + 1) % config.vocab_size, ids_BL)
            ids_BL[1, length // 2 :] = pad
        mask_BL = torch.ones_like(ids_BL)
        mask_BL[1, length // 2 :] = 0
        zeros_BL = torch.zeros_like(ids_BL)
        by_name = {"input_ids": ids_BL, "attention_mask": mask_BL, "token_type_ids": zeros_BL}
        return tuple(by_name[name] for name in self.inputs)


def _by_torchscript(module: _Graph, path: Path) -> None:
    outputs = output_names(module.loaded.task)
    axes = {name: {0: _BATCH, 1: _LENGTH} for name in module.inputs}
    with torch.no_grad():
        for name, value in zip(outputs, module(*module.sample()), strict=True):
            whole = name == "sentence_embedding" or (value.dim() == 2 and name == "logits")
            axes[name] = {0: _BATCH} if whole else {0: _BATCH, 1: _LENGTH}
    _exported(module, path, dynamo=False, dynamic_axes=axes)


def _by_dynamo(module: _Graph, path: Path) -> None:
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes = (tuple(dynamic for _ in module.inputs),)
    _exported(module, path, dynamo=True, dynamic_shapes=shapes, verbose=False, external_data=False)


def _exported(module: _Graph, path: Path, **options: Any) -> None:
    torch.onnx.export(
        module,
        module.sample(),
        str(path),
        opset_version=OPSET,
        input_names=module.inputs,
        output_names=output_names(module.loaded.task),
        **options,
    )


def _finish(path: Path, loaded: LoadedModel) -> None:
    """Note in the graph what others can't know, and write it as one file, or as two."""
    import onnx

    proto = onnx.load(path)
    for leftover in path.parent.iterdir():  # of graphs over 2 GB: a file a weight
        leftover.unlink()
    _share_tied(proto.graph)
    proto.producer_name = "potstill"
    del proto.graph.value_info[:]  # shapes that tracing guessed: quantisation trips over them
    onnx.helper.set_model_props(proto, {MAX_LENGTH: str(loaded.max_length), "task": loaded.task})
    names = not_finite_in(proto.graph, path.parent)
    if names:  # of a source that is finite: what the exporter computed ahead
        raise NotFinite(f"{path.name} of {loaded.name}: {some_not_finite(names)}")
    outside = proto.ByteSize() > LARGEST
    onnx.save_model(
        proto, path, save_as_external_data=outside, location=path.name + DATA, size_threshold=1024
    )


def _share_tied(graph: Any) -> None:
    """Keep a table once that a lookup reads and a decoder multiplies by.

    torch's older exporter folds the decoder's transposition into a second table. The node that is
    put in its place is folded when a runtime opens the graph, so it costs no time.
    """
    from onnx import helper, numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    tables = [node.input[0] for node in graph.node if node.op_type == "Gather"]
    decoders = [node.input[1] for node in graph.node if node.op_type == "MatMul"]
    for decoder, table in product(dict.fromkeys(decoders), dict.fromkeys(tables)):
        if decoder not in tensors or table not in tensors:
            continue
        mine, theirs = tensors[decoder], tensors[table]
        if list(mine.dims) != list(theirs.dims)[::-1] or len(mine.dims) != 2:
            continue
        if np.array_equal(numpy_helper.to_array(mine), numpy_helper.to_array(theirs).T):
            graph.initializer.remove(mine)
            del tensors[decoder]
            node = helper.make_node("Transpose", [table], [decoder], f"{decoder}_tied", perm=[1, 0])
            graph.node.insert(0, node)


@contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:  # of torch's newer exporter
        raise ValueError(
            f"the exporter dynamo needs {error.name}: pip install onnxscript"
        ) from None
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        if is_out_of_memory(error):
            raise
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{name}: the model can't be written as an ONNX graph of opset {OPSET}: {first}"
        ) from None
