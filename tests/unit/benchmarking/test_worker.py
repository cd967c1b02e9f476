"""The process that times one model: loading, inputs, memory."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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

from potstill.benchmarking import worker
from potstill.benchmarking.process import child_environment


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_folders(tmp_path_factory.mktemp("models"))


def test_peak_memory_is_not_inherited_from_the_parent():
    # A parent that has touched 600 MB starts the child; ru_maxrss would say 600 MB.
    ask = "from potstill.benchmarking import worker as b; print(b.peak_memory_bytes())"
    parent = (
        "import subprocess, sys; big = b'x' * 600_000_000; "
        f"print(subprocess.check_output([sys.executable, '-c', {ask!r}], text=True))"
    )
    environment = child_environment(1)
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
    assert worker._positions(RobertaModel(roberta)) == POSITIONS - 2
    distilbert = DistilBertConfig(
        vocab_size=V, dim=D, n_layers=1, n_heads=2, hidden_dim=FFN, max_position_embeddings=24
    )
    assert worker._positions(DistilBertModel(distilbert)) == 24


def test_random_ids_cover_the_vocabulary_without_padding():
    ids_BL = worker._random_ids(V, 4, (200, 30), seed=3)
    assert ids_BL.shape == (200, 30)
    assert set(ids_BL.flatten().tolist()) == set(range(V)) - {4}
    assert np.array_equal(ids_BL, worker._random_ids(V, 4, (200, 30), seed=3))
    every = worker._random_ids(V, None, (200, 30), seed=3)
    assert set(every.flatten().tolist()) == set(range(V))


def opened(folder: Path) -> Any:
    auto, _, told = worker.class_of(folder)
    return worker._load(folder, auto, told)


def test_models_are_loaded_by_architecture_in_float32(folders, tmp_path):
    assert type(opened(folders["teacher"])) is BertForMaskedLM
    assert type(opened(folders["student"])) is BertModel
    BertModel(bert_config(1)).half().save_pretrained(tmp_path)
    model = opened(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


def test_a_pooler_is_timed_where_the_folder_has_one_and_no_other_is_made(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    BertModel(bert_config(1), add_pooling_layer=False).save_pretrained(tmp_path)
    assert opened(tmp_path).pooler is None
    assert opened(folders["student"]).pooler is not None


def answers(folder: Path, *commands: dict[str, Any]) -> list[dict[str, Any]]:
    lines = iter(json.dumps(command) for command in commands)
    return list(worker._answers(folder, 1, lines))


def test_texts_are_run_one_at_a_time_in_their_order(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "texts.npz"
    types = np.array([0, 0, 1, 0, 0])
    np.savez(file, ids=np.array([7, 8, 9, 5, 6]), types=types, lengths=np.array([3, 2]))
    seen: list[dict[str, Any]] = []
    forward = BertForMaskedLM.forward

    def noted(self: Any, **given: Any) -> Any:
        seen.append({name: value.tolist() for name, value in given.items()})
        return forward(self, **given)

    noted.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(BertForMaskedLM, "forward", noted)
    monkeypatch.setattr(worker, "WARM_UP_TEXTS", 1)
    _, loaded, timed = answers(
        folders["teacher"], {"command": "texts", "file": str(file)}, {"command": "pass"}
    )
    first = {"input_ids": [[7, 8, 9]], "attention_mask": [[1, 1, 1]]}
    first["token_type_ids"] = [[0, 0, 1]]
    second = {"input_ids": [[5, 6]], "attention_mask": [[1, 1]]}
    assert seen == [first, first, second]  # the first is the warm-up
    assert loaded == {"texts": 2}
    assert len(timed["wall_s"]) == len(timed["cpu_s"]) == 2
