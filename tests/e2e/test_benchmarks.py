"""The scripts in benchmarks/ run on toy sizes, and refuse to time what computes something else."""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "distill_step.py"
VARIANTS = {"plain-all", "potstill-all", "plain-masked", "potstill-masked"}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script says of toy sizes: 3 texts of 20 tokens in chunks of 7 rows."""
    output = tmp_path_factory.mktemp("benchmark") / "step.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--threads", "1", "--rounds", "2"]
    done = subprocess.run(
        [*command, "--output", str(output)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    result: dict[str, Any] = json.loads(done.stdout)
    assert json.loads(output.read_text(encoding="utf-8")) == result
    return result


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("distill_step", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_step_benchmark_tells_speed_memory_and_floor_of_every_variant(
    measured: dict[str, Any],
) -> None:
    assert set(measured["variants"]) == VARIANTS
    for variant in measured["variants"].values():
        assert len(variant["step_wall_s"]) == measured["rounds"] == 2
        assert variant["peak_memory_bytes"] >= variant["peak_after_loading_bytes"] > 0
    # teacher's and student's weights, and the student's gradients and two moments, 4 bytes each
    teacher, student = measured["parameters"]["teacher"], measured["parameters"]["student"]
    assert measured["floor_bytes"]["total"] == 4 * teacher + 16 * student
    assert measured["environment"]["threads"]["torch"] == measured["threads"] == 1


def test_ratios_of_the_step_benchmark_are_taken_within_a_round(measured: dict[str, Any]) -> None:
    assert set(measured["ratios"]) == {"all", "masked", "masked_beside_all"}
    for name, ratio in measured["ratios"].items():
        both = name.split("_beside_")
        plain, ours = (
            measured["variants"][f"{way}-{positions}"]
            for way, positions in (("plain", both[-1]), ("potstill", both[0]))
        )
        first, second = (
            a / b for a, b in zip(plain["step_wall_s"], ours["step_wall_s"], strict=True)
        )
        speed = ratio["tokens_per_s"]
        assert speed["min"] == pytest.approx(min(first, second), abs=1e-4)
        assert speed["max"] == pytest.approx(max(first, second), abs=1e-4)
        assert speed["median"] == pytest.approx((first + second) / 2, abs=1e-4)
        assert ratio["peak_memory"] == pytest.approx(
            ours["peak_memory_bytes"] / plain["peak_memory_bytes"], abs=1e-4
        )


def test_both_ways_of_the_step_benchmark_compute_the_same(measured: dict[str, Any]) -> None:
    for positions, agreement in measured["agreement"].items():
        plain, ours = agreement["plain"], agreement["potstill"]
        assert ours["loss"] == pytest.approx(plain["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)
        assert set(ours["components"]) == {"soft_targets", "hard_targets", "hidden_cosine"}
        assert ours["components"] == pytest.approx(plain["components"], rel=1e-4)
        # trained with the same dropout, they go on to compute the same
        plain, ours = (measured["variants"][f"{way}-{positions}"] for way in ("plain", "potstill"))
        assert ours["losses"] == pytest.approx(plain["losses"], rel=1e-3)
    losses = [agreement["plain"]["loss"] for agreement in measured["agreement"].values()]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)  # all positions are not the masked ones


@pytest.mark.parametrize("wrong", ["loss", "grad_norm", "soft_targets"])
@pytest.mark.parametrize("value", [1.0002, float("nan")])
def test_a_step_that_computes_something_else_is_refused(
    script: ModuleType, wrong: str, value: float
) -> None:
    plain = {"loss": 1.0, "grad_norm": 1.0, "components": {"soft_targets": 1.0}}
    almost = copy.deepcopy(plain)
    (almost["components"] if wrong == "soft_targets" else almost)[wrong] = 1.00005
    assert script.agree(plain, almost)["largest"] == pytest.approx(5e-5)
    other = copy.deepcopy(plain)
    (other["components"] if wrong == "soft_targets" else other)[wrong] = value
    with pytest.raises(ValueError, match=wrong):
        script.agree(plain, other)
