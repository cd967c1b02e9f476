"""The benchmark of the cached teacher runs on toy sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "cached_teacher.py"


def test_ratios_are_taken_within_a_round(tmp_path: Path) -> None:
    output = tmp_path / "cached.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--examples", "40", "--batch", "8"]
    done = subprocess.run(
        [*command, "--rounds", "2", "--output", str(output)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(output.read_text())
    assert json.loads(done.stdout) == found
    seconds = found["epoch_s"]
    assert set(seconds) == {"plain", "cached", "live"}
    for way, ratios in found["over_plain"].items():
        pairs = zip(seconds[way]["all"], seconds["plain"]["all"], strict=True)
        assert ratios["all"] == pytest.approx([a / b for a, b in pairs])
        assert len(ratios["all"]) == found["rounds"] == 2
    assert found["asking_once_s"] > 0
