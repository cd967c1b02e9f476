"""Telling a lack of memory from other errors, without importing torch."""

from __future__ import annotations

# What allocators say, in lower case: torch's of the CPU and of accelerators, C++'s, cuBLAS'.
_SAID = (
    "allocate memory",
    "not enough memory",
    "out of memory",
    "outofmemory",
    "memoryerror",
    "bad_alloc",
    "alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is Python's or torch's way of saying that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    # torch.OutOfMemoryError is a RuntimeError; its CPU allocator raises a plain one
    return isinstance(error, RuntimeError) and tells_out_of_memory(f"{type(error)} {error}")


def tells_out_of_memory(text: str) -> bool:
    """Whether a message, or what a process left on standard error, says that memory ran out."""
    return any(said in text.lower() for said in _SAID)
