"""Count the multiply-adds of one text: those of a model's matrix products, as torch counts them.

A product of [M x K] with [K x N] has M·K·N of them, so one BERT layer has 4·L·D² (queries, keys,
values, output), 2·L²·D (scores, mixture) and 2·L·D·F (feed-forward network). Lookups, norms,
activations, softmax and adding biases are no products: they are left out, as is usual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from potstill.benchmarking.worker import class_of
from potstill.models.hub import quiet
from potstill.storage.onnx_files import count_parameters, folder_of, is_onnx


def multiply_adds(model: Path, lengths: Sequence[int]) -> Mapping[str, int | None]:
    """Count the multiply-adds of a text of each length, without any weights.

    A graph has those of the model that its folder's config describes. A graph with another number
    of parameters was pruned in ways that no config can say: its counts are not known.

    Args:
        model: A model folder, or FOLDER/onnx/NAME.onnx.
        lengths: Tokens of the text.

    Returns:
        Length -> multiply-adds; None where they are not known.
    """
    graph, unknown = is_onnx(model), {str(length): None for length in lengths}
    with suppress(ValueError):  # onnxruntime runs architectures that transformers does not know
        auto, config, told = class_of(folder_of(model) if graph else model)
        for device in ("meta", "cpu"):
            with quiet(), torch.device(device):
                source = auto.from_config(config, **told)
            if graph and source.num_parameters() != count_parameters(model):
                return unknown
            with suppress(RuntimeError):  # code that reads values, such as Longformer's
                return {str(length): of_model(source, length) for length in lengths}
    return unknown


def of_model(model: PreTrainedModel, length: int) -> int:
    """Count the multiply-adds of a text in a model, which may be on the meta device.

    Attention is computed the plain way: torch's counter knows no fused one of the CPU. Nothing is
    given but tokens, for whatever reads the values of a mask fails without values.
    """
    model.requires_grad_(False).train(False).set_attn_implementation("eager")
    for part in model.modules():  # of which some would look for padding among the tokens
        part.warn_if_padding_and_no_attention_mask = lambda *_: None  # type: ignore[assignment]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros((1, length), dtype=torch.int64, device=model.device))
    return int(counter.get_total_flops()) // 2  # a multiplication and an addition each
