"""A run with a teacher that would teach nonsense stops before anything is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import Finished
from potstill.pipeline import run
from potstill.recipe import Recipe
from task_recipes import TRAINING, data, half, recipe


def test_a_teacher_with_swapped_labels(
    sentence_teacher: Path, tmp_path: Path, potstill: Callable[..., Finished]
) -> None:
    given: dict[str, Any] = data(tmp_path, half)
    given["dev"] = given["test"]
    tree = recipe(sentence_teacher, "classification", given)
    stages = tree["stages"]
    trained = run(
        Recipe.model_validate({**tree, "stages": stages[:1]}), output=tmp_path / "teacher"
    )
    teacher = tmp_path / "swapped"
    shutil.copytree(trained / "model", teacher)

    few = {"max_steps": 2, **TRAINING}
    stages[2]["training"] = few
    stages[3]["training"] = few
    tree |= {"teacher": str(teacher), "stages": stages[1:4]}
    good = run(Recipe.model_validate(tree), output=tmp_path / "good")
    result = json.loads((good / "stages/03-distill/result.json").read_text())
    assert result["warnings"] == []
    assert result["preflight"]["teacher"]["accuracy"] > 0.8
    assert result["preflight"]["teacher"]["student"]["cosine"] > 0.1

    config = json.loads((teacher / "config.json").read_text())
    config["id2label"] = {"0": "late", "1": "early"}
    config["label2id"] = {"late": 0, "early": 1}
    (teacher / "config.json").write_text(json.dumps(config))
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
    finished = potstill("run", tmp_path / "recipe.yaml", "--output", tmp_path / "bad")
    assert finished.code == 2
    said = " ".join(finished.err.split())
    assert "teacher: its labels are in another order than the data's" in said
    assert "Traceback" not in said
    assert list((tmp_path / "bad" / "stages").glob("*/log.jsonl")) == []  # nothing was trained
