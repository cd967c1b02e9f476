"""Exported tiny models, and text to compare them on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from conftest import sentences
from potstill.data import Tokens
from potstill.graphs import write_graph
from potstill.models import LoadedModel, load_model
from potstill.recipe import Task
from potstill.storage.onnx_files import ONNX


def tokens_of(tokenizer: Any, count: int = 12) -> Tokens:
    rows = [tokenizer(text)["input_ids"] for text in sentences(count, seed=7)]
    lengths = np.array([len(row) for row in rows], dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    ids = np.concatenate([np.array(row, dtype=np.int32) for row in rows])
    return Tokens(ids, offsets, lengths, np.bincount(ids), "")


def moved(loaded: LoadedModel) -> LoadedModel:
    """No two tensors the same any more: the exporter keeps equal ones, all biases of 0, once."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return loaded


def exported(folder: Path, task: Task, **settings: Any) -> tuple[LoadedModel, Path]:
    """A model folder's model, and its graph in the folder's onnx/."""
    source = load_model(folder, task)
    place = folder / ONNX
    place.mkdir()
    return source, write_graph(source, place, **settings)
