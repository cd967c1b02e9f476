"""The process that times one model: loading, inputs, memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
)

from potstill import benchmark_worker
from potstill.benchmarking import _environment

V, D, FFN, POSITIONS = 50, 32, 37, 40


def bert_config(layers: int) -> BertConfig:
    return BertConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=FFN,
        max_position_embeddings=POSITIONS,
    )


def bert_parameters(layers: int) -> int:
    """Counted by hand: embeddings and their norm, layers."""
    layer = 4 * (D * D + D) + 2 * D + (D * FFN + FFN) + (FFN * D + D) + 2 * D
    return (V + POSITIONS + 2) * D + 2 * D + layers * layer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    BertForMaskedLM(bert_config(2)).save_pretrained(root / "teacher")
    student = root / "student"
    BertModel(bert_config(1), add_pooling_layer=True).save_pretrained(student)
    (student / "modules.json").write_text("[]")
    (student / "1_Pooling").mkdir()
    (student / "1_Pooling" / "config.json").write_text("{}")
    return {name: root / name for name in ("teacher", "student")}


def test_peak_memory_is_not_inherited_from_the_parent():
    # A parent that has touched 600 MB starts the child; ru_maxrss would say 600 MB.
    ask = "from potstill import benchmark_worker as b; print(b.peak_memory_bytes())"
    parent = (
        "import subprocess, sys; big = b'x' * 600_000_000; "
        f"print(subprocess.check_output([sys.executable, '-c', {ask!r}], text=True))"
    )
    environment = _environment(1)
    answer = subprocess.check_output([sys.executable, "-c", parent], text=True, env=environment)
    assert 5e6 < int(answer) < 400e6


def test_positions_of_each_kind_of_table():
    roberta = RobertaConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=FFN,
        max_position_embeddings=POSITIONS,
        pad_token_id=1,
    )
    # rows 0 and 1 (padding) are never a position
    assert benchmark_worker._positions(RobertaModel(roberta)) == POSITIONS - 2
    distilbert = DistilBertConfig(
        vocab_size=V, dim=D, n_layers=1, n_heads=2, hidden_dim=FFN, max_position_embeddings=24
    )
    assert benchmark_worker._positions(DistilBertModel(distilbert)) == 24


def test_random_ids_cover_the_vocabulary_without_padding():
    model = BertModel(bert_config(1))
    ids_BL = benchmark_worker._random_ids(model, 200, 30, seed=3)
    assert ids_BL.shape == (200, 30)
    assert set(ids_BL.flatten().tolist()) == set(range(V)) - {model.config.pad_token_id}
    assert torch.equal(ids_BL, benchmark_worker._random_ids(model, 200, 30, seed=3))


def test_models_are_loaded_by_architecture_in_float32(folders, tmp_path):
    assert type(benchmark_worker._load(folders["teacher"])) is BertForMaskedLM
    assert type(benchmark_worker._load(folders["student"])) is BertModel
    BertModel(bert_config(1)).half().save_pretrained(tmp_path)
    model = benchmark_worker._load(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training
