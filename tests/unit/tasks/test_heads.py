"""What a head's distributions are over, against the models' own outputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import tiny_tokenizer
from potstill.data import Batch
from potstill.data.sequences import IGNORED, UNLABELED
from potstill.models import LoadedModel, Signals, load_model
from potstill.objectives import hard_targets, soft_targets
from potstill.recipe import Task
from potstill.tasks.heads import blank_gold, head_rows, head_signals, similarity_signals
from tiny_families import MISSING, NAMES, family_model


def batch(gold: Tensor, types: bool = False) -> Batch:
    ids = torch.tensor([[2, 9, 11, 17, 3], [2, 8, 13, 3, 0], [2, 21, 3, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    second = torch.zeros_like(ids)
    second[:, 2:] = 1
    return Batch(ids, mask, gold, second if types else None)


def signals_of(model: Any, task: Task, given: Batch) -> Signals:
    return head_signals(LoadedModel(model, tiny_tokenizer(), task, "model"), given)


def logits(signals: Signals) -> Tensor:
    assert signals.features_KD is not None
    assert signals.readout is not None
    return signals.readout.logits(signals.features_KD, slice(0, len(signals.features_KD)))


@pytest.mark.parametrize("name", NAMES)
def test_the_logits_and_hidden_states_are_the_models_own(name: str) -> None:
    model = family_model(name, Task.CLASSIFICATION)
    given = batch(torch.tensor([0, 1, 2]))
    inputs = {"input_ids": given.input_ids_BL, "attention_mask": given.attention_mask_BL}
    signals = signals_of(model, Task.CLASSIFICATION, given)
    torch.testing.assert_close(logits(signals), model(**inputs).logits)
    hidden = model.base_model(**inputs).last_hidden_state
    torch.testing.assert_close(signals.hidden_BLD, hidden)


@pytest.mark.parametrize("name", [name for name in NAMES if (name, "tokens") not in MISSING])
def test_tokens_that_have_a_label(name: str) -> None:
    model = family_model(name, "tokens")
    gold = torch.full((3, 5), IGNORED)
    gold[0, 1], gold[0, 3], gold[2, 1] = 2, UNLABELED, 0
    given = batch(gold)
    inputs = {"input_ids": given.input_ids_BL, "attention_mask": given.attention_mask_BL}
    expected = model(**inputs).logits[[0, 0, 2], [1, 3, 1]]
    torch.testing.assert_close(
        logits(signals_of(model, Task.TOKEN_CLASSIFICATION, given)), expected
    )


def test_token_types_reach_a_model_that_tells_them_apart() -> None:
    model = family_model("bert", Task.CLASSIFICATION)
    plain, pairs = (batch(torch.tensor([0, 1, 2]), types=types) for types in (False, True))
    first, second = (logits(signals_of(model, Task.CLASSIFICATION, b)) for b in (plain, pairs))
    assert (first - second).abs().max() > 0.01
    expected = model(
        input_ids=pairs.input_ids_BL,
        attention_mask=pairs.attention_mask_BL,
        token_type_ids=pairs.token_type_ids_BL,
    ).logits
    torch.testing.assert_close(second, expected)
    other = family_model("distilbert", Task.CLASSIFICATION)  # has none, and is asked all the same
    assert signals_of(other, Task.CLASSIFICATION, pairs).features_KD is not None


def test_no_hook_stays() -> None:
    model = family_model("bert", Task.CLASSIFICATION)
    signals_of(model, Task.CLASSIFICATION, batch(torch.tensor([0, 1, 2])))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_gradients_reach_head_and_encoder() -> None:
    model = family_model("roberta", Task.CLASSIFICATION)
    logits(signals_of(model, Task.CLASSIFICATION, batch(torch.tensor([0, 1, 2])))).sum().backward()
    # the mask token's row of the word embeddings among them, so all of a matrix counts as one
    unreached = [name for name, p in model.named_parameters() if p.grad is None]
    assert unreached == []


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_label_of_many_is_a_distribution_over_no_and_yes(temperature: float) -> None:
    """Against the binary divergence of the sigmoids, written out."""
    teacher, student = (
        family_model("bert", Task.CLASSIFICATION),
        family_model("electra", Task.CLASSIFICATION),
    )
    given = batch(torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0]]))
    both = [signals_of(model, Task.MULTI_LABEL, given) for model in (student, teacher)]
    loss = soft_targets(logits(both[0]), logits(both[1]), temperature)
    inputs = {"input_ids": given.input_ids_BL, "attention_mask": given.attention_mask_BL}
    q, p = (
        torch.sigmoid(model(**inputs).logits.double() / temperature) for model in (student, teacher)
    )
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert loss.item() == pytest.approx(kl.mean().item() * temperature**2, rel=1e-4)


def test_rows_of_labels() -> None:
    gold = torch.tensor([1, UNLABELED, 0])
    rows = head_rows(Task.CLASSIFICATION, batch(gold), teacher_decides=False)
    assert rows.counted_K.tolist() == [True, True, True]
    assert rows.gold_K.tolist() == [1, IGNORED, 0]
    assert rows.count("gold") == 2
    taught = head_rows(Task.CLASSIFICATION, batch(gold), teacher_decides=True)
    assert taught.gold_K.tolist() == [0, 0, 0]  # any class: the teacher's takes its place


def test_rows_of_many_labels() -> None:
    gold = torch.tensor([[1, 0], [UNLABELED, UNLABELED], [0, 1]])
    rows = head_rows(Task.MULTI_LABEL, batch(gold), teacher_decides=False)
    assert rows.gold_K.tolist() == [1, 0, IGNORED, IGNORED, 0, 1]
    assert bool(rows.counted_K.all())


def test_rows_of_tokens() -> None:
    gold = torch.tensor([[IGNORED, 2, IGNORED], [IGNORED, UNLABELED, 1]])
    rows = head_rows(Task.TOKEN_CLASSIFICATION, batch(gold), teacher_decides=False)
    assert rows.gold_K.tolist() == [2, IGNORED, 1]
    assert rows.counted_K.tolist() == [True, True, True]


def test_rows_of_values() -> None:
    rows = head_rows(Task.REGRESSION, batch(torch.tensor([1.5, torch.nan])), teacher_decides=False)
    assert rows.count("gold") == 1
    assert rows.counted_K.tolist() == [True, True]


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        (Task.CLASSIFICATION, (3,)),
        (Task.MULTI_LABEL, (3, 7)),
        (Task.REGRESSION, (3,)),
        (Task.SENTENCE_SIMILARITY, (2,)),
        (Task.TOKEN_CLASSIFICATION, (3, 4)),
        (Task.QUESTION_ANSWERING, (3, 2)),
        (Task.MASKED_LM, (3, 4)),
    ],
)
def test_blank_gold(task: str, shape: tuple[int, ...]) -> None:
    class Config:
        num_labels = 7

    found = blank_gold(task, torch.zeros((3, 4), dtype=torch.int64), Config())  # type: ignore[arg-type]
    assert tuple(found.shape) == shape


def test_the_last_linear_map_of_every_head() -> None:
    from potstill.models.families import is_task_head, last_linear

    for name in NAMES:
        model = family_model(name, Task.CLASSIFICATION, layers=1)
        final = last_linear(model)
        assert isinstance(final, nn.Linear)
        assert final.out_features == 3
        own = {p for n, p in model.named_parameters() if is_task_head(n, model)}
        encoder = {p for n, p in model.base_model.named_parameters() if "pooler" not in n}
        assert final.weight in own
        assert not own & encoder


@pytest.mark.parametrize("name", [name for name in NAMES if (name, "answers") not in MISSING])
def test_where_an_answer_starts_and_ends(name: str) -> None:
    """Starts of all texts, then their ends; the loss is transformers' own where all may be one."""
    model = family_model(name, "answers")
    gold = torch.tensor([[1, 3], [2, 2], [0, 0]])
    given = batch(gold)
    inputs = {"input_ids": given.input_ids_BL, "attention_mask": given.attention_mask_BL}
    output = model(**inputs)
    signals = signals_of(model, Task.QUESTION_ANSWERING, given)
    found = logits(signals)
    real = given.attention_mask_BL.bool().repeat(2, 1)
    torch.testing.assert_close(
        found[real], torch.cat([output.start_logits, output.end_logits])[real]
    )
    rows = head_rows(Task.QUESTION_ANSWERING, given, teacher_decides=False)
    assert rows.gold_K.tolist() == [1, 2, 0, 3, 2, 0]
    # of a text without padding all tokens may be one
    whole = Batch(given.input_ids_BL[:1], given.attention_mask_BL[:1], gold[:1])
    loss = model(
        input_ids=whole.input_ids_BL, start_positions=gold[:1, 0], end_positions=gold[:1, 1]
    ).loss
    signals = signals_of(model, Task.QUESTION_ANSWERING, whole)
    rows = head_rows(Task.QUESTION_ANSWERING, whole, teacher_decides=False)
    torch.testing.assert_close(hard_targets(logits(signals), rows.gold_K), loss)


def test_what_can_be_no_answer_has_no_weight() -> None:
    model = family_model("bert", "answers")
    allowed = torch.tensor([[1, 0, 0, 1, 0], [1, 0, 1, 0, 0], [1, 1, 0, 0, 0]]).bool()
    given = replace(batch(torch.tensor([[3, 3], [0, 0], [1, 1]])), answerable_BL=allowed)
    signals = signals_of(model, Task.QUESTION_ANSWERING, given)
    probabilities = logits(signals).softmax(-1)
    assert (probabilities[~allowed.repeat(2, 1)] == 0).all()
    # against a softmax over the tokens that are left
    output = model(input_ids=given.input_ids_BL, attention_mask=given.attention_mask_BL)
    expected = output.start_logits[0, [0, 3]].softmax(-1)
    torch.testing.assert_close(probabilities[0, [0, 3]], expected)
    assert signals.readout is not None
    included = signals.readout.included(slice(0, 3))
    assert included is not None
    assert torch.equal(included, allowed)


def test_answers_that_nobody_knows() -> None:
    gold = torch.tensor([[1, 3], [UNLABELED, UNLABELED], [0, 0]])
    rows = head_rows(Task.QUESTION_ANSWERING, batch(gold), teacher_decides=False)
    assert rows.gold_K.tolist() == [1, IGNORED, 0, 3, IGNORED, 0]
    assert bool(rows.counted_K.all())
    assert rows.count("gold") == 4


def test_cosines_of_pairs(sentence_teacher: Path) -> None:
    """Against mean pooling and the cosine in plain float64; padding changes nothing."""
    loaded = load_model(sentence_teacher, Task.SENTENCE_SIMILARITY)
    rng = np.random.default_rng(0)
    texts = [rng.integers(5, 35, int(n)) for n in (3, 9, 5, 6)]  # the pairs 0 and 2, 1 and 3
    longest = max(len(text) for text in texts)
    ids_BL = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
    mask_BL = torch.tensor([[int(i < len(text)) for i in range(longest)] for text in texts])
    with torch.no_grad():
        signals = similarity_signals(loaded, Batch(ids_BL, mask_BL, torch.zeros(2)))
        alone = [
            loaded.model(torch.tensor(text)[None]).last_hidden_state[0].double().mean(0).numpy()
            for text in texts
        ]
    wanted = [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in ((alone[0], alone[2]), (alone[1], alone[3]))
    ]
    assert signals.features_KD is not None
    assert signals.features_KD[:, 0].tolist() == pytest.approx(wanted, abs=1e-5)
    assert torch.equal(logits(signals), signals.features_KD)
