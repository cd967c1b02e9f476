"""What distributions are over and which rows count, against plain loops."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor

from conftest import sentences
from potstill.data import Batch
from potstill.data.sequences import IGNORED
from potstill.models import LoadedModel, Signals, load_model
from potstill.objectives import objective_sums, soft_targets
from potstill.objectives.hidden import Taught
from potstill.recipe import (
    HardTargets,
    HiddenCosine,
    InBatch,
    LogitsMse,
    Objective,
    PatientHidden,
    Relations,
    SoftTargets,
    Task,
    VectorMse,
)
from potstill.recipe.objectives import ObjectiveConfig
from potstill.tasks.heads import Reading
from potstill.training.teachers import LiveTeacher

TRIPLE = (SoftTargets(), HardTargets(target="teacher"), HiddenCosine())
MASKED = (SoftTargets(positions="masked"), HardTargets(), HiddenCosine())
LENGTHS = (9, 3, 7, 5, 6, 4, 8)
CHOSEN = ((0, 2), (0, 5), (1, 1), (3, 1), (3, 3), (4, 4))  # not in each text


def batch(texts: int = len(LENGTHS)) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, mask, gold) of texts of different lengths, some tokens chosen."""
    ids = torch.randint(5, 35, (texts, max(LENGTHS)), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros_like(ids)
    gold = torch.full_like(ids, IGNORED)
    for text in range(texts):
        mask[text, : LENGTHS[text]] = 1
    ids[mask == 0] = 0
    for text, position in CHOSEN:
        if text < texts:
            gold[text, position] = ids[text, position]
            ids[text, position] = 4
    return ids, mask, gold


def reading(
    task: Task, objectives: Sequence[Objective], group: int | None = None, scale: float = 20.0
) -> Reading:
    return Reading.of(task, objectives, InBatch(group=group, scale=scale), len(LENGTHS))


def logits(signals: Signals) -> Tensor:
    assert signals.features_KD is not None
    assert signals.readout is not None
    return signals.readout.logits(signals.features_KD, slice(0, len(signals.features_KD)))


@pytest.fixture(scope="module")
def masked_lm(masked_lm_teacher: Path) -> LoadedModel:
    return load_model(masked_lm_teacher, "masked_lm")


@pytest.fixture(scope="module")
def encoder(sentence_teacher: Path) -> LoadedModel:
    return load_model(sentence_teacher, "sentence_embedding")


# --- masked LM ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objectives", "everywhere"), [(TRIPLE, True), (MASKED, False), (MASKED[1:], False)]
)
def test_masked_lm_distributions_are_where_the_objectives_want_them(
    masked_lm: LoadedModel, objectives: Sequence[Objective], everywhere: bool
) -> None:
    ids, mask, gold = batch()
    read = reading("masked_lm", objectives)
    signals = LiveTeacher(masked_lm, read).signals(Batch(ids, mask, gold))
    with torch.no_grad():
        whole = masked_lm.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    expected_logits, expected_gold, expected_soft = [], [], []
    for text, length in enumerate(LENGTHS):
        for position in range(length):
            chosen = (text, position) in CHOSEN
            if everywhere or chosen:
                expected_logits.append(whole.logits[text, position])
                expected_gold.append(int(gold[text, position]))
                expected_soft.append(everywhere or chosen)
    torch.testing.assert_close(logits(signals), torch.stack(expected_logits))
    torch.testing.assert_close(signals.hidden_BLD, whole.hidden_states[-1])
    rows = read.rows(Batch(mask, mask, gold))
    assert rows.gold_K.tolist() == expected_gold
    assert rows.counted_K.tolist() == expected_soft
    assert (rows.gold_K != IGNORED).sum() == len(CHOSEN)


def test_masked_lm_counts() -> None:
    _, mask, gold = batch()
    everywhere = {"soft_targets": 42, "hard_targets": 6, "hidden_cosine": 42}
    assert reading("masked_lm", TRIPLE).counts(Batch(mask, mask, gold)) == everywhere
    assert reading("masked_lm", MASKED).counts(Batch(mask, mask, gold)) == everywhere | {
        "soft_targets": 6
    }
    assert reading("masked_lm", [HardTargets()]).counts(Batch(mask, mask, gold)) == {
        "hard_targets": 6
    }


def test_counts_of_texts_and_tokens() -> None:
    _, mask, gold = batch()
    chosen = [PatientHidden(), Relations(), LogitsMse(positions="masked")]
    assert reading("masked_lm", chosen).counts(Batch(mask, mask, gold)) == {
        "patient_hidden": 7,  # first tokens
        "relations": 42,
        "logits_mse": 6,
    }
    chosen = [PatientHidden(tokens="all"), VectorMse(), LogitsMse()]
    assert reading("sentence_embedding", chosen, group=3).counts(Batch(mask, mask, gold)) == {
        "patient_hidden": 42,
        "vector_mse": 7,
        "logits_mse": 6,  # the seventh text has none to be compared with
    }


def test_a_new_objective_is_counted_by_what_it_says_its_rows_are() -> None:
    class Fresh(ObjectiveConfig):
        reads: ClassVar[Literal["vectors"]] = "vectors"
        rows: ClassVar[Literal["texts"]] = "texts"
        kind: Literal["fresh"] = "fresh"

    _, mask, gold = batch()
    for task in (Task.MASKED_LM, Task.SENTENCE_EMBEDDING):
        read: Any = Reading(task, (Fresh(),), 1.0, 3)
        assert read.counts(Batch(mask, mask, gold)) == {"fresh": 7}


def test_losses_on_logits_have_rows_of_their_own() -> None:
    _, mask, gold = batch()
    for soft, mse in (("masked", "all"), ("all", "masked")):
        read = reading("masked_lm", [SoftTargets(positions=soft), LogitsMse(positions=mse)])
        rows = read.rows(Batch(mask, mask, gold))
        assert len(rows.gold_K) == 42
        sizes = {"all": 42, "masked": 6}
        kept = [int(rows.kept(o, slice(None)).sum()) for o in read.objectives]
        assert kept == [sizes[soft], sizes[mse]]
        counts = read.counts(Batch(mask, mask, gold))
        assert counts == {"soft_targets": sizes[soft], "logits_mse": sizes[mse]}


def test_counts_of_micro_batches_add_up() -> None:
    _, mask, gold = batch()
    states = (PatientHidden(), Relations(), LogitsMse())
    for task, objectives in (("masked_lm", TRIPLE), ("masked_lm", MASKED), ("masked_lm", states)):
        read = reading(task, objectives)
        first, second = (
            read.counts(Batch(mask[:2], mask[:2], gold[:2])),
            read.counts(Batch(mask[2:], mask[2:], gold[2:])),
        )
        assert {k: first[k] + second[k] for k in first} == read.counts(Batch(mask, mask, gold))


# --- sentence embeddings --------------------------------------------------------------------------


def embeddings(loaded: LoadedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Each text by itself, without padding: the mean of its token vectors, at length 1."""
    vectors = []
    for row, length in enumerate(mask.sum(1).tolist()):
        with torch.no_grad():
            hidden = loaded.model(input_ids=ids[row : row + 1, :length]).last_hidden_state[0]
        mean = sum(hidden) / length
        vectors.append(mean / mean.square().sum().sqrt())
    return torch.stack(vectors)


@pytest.mark.parametrize("group", [None, 3, 4, 5])
def test_each_text_has_a_distribution_over_the_others_of_its_group(
    encoder: LoadedModel, group: int | None
) -> None:
    ids, mask, gold = batch()
    read = reading("sentence_embedding", TRIPLE, group, scale=7.0)
    signals = LiveTeacher(encoder, read).signals(Batch(ids, mask, gold))
    found = torch.softmax(logits(signals), -1)
    vectors = embeddings(encoder, ids, mask)
    size = group or len(ids)
    lone = []
    for text in range(len(ids)):
        others = [o for o in range(len(ids)) if o != text and o // size == text // size]
        lone.append(len(others) < 2)  # of one other the probability is 1, whatever the model
        if others:
            similarities = torch.stack([7.0 * vectors[text] @ vectors[o] for o in others])
            torch.testing.assert_close(found[text, others], torch.softmax(similarities, 0))
            assert found[text].sum() == pytest.approx(1)
            rest = [o for o in range(len(ids)) if o not in others]
            assert found[text, rest].tolist() == [0.0] * len(rest)
    rows = read.rows(Batch(mask, mask, gold))
    assert rows.counted_K.tolist() == [not alone for alone in lone]
    assert (rows.gold_K == IGNORED).tolist() == lone
    assert sum(lone) == {3: 1, 5: 2}.get(group or 0, 0)  # seven texts
    texts = len(ids) - sum(lone)
    assert read.counts(Batch(mask, mask, gold)) == {
        "soft_targets": texts,
        "hard_targets": texts,
        "hidden_cosine": 42,
    }


def test_similarities_are_exact_under_autocast(encoder: LoadedModel) -> None:
    ids, mask, gold = batch()
    read = reading("sentence_embedding", TRIPLE, scale=20.0)
    with torch.autocast("cpu", torch.bfloat16):
        signals = LiveTeacher(encoder, read).signals(Batch(ids, mask, gold))
        found = logits(signals)
    assert signals.features_KD is not None
    unit = signals.features_KD.double()
    expected = 20.0 * unit @ unit.T
    others = ~torch.eye(len(ids), dtype=torch.bool)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[others].double(), expected[others], rtol=1e-5, atol=1e-5)


def test_a_lone_last_text_takes_no_part(encoder: LoadedModel) -> None:
    """Seven texts in groups of three: the losses are those of the first six alone."""
    student = load_model(encoder.name, "sentence_embedding")
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.mul_(1.1)
    ids, mask, gold = batch()
    read = reading("sentence_embedding", TRIPLE[:2], group=3)
    sums = []
    for texts in (7, 6):
        part = ids[:texts], mask[:texts], gold[:texts]
        with torch.no_grad():
            _, found = objective_sums(
                [(objective, 1.0) for objective in TRIPLE[:2]],
                read.signals(student, Batch(*part)),
                [Taught(LiveTeacher(encoder, read).signals(Batch(*part)))],
                read.rows(Batch(*part)),
                chunk_size=2,
            )
        sums.append(found)
    torch.testing.assert_close(sums[0], sums[1])
    assert sums[0]["soft_targets"] > 1e-3


def test_groups_are_batches_of_their_own(encoder: LoadedModel) -> None:
    """The soft targets of two groups of three are the mean of those of each by itself."""
    student = load_model(encoder.name, "sentence_embedding")
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.mul_(1.1)
    ids, mask, gold = batch(6)
    read = reading("sentence_embedding", TRIPLE, group=3)
    losses = []
    for part in (slice(0, 3), slice(3, 6), slice(0, 6)):
        inputs = ids[part], mask[part], gold[part]
        with torch.no_grad():
            student_logits = logits(read.signals(student, Batch(*inputs)))
        teacher_logits = logits(LiveTeacher(encoder, read).signals(Batch(*inputs)))
        losses.append(soft_targets(student_logits, teacher_logits, 2.0))
    first, second, together = losses
    torch.testing.assert_close(together, (first + second) / 2)
    assert first != pytest.approx(float(second), rel=0.01)


# --- teachers -------------------------------------------------------------------------------------


def test_a_live_teacher_is_frozen(masked_lm_teacher: Path) -> None:
    loaded = load_model(masked_lm_teacher, "masked_lm")
    loaded.model.train()
    teacher = LiveTeacher(loaded, reading("masked_lm", TRIPLE))
    assert not loaded.model.training
    first, second = (teacher.signals(Batch(*batch())) for _ in range(2))
    torch.testing.assert_close(logits(first), logits(second), rtol=0, atol=0)  # no dropout
    assert not first.hidden_BLD.requires_grad
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    teacher.to(torch.device("meta"))
    assert {parameter.device.type for parameter in loaded.model.parameters()} == {"meta"}


def test_a_student_is_read_with_gradients(masked_lm: LoadedModel, encoder: LoadedModel) -> None:
    for task, loaded in (("masked_lm", masked_lm), ("sentence_embedding", encoder)):
        student = load_model(loaded.name, task)
        logits(reading(task, TRIPLE).signals(student, Batch(*batch()))).square().sum().backward()
        gradient = student.model.get_input_embeddings().weight.grad
        assert gradient is not None
        assert gradient.abs().sum() > 0


def test_real_texts_agree_with_the_tokenizer(encoder: LoadedModel) -> None:
    inputs = encoder.tokenizer(sentences(4), padding=True, return_tensors="pt")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    read = reading("sentence_embedding", TRIPLE)
    gold = torch.full_like(ids, IGNORED)
    signals = LiveTeacher(encoder, read).signals(Batch(ids, mask, gold))
    torch.testing.assert_close(signals.features_KD, embeddings(encoder, ids, mask))
    assert read.counts(Batch(mask, mask, gold))["hidden_cosine"] == int(mask.sum())
