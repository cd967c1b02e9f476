"""Recipes as files: overrides, and the sentence for a file that is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_recipes import sentence_of, written

from potstill.recipe import Report, load_recipe, shipped_recipes

# --- overrides ------------------------------------------------------------------------------------


def overridden(*overrides: str) -> Any:
    return load_recipe("distilbert", overrides)


def test_overrides_by_key_kind_and_number() -> None:
    assert overridden("seed=7").seed == 7
    assert overridden("teacher.revision=abc").teacher.revision == "abc"
    assert overridden("teacher=other").teacher.model == "other"
    assert overridden("corpus.heldout=0.5").corpus.heldout == 0.5
    expected = overridden("stages.1.training.learning_rate=1e-3")
    assert expected.stages[1].training.learning_rate == 1e-3
    assert overridden("distill.training.learning_rate=1e-3") == expected
    assert overridden("stages.distill.training.learning_rate=0.001") == expected
    assert overridden("1.training.learning_rate=0.001") == expected
    expected = overridden("distill.objectives.0.temperature=3")
    assert expected.stages[1].objectives[0].temperature == 3
    assert overridden("distill.objectives.soft_targets.temperature=3") == expected
    assert overridden("corpus.sources.1.split=test").corpus.sources[1].split == "test"


def test_overrides_replace_whole_parts_and_make_missing_ones() -> None:
    recipe = overridden("stages.4={kind: report, title: New}", "corpus.sources=[a.txt, b/*.csv]")
    assert recipe.stages[4] == Report(title="New")
    assert [source.paths for source in recipe.corpus.sources] == [["a.txt"], ["b/*.csv"]]
    assert recipe.stages[:4] == load_recipe("distilbert").stages[:4]
    assert overridden("distill.in_batch.scale=5").stages[1].in_batch.scale == 5
    assert overridden("distill.training.epochs=", "distill.training.max_steps=9") == (
        overridden("distill.training.epochs=null", "distill.training.max_steps=9")
    )
    assert overridden("name='x-1'").name == "x-1"
    assert overridden("seed=1", "seed=2").seed == 2  # the last one counts


@pytest.mark.parametrize(
    "pattern", ["*.txt", "[ab]*.txt", "{a,b}.txt", "@home", "`x`.txt", "!a.txt"]
)
def test_a_glob_needs_no_quotes(pattern: str) -> None:
    (source,) = overridden(f"corpus.sources={pattern}").corpus.sources
    assert source.paths == [pattern]


def test_a_value_keeps_its_equals_signs() -> None:
    assert overridden("report.title=a=b").stages[4].title == "a=b"


def test_an_override_leaves_parts_alone_that_the_file_shares_by_an_alias() -> None:
    recipe = overridden("evaluate.masking.probability=0.3")
    assert recipe.stages[2].masking.probability == 0.3
    assert recipe.stages[1].masking.probability == 0.15


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "seed",
            "seed: an override has the form KEY=VALUE. Write, for example, seed=2 or "
            "distill.training.max_steps=100.",
        ),
        (
            "=3",
            "=3: an override has the form KEY=VALUE. Write, for example, seed=2 or "
            "distill.training.max_steps=100.",
        ),
        (
            "teacher=",
            "distilbert: teacher: no value is set. Set it in the recipe, or with teacher=VALUE.",
        ),
        ("teacher=7", "distilbert: teacher: a mapping of keys to values is required (given: 7)."),
        ("sead=2", "sead: unknown key. Did you mean 'seed'?"),
        (
            "distil.training.epochs=1",
            "distil: unknown key. Did you mean 'distill'?",
        ),
        (
            "zzz=1",
            "zzz: unknown key. The valid keys are make_student, distill, evaluate, "
            "benchmark, report, name, description, task, seed, threads, teacher, teachers, "
            "corpus, data, student, stages.",
        ),
        ("stages.5.title=x", "stages.5: the list has 5 entries. Give a number from 0 to 4."),
        ("stages.5={kind: report}", "stages.5: the list has 5 entries. Give a number from 0 to 4."),
        (
            "corpus.sources.hub.split=x",
            "corpus.sources.hub: 2 entries are of kind hub. Give a number instead: 0 or 1.",
        ),
        ("seed.high=1", "distilbert: seed: input should be a valid integer."),
        (
            "name.first.second=1",
            "name.first.second: 'name' has no keys below it. Remove '.first.second' from "
            "the override.",
        ),
        (
            "name.first=1",
            "name.first: 'name' has no keys below it. Remove '.first' from the override.",
        ),
        (
            "distill.trainin.epochs=1",
            "distilbert: stages.1.trainin: unknown key. Did you mean 'training'?",
        ),
    ],
)
def test_what_is_wrong_with_an_override(override: str, expected: str) -> None:
    assert sentence_of(overridden, override) == expected


# --- files ----------------------------------------------------------------------------------------


def test_recipes_that_are_not_there() -> None:
    start = "{}: this is neither a file nor a shipped recipe. "
    assert sentence_of(load_recipe, "quikstart") == (
        start.format("quikstart") + "Did you mean 'quickstart'?"
    )
    assert sentence_of(load_recipe, "zzz") == (
        start.format("zzz") + f"The shipped recipes are {', '.join(shipped_recipes())}."
    )


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    assert "this is neither a file nor a shipped recipe" in sentence_of(load_recipe, tmp_path)


@pytest.mark.parametrize(
    ("content", "where", "expected"),
    [
        ("", "", "the recipe is empty. Write a mapping of keys to values."),
        ("# nothing yet\n", "", "the recipe is empty. Write a mapping of keys to values."),
        ("- a\n- b\n", "", "the recipe is a list. Write a mapping of keys to values."),
        ("just words", "", "the recipe is a str. Write a mapping of keys to values."),
        (
            "name: a\nseed: 1: 2\n",
            ":2",
            "the YAML is not valid (mapping values are not allowed here). Correct it.",
        ),
        ("name: \0", "", "the YAML is not valid (it can't be parsed). Correct it."),
        (b"name: \xff", "", "the file is not UTF-8 text. Give a YAML file."),
    ],
)
def test_files_that_are_no_recipes(
    tmp_path: Path, content: str | bytes, where: str, expected: str
) -> None:
    path = written(tmp_path, content)
    assert sentence_of(load_recipe, path) == f"{path}{where}: {expected}"


def test_python_objects_are_not_read(tmp_path: Path) -> None:
    path = written(tmp_path, f"name: !!python/object/apply:os.mkdir [{tmp_path}/made]")
    assert sentence_of(load_recipe, path).startswith(f"{path}:1: the YAML is not valid (")
    assert not (tmp_path / "made").exists()


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "name: x")

    def refuse(self: Path, **_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)  # root may read everything
    assert sentence_of(load_recipe, path) == f"{path}: the file can't be read (Permission denied)."
