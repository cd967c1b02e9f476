"""The process that times one model: loading, inputs, memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_bert import FFN, POSITIONS, D, V, bert_config, write_folders
from transformers import (
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
)

from potstill import benchmark_worker
from potstill.benchmarking import _environment


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_folders(tmp_path_factory.mktemp("models"))


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
    ids_BL = benchmark_worker._random_ids(V, 4, 200, 30, seed=3)
    assert ids_BL.shape == (200, 30)
    assert set(ids_BL.flatten().tolist()) == set(range(V)) - {4}
    assert np.array_equal(ids_BL, benchmark_worker._random_ids(V, 4, 200, 30, seed=3))
    every = benchmark_worker._random_ids(V, None, 200, 30, seed=3)
    assert set(every.flatten().tolist()) == set(range(V))


def test_models_are_loaded_by_architecture_in_float32(folders, tmp_path):
    assert type(benchmark_worker._load(folders["teacher"])) is BertForMaskedLM
    assert type(benchmark_worker._load(folders["student"])) is BertModel
    BertModel(bert_config(1)).half().save_pretrained(tmp_path)
    model = benchmark_worker._load(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training
