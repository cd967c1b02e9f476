"""Runs, caches and fingerprints of an older version stay valid: tests/data/old_runs/README.md."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter

from conftest import Finished
from potstill.data.corpus import _key
from potstill.pipeline.fingerprints import inputs_digest, stage_digest
from potstill.recipe import Corpus, Stage, Task, Training, load_recipe
from potstill.suites.catalog import SUITES
from potstill.suites.data import SuiteData
from potstill.suites.trials import Entrant, Trial

DATA = Path(__file__).resolve().parents[1] / "data"
TABLE = json.loads((DATA / "digests_45d3975.json").read_text(encoding="utf-8"))
Potstill = Callable[..., Finished]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old runs, with their models and text; the working directory."""
    folder = tmp_path / "old"
    shutil.copytree(DATA / "old_runs", folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    return folder


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Relative path -> when it was written, and what."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize(("name", "stages"), [("finished", 4), ("task", 3)])
def test_a_finished_run_is_skipped(potstill: Potstill, work: Path, name: str, stages: int) -> None:
    before = contents(work / name)
    done = potstill("run", f"{name}.yaml", "-o", name)
    assert done.code == 0, done.err
    assert done.out.count("done before, skipped") == stages
    after = contents(work / name)
    recipe = after.pop("recipe.yaml")[1]  # written anew each time
    del before["recipe.yaml"]
    assert after == before
    assert recipe


def test_an_interrupted_run_goes_on(potstill: Potstill, work: Path) -> None:
    made = (work / "interrupted/stages/01-make_student/DONE").read_bytes()
    done = potstill("run", "interrupted.yaml", "-o", "interrupted")
    assert done.code == 0, done.err
    assert "1/3 make_student: done before, skipped" in done.out
    assert "resuming at step 5 of 8" in done.out
    assert "another configuration" not in done.out
    assert not (work / "interrupted/replaced").exists()
    assert (work / "interrupted/stages/01-make_student/DONE").read_bytes() == made
    log = (work / "interrupted/stages/02-distill/log.jsonl").read_text(encoding="utf-8")
    events = [json.loads(line) for line in log.splitlines()]
    assert [e["step"] for e in events if e["event"] == "train"] == list(range(1, 9))
    told = [e["event"] for e in events if e["event"] in ("start", "interrupted", "resume", "end")]
    assert told == ["start", "interrupted", "resume", "end"]
    assert (work / "interrupted/stages/03-evaluate/DONE").is_file()
    assert (work / "interrupted/model/model.safetensors").is_file()


def test_an_old_run_with_sparsity_is_compared_and_says_what_to_do(
    potstill: Potstill, work: Path
) -> None:
    """The key is gone: nothing that reads results minds, what reads the recipe says what to do."""
    recipe = work / "finished/recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    old = "{method: magnitude, final: 0.5, start: 0.1, end: 0.7}"
    recipe.write_text(text.replace("sparsity: null", f"sparsity: {old}"), encoding="utf-8")
    for command in (["report", "finished"], ["run", "finished/recipe.yaml", "-o", "again"]):
        done = potstill(*command)
        assert done.code == 2
        assert (
            "finished/recipe.yaml: stages.1.sparsity: the key was removed, for zeros " in done.err
        )
        assert "Omit it; " in done.err
        assert len(done.err.splitlines()) == 1
    assert not (work / "again").exists()
    shutil.copytree("finished", "copy")
    assert potstill("compare", "finished", "copy").code == 0
    recipe.write_text(text.replace("  sparsity: null\n", ""), encoding="utf-8")
    assert potstill("report", "finished").code == 0


# --- fingerprints ---------------------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the table's recipes and stages name."""
    monkeypatch.chdir(tmp_path)
    write_texts()


def write_texts() -> None:
    for name in ("text.txt", "train.tsv", "texts/one.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"text\tlabel\nthe still runs\tgood\n")


def digests_of_recipe(name: str, overrides: list[str]) -> dict[str, Any]:
    """Digests of a recipe's text and of each of its stages, as if it were the first one."""
    recipe = load_recipe(name, overrides)
    cutter: Any = SimpleNamespace(  # with a tokenizer that no library's version changes
        tokenizer=SimpleNamespace(
            backend_tokenizer=SimpleNamespace(to_str=lambda: '{"model": "none"}'), unk_token_id=1
        ),
        prefix=[2],
        suffix=[3],
    )
    return {
        "inputs": inputs_digest(recipe.task, recipe.seed, recipe.text, []),
        "tokens": _key(recipe.corpus, cutter, recipe.seed) if recipe.corpus is not None else None,
        "stages": [stage_digest("0" * 64, stage) for stage in recipe.stages],
    }


def digest_of_stage(settings: dict[str, Any]) -> str:
    return stage_digest("0" * 64, TypeAdapter(Stage).validate_python(settings))


def digest_of_corpus(settings: dict[str, Any]) -> str:
    return inputs_digest(Task.MASKED_LM, 1, Corpus.model_validate(settings), [])


def key_of_suite(settings: dict[str, Any]) -> str:
    data = SuiteData(SUITES["glue"][0], Path(), counts={})
    training = Training.model_validate(settings)
    return Trial(Entrant("m", Path(), "0" * 64), data, training, 64, 1, Path()).key


def _name(entry: dict[str, Any]) -> str:
    return "-".join([entry["kind"], *filter(None, [entry["settings"].get("kind")])])


KINDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "stage": digest_of_stage,
    "corpus": digest_of_corpus,
    "suite": key_of_suite,
}


@pytest.mark.usefixtures("texts")
@pytest.mark.parametrize("name", TABLE["recipes"])
def test_a_shipped_recipe_has_the_digests_that_it_had(name: str) -> None:
    told = TABLE["recipes"][name]
    assert digests_of_recipe(name, told["overrides"]) == told["digests"]


@pytest.mark.usefixtures("texts")
@pytest.mark.parametrize("entry", TABLE["parts"], ids=_name)
def test_a_part_of_a_recipe_has_the_digest_that_it_had(entry: dict[str, Any]) -> None:
    assert KINDS[entry["kind"]](entry["settings"]) == entry["digest"]
