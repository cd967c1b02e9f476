"""The number format of training: what was asked for, else what the hardware is faster in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from potstill.models import devices
from potstill.models.devices import autocast_dtype, bf16_speedup, cpu_has_bf16

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine whose measurement must not be asked for unless a test says what it gives."""

    def never() -> float:
        raise AssertionError("nothing should be measured here")

    monkeypatch.setattr(devices, "bf16_speedup", never)
    return monkeypatch


def gpu_with_bf16(patch: pytest.MonkeyPatch, supported: bool) -> None:
    def answer(including_emulation: bool = True) -> bool:
        return including_emulation or supported  # PyTorch emulates it on older GPUs

    patch.setattr(torch.cuda, "is_bf16_supported", answer)


@pytest.mark.parametrize("device", [CPU, GPU])
def test_fp32_is_taken_at_its_word(device: torch.device, hardware: pytest.MonkeyPatch) -> None:
    gpu_with_bf16(hardware, True)
    assert autocast_dtype("fp32", device) is None


def test_bf16_is_taken_at_its_word(hardware: pytest.MonkeyPatch) -> None:
    assert autocast_dtype("bf16", CPU) is torch.bfloat16
    gpu_with_bf16(hardware, True)
    assert autocast_dtype("bf16", GPU) is torch.bfloat16


def test_bf16_is_refused_where_a_gpu_only_emulates_it(hardware: pytest.MonkeyPatch) -> None:
    gpu_with_bf16(hardware, False)
    with pytest.raises(
        ValueError, match=r"^training\.precision: this GPU has no bfloat16\. Set fp32 or auto\.$"
    ):
        autocast_dtype("bf16", GPU)
    assert autocast_dtype("auto", GPU) is None


def test_auto_takes_bf16_on_a_gpu_that_has_it(hardware: pytest.MonkeyPatch) -> None:
    gpu_with_bf16(hardware, True)
    assert autocast_dtype("auto", GPU) is torch.bfloat16


@pytest.mark.parametrize(
    ("units", "speedup", "expected"),
    [(True, 1.5, torch.bfloat16), (True, 0.9, None), (False, 1.5, None)],
)
def test_auto_on_a_cpu_wants_units_and_a_gain(
    units: bool,
    speedup: float,
    expected: torch.dtype | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: units)
    monkeypatch.setattr(devices, "bf16_speedup", lambda: speedup)
    assert autocast_dtype("auto", CPU) is expected


def test_a_cpu_without_units_is_not_measured(hardware: pytest.MonkeyPatch) -> None:
    hardware.setattr(devices, "cpu_has_bf16", lambda: False)
    assert autocast_dtype("auto", CPU) is None


def test_the_units_are_those_the_kernel_lists() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.is_file() else []
    if "flags" not in flags:
        pytest.skip("this system does not list its CPU's flags")
    if not {"avx512_bf16", "amx_tile"} & set(flags):
        assert not cpu_has_bf16()


def test_the_speedup_is_one_time_over_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clock readings of four rounds a format; the first of each warms up and does not count."""
    fp32, bf16 = [9.0, 3.0, 2.0, 4.0], [0.1, 1.0, 0.5, 8.0]
    readings = iter([t for seconds in (*fp32, *bf16) for t in (100.0, 100.0 + seconds)])
    monkeypatch.setattr(devices.time, "perf_counter", lambda: next(readings))
    # the products themselves are slow on a CPU without the units
    monkeypatch.setattr(torch, "ones", lambda *_, dtype: torch.zeros(2, 2, dtype=dtype))
    assert bf16_speedup() == pytest.approx(2.0 / 0.5)
