"""The scripts that time training: on toy sizes, and the numbers that they make of times."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_a_step_for_gpus_runs_tiny_without_one(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    command = [sys.executable, str(FOLDER / "gpu_step.py"), "--tiny", "--rounds", "2"]
    done = subprocess.run(
        [*command, "--output", str(output)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["batch"] == [4, 16]
    way = found["ways"]["eager"]
    assert way["share_of_peak"] == pytest.approx(way["flops_per_s"] / found["peak_flops_per_s"])
    # by hand, for each of 64 tokens: a layer's 4 maps of 32 x 32 and 2 of 32 x 64, attention's two
    # products over 16 tokens, the head's map and decoder; the student has one of two layers
    layer = 2 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 2 * 16 * 32
    head = 2 * (32 * 32 + 32 * 200)
    assert found["operations_per_step"] == 64 * ((2 * layer + head) + 3 * (layer + head))


def test_ratios_are_of_one_round_and_padding_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentence_transformers")
    speed = module("training_speed", monkeypatch)
    ways = [f"{way}, {kind}" for way in speed.WAYS for kind in speed.PRECISIONS]
    seconds = {way: [float(number + 1), 2.0 * (number + 1)] for number, way in enumerate(ways)}
    found = speed._ratios(seconds)
    assert found["potstill, fp32 / plain, fp32"] == {"median": 1 / 3, "min": 1 / 3, "max": 1 / 3}
    lengths = np.array([3, 5, 8, 4])
    assert speed._padded(lengths, [np.array([0, 2]), np.array([1, 3])]) == (16 + 10) / 20
