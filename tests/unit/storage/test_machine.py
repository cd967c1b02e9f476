"""Lack of memory is told from other errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from potstill.storage.machine import is_out_of_memory, tells_out_of_memory

HUGE = 2**58  # bytes: more than any address space


def test_what_torch_and_numpy_raise() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(HUGE, dtype=torch.uint8)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(HUGE, dtype=np.uint8)
    for error in (of_torch.value, of_numpy.value):
        assert is_out_of_memory(error)
        assert tells_out_of_memory(f"Traceback:\n{type(error).__name__}: {error}\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    ],
)
def test_lack_of_memory(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("stack expects a non-empty TensorList"),
        ValueError("out of memory"),  # not from an allocator
    ],
)
def test_other_errors(error: BaseException) -> None:
    assert not is_out_of_memory(error)
