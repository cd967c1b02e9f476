"""The processes of one training: how they are joined, and what they sum up and agree on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs, PartialState

from potstill.recipe import Training

# The others wait while the first one evaluates or benchmarks: the usual ten minutes would end them.
_PATIENCE = timedelta(hours=24)


def make_accelerator(settings: Training, folder: Path) -> Accelerator:
    """What launches, places and synchronises; trackers write below `folder`.

    Accumulation and normalisation are ours, so it is told of a single batch a step.
    """
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        gradient_accumulation_steps=1,
        log_with=list(settings.trackers) or None,
        project_dir=str(folder),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )


def wait_for_all() -> None:
    """Wait until every process of a distributed run is here."""
    # accelerate joins processes on CPUs only where told that it is CPUs
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_PATIENCE)
    state.wait_for_everyone()


def sum_of_all(accelerator: Accelerator, values: Sequence[float]) -> list[float]:
    """Sums over processes, in float64."""
    if accelerator.num_processes == 1:
        return [float(value) for value in values]
    device = accelerator.device
    # MPS has no float64
    where = torch.device("cpu") if device.type == "mps" else device
    tensor = torch.tensor(values, dtype=torch.float64, device=where)
    torch.distributed.all_reduce(tensor)
    return [float(value) for value in tensor]


def largest_of_all(accelerator: Accelerator, value: int) -> int:
    """The largest value of all processes, so that all decide alike."""
    if accelerator.num_processes == 1:
        return value
    tensor = torch.tensor(value, device=accelerator.device)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return int(tensor)
