"""A model as an ONNX graph: the whole of it, head, pooling and normalization included."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from potstill.errors import NotFinite
from potstill.graphs.layers import share_table, tensors_of, transposed_of
from potstill.models import LoadedModel
from potstill.models.finite import some_not_finite
from potstill.models.sentence_modules import pool
from potstill.recipe import Task
from potstill.storage.machine import is_out_of_memory
from potstill.storage.onnx_files import (
    DATA,
    GRAPH,
    INPUTS,
    MAX_LENGTH,
    not_finite_in,
    require_onnx,
)

Exporter = Literal["torchscript", "dynamo"]
OPSET = 18
# Protocol buffers end at 2 GiB; what is not a weight needs some of it.
LARGEST = 2**31 - 2**26
_BATCH, _LENGTH = "batch", "length"  # what the two dynamic dimensions are called


def write_graph(loaded: LoadedModel, folder: Path, exporter: Exporter = "torchscript") -> Path:
    """Write a model as `folder`/model.onnx, in float32, batch and length dynamic.

    It takes what the model takes of input_ids, attention_mask and token_type_ids (int64 [B x L]),
    and gives `output_names`. Weights that one file can't hold go beside it, into model.onnx_data.

    Args:
        loaded: Is not changed.
        folder: Must exist and be empty.
        exporter: One of torch's two. The default was chosen by measurement: see docs/LOG.md.

    Raises:
        ValueError: onnx is not installed, or the model does what ONNX has no operator for.
        OSError: the disk is full.
    """
    require_onnx()
    module = _Graph(loaded).eval()
    path = folder / GRAPH
    with torch.no_grad(), warnings.catch_warnings(), _one_sentence(loaded.name):
        # of tracing: what it warns of, batches and lengths that become constants, is what the
        # parity gate looks for; and of the older exporter's age
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            module.sample(),
            str(path),
            opset_version=OPSET,
            input_names=module.inputs,
            output_names=output_names(loaded.task),
            **_options(module, exporter),
        )
    _finish(path, loaded)
    return path


def input_names(loaded: LoadedModel) -> list[str]:
    """Return the names of a model's inputs, in the order of its graph's."""
    return [name for name in INPUTS if name in loaded.inputs]


def output_names(task: Task) -> list[str]:
    """Return the names of a task's outputs, as transformers and sentence-transformers use them."""
    if task.is_encoder:
        return ["last_hidden_state", "sentence_embedding"]
    return ["start_logits", "end_logits"] if task.head == "spans" else ["logits"]


def is_by_token(task: Task, output: str) -> bool:
    """Return whether an output has a row per token; those of padding have no meaning."""
    if output == "logits":
        return task.head in (None, "tokens")
    return output != "sentence_embedding"


def answers(loaded: LoadedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a PyTorch model's outputs, by the names of `output_names`."""
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
    """Take and give tensors by their places, as exporters want it."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(loaded.model).cpu()
        # plain products and softmax: what runtimes know how to fuse
        self.model.set_attn_implementation("eager")
        self.loaded = replace(loaded, model=self.model)
        self.inputs = input_names(self.loaded)

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        inputs = dict(zip(self.inputs, given, strict=True))
        return tuple(answers(self.loaded, inputs).values())

    def sample(self) -> tuple[Tensor, ...]:
        """Return two texts, the second one padded."""
        config = self.model.config
        length = min(8, self.loaded.max_length)
        ids_BL = torch.arange(2 * length).reshape(2, length) % config.vocab_size
        pad = config.pad_token_id
        if pad is not None:
            ids_BL = torch.where(ids_BL == pad, (pad + 1) % config.vocab_size, ids_BL)
            ids_BL[1, length // 2 :] = pad
        mask_BL = torch.ones_like(ids_BL)
        mask_BL[1, length // 2 :] = 0
        tensors = (ids_BL, mask_BL, torch.zeros_like(ids_BL))
        return tuple(
            tensor for name, tensor in zip(INPUTS, tensors, strict=True) if name in self.inputs
        )


def _options(module: _Graph, exporter: Exporter) -> dict[str, Any]:
    """Return what differs between the exporters."""
    task = module.loaded.task
    match exporter:
        case "torchscript":
            both = {0: _BATCH, 1: _LENGTH}
            axes = {name: both for name in module.inputs}
            for name in output_names(task):
                axes[name] = both if is_by_token(task, name) else {0: _BATCH}
            return {"dynamo": False, "dynamic_axes": axes}
        case "dynamo":
            dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
            shapes = (tuple(dynamic for _ in module.inputs),)
            options = {"dynamic_shapes": shapes, "verbose": False, "external_data": False}
            return {"dynamo": True, **options}
        case _:
            assert_never(exporter)


def _finish(path: Path, loaded: LoadedModel) -> None:
    """Note in the graph what others can't know, and write it as one file, or as two."""
    import onnx

    proto = onnx.load(path)
    for leftover in path.parent.iterdir():  # of graphs over 2 GB: a file a weight
        leftover.unlink()
    _share_tied(proto.graph)
    proto.producer_name = "potstill"
    del proto.graph.value_info[:]  # shapes that tracing guessed: quantization trips over them
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
    tables = dict.fromkeys(node.input[0] for node in graph.node if node.op_type == "Gather")
    decoders = dict.fromkeys(node.input[1] for node in graph.node if node.op_type == "MatMul")
    for decoder in decoders:
        tensors = tensors_of(graph)
        if decoder in tensors:
            known = [tensors[name] for name in tables if name in tensors]
            table = transposed_of(tensors[decoder], known)
            if table is not None:
                share_table(graph, decoder, table, f"{decoder}_tied")


@contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:  # of torch's newer exporter
        raise ValueError(
            f"exporter: dynamo needs the package {error.name}. Run `pip install onnxscript`."
        ) from None
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        if is_out_of_memory(error):
            raise
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{name}: the model can't be written as an ONNX graph of opset {OPSET}: {first}"
        ) from None
