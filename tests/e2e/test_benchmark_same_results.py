"""The comparison of two versions tells what differs in their runs, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "same_results.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("same_results", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two run folders that are the same but for times."""
    for name, seconds in (("old", 1.5), ("new", 2.5)):
        stage = tmp_path / name / "stages" / "01-distill"
        (stage / "model").mkdir(parents=True)
        (tmp_path / name / "report.html").write_text(f"{seconds} seconds")
        done = {"fingerprint": "f", "reads": {}, "seconds": seconds, "files": {"result.json": {}}}
        (stage / "DONE").write_text(json.dumps(done))
        lines = [{"step": step, "loss": 0.1 * step, "seconds": seconds} for step in range(1, 4)]
        (stage / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        scores = {"models": {"student": {"latency_ms": seconds, "scores": [{"f1": 0.5}, None]}}}
        (stage / "result.json").write_text(json.dumps(scores))
        config = {"fingerprint": "f", "stage": {"a_key_of": name}}
        (stage / "config.json").write_text(json.dumps(config))
        (stage / "model" / "model.safetensors").write_bytes(b"weights")
    return tmp_path / "old", tmp_path / "new"


def test_times_and_the_defaults_of_new_keys_are_not_compared(
    script: ModuleType, runs: tuple[Path, Path]
) -> None:
    assert script.differences(*runs) == []


@pytest.mark.parametrize(
    ("file", "before", "after", "told"),
    [
        ("log.jsonl", '"loss": 0.2', '"loss": 0.20000000000000004', "log.jsonl[1].loss: 0.2 is"),
        ("log.jsonl", '{"step": 1', '{}\n{"step": 1', "log.jsonl: "),
        ("result.json", "0.5", "0.25", ".models.student.scores[0].f1: 0.5 is now 0.25"),
        ("result.json", "null", "NaN", ".models.student.scores[1]: None is now nan"),
        ("result.json", '"f1": 0.5', '"f1": 0.5, "g": 1', ".scores[0].g: nothing is now 1"),
        ("config.json", '"f"', '"g"', "config.json: f is now g"),
        ("DONE", '"fingerprint": "f"', '"fingerprint": "g"', "DONE.fingerprint: f is now g"),
        ("model/model.safetensors", "weights", "weighty", "model.safetensors: other bytes"),
    ],
)
def test_a_changed_value_is_told(
    script: ModuleType, runs: tuple[Path, Path], file: str, before: str, after: str, told: str
) -> None:
    path = runs[1] / "stages" / "01-distill" / file
    content = path.read_text()
    assert before in content
    path.write_text(content.replace(before, after, 1))
    (found,) = script.differences(*runs)
    assert found.startswith(f"stages/01-distill/{file}")
    assert told in found


def test_a_file_that_only_one_has_is_told(script: ModuleType, runs: tuple[Path, Path]) -> None:
    (runs[0] / "report.html").unlink()
    (runs[1] / "stages/01-distill/result.json").unlink()
    assert script.differences(*runs) == [
        "report.html: only in the new run",
        "stages/01-distill/result.json: only in the old run",
    ]


def test_a_version_is_equal_to_itself(tmp_path: Path) -> None:
    source, output = str(ROOT / "src"), tmp_path / "found.json"
    command = [sys.executable, str(SCRIPT), source, source, "--work", str(tmp_path / "work")]
    done = subprocess.run(
        [*command, "--recipes", "fine-tune", "unknown", "--json", str(output)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    found: dict[str, Any] = json.loads(output.read_text())
    assert found["fine-tune"] == []
    assert found["unknown"] == [f"not shipped by the {side} version" for side in ("old", "new")]
    assert "fine-tune: equal" in done.stdout
    assert "2 recipes: 1 differ: unknown" in done.stdout
    runs = [tmp_path / "work" / side / "fine-tune" for side in ("old", "new")]
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
