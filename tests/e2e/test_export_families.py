"""Every family and head as an ONNX graph: real text and corners."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from family_teachers import save_teacher
from potstill.compression.parts import Encoder
from potstill.compression.pruning import reshaped
from potstill.graphs import check_parity, write_graph
from potstill.graphs.parity import Gate
from potstill.models import load_model
from potstill.models.onnx_models import OnnxModel
from potstill.recipe import Task
from potstill.storage.onnx_files import ONNX, count_parameters
from tiny_families import MISSING, NAMES
from tiny_graphs import exported, tokens_of

TASKS: dict[str, Task] = {
    "headless": "sentence_embedding",
    "masked_lm": "masked_lm",
    "classification": "classification",
    "tokens": "token_classification",
    "answers": "question_answering",
}


@pytest.mark.parametrize(
    ("name", "head"),
    [(name, head) for name in NAMES for head in TASKS if (name, head) not in MISSING],
)
def test_parity(name: str, head: str, tmp_path: Path) -> None:
    save_teacher(name, head, tmp_path)
    source, graph = exported(tmp_path, TASKS[head])
    found = check_parity(source, graph, tokens_of(source.tokenizer), Gate(tolerance=1e-4))
    assert {corner.tokens for corner in found} >= {1, source.max_length}
    opened = load_model(graph, TASKS[head]).model
    assert isinstance(opened, OnnxModel)
    types = {"token_type_ids"} if name in ("bert", "electra", "nomic_bert") else set()
    taken = {given.name for given in opened.session.get_inputs()}
    assert taken == {"input_ids", "attention_mask", *types}


@pytest.mark.parametrize("name", NAMES)
def test_a_shape_that_no_config_can_say(name: str, tmp_path: Path) -> None:
    """Other numbers of heads and units in each layer: the graph has them and answers alike."""
    place = tmp_path / "smaller"
    for folder in (tmp_path, place):
        save_teacher(name, "classification", folder)
    source, whole = exported(tmp_path, "classification")
    groups = 2 if name == "eurobert" else 4
    heads = [torch.arange(1 + layer % groups) for layer in range(4)]
    units = [torch.arange(3 + 5 * layer) for layer in range(4)]
    smaller = replace(source, model=reshaped(Encoder(source.model, source.family), heads, units))
    (place / ONNX).mkdir()
    graph = write_graph(smaller, place / ONNX)
    check_parity(smaller, graph, tokens_of(source.tokenizer), Gate(tolerance=1e-4))
    gone = source.model.num_parameters() - smaller.model.num_parameters()
    assert gone > 0
    assert count_parameters(whole) - count_parameters(graph) == gone
