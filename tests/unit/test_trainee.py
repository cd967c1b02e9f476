"""What is trained: the student's parameters and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from potstill.models import load_model
from potstill.recipe import HiddenCosine, InBatch, SoftTargets
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
