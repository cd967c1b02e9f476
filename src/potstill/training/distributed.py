"""The processes of one training: how they are joined, and what they sum up and agree on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs, PartialState
from accelerate.utils import broadcast_object_list

from potstill.recipe import Training
from potstill.training.log import check_trackers

# The others wait while the first one evaluates or benchmarks: the usual ten minutes would end them.
_PATIENCE = timedelta(hours=24)

T = TypeVar("T")


def make_accelerator(settings: Training, folder: Path) -> Accelerator:
    """Make what launches, places and synchronizes; trackers write below `folder`.

    Accumulation, normalization and precision are ours, whatever its own configuration says.

    Raises:
        ValueError: A tracker is not installed.
    """
    check_trackers(settings.trackers)
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision="no",
        log_with=list(settings.trackers) or None,
        project_dir=str(folder),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )


def check_processes(settings: Training, world: int, group: int | None) -> None:
    """Refuse more processes than a batch has micro-batches: some would have nothing to train on.

    Args:
        world: number of processes.
        group: texts compared with each other (in_batch.group, or else the whole batch), of which
            micro-batches are made; None: texts are independent of each other (masked LM).

    Raises:
        ValueError: There are too many; the message says what to set.
    """
    size = settings.batch_size
    micro = settings.micro_batch_size or size
    count = size // micro
    if count >= world:
        return
    # as the recipe wants it: the batch is whole micro-batches, these are whole groups of 3 or more
    least = 1 if group is None else 3
    fitting = [d for d in range(least, size // world + 1) if size % d == 0]
    whole_groups = [d for d in fitting if d % (group or 1) == 0]
    micro_key = "training.micro_batch_size to at most"
    if not fitting:
        advice = f"training.batch_size to a multiple of {least * world}, or start fewer processes"
    elif group is None:
        advice = f"{micro_key} {max(fitting)}"
    elif whole_groups:
        advice = f"{micro_key} {max(whole_groups)}, a multiple of in_batch.group {group}"
    else:
        advice = f"{micro_key} {max(fitting)} and in_batch.group to a divisor of it"
    batches = "micro-batch" if count == 1 else "micro-batches"
    raise ValueError(
        f"training.micro_batch_size: a batch of {size} is {count} {batches} of {micro} for {world} "
        f"processes. Set {advice}."
    )


def wait_for_all() -> None:
    """Wait until every process of a distributed run has come here."""
    # accelerate joins processes on CPUs only where it is told so
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_PATIENCE)
    state.wait_for_everyone()


def as_first(value: T) -> T:
    """Return the first process's value in all of them, so that all decide alike."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return value
    wait_for_all()  # joins the processes
    found: T = broadcast_object_list([value])[0]
    return found


def sum_of_all(accelerator: Accelerator, values: Sequence[float]) -> list[float]:
    """Return sums over processes, in float64."""
    if accelerator.num_processes == 1:
        return [float(value) for value in values]
    device = accelerator.device
    # MPS has no float64
    where = torch.device("cpu") if device.type == "mps" else device
    tensor = torch.tensor(values, dtype=torch.float64, device=where)
    torch.distributed.all_reduce(tensor)
    return [float(value) for value in tensor]


def largest_of_all(accelerator: Accelerator, value: int) -> int:
    """Return the largest value of all processes, so that all decide alike."""
    if accelerator.num_processes == 1:
        return value
    tensor = torch.tensor(value, device=accelerator.device)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return int(tensor)
