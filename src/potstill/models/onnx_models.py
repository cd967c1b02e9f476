"""An ONNX graph that answers as a model of transformers does, through onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from potstill.storage.onnx_files import count_parameters, open_session


@dataclass(frozen=True)
class OnnxOutput:
    """Hold a graph's outputs, by the names that transformers uses; None for those it lacks."""

    logits: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    sentence_embedding: Tensor | None = None  # pooled and normalized


class OnnxModel(PreTrainedModel):
    """Answer as the model that a graph was exported from; it cannot be trained.

    It runs on the CPU, in as many threads as torch has when it is first called.
    """

    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig, graph: Path) -> None:
        super().__init__(config)
        self.graph = graph

    @cached_property
    def session(self) -> Any:
        """Open the graph."""
        return open_session(self.graph, torch.get_num_threads())

    @property
    def device(self) -> torch.device:
        """Return the CPU."""
        return torch.device("cpu")

    @property
    def outputs(self) -> list[str]:
        """Name the graph's outputs."""
        return [output.name for output in self.session.get_outputs()]

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Count the graph's weights."""
        return count_parameters(self.graph)

    def forward(self, **inputs: Tensor) -> OnnxOutput:
        """Return float32 outputs for input_ids [B x L], of which the graph takes what it knows.

        attention_mask and token_type_ids may be given, too.
        """
        ids_BL = inputs["input_ids"]
        default = {
            "attention_mask": torch.ones_like(ids_BL),
            "token_type_ids": torch.zeros_like(ids_BL),
        }
        given = {**default, **inputs}
        wanted = [found.name for found in self.session.get_inputs()]
        names = [name for name in self.outputs if name in OnnxOutput.__dataclass_fields__]
        values = self.session.run(names, {name: given[name].cpu().numpy() for name in wanted})
        tensors = (torch.from_numpy(np.asarray(value, dtype=np.float32)) for value in values)
        return OnnxOutput(**dict(zip(names, tensors, strict=True)))
