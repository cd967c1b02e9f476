"""The benchmark of BERT-base's shapes runs on toy sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "bert_base_shapes.py"
D, FFN, LAYERS, POSITIONS = 32, 48, 4, 128  # of --tiny
PIECES = 5 + 26 + 26 + 100
NORM = 2 * D


def encoder(layers: int, ffn: int, pieces: int, types: int) -> int:
    """Parameters by hand: tables and their norm, attention, FFN and their norms."""
    tables = (pieces + POSITIONS + types) * D + NORM
    return tables + layers * (4 * (D * D + D) + 2 * D * ffn + ffn + D + 2 * NORM)


def test_each_step_makes_the_one_before_smaller(tmp_path: Path) -> None:
    output = tmp_path / "shapes.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--rounds", "3", "--repeats", "1"]
    done = subprocess.run(
        [*command, "--output", str(output)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert json.loads(output.read_text()) == found
    # letters alone are in the text: five special tokens, the letters, and what letters need
    assert found["pieces"]["before"] == PIECES
    after = found["pieces"]["after"]
    assert 5 + 26 <= after <= 100
    parameters = {name: model["parameters"] for name, model in found["models"].items()}
    small = encoder(LAYERS // 2, FFN // 2, after, 0)
    assert parameters == {
        "bert-base": encoder(LAYERS, FFN, PIECES, 2),
        "distilbert": encoder(LAYERS // 2, FFN, PIECES, 0),
        "pruned": encoder(LAYERS // 2, FFN // 2, PIECES, 0),
        **{"trimmed": small, "onnx": small, "quantized": small},
    }
    weights = [model["weight_bytes"] for model in found["models"].values()]
    assert weights[:4] == sorted(weights[:4], reverse=True)
    for name, lengths in found["cpu_time"].items():
        for length, ratio in lengths.items():
            base, own = found["raw_cpu"]["bert-base"][length], found["raw_cpu"][name][length]
            within = [a / b for [a], [b] in zip(base, own, strict=True)]
            assert ratio["median"] == pytest.approx(median(within))
    assert set(found["cpu_time"]) == set(found["models"]) - {"bert-base"}
    assert found["environment"]["cpu"]["model"]
