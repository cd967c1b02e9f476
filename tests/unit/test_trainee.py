"""What is trained: the student's parameters and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from potstill.models import load_model, with_model
from potstill.recipe import HiddenCosine, HiddenMse, InBatch, Relations, SoftTargets
from potstill.students import make_student
from potstill.teachers import LiveTeacher, Reading
from potstill.trainee import Trainee


def test_the_teacher_is_asked_but_is_no_part_of_it(masked_lm_teacher: Path) -> None:
    """A model that follows itself: no loss of hidden states, and no gradient of the teacher."""
    student, teacher = (load_model(masked_lm_teacher, "masked_lm") for _ in range(2))
    reading = Reading.of("masked_lm", [SoftTargets(), HiddenCosine()], InBatch(), 2)
    trainee = Trainee(student, [LiveTeacher(teacher, reading)], reading, chunk_size=8)
    names = {f"model.{name}" for name, _ in student.model.named_parameters()}
    assert {name for name, _ in trainee.named_parameters()} == names

    trainee.model.eval()
    ids_BL = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 9, 3, 0]])
    scales = {"soft_targets": 0.5, "hidden_cosine": 2.0}
    total, sums = trainee(ids_BL, (ids_BL != 0).long(), torch.full_like(ids_BL, -100), scales)
    assert sums["hidden_cosine"].item() == pytest.approx(0, abs=1e-5)
    expected = sum(scales[kind] * float(value) for kind, value in sums.items())
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5)
    total.backward()
    assert any(p.grad is not None for p in student.model.parameters())
    assert all(p.grad is None for p in teacher.model.parameters())


def test_projections_are_trained_beside_the_student_and_drawn_from_the_seed(
    masked_lm_teacher: Path,
) -> None:
    teacher = load_model(masked_lm_teacher, "masked_lm")
    student = with_model(teacher, make_student(teacher.model, width=16), "narrow")
    reading = Reading.of("masked_lm", [HiddenMse()], InBatch(), 2)

    def trainee(seed: int) -> Trainee:
        return Trainee(student, [LiveTeacher(teacher, reading)], reading, 8, seed)

    one, same, other = trainee(1), trainee(1), trainee(2)
    shapes = {name: tuple(p.shape) for name, p in one.projections.items()}
    assert shapes == {"0_hidden_mse": (32, 16), "0_hidden_mse_embeddings": (32, 16)}
    for name, value in one.projections.items():
        assert torch.equal(value, same.projections[name])
        assert not torch.equal(value, other.projections[name])
    assert not set(map(id, one.projections.values())) & set(map(id, student.model.parameters()))


def test_what_no_objective_reaches_is_frozen(masked_lm_teacher: Path) -> None:
    """Relations of a layer's queries, keys and values train what is before them, and no more."""
    teacher, student = (load_model(masked_lm_teacher, "masked_lm") for _ in range(2))
    reading = Reading.of("masked_lm", [Relations(student_layer=1)], InBatch(), 2)
    trainee = Trainee(student, [LiveTeacher(teacher, reading)], reading, 8)
    trainee.freeze_unreached()
    trained = {name for name, p in student.model.named_parameters() if p.requires_grad}
    layers = {int(n.split("layer.")[1].split(".")[0]) for n in trained if "encoder.layer." in n}
    assert layers == {0, 1}
    inner = {name for name in trained if "encoder.layer.1." in name}
    assert all("attention.self" in name for name in inner)
    assert not any(name.startswith("cls.") for name in trained)
    assert all(p.grad is None for p in trainee.parameters())
