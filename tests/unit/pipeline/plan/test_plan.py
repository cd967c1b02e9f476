from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import sentences
from potstill.pipeline import rehearsal
from potstill.pipeline.fingerprints import given_digests, stage_fingerprints
from potstill.pipeline.plan import plan
from potstill.pipeline.plan.plan import plan_run
from potstill.recipe import Recipe
from potstill.storage import RunFolder, open_run
from potstill.storage.manifest import manifest_digest

LAYER = 4 * (32 * 32 + 32) + (32 * 48 + 48) + (48 * 32 + 32) + 2 * 2 * 32


@pytest.fixture(autouse=True)
def _speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "matmul_flops", lambda *_: 1e9)


def recipe(teacher: Path, text: Path | str, task: str = "masked_lm", **training: Any) -> Recipe:
    target = "gold" if task == "masked_lm" else "teacher"
    distill = {
        "kind": "distill",
        "model": "untrained",
        "writes": "student",
        "objectives": [{"kind": "soft_targets"}, {"kind": "hard_targets", "target": target}],
        "training": {"max_steps": 20, "batch_size": 8, **training},
    }
    return Recipe.model_validate(
        {
            "name": "plan",
            "task": task,
            "teacher": str(teacher),
            "corpus": {"sources": [str(text)], "max_length": 48, "min_length": 4, "heldout": 0.1},
            "stages": [
                {"kind": "make_student", "writes": "untrained"},
                distill,
                {"kind": "evaluate"},
                {"kind": "benchmark", "lengths": [8]},
                {"kind": "report"},
            ],
        }
    )


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below, by size and time of change."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def block(lines: list[str], title: str) -> list[str]:
    start = lines.index(title) + 1
    rest = lines[start:]
    return rest[: rest.index("")] if "" in rest else rest


def test_a_new_run_is_planned_and_nothing_is_written(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    lines = plan_run(recipe(masked_lm_teacher, text_file), None)
    assert list(tmp_path.iterdir()) == []
    assert lines[0] == "plan: 5 stages in runs/plan"
    assert [" ".join(line.split()) for line in block(lines, "Stages")] == [
        "1 make_student teacher -> untrained to do",
        "2 distill untrained, teacher -> student to do",
        "3 evaluate all models -> scores to do",
        "4 benchmark all models -> timings to do",
        "5 report all results -> report.html, metrics.json, model card to do",
    ]
    models = block(lines, "Models")
    assert models[0].split()[:4] == ["teacher", "bert,", "4", "layers,"]
    assert models[2].split()[:4] == ["student", "distilbert,", "2", "layers,"]
    (epoch, _) = block(lines, "Text")
    assert epoch.strip().startswith("epoch: 270 sequences")  # all 300 but the tenth held out
    training = block(lines, "Training")
    assert training[0].startswith("  2 distill: 20 steps, ")
    assert [line.split()[0] for line in training[1:4]] == ["time", "memory", "disk"]
    assert training[4] == "  total"


def test_further_teachers_are_shown_and_counted(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    tree = recipe(masked_lm_teacher, text_file).model_dump(mode="json")
    alone = plan_run(Recipe.model_validate(tree), tmp_path / "run")
    tree["teachers"] = {"second": str(masked_lm_teacher)}
    tree["stages"][1]["teacher"] = ["teacher", "second"]
    lines = plan_run(Recipe.model_validate(tree), tmp_path / "run")
    assert "untrained, teacher, second -> student" in " ".join(block(lines, "Stages")[1].split())
    models = [line.split()[0] for line in block(lines, "Models")]
    assert models == ["teacher", "untrained", "second", "student"]

    def tokens_per_second(found: list[str]) -> float:
        (told,) = re.findall(r"([\d,]+) tokens/s", " ".join(block(found, "Training")))
        return float(told.replace(",", ""))

    layers, head = 2 * 4 * LAYER, 2 * 32 * (87 + 32)  # of each teacher, forward
    student = 3 * 2 * 2 * LAYER + 3 * 2 * 32 * (87 + 32)
    expected = (student + 2 * (layers + head)) / (student + layers + head)
    ratio = tokens_per_second(alone) / tokens_per_second(lines)
    assert ratio == pytest.approx(expected, rel=0.01)


def test_time_and_disk_by_hand(masked_lm_teacher: Path, text_file: Path, tmp_path: Path) -> None:
    lines = plan_run(recipe(masked_lm_teacher, text_file, max_steps=10_000), tmp_path / "run")
    vocabulary = 87
    sequences, tokens = re.findall(
        r"(\d+) (?:sequences|tokens)", block(lines, "Text")[0].replace(",", "")
    )
    length = round(int(tokens) / int(sequences))
    layer = 2 * (4 * 32 * 32 + 2 * 32 * 48) + 2 * 2 * length * 32
    per_token = (4 + 3 * 2) * layer + (1 + 3) * 2 * 32 * (vocabulary + 32)
    training = block(lines, "Training")
    assert f"({0.57 * 1e9 / per_token:,.0f} tokens/s, " in training[1]
    head = 32 * 32 + 32 + 64 + vocabulary
    student = 2 * LAYER + (vocabulary + 64) * 32 + 64 + head
    # both stages' folders, the published model twice, and two checkpoints of three values each
    disk = 4 * student * (2 + 2) + 2 * 12 * student
    checkpoints = f"about {2 * 12 * student / 1e3:,.1f} kB of checkpoints"
    assert training[3] == f"    disk    {checkpoints} until the stage is done"
    assert training[7].startswith(f"    disk    about {disk / 1e3:,.1f} kB; ")


def test_one_masked_batch_is_decoded(
    masked_lm_teacher: Path, tmp_path: Path, text_file: Path
) -> None:
    lines = block(plan_run(recipe(masked_lm_teacher, text_file), tmp_path / "run"), "One batch")
    assert lines[0] == "  4 of the 8 texts of a micro-batch, as tokens"
    first = sentences(1)[0].split()
    shown = lines[1].split()[1:]
    assert shown[0] == "[CLS]"
    assert shown[-1] == "[SEP]"
    assert len(shown) == len(first) + 2  # every word of the tiny vocabulary is one token
    masked = [i for i, token in enumerate(shown[1:-1]) if token == "[MASK]"]
    wanted = lines[2].removeprefix("     to predict: ").split()
    assert {first[i] for i in masked} <= set(wanted)
    assert len(wanted) == int(0.15 * len(first) + 0.5)


def test_one_batch_of_a_sentence_encoder_is_not_masked(
    sentence_teacher: Path, tmp_path: Path, text_file: Path
) -> None:
    plan = plan_run(recipe(sentence_teacher, text_file, "sentence_embedding"), tmp_path / "run")
    lines = block(plan, "One batch")
    assert lines[1:] == [
        f"  {i}. [CLS] {text} [SEP]" for i, text in enumerate(sentences(4), start=1)
    ]


def finish(run: RunFolder, recipe: Recipe, teacher: Path, number: int) -> Path:
    """What a finished stage leaves."""
    folder = run.stage_folder(number, recipe.stages[number - 1].kind)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    stage = recipe.stages[number - 1]
    (folder / "model").mkdir()
    writes = dict.fromkeys(stage.written, "model")
    digests = {
        **given_digests(["teacher"]),
        **dict.fromkeys(("untrained", "student"), manifest_digest({})),
    }
    reads = {name: digests[name] for name in stage.reads_among(digests)}
    run.finish(
        folder, stage_fingerprints(recipe, {"teacher": teacher})[number - 1], writes, reads, 1.0
    )
    return folder


def states(lines: list[str]) -> list[str]:
    return [line.rsplit("  ", 1)[1] for line in block(lines, "Stages")]


def test_what_a_run_folder_has_is_told_and_left_alone(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    settings = recipe(masked_lm_teacher, text_file)
    run = open_run(tmp_path / "run", "plan")
    (run.path / "recipe.yaml").write_text("name: plan\n")
    finished = [finish(run, settings, masked_lm_teacher, number) for number in (1, 2, 3)]
    (finished[2] / "result.json").write_text("{damaged}")
    begun = run.stage_folder(4, "benchmark") / "checkpoints" / "step-00000003"
    begun.mkdir(parents=True)
    config = {"fingerprint": stage_fingerprints(settings, {"teacher": masked_lm_teacher})[3]}
    (begun.parents[1] / "config.json").write_text(json.dumps(config))
    before = files(tmp_path)
    lines = plan_run(settings, run.path)
    assert files(tmp_path) == before
    found = states(lines)
    assert found[:2] == ["done, will be skipped"] * 2
    assert found[2].startswith("to do again: ")
    assert found[2].endswith("result.json is missing or changed")
    assert found[3] == "begun, resumes from its checkpoint"
    assert found[4] == "to do"
    assert block(lines, "Training") == ["  2 distill: done"]

    changed = states(plan_run(recipe(masked_lm_teacher, text_file, max_steps=21), run.path))
    assert changed[0] == "done, will be skipped"
    assert changed[1] == "to do again: the recipe, the text or the teacher changed"
    assert changed[3] == "to do"  # the checkpoint is of what was before


def test_an_epoch_of_hub_text_is_not_guessed(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    stream = datasets.Dataset.from_dict({"text": sentences(600)}).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
    tree = recipe(masked_lm_teacher, text_file).model_dump(mode="json")
    tree["corpus"]["sources"] = [{"kind": "hub", "name": "org/set"}]
    bounded = plan_run(Recipe.model_validate(tree), tmp_path / "run")
    assert "not known, because org/set:train has no known size" in block(bounded, "Text")[0]
    assert block(bounded, "Training")[0].startswith("  2 distill: at most 20 steps, at most ")
    tree["stages"][1]["training"] |= {"max_steps": None, "epochs": 1}
    open_end = block(plan_run(Recipe.model_validate(tree), tmp_path / "run"), "Training")
    assert open_end[0] == "  2 distill: steps not known (set max_steps or max_tokens to limit them)"
    assert open_end[1].startswith("    time    not known (")


def test_a_recipe_that_trains_nothing(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    tree = recipe(masked_lm_teacher, text_file).model_dump(mode="json")
    tree["stages"] = tree["stages"][:1]
    lines = plan_run(Recipe.model_validate(tree), tmp_path / "run")
    assert "Training" not in lines
    assert block(lines, "Models")[1].split()[:2] == ["untrained", "distilbert,"]


def test_a_shortage_is_shouted(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    lines = block(plan_run(recipe(masked_lm_teacher, text_file), tmp_path / "run"), "Training")
    assert lines[-1].endswith("; 1.0 kB are free: NOT ENOUGH")
    assert not lines[-2].endswith("NOT ENOUGH")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": {"model": "./nowhere"}}, "teacher.model: './nowhere' was not found"),
        (
            {"teacher": {"model": "org/not-cached"}},
            "is not a local folder and is not cached",
        ),
        ({"corpus": {"sources": ["missing.txt"]}}, "missing.txt: the file was not found"),
        ({"corpus": {"columns": ["title"]}}, "no column 'title'; there are: text"),
    ],
)
def test_bad_input_is_the_sentence_of_a_run(
    masked_lm_teacher: Path,
    text_file: Path,
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
) -> None:
    tree = recipe(masked_lm_teacher, text_file).model_dump(mode="json")
    for key, value in change.items():
        tree[key] = {**tree[key], **value}
    with pytest.raises(ValueError, match=message) as error:
        plan_run(Recipe.model_validate(tree), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_no_run_can_use(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    settings = recipe(masked_lm_teacher, text_file)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="Not a directory"):
        plan_run(settings, tmp_path / "file" / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "recipe.yaml").write_text("name: another\n")
    with pytest.raises(ValueError, match="holds the run of recipe 'another'"):
        plan_run(settings, tmp_path / "other")


def test_no_weights_are_read(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.device] = []
    original = rehearsal.rehearse

    def spy(*arguments: Any) -> Any:
        outlines = original(*arguments)
        for outline in outlines:
            for loaded in (outline.model, *outline.teachers):
                made.extend(p.device for p in loaded.model.parameters()) if loaded else None
        return outlines

    monkeypatch.setattr(plan, "rehearse", spy)
    plan_run(recipe(masked_lm_teacher, text_file), tmp_path / "run")
    assert {device.type for device in made} == {"meta"}


def test_words() -> None:
    assert [plan._count(n) for n in (999, 123_456, 66_362_880, 3.3e9)] == [
        "999",
        "123,456",
        "66.4 M",
        "3.3 G",
    ]
    assert [plan._bytes(n) for n in (5_000, 1_500_000, 45e6, 1.4e9, 3e12)] == [
        "5.0 kB",
        "1.5 MB",
        "45.0 MB",
        "1.4 GB",
        "3.0 TB",
    ]
    assert [plan._duration(s) for s in (0.1, 89, 100, 3000, 86000, 1e6)] == [
        "a second",
        "89 seconds",
        "1.7 minutes",
        "50 minutes",
        "24 hours",
        "12 days",
    ]
