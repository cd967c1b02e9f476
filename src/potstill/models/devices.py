"""Which number format training computes in, and on which device."""

from __future__ import annotations

import time
import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch


def autocast_dtype(
    precision: Literal["auto", "fp32", "bf16"], device: torch.device
) -> torch.dtype | None:
    """Return the dtype for autocast, or None for plain float32.

    `auto` takes bfloat16 where the hardware has units for it and a measurement does not find it
    slower.

    Raises:
        ValueError: bf16 was set on a GPU that has none.
    """
    if precision == "fp32":
        return None
    cuda = device.type == "cuda"
    supported = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16":
        if cuda and not supported:
            raise ValueError("training.precision: this GPU has no bfloat16. Set fp32 or auto.")
        return torch.bfloat16
    faster = device.type == "cpu" and cpu_has_bf16() and bf16_speedup() > 1
    return torch.bfloat16 if supported or faster else None


def cpu_has_bf16() -> bool:
    """Return whether the CPU has bfloat16 units (AVX-512 BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def bf16_speedup() -> float:
    """Measure how much faster a bfloat16 matrix product is than a float32 one, best of three."""
    return _seconds(torch.float32) / _seconds(torch.bfloat16)


def _seconds(dtype: torch.dtype) -> float:
    left, right = torch.ones(512, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype)
    # the first of the four warms up
    return min(timeit.repeat(lambda: left @ right, timer=time.perf_counter, repeat=4, number=8)[1:])


@contextmanager
def products_in(precision: Literal["highest", "medium"]) -> Iterator[None]:
    """Compute float32 matrix products exactly, or on bfloat16 units where a CPU has them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Compute in the tensors' own precision, whatever a training step is computed in."""
    with torch.autocast(device.type, enabled=False), products_in("highest"):
        yield


def own_device() -> torch.device:
    """Return the device of models outside the training loop, which places them itself."""
    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    return torch.device("cpu")


def measuring_device() -> torch.device:
    """Return this process's device; the CPU where that has no float64, which scores need."""
    found = own_device()
    return torch.device("cpu") if found.type == "mps" else found
