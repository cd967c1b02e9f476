"""The environment of a run, and which errors are a lack of memory; torch is not imported."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

# What allocators say, in lower case: torch's of the CPU and of accelerators, C++'s, cuBLAS'.
_SAID = (
    *("allocate memory", "not enough memory", "out of memory", "outofmemory", "memoryerror"),
    *("bad_alloc", "alloc_failed"),
)

LIBRARIES = (
    *("torch", "transformers", "tokenizers", "datasets", "accelerate", "safetensors"),
    *("huggingface_hub", "numpy", "scipy", "scikit-learn", "onnx", "onnxruntime"),
)
# What decides how fast a CPU runs int8 and bf16; names as in Linux's /proc/cpuinfo.
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is Python's or torch's report that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    # torch.OutOfMemoryError is a RuntimeError; its CPU allocator raises a plain one
    return isinstance(error, RuntimeError) and tells_out_of_memory(f"{type(error)} {error}")


def tells_out_of_memory(text: str) -> bool:
    """Return whether a message, or a process's standard error, reports that memory ran out."""
    return any(said in text.lower() for said in _SAID)


def environment() -> dict[str, Any]:
    """Collect what environment.json stores: versions, CPU, memory (bytes), threads, GPUs, revision.

    GPUs and torch's threads are null unless torch is already imported: asking costs seconds.
    """
    model, flags = read_cpu()
    torch = sys.modules.get("torch")
    return {
        "versions": {
            "potstill": installed_version("potstill"),
            "python": platform.python_version(),
            **{name: installed_version(name) for name in LIBRARIES},
        },
        "platform": platform.platform(),
        "cpu": {
            "model": model,
            "flags": [flag for flag in CPU_FLAGS if flag in flags],
            "logical_cores": psutil.cpu_count(logical=True),
            "physical_cores": psutil.cpu_count(logical=False),
        },
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": torch
        and [
            torch.cuda.get_device_name(index)
            for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        ],
        "threads": {
            "torch": torch and torch.get_num_threads(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        },
        "git_revision": _git_revision(),
    }


def installed_version(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def read_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, frozenset[str]]:
    """Read the CPU's model name and its feature flags; no flags without /proc/cpuinfo."""
    values: dict[str, str] = {}
    with suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            values.setdefault(key.strip(), value.strip())
    name = values.get("model name") or platform.processor() or platform.machine()
    return name, frozenset(values.get("flags", values.get("Features", "")).split())


def _git_revision() -> str | None:
    """Return the revision of this code's checkout, "+" where it has uncommitted changes."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=here.parent, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        revision = git("rev-parse", "HEAD")
        # an installed package may lie inside the checkout of something else
        git("ls-files", "--error-unmatch", here.name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        return f"{revision}+" if changed else revision
    except (OSError, subprocess.SubprocessError):
        return None
