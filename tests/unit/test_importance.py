"""A task's own loss against transformers' own and against plain equations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_labels import examples, write_model
from torch.nn import functional as F

from potstill.batches import Batch
from potstill.data import collate
from potstill.importance import mean_loss, sampled_batches, task_loss
from potstill.models import load_model
from potstill.recipe import Task


def batch_of(task: Task, count: int = 12) -> Batch:
    found = examples(task, count)
    labelled = [i for i in range(count) if task == "token_classification" or i % 3]
    return collate(found, np.array(labelled), 0, None, 0, 0)


def test_labels_as_transformers_has_them(tmp_path: Path) -> None:
    for task, sums in (
        ("classification", lambda gold: len(gold)),
        ("token_classification", lambda gold: int((gold != -100).sum())),
        ("multi_label", lambda gold: gold.numel()),
        ("regression", lambda gold: len(gold)),
    ):
        loaded = load_model(write_model(task, tmp_path / task), task)
        batch = batch_of(task)
        gold = batch.gold_BL.float() if task == "multi_label" else batch.gold_BL
        own = loaded.model(
            input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask_BL, labels=gold
        ).loss.item()
        assert task_loss(loaded)(batch).item() == pytest.approx(own * sums(batch.gold_BL), rel=1e-5)
        assert mean_loss(loaded, [batch, batch]) == pytest.approx(own, rel=1e-5)
        assert math.isnan(mean_loss(loaded, []))


def test_masked_tokens_as_transformers_has_them(masked_lm_teacher: Path) -> None:
    loaded = load_model(masked_lm_teacher, "masked_lm")
    ids_BL = torch.randint(5, 35, (4, 9), generator=torch.Generator().manual_seed(1))
    gold_BL = torch.where(torch.arange(9) % 4 == 1, ids_BL, -100)
    batch = Batch(ids_BL.where(gold_BL < 0, torch.tensor(4)), torch.ones_like(ids_BL), gold_BL)
    own = loaded.model(input_ids=batch.input_ids_BL, labels=gold_BL).loss.item()
    assert task_loss(loaded)(batch).item() == pytest.approx(8 * own, rel=1e-5)
    assert mean_loss(loaded, [batch]) == pytest.approx(own, rel=1e-5)


def test_embeddings_by_the_neighbour_that_they_find_most_alike(sentence_teacher: Path) -> None:
    loaded = load_model(sentence_teacher, "sentence_embedding")
    ids_BL = torch.randint(5, 35, (6, 9), generator=torch.Generator().manual_seed(2))
    batch = Batch(ids_BL, torch.ones_like(ids_BL), ids_BL)
    hidden_BLD = loaded.model(input_ids=ids_BL).last_hidden_state.double()
    unit_BD = F.normalize(hidden_BLD.mean(1), dim=-1)
    logits_BB = (20 * unit_BD @ unit_BD.T).fill_diagonal_(-torch.inf)
    expected = -logits_BB.log_softmax(-1).max(-1).values.sum()
    assert task_loss(loaded)(batch).item() == pytest.approx(expected.item(), rel=1e-4)


def test_batches_are_drawn_by_the_seed_alone(tmp_path: Path) -> None:
    loaded = load_model(write_model("classification", tmp_path), "classification")
    found = examples("classification", 50)
    drawn = [
        torch.cat([b.numbers_B for b in sampled_batches(loaded, found, 40, None, seed)]).tolist()
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 40
