"""Joining processes: what is refused before they start, and what one process alone sums up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from potstill.recipe import Distill, InBatch, SoftTargets, Training
from potstill.training import log
from potstill.training.distributed import (
    check_processes,
    largest_of_all,
    make_accelerator,
    sum_of_all,
)


class Alone:
    num_processes = 1


def settings(batch: int, micro: int | None = None, **more: Any) -> Training:
    return Training(max_steps=1, batch_size=batch, micro_batch_size=micro, **more)


@pytest.mark.parametrize(
    ("batch", "micro", "world", "group"),
    [(8, None, 1, None), (8, None, 1, 8), (8, 4, 2, None), (12, 3, 3, 3), (8, 1, 8, None)],
)
def test_enough_micro_batches(batch: int, micro: int | None, world: int, group: int | None) -> None:
    check_processes(settings(batch, micro), world, group)


@pytest.mark.parametrize(
    ("batch", "micro", "world", "group", "message"),
    [
        (
            *(32, None, 4, None),
            "training.micro_batch_size: a batch of 32 is 1 micro-batch of 32 for 4 processes. "
            "Set training.micro_batch_size to at most 8.",
        ),
        (
            *(32, 16, 4, None),
            "training.micro_batch_size: a batch of 32 is 2 micro-batches of 16 for 4 processes. "
            "Set training.micro_batch_size to at most 8.",
        ),
        # of the divisors of 30 (10, 6, 5, ...) 10 would make 3
        (
            *(30, 30, 4, None),
            "training.micro_batch_size: a batch of 30 is 1 micro-batch of 30 for 4 processes. "
            "Set training.micro_batch_size to at most 6.",
        ),
        # the whole batch is compared: only smaller groups can be shared out
        (
            *(32, None, 4, 32),
            "training.micro_batch_size: a batch of 32 is 1 micro-batch of 32 for 4 processes. "
            "Set training.micro_batch_size to at most 8 and in_batch.group to a divisor of it.",
        ),
        # groups of 4 can stay; 6 would be the largest micro-batch without them
        (
            *(24, 24, 4, 4),
            "training.micro_batch_size: a batch of 24 is 1 micro-batch of 24 for 4 processes. "
            "Set training.micro_batch_size to at most 4, a multiple of in_batch.group 4.",
        ),
        (
            *(2, None, 4, None),
            "training.micro_batch_size: a batch of 2 is 1 micro-batch of 2 for 4 processes. "
            "Set training.batch_size to a multiple of 4, or start fewer processes.",
        ),
        # two texts have nothing to tell each other
        (
            *(9, 3, 4, 3),
            "training.micro_batch_size: a batch of 9 is 3 micro-batches of 3 for 4 processes. "
            "Set training.batch_size to a multiple of 12, or start fewer processes.",
        ),
    ],
)
def test_more_processes_than_micro_batches(
    batch: int, micro: int | None, world: int, group: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_processes(settings(batch, micro), world, group)


@pytest.mark.parametrize("group", [None, 3, 4, 6, 12, 24, 30, 32])
def test_what_is_advised_is_a_recipe_that_works(group: int | None) -> None:
    for batch in (24, 30, 32):
        for world in (2, 3, 4, 5, 8, 12):
            if group is not None and batch % group:
                continue
            with pytest.raises(
                ValueError, match=r"training\.micro_batch_size: a batch of"
            ) as error:
                check_processes(settings(batch), world, group)
            number = re.search(r"micro_batch_size to at most (\d+)", str(error.value))
            if number is None:  # 24 texts for 12 processes
                assert group is not None
                assert batch // world < 3
                continue
            micro = int(number[1])
            ours = micro if "to a divisor of it" in str(error.value) else group
            advised = Distill(
                objectives=[SoftTargets()],
                in_batch=InBatch(group=ours),
                training=settings(batch, micro),
            )
            check_processes(advised.training, world, ours)


def test_a_tracker_that_is_not_installed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match="wandb is not installed"):
        make_accelerator(settings(8, trackers=["wandb"]), tmp_path)


def test_one_process_has_nothing_to_exchange() -> None:
    alone: Any = Alone()
    assert sum_of_all(alone, [1, 2.5]) == [1.0, 2.5]
    assert largest_of_all(alone, 15) == 15
