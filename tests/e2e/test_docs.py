"""The texts say what the committed results and the code say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from potstill.recipe import (
    Benchmark,
    Corpus,
    Distill,
    Evaluate,
    Finetune,
    MakeStudent,
    Report,
    TaskData,
    Training,
)
from potstill.recipe_files import parse_recipe

ROOT = Path(__file__).resolve().parents[2]


def test_numbers_in_the_texts_are_those_of_the_committed_results() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "render_docs.py"), "render", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "model",
    [Corpus, TaskData, Training, MakeStudent, Distill, Finetune, Evaluate, Benchmark, Report],
)
def test_every_key_of_a_recipe_is_explained(model: type) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[a-z_]+", page))
    assert set(model.model_fields) - {"kind"} <= named


def test_the_recipe_in_the_page_is_valid() -> None:
    import yaml

    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert block is not None
    assert parse_recipe(yaml.safe_load(block[1]), "docs/recipes.md").name == "my-encoder"


def test_links_between_the_texts_lead_somewhere() -> None:
    for text in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", text.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (text.parent / target).exists(), f"{text.name}: {target}"
