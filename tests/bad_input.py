"""Commands that are given something wrong, and how they refuse it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import Finished

Potstill = Callable[..., Finished]


def tree(teacher: object, *sources: object, **changes: Any) -> dict[str, Any]:
    """A recipe that would run."""
    return {
        "name": "bad",
        "task": "masked_lm",
        "teacher": str(teacher),
        "corpus": {"sources": [str(s) for s in sources], "max_length": 32, "min_length": 4},
        "stages": [
            {"kind": "make_student"},
            {
                "kind": "distill",
                "objectives": [{"kind": "soft_targets"}, {"kind": "hard_targets"}],
                "training": {"max_steps": 2, "batch_size": 4},
            },
        ],
        **changes,
    }


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(finished: Finished, *parts: str) -> str:
    """One sentence on stderr, exit code 2, at most a headline before it; returns the sentence."""
    assert finished.code == 2, finished
    assert finished.out.count("\n") <= 1, finished.out
    assert finished.err.startswith("error: "), finished.err
    assert finished.err.count("\n") == 1, finished.err
    assert "Traceback" not in finished.err
    for part in parts:
        assert part in finished.err, finished.err
    return finished.err


def run(potstill: Potstill, recipe: dict[str, Any], *arguments: object) -> Finished:
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return potstill("run", "recipe.yaml", *arguments)
