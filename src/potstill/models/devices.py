"""Which number format training computes in."""

from __future__ import annotations

import time
from typing import Literal

import torch


def autocast_dtype(
    precision: Literal["auto", "fp32", "bf16"], device: torch.device
) -> torch.dtype | None:
    """The dtype for autocast, or None for plain float32.

    `auto` takes bfloat16 where the hardware has units for it and a measurement does not find it
    slower.

    Raises:
        ValueError: bf16 was asked for on a GPU that has none.
    """
    if precision == "fp32":
        return None
    if precision == "bf16":
        if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ValueError("training.precision: this GPU has no bfloat16; set fp32 or auto")
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type == "cpu" and cpu_has_bf16() and bf16_speedup() > 1:
        return torch.bfloat16
    return None


def cpu_has_bf16() -> bool:
    """Whether the CPU has bfloat16 units (AVX-512 BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def bf16_speedup() -> float:
    """How many times faster a bfloat16 matrix product is than a float32 one here, best of three."""
    return _seconds(torch.float32) / _seconds(torch.bfloat16)


def _seconds(dtype: torch.dtype) -> float:
    left, right = torch.ones(512, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        for _ in range(8):
            left @ right
        times.append(time.perf_counter() - start)
    return min(times[1:])


def own_device() -> torch.device:
    """Where models are asked outside the training loop, which places them itself."""
    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    return torch.device("cpu")


def measuring_device() -> torch.device:
    """This process's device; the CPU where that has no float64, which scores are summed in."""
    found = own_device()
    return torch.device("cpu") if found.type == "mps" else found
