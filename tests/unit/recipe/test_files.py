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
            "'seed' is not KEY=VALUE, for example seed=2 or distill.training.max_steps=100",
        ),
        ("=3", "'=3' is not KEY=VALUE, for example seed=2 or distill.training.max_steps=100"),
        ("teacher=", "distilbert: teacher is not set: give it in the recipe or as teacher=VALUE"),
        ("teacher=7", "distilbert: teacher: keys and values belong here (given: 7)"),
        ("sead=2", "unknown key 'sead' in the override sead; did you mean 'seed'?"),
        (
            "distil.training.epochs=1",
            "unknown key 'distil' in the override stages.distil; did you mean 'distill'?",
        ),
        (
            "zzz=1",
            "unknown key 'zzz' in the override zzz; there are: make_student, distill, evaluate, "
            "benchmark, report, name, description, task, seed, threads, teacher, teachers, corpus, "
            "data, student, stages",
        ),
        ("stages.5.title=x", "stages.5: there are 5 entries, counted from 0"),
        ("stages.5={kind: report}", "stages.5: there are 5 entries, counted from 0"),
        (
            "corpus.sources.hub.split=x",
            "corpus.sources.hub: 2 entries are of kind hub; name one by its number, counted from 0",
        ),
        ("seed.high=1", "distilbert: seed: input should be a valid integer"),
        (
            "name.first.second=1",
            "name.first.second=1: 'name.first' is not a key of this recipe that has keys below it",
        ),
        ("name.first=1", "name.first=1: 'name' has no keys below it"),
        (
            "distill.trainin.epochs=1",
            "distilbert: unknown key 'trainin' in stages.1; did you mean 'training'?",
        ),
    ],
)
def test_what_is_wrong_with_an_override(override: str, expected: str) -> None:
    assert sentence_of(overridden, override) == expected


# --- files ----------------------------------------------------------------------------------------


def test_recipes_that_are_not_there() -> None:
    start = "recipe '{}' is neither a file nor a shipped recipe; "
    assert sentence_of(load_recipe, "quikstart") == (
        start.format("quikstart") + "did you mean 'quickstart'?"
    )
    assert sentence_of(load_recipe, "zzz") == (
        start.format("zzz") + f"shipped recipes: {', '.join(shipped_recipes())}"
    )


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    assert "is neither a file nor a shipped recipe" in sentence_of(load_recipe, tmp_path)


@pytest.mark.parametrize(
    ("content", "where", "expected"),
    [
        ("", "", "a recipe is a mapping of keys to values, this is empty"),
        ("# nothing yet\n", "", "a recipe is a mapping of keys to values, this is empty"),
        ("- a\n- b\n", "", "a recipe is a mapping of keys to values, this is a list"),
        ("just words", "", "a recipe is a mapping of keys to values, this is a str"),
        ("name: a\nseed: 1: 2\n", ":2", "not valid YAML (mapping values are not allowed here)"),
        ("name: \0", "", "not valid YAML (it does not parse)"),
        (b"name: \xff", "", "not a UTF-8 text file, so not a recipe"),
    ],
)
def test_files_that_are_no_recipes(
    tmp_path: Path, content: str | bytes, where: str, expected: str
) -> None:
    path = written(tmp_path, content)
    assert sentence_of(load_recipe, path) == f"{path}{where}: {expected}"


def test_python_objects_are_not_read(tmp_path: Path) -> None:
    path = written(tmp_path, f"name: !!python/object/apply:os.mkdir [{tmp_path}/made]")
    assert sentence_of(load_recipe, path).startswith(f"{path}:1: not valid YAML (")
    assert not (tmp_path / "made").exists()


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "name: x")

    def refuse(self: Path, **_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)  # root may read everything
    assert sentence_of(load_recipe, path) == f"{path}: can't be read (Permission denied)"
