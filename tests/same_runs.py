"""Runs that must come to the same numbers: started by several launchers, stopped, compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from potstill.recipe import Recipe

TRIPLE = [
    {"kind": "soft_targets", "weight": 5.0, "temperature": 2.0},
    {"kind": "hard_targets", "weight": 2.0, "target": "gold"},
    {"kind": "hidden_cosine", "weight": 1.0},
]


def recipe(
    teacher: Path,
    text: Path,
    task: str = "masked_lm",
    **settings: Any,
) -> Recipe:
    objectives = json.loads(json.dumps(TRIPLE))
    if task == "sentence_embedding":
        objectives[1]["target"] = "teacher"
    stage = {
        "kind": "distill",
        "objectives": objectives,
        "in_batch": {"group": 3 if task == "sentence_embedding" else None},
        "training": {
            "max_steps": 6,
            "batch_size": 8,
            "log_every": 1,
            "dropout": False,
            "precision": "fp32",  # of bf16 nobody could tell rounding from a mistake
            **settings,
        },
    }
    return Recipe.model_validate(
        {
            "name": "invariant",
            "task": task,
            "teacher": str(teacher),
            "corpus": {"sources": [str(text)], "min_length": 4, "max_length": 24, "heldout": 0.1},
            "stages": [{"kind": "make_student"}, stage],
        }
    )


def losses(folder: Path) -> dict[int, dict[str, Any]]:
    lines = (folder / "stages/02-distill/log.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return {line["step"]: line for line in found if line["event"] == "train"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    a, b = losses(one), losses(other)
    assert a.keys() == b.keys()
    assert len(a) >= 6
    for step, line in a.items():
        assert b[step]["loss"] == pytest.approx(line["loss"], rel=1e-5)
        assert b[step]["components"] == pytest.approx(line["components"], rel=1e-5)
        assert b[step]["tokens"] == line["tokens"]
    for name, value in weights(one).items():
        # AdamW's first steps divide by tiny second moments, which widens rounding
        torch.testing.assert_close(weights(other)[name], value, rtol=1e-3, atol=2e-5)


class StopAt(Exception):
    pass


LAUNCHERS = (
    ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
    ["accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"],
)


def launched(launcher: list[str], recipe: Path, output: Path) -> Path:
    """A run in two processes."""
    arguments = ["-m", *launcher, "-m", "potstill", "run", str(recipe), "-o", str(output)]
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return output
