"""Which models a run has, and what is no finished run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from potstill.pipeline.run_models import models_of_run
from tiny_runs import tiny_run


def test_the_teacher_the_student_the_others_and_what_was_not_trained(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "classification")
    found = models_of_run(run)
    assert [model.name for model in found.models] == ["teacher", "student", "onnx", "untrained"]
    teacher, student, onnx, untrained = found.models
    assert teacher.path == tmp_path / "teacher"
    assert student.path == run / "stages/02-distill/model"
    assert (student.made, student.runs_in) == ("distilled", "PyTorch")
    assert onnx.path.name == "model.onnx"
    assert (onnx.made, onnx.runs_in) == ("exported", "ONNX Runtime")
    assert untrained.made == "before training"
    weights = student.path / "model.safetensors"
    assert student.bytes == weights.stat().st_size
    assert onnx.bytes == onnx.path.stat().st_size
    assert found.absent == {}


def test_of_several_trainings_the_first_one_is_taken(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "classification")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["stages"][1]["repeats"] = 2
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = run / "stages/02-distill/DONE"
    done.write_text(
        done.read_text().replace(
            '"student": "model"', '"student": "model", "student.2": "repeat-2/model"'
        )
    )
    names = [model.name for model in models_of_run(run).models]
    assert "student" in names
    assert "student.2" not in names


def test_a_teacher_that_is_gone_is_told_and_the_others_are_there(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "classification")
    shutil.rmtree(tmp_path / "teacher")
    found = models_of_run(run)
    assert [model.name for model in found.models] == ["student", "onnx", "untrained"]
    assert found.absent["teacher"].endswith(
        "teacher' was not found. Check the path of the model folder."
    )


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^.*nothing: not found\. Give the folder that a run"):
        models_of_run(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"^.*: not a run folder, there is no recipe\.yaml\. Give"):
        models_of_run(tmp_path)
    run = tiny_run(tmp_path, "classification")
    (run / "stages/02-distill/DONE").unlink()
    with pytest.raises(ValueError, match=r"^.*: stage 2 \(distill\) is not finished\. Repeat the"):
        models_of_run(run)
    # without its evaluation it can be tried all the same
    run = tiny_run(tmp_path / "other", "classification")
    (run / "stages/04-evaluate/DONE").unlink()
    assert len(models_of_run(run).models) == 4
