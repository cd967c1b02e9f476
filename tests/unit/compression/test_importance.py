"""A task's own loss against transformers' own and against plain equations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_labels import examples, write_model
from tiny_pruning import encoder_of, evidence
from torch.nn import functional as F

from potstill.compression.importance import mean_loss, task_loss
from potstill.compression.scores import unit_taylor
from potstill.data import Batch, collate
from potstill.models import load_model
from potstill.pipeline import Silent
from potstill.pipeline.context import Context, TokenizedText
from potstill.recipe import Task, TaskData


def batch_of(task: Task, count: int = 12) -> Batch:
    found = examples(task, count)
    labelled = [i for i in range(count) if task == "token_classification" or i % 3]
    return collate(found, np.array(labelled), 0)


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


def test_a_text_without_others_to_be_compared_with_says_nothing(sentence_teacher: Path) -> None:
    """The last batch may have one or two texts: no loss, and a gradient of zeros, not an error."""
    loaded = load_model(sentence_teacher, "sentence_embedding")
    batches = []
    for count in (6, 1, 2):
        ids_BL = torch.randint(5, 35, (count, 9), generator=torch.Generator().manual_seed(count))
        batches.append(Batch(ids_BL, torch.ones_like(ids_BL), ids_BL))
    assert task_loss(loaded)(batches[1]).item() == 0
    loss, encoder = task_loss(loaded), encoder_of(loaded.model)
    found = unit_taylor(encoder, evidence(batches, loss))
    torch.testing.assert_close(found, unit_taylor(encoder, evidence(batches[:1], loss)))
    assert found.max() > 0


def test_texts_without_a_token_to_mask_say_nothing(masked_lm_teacher: Path) -> None:
    loaded = load_model(masked_lm_teacher, "masked_lm")
    ids_BL = torch.tensor([[2, 3]])
    batch = Batch(ids_BL, torch.ones_like(ids_BL), torch.full_like(ids_BL, -100))
    assert not unit_taylor(encoder_of(loaded.model), evidence([batch], task_loss(loaded))).any()


def test_batches_are_drawn_by_the_seed_alone(tmp_path: Path) -> None:
    loaded = load_model(write_model("classification", tmp_path), "classification")
    found = examples("classification", 50)
    drawn = []
    for seed in (1, 1, 2):
        context = Context(
            task=Task.CLASSIFICATION,
            seed=seed,
            text_settings=TaskData(train=["unread"]),
            run=tmp_path,
            cache=tmp_path,
            models={},
            reporter=Silent(),
        )
        batches = list(TokenizedText(context, loaded.tokenizer).batches(found, 40))
        assert [len(batch) for batch in batches] == [16, 16, 8]
        drawn.append(torch.cat([batch.numbers_B for batch in batches]).tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 40
