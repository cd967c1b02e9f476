"""A micro-batch that does not fit in memory is halved: the same batch, the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill.data import Batch
from potstill.pipeline import Silent, run
from potstill.training import Trainee
from same_runs import assert_same_run, recipe


class Listening(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def too_small_for(most: int, monkeypatch: pytest.MonkeyPatch, texts: list[int]) -> None:
    """Let memory run out, half-way through a step, for more than some texts at a time."""
    forward = Trainee.forward

    def limited(
        self: Trainee, batch: Batch, scales: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        texts.append(len(batch))
        if torch.is_grad_enabled() and len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return forward(self, batch, scales)

    monkeypatch.setattr(Trainee, "forward", limited)


@pytest.mark.parametrize(
    ("task", "most", "fits"), [("masked_lm", 3, 2), ("sentence_embedding", 7, 6)]
)
def test_a_step_is_taken_again_in_halves(
    task: str,
    most: int,
    fits: int,
    masked_lm_teacher: Path,
    sentence_teacher: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = masked_lm_teacher if task == "masked_lm" else sentence_teacher
    size = {"batch_size": 8 if task == "masked_lm" else 12}
    plan = recipe(teacher, text_file, task, **size)
    expected = run(
        recipe(teacher, text_file, task, **size, micro_batch_size=fits), output=tmp_path / "a"
    )
    texts: list[int] = []
    too_small_for(most, monkeypatch, texts)
    told = Listening()
    found = run(plan, output=tmp_path / "b", reporter=told)
    assert_same_run(expected, found)
    notes = [said for said in told.said if "fit in memory" in said]
    assert len(notes) == (2 if task == "masked_lm" else 1)  # each size once, not each step
    assert notes[-1].endswith(f"set training.micro_batch_size: {fits} to begin so.")


@pytest.mark.parametrize("more", [{"batch_size": 9}, {"batch_size": 3, "micro_batch_size": 3}])
def test_what_cannot_be_halved_fails_as_before(
    more: dict[str, Any],
    sentence_teacher: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A group of three texts is compared in one pass; nine are no two halves."""
    too_small_for(2, monkeypatch, [])
    plan = recipe(sentence_teacher, text_file, "sentence_embedding", **more)
    with pytest.raises(torch.OutOfMemoryError):
        run(plan, output=tmp_path / "run")
