from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from tiny_recipes import tree

from potstill.pipeline.inputs import check_inputs, given_folders
from potstill.recipe import Recipe
from potstill.storage import cache_folder


def recipe(teacher: Any, **changes: Any) -> Recipe:
    if isinstance(teacher, Path):
        teacher = str(teacher)
    return Recipe.model_validate(tree(teacher=teacher, **changes))


def test_text_that_a_benchmark_times_is_there(masked_lm_teacher: Path, text_file: Path) -> None:
    stage = {"kind": "benchmark", "models": [], "pass_over": {"sources": "nowhere.tsv"}}
    found = recipe(masked_lm_teacher, corpus={"sources": str(text_file)}, stages=[stage])
    with pytest.raises(ValueError, match=r"^nowhere\.tsv: the file was not found"):
        check_inputs(found, text_file.parent / "run")


@pytest.mark.parametrize(
    ("teacher", "corpus", "output", "expected"),
    [
        (
            "./nowhere",
            {"sources": "a.txt"},
            "run",
            r"^teacher.model: './nowhere' was not found\. Check the path of the model folder\.$",
        ),
        ("org/model", {"sources": "b.txt"}, "run", r"^b.txt: "),
        (
            "org/model",
            {"sources": "a.txt", "heldout_sources": "nowhere/*.txt"},
            "run",
            r"^nowhere/\*.txt: ",
        ),
        (
            "org/model",
            {"sources": "a.txt"},
            "a.txt",
            r"^--output: a.txt is a file, not a folder\. Choose",
        ),
    ],
)
def test_a_missing_path(
    teacher: str,
    corpus: dict[str, Any],
    output: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("some text\n")
    with pytest.raises(ValueError, match=expected):
        check_inputs(recipe(teacher, corpus=corpus), Path(output))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_paths_that_are_there(masked_lm_teacher: Path, text_file: Path, tmp_path: Path) -> None:
    check_inputs(recipe(masked_lm_teacher, corpus={"sources": str(text_file)}), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_look_at_paths_imports_no_heavy_library() -> None:
    code = (
        "import sys, potstill.pipeline.inputs, potstill.recipe.files; "
        "print(sorted({'torch', 'transformers', 'datasets', 'huggingface_hub'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_teacher_s_folder(masked_lm_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert given_folders(recipe(masked_lm_teacher)) == {"teacher": masked_lm_teacher}
    monkeypatch.chdir(masked_lm_teacher.parent)
    assert given_folders(recipe(masked_lm_teacher.name)) == {
        "teacher": Path(masked_lm_teacher.name)
    }
    with pytest.raises(ValueError, match=r"'package:torch/nn' is not a model folder"):
        given_folders(recipe("package:torch/nn"))
    with pytest.raises(ValueError, match=r"'package:torch/nowhere' was not found"):
        given_folders(recipe("package:torch/nowhere"))


def test_further_models_have_names(masked_lm_teacher: Path, sentence_teacher: Path) -> None:
    settings = recipe(masked_lm_teacher, teachers={"other": str(sentence_teacher)})
    assert given_folders(settings) == {"teacher": masked_lm_teacher, "other": sentence_teacher}
    with pytest.raises(
        ValueError,
        match=(
            r"^teachers\.other\.model: '\./nowhere' was not found\. Check the path of the "
            r"model folder\.$"
        ),
    ):
        given_folders(recipe(masked_lm_teacher, teachers={"other": "./nowhere"}))


def test_a_teacher_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def download(name: str, **settings: Any) -> str:
        asked.append({"name": name, **settings})
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    settings = recipe({"model": "org/model", "revision": "v2"})
    assert given_folders(settings) == {"teacher": tmp_path}
    assert (asked[0]["name"], asked[0]["revision"]) == ("org/model", "v2")
    assert "*.bin" not in asked[0]["allow_patterns"]
    assert asked[0]["local_files_only"] is False
    given_folders(settings, fetch=False)
    assert asked[1]["local_files_only"] is True

    def refuse(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("not there")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(
        ValueError,
        match=r"^teacher.model: 'org/model' is not a local folder, and the hub .*HF_HUB_OFFLINE",
    ):
        given_folders(settings)
    with pytest.raises(
        ValueError,
        match=r"is not a local folder and is not cached\. Run `hf download org/model`\.$",
    ):
        given_folders(settings, fetch=False)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("POTSTILL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/potstill")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("~/.cache/potstill").expanduser()
