"""What is trained: the student's parameters, projections that a loss learns, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_labels import write_model
from transformers import BertForMaskedLM, BertModel

from conftest import tiny_config, tiny_tokenizer
from potstill.data import Batch
from potstill.models import LoadedModel, load_model
from potstill.recipe import (
    AttentionMse,
    HardTargets,
    HiddenCosine,
    HiddenMse,
    InBatch,
    LogitsMse,
    Objective,
    PatientHidden,
    Relations,
    SoftTargets,
    Task,
    VectorMse,
)
from potstill.tasks.heads import Reading
from potstill.training import Trainee
from potstill.training.teachers import LiveTeacher


def test_the_teacher_is_asked_but_is_no_part_of_it(masked_lm_teacher: Path) -> None:
    """A model that follows itself: no loss of hidden states, and no gradient of the teacher."""
    student, teacher = (load_model(masked_lm_teacher, "masked_lm") for _ in range(2))
    reading = Reading.of(Task.MASKED_LM, [SoftTargets(), HiddenCosine()], InBatch(), 2)
    trainee = Trainee(student, [LiveTeacher(teacher, reading)], reading, chunk_size=8)
    names = {f"model.{name}" for name, _ in student.model.named_parameters()}
    assert {name for name, _ in trainee.named_parameters()} == names

    trainee.model.eval()
    ids_BL = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 9, 3, 0]])
    scales = {"soft_targets": 0.5, "hidden_cosine": 2.0}
    total, sums = trainee(
        Batch(ids_BL, (ids_BL != 0).long(), torch.full_like(ids_BL, -100)), scales
    )
    assert sums["hidden_cosine"].item() == pytest.approx(0, abs=1e-5)
    expected = sum(scales[kind] * float(value) for kind, value in sums.items())
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5)
    total.backward()
    assert any(p.grad is not None for p in student.model.parameters())
    assert all(p.grad is None for p in teacher.model.parameters())


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 9, 3, 0], [2, 11, 3, 0, 0]])
    return ids, (ids != 0).long(), torch.where(ids > 5, ids, -100)


def sums(trainee: Trainee) -> dict[str, float]:
    scales = {o.kind: 1.0 for o in trainee.reading.objectives}
    with torch.no_grad():
        _, found = trainee(Batch(*batch()), scales)
    return {kind: float(value) for kind, value in found.items()}


ON_STATES: list[Objective] = [
    *(LogitsMse(), HiddenCosine(), PatientHidden(), HiddenMse(), AttentionMse(), Relations())
]


@pytest.mark.parametrize("task", ["masked_lm", "sentence_embedding"])
def test_a_model_that_follows_itself_has_no_loss(
    masked_lm_teacher: Path, sentence_teacher: Path, task: str
) -> None:
    folder = masked_lm_teacher if task == "masked_lm" else sentence_teacher
    objectives = [*ON_STATES, *([VectorMse()] if task == "sentence_embedding" else [])]
    reading = Reading.of(task, objectives, InBatch(), 3)
    teacher = LiveTeacher(load_model(folder, task), reading)
    trainee = Trainee(load_model(folder, task), [teacher], reading, chunk_size=8)
    assert sums(trainee) == pytest.approx({o.kind: 0 for o in objectives}, abs=1e-5)
    with torch.no_grad():
        for parameter in trainee.model.parameters():
            parameter.mul_(1.1)
    assert min(sums(trainee).values()) > 1e-4


@pytest.fixture(scope="module")
def wide() -> LoadedModel:
    torch.manual_seed(5)
    model = BertForMaskedLM(tiny_config(6, hidden_size=48, initializer_range=0.2))
    return LoadedModel(model.eval(), tiny_tokenizer(), Task.MASKED_LM, "wide")


def projected(folder: Path, teachers: list[LoadedModel], seed: int = 1) -> Trainee:
    objectives = [HiddenMse(), Relations()]
    reading = Reading.of(Task.MASKED_LM, objectives, InBatch(), 3)
    live = [LiveTeacher(teacher, reading) for teacher in teachers]
    return Trainee(load_model(folder, "masked_lm"), live, reading, chunk_size=8, seed=seed)


def test_projections_are_trained_beside_the_student(
    masked_lm_teacher: Path, wide: LoadedModel
) -> None:
    trainee = projected(masked_lm_teacher, [wide])
    added = dict(trainee.named_parameters()).keys() - {
        f"model.{name}" for name, _ in trainee.model.named_parameters()
    }
    assert added == {"projections.0_hidden_mse", "projections.0_hidden_mse_embeddings"}
    before = sums(trainee)["hidden_mse"]
    optimizer = torch.optim.AdamW(trainee.projections.parameters(), lr=0.01)
    for _ in range(10):
        optimizer.zero_grad()
        total, _ = trainee(Batch(*batch()), {"hidden_mse": 1.0, "relations": 0.0})
        total.backward()
        optimizer.step()
    assert sums(trainee)["hidden_mse"] < 0.9 * before


def test_projections_begin_alike_and_as_the_seed_says(
    masked_lm_teacher: Path, wide: LoadedModel
) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(len(found))  # which must not matter
        found.append(projected(masked_lm_teacher, [wide, wide], seed).projections)
        return dict(found[-1].items())

    found: list[torch.nn.ParameterDict] = []
    first, again, other = weights(1), weights(1), weights(2)
    assert set(first) == {
        f"{number}_hidden_mse{name}" for number in (0, 1) for name in ("", "_embeddings")
    }
    values = [*first.values()]
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert not torch.equal(value, other[name])
        assert value.shape == (48, 32)
        assert float(value.detach().square().sum() / 48) == pytest.approx(1, rel=0.2)
    assert not any(torch.equal(values[0], value) for value in values[1:])


def test_teachers_of_one_width_need_no_projection(masked_lm_teacher: Path) -> None:
    teacher = load_model(masked_lm_teacher, "masked_lm")
    assert len(projected(masked_lm_teacher, [teacher]).projections) == 0


def test_one_teacher_twice_is_one_teacher(masked_lm_teacher: Path) -> None:
    """And the losses to two are the mean of those to each, by their weights."""
    objectives: list[Objective] = [SoftTargets(), HardTargets(target="teacher"), *ON_STATES]
    reading = Reading.of(Task.MASKED_LM, objectives, InBatch(), 3)
    student = load_model(masked_lm_teacher, "masked_lm")
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.mul_(1.1)
    torch.manual_seed(7)
    other = BertForMaskedLM(tiny_config(4, initializer_range=0.2)).eval()
    loaded = [
        load_model(masked_lm_teacher, "masked_lm"),
        LoadedModel(other, tiny_tokenizer(), Task.MASKED_LM, "other"),
    ]

    def losses(*chosen: tuple[int, float]) -> dict[str, float]:
        teachers = [LiveTeacher(loaded[number], reading, weight) for number, weight in chosen]
        return sums(Trainee(student, teachers, reading, chunk_size=4))

    one = losses((0, 1.0))
    assert losses((0, 3.0), (0, 2.0)) == pytest.approx(one, rel=1e-4)
    both, second = losses((0, 3.0), (1, 1.0)), losses((1, 1.0))
    for objective in ON_STATES[1:]:
        kind = objective.kind
        assert both[kind] == pytest.approx(0.75 * one[kind] + 0.25 * second[kind], rel=1e-4)
        assert one[kind] != pytest.approx(second[kind], rel=0.1)


def test_evaluations_are_at_the_final_temperature(masked_lm_teacher: Path) -> None:
    student, teacher = (load_model(masked_lm_teacher, "masked_lm") for _ in range(2))
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.mul_(1.1)

    def loss(settings: SoftTargets, *at: int) -> tuple[float, dict[str, float]]:
        reading = Reading.of(Task.MASKED_LM, [settings], InBatch(), 3)
        trainee = Trainee(student, [LiveTeacher(teacher, reading)], reading, chunk_size=8)
        if at:
            trainee.set_step(*at)
        return sums(trainee)["soft_targets"], trainee.logged

    falling = SoftTargets(temperature=6, schedule="linear", final_temperature=1.5)
    fixed = {t: loss(SoftTargets(temperature=t)) for t in (6.0, 3.0, 1.5)}
    assert loss(falling, 0, 4) == fixed[6.0] == (fixed[6.0][0], {"temperature": 6.0})
    assert loss(falling, 2, 4) == fixed[3.0]
    for end in ((3, 4), (4, 4), (1, 1), ()):  # a training of one step is evaluated after it
        assert loss(falling, *end) == fixed[1.5]
    assert loss(falling, 0, 1) == fixed[6.0]
    assert fixed[1.5][0] != pytest.approx(fixed[3.0][0], rel=0.01)


ABOVE = ("intermediate.", "output.")  # of the last layer, beyond its attention


@pytest.mark.parametrize(
    ("objective", "frozen"),
    [
        (Relations(), (*ABOVE, "attention.output.")),
        (
            Relations(pairs=["vv"]),
            (*ABOVE, "attention.output.", "attention.self.query", "attention.self.key"),
        ),
        (HiddenMse(), ()),
    ],
)
def test_what_no_objective_reaches_is_not_trained(
    masked_lm_teacher: Path, objective: Objective, frozen: tuple[str, ...]
) -> None:
    reading = Reading.of(Task.MASKED_LM, [objective], InBatch(), 3)
    student, teacher = (load_model(masked_lm_teacher, "masked_lm") for _ in range(2))
    for name, parameter in student.model.named_parameters():
        parameter.requires_grad_(not name.startswith("cls."))  # as a stage does
    trainee = Trainee(student, [LiveTeacher(teacher, reading)], reading, chunk_size=8)
    trainee.freeze_unreached()
    for name, parameter in student.model.named_parameters():
        last = name.partition("encoder.layer.3.")[2]
        unreached = name.startswith("cls.") or last.startswith(frozen)
        assert parameter.requires_grad != unreached, name
        assert parameter.grad is None
    total, _ = trainee(Batch(*batch()), {objective.kind: 1.0})
    total.backward()
    for name, parameter in student.model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_projections_of_sentence_vectors(sentence_teacher: Path) -> None:
    torch.manual_seed(6)
    student = load_model(sentence_teacher, "sentence_embedding")
    wide = BertModel(tiny_config(hidden_size=48), add_pooling_layer=False).eval()
    reading = Reading.of(Task.SENTENCE_EMBEDDING, [VectorMse()], InBatch(), 3)
    teacher = LoadedModel(
        wide, tiny_tokenizer(), Task.SENTENCE_EMBEDDING, "wide", sentence=student.sentence
    )
    trainee = Trainee(student, [LiveTeacher(teacher, reading)], reading, chunk_size=8)
    ids, mask, gold = batch()
    with torch.no_grad():
        own = reading.signals(student, Batch(ids, mask, gold)).features_KD
        other = reading.signals(teacher, Batch(ids, mask, gold)).features_KD
    weight = trainee.projections["0_vector_mse"].detach()
    expected = (own @ weight.T - other).square().sum()
    assert sums(trainee)["vector_mse"] == pytest.approx(float(expected), rel=1e-5)


def test_losses_on_hidden_states_of_tags_are_over_words_first_pieces(tmp_path: Path) -> None:
    """Pieces without a tag have no part in any loss; what a tagged one attends to stays whole."""
    folders = (write_model("token_classification", tmp_path / name, layers=4) for name in "st")
    student, teacher = (load_model(folder, "token_classification") for folder in folders)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.mul_(1.1)
    objectives = [HiddenCosine(), PatientHidden(tokens="all"), HiddenMse(), *ON_STATES[4:]]
    reading = Reading.of(Task.TOKEN_CLASSIFICATION, objectives, InBatch(), 3)
    trainee = Trainee(student, [LiveTeacher(teacher, reading)], reading, chunk_size=8)
    trainee.model.eval()
    ids, mask, _ = batch()
    tagged = torch.where(ids > 5, 1, -100)  # 6, 7, 8, 9 and 11

    def asked(gold: torch.Tensor) -> dict[str, float]:
        whole = Batch(ids, mask, gold)
        assert set(reading.counts(whole).values()) == {int((gold != -100).sum())}
        scales = {o.kind: 1.0 for o in objectives}
        return {kind: float(value) for kind, value in trainee(whole, scales)[1].items()}

    found = asked(tagged)
    rest = asked(torch.where(mask.bool() & (tagged == -100), 1, -100))
    every = asked(torch.where(mask.bool(), 1, -100))
    assert min(found.values()) > 0
    assert {k: found[k] + rest[k] for k in found} == pytest.approx(every, rel=1e-5)
    with torch.no_grad():
        own, other = (
            loaded.model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
            for loaded in (student, teacher)
        )
    cosines = torch.cosine_similarity(own, other, dim=-1)[ids > 5]
    assert found["hidden_cosine"] == pytest.approx(float((1 - cosines).sum()), rel=1e-5)
