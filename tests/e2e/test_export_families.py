"""Every family and head as an ONNX graph: real text and corners."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_every_family import save_teacher

from potstill.models import load_model
from potstill.onnx_models import OnnxModel
from potstill.parity import check_parity
from potstill.recipe import Task
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
    found = check_parity(source, graph, tokens_of(source.tokenizer), tolerance=1e-4)
    assert {corner.tokens for corner in found} >= {1, source.max_length}
    opened = load_model(graph, TASKS[head]).model
    assert isinstance(opened, OnnxModel)
    types = {"token_type_ids"} if name in ("bert", "electra", "nomic_bert") else set()
    taken = {given.name for given in opened.session.get_inputs()}
    assert taken == {"input_ids", "attention_mask", *types}
