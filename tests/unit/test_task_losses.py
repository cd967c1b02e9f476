"""A task's own loss against transformers' own and against plain equations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_labels import examples, write_model
from torch.nn import functional as F

from potstill.batches import Batch
from potstill.data import collate
from potstill.models import load_model
from potstill.recipe import Task
from potstill.task_losses import TEXTS, TaskLoss


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
        loss = TaskLoss(loaded)
        assert loss(batch).item() == pytest.approx(own * sums(batch.gold_BL), rel=1e-5)
        assert loss.mean([batch, batch]) == pytest.approx(own, rel=1e-5)


def test_masked_tokens_as_transformers_has_them(masked_lm_teacher: Path) -> None:
    loaded = load_model(masked_lm_teacher, "masked_lm")
    ids_BL = torch.randint(5, 35, (4, 9), generator=torch.Generator().manual_seed(1))
    gold_BL = torch.where(torch.arange(9) % 4 == 1, ids_BL, -100)
    batch = Batch(ids_BL.where(gold_BL < 0, torch.tensor(4)), torch.ones_like(ids_BL), gold_BL)
    own = loaded.model(input_ids=batch.input_ids_BL, labels=gold_BL).loss.item()
    assert TaskLoss(loaded)(batch).item() == pytest.approx(8 * own, rel=1e-5)


def sentences_batch(count: int) -> Batch:
    ids_BL = torch.randint(5, 35, (count, 9), generator=torch.Generator().manual_seed(2))
    return Batch(ids_BL, torch.ones_like(ids_BL), ids_BL)


def test_embeddings_by_a_neighbour_drawn_from_their_own_distribution(
    sentence_teacher: Path,
) -> None:
    loaded = load_model(sentence_teacher, "sentence_embedding")
    batch = sentences_batch(6)
    hidden_BLD = loaded.model(input_ids=batch.input_ids_BL).last_hidden_state.double()
    unit_BD = F.normalize(hidden_BLD.mean(1), dim=-1)
    logits_BB = (20 * unit_BD @ unit_BD.T).fill_diagonal_(-torch.inf)
    shares_BB = logits_BB.softmax(-1)
    losses = [TaskLoss(loaded, seed)(batch).item() for seed in range(400)]
    assert losses[0] == TaskLoss(loaded, 0)(batch).item()  # drawn by the seed
    # whatever is drawn: on average the entropy
    log_p = shares_BB.fill_diagonal_(1.0).log()
    entropies = -(shares_BB * log_p).sum(-1)
    spread = ((shares_BB * log_p**2).sum(-1) - entropies**2).sum().sqrt()
    error = spread.item() / 400**0.5
    assert np.mean(losses) == pytest.approx(entropies.sum().item(), abs=4 * error)


def test_texts_without_two_neighbours_add_nothing(sentence_teacher: Path) -> None:
    loaded = load_model(sentence_teacher, "sentence_embedding")
    assert TaskLoss(loaded)(sentences_batch(2)).item() == 0.0
    assert TaskLoss(loaded)(sentences_batch(3)).item() > 0.0
    assert TEXTS > 2
