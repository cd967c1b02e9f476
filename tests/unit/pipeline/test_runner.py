from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import sentences
from potstill.errors import TrainingFailed
from potstill.pipeline import run, runner
from potstill.pipeline.fingerprints import stage_digest, stage_fingerprints
from potstill.pipeline.inputs import check_inputs
from potstill.pipeline.runner import rebuild_report
from potstill.pipeline.stages import train as train_stage
from potstill.recipe import Benchmark, Recipe, TextPass
from potstill.recipe import files as recipe_files
from potstill.reporting.results import read_results
from potstill.storage import RunFolder, files, open_run, run_folder
from potstill.training import loop
from tiny_runs import LABELS, tiny_teacher

MAKE = {"kind": "make_student", "writes": "untrained"}
DISTILL = {
    "kind": "distill",
    "model": "untrained",
    "writes": "student",
    "objectives": [{"kind": "soft_targets"}, {"kind": "hard_targets"}],
    "training": {"max_steps": 2, "batch_size": 4},
}


def recipe(teacher: Path | str, text: Path | str, *chosen: dict[str, Any], **more: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "little",
            "task": "masked_lm",
            "teacher": str(teacher),
            "corpus": {"sources": [str(text)], "max_length": 40, "min_length": 4, "heldout": 0.2},
            "stages": list(chosen) or [MAKE, DISTILL],
            **more,
        }
    )


def labelled_recipe(folder: Path, *chosen: dict[str, Any], **changes: Any) -> Recipe:
    """Of a tiny classifier, whose labels say nothing of the texts."""
    lines = [f"{text}\t{LABELS[n % 3]}" for n, text in enumerate(sentences(60))]
    (folder / "train.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    tree = {
        "name": "little",
        "task": "classification",
        "teacher": str(tiny_teacher(folder / "teacher", "classification")),
        "data": {"train": str(folder / "train.tsv"), "max_length": 40},
        "stages": list(chosen),
        **changes,
    }
    return Recipe.model_validate(tree)


class Recorder:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.stages: list[tuple[str, bool]] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def progress(self, fraction: float, note: str = "") -> None:
        assert 0 <= fraction <= 1

    def stage(self, number: int, total: int, kind: str, skipped: bool) -> None:
        assert 1 <= number <= total
        self.stages.append((kind, skipped))


def ran(settings: Recipe, folder: Path) -> tuple[list[str], list[str]]:
    """Run; the kinds of stages that were not skipped, and what was said."""
    reporter = Recorder()
    assert run(settings, output=folder, reporter=reporter) == folder
    return [kind for kind, skipped in reporter.stages if not skipped], reporter.said


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, masked_lm_teacher: Path, text_file: Path
) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    return run(recipe(masked_lm_teacher, text_file), output=folder)


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run of two stages."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


# --- what runs ------------------------------------------------------------------------------------


def test_nothing_runs_twice(masked_lm_teacher: Path, text_file: Path, folder: Path) -> None:
    kinds, said = ran(recipe(masked_lm_teacher, text_file), folder)
    assert (kinds, said) == ([], [])
    # neither the description nor an added stage changes what is done
    more = recipe(
        masked_lm_teacher, text_file, MAKE, DISTILL, {"kind": "evaluate"}, description="new"
    )
    kinds, _ = ran(more, folder)
    assert kinds == ["evaluate"]


def test_a_change_runs_again_from_there(
    masked_lm_teacher: Path, text_file: Path, folder: Path
) -> None:
    former = weights(folder / "stages/02-distill/model")
    changed = {**DISTILL, "objectives": [{"kind": "soft_targets", "temperature": 4.0}]}
    kinds, said = ran(recipe(masked_lm_teacher, text_file, MAKE, changed), folder)
    assert kinds == ["distill"]
    (kept,) = (folder / "replaced").glob("02-*")
    assert weights(kept / "model") == former
    assert f"02-distill runs again; its former result is now in {kept}" in said[0]
    assert weights(folder / "model") == weights(folder / "stages/02-distill/model") != former
    kinds, _ = ran(recipe(masked_lm_teacher, text_file), folder)  # and back
    assert kinds == ["distill"]
    assert weights(folder / "model") == former
    kept = sorted(path.name.partition("-")[0] for path in (folder / "replaced").iterdir())
    assert kept == ["02", "02", "results", "results"]


def test_other_text_or_another_teacher_runs_all_again(
    masked_lm_teacher: Path, text_file: Path, folder: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(sentences(50, seed=3)))
    kinds, _ = ran(recipe(masked_lm_teacher, text), folder)
    assert kinds == ["make_student", "distill"]
    text.write_text("\n".join(sentences(51, seed=3)))
    kinds, _ = ran(recipe(masked_lm_teacher, text), folder)
    assert kinds == ["make_student", "distill"]


def test_fingerprints_tell_what_depends_on_what(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    def prints(
        *chosen: dict[str, Any], teacher: Path = masked_lm_teacher, **more: Any
    ) -> list[str]:
        return stage_fingerprints(recipe(teacher, text_file, *chosen, **more), {"teacher": teacher})

    base = prints()
    assert len(set(base)) == 2
    assert prints(description="new", threads=1) == base
    later = prints(MAKE, {**DISTILL, "masking": {"probability": 0.3}})
    assert (later[0] == base[0], later[1] == base[1]) == (True, False)
    first = prints({**MAKE, "depth": 3}, DISTILL)
    assert not set(first) & set(base)
    assert not set(prints(seed=2)) & set(base)
    copy = Path(shutil.copytree(masked_lm_teacher, tmp_path / "copy"))
    assert prints(teacher=copy) == base  # wherever it lies
    (copy / "README.md").write_text("another card")
    (copy / "runs/x/stages/01-a").mkdir(parents=True)
    (copy / "runs/x/stages/01-a/result.json").write_text("{}")
    assert prints(teacher=copy) == base  # nor what is around it
    (copy / "extra.json").write_text("{}")
    assert not set(prints(teacher=copy)) & set(base)


def test_further_teachers_are_part_of_every_fingerprint(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(masked_lm_teacher, tmp_path / "other"))
    (other / "extra.json").write_text("{}")

    def prints(**further: Path) -> list[str]:
        settings = recipe(masked_lm_teacher, text_file)
        return stage_fingerprints(settings, {**further, "teacher": masked_lm_teacher})

    alone, first = prints(), prints(a=masked_lm_teacher, b=other)
    assert first == prints(b=other, a=masked_lm_teacher)
    for changed in (alone, prints(a=other, b=masked_lm_teacher), prints(a=other, b=other)):
        assert not set(first) & set(changed)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_stage_runs_again(
    masked_lm_teacher: Path, text_file: Path, folder: Path, damage: str
) -> None:
    path = folder / "stages/01-make_student/model/model.safetensors"
    published, whole = weights(folder / "model"), path.read_bytes()
    path.write_bytes(whole[:-9]) if damage == "cut" else path.unlink()
    kinds, said = ran(recipe(masked_lm_teacher, text_file), folder)
    assert kinds == ["make_student"]
    assert said[0] == f"01-make_student runs again: {path} is missing or changed"
    assert path.read_bytes() == whole
    assert weights(folder / "model") == published
    assert not (folder / "replaced").exists()


def test_a_model_that_comes_out_otherwise_is_read_again(
    masked_lm_teacher: Path, text_file: Path, folder: Path
) -> None:
    """As by another machine's rounding: the recipe is the same, the untrained student is not."""
    stage = folder / "stages/01-make_student"
    done = json.loads((stage / "DONE").read_text())
    shutil.copy(folder / "model/model.safetensors", stage / "model/model.safetensors")
    open_run(folder, "little").finish(
        stage, done["fingerprint"], done["writes"], done["reads"], seconds=1.0
    )
    kinds, _ = ran(recipe(masked_lm_teacher, text_file), folder)
    assert kinds == ["distill"]


def test_a_change_sets_all_that_follows_aside_at_once(
    masked_lm_teacher: Path, text_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = {"kind": "evaluate"}
    ran(recipe(masked_lm_teacher, text_file, MAKE, DISTILL, evaluate), folder)
    assert read_results(folder).evaluation

    def fail(*_: Any) -> Any:
        raise TrainingFailed("the loss is not finite")

    monkeypatch.setattr(train_stage, "train", fail)
    changed = {**DISTILL, "training": {"max_steps": 3, "batch_size": 4}}
    with pytest.raises(TrainingFailed):
        ran(recipe(masked_lm_teacher, text_file, MAKE, changed, evaluate), folder)
    assert [stage.kind for stage in read_results(folder).stages] == ["make_student"]
    kept = sorted(path.name[:11] for path in (folder / "replaced").iterdir())
    assert kept == ["02-distill-", "03-evaluate", "results-" + kept[-1][8:]]


def test_a_finished_result_is_never_thrown_away(
    masked_lm_teacher: Path, text_file: Path, folder: Path
) -> None:
    other = {**DISTILL, "training": {"max_steps": 1, "batch_size": 4}}
    for chosen in (other, DISTILL, other, DISTILL):
        ran(recipe(masked_lm_teacher, text_file, MAKE, chosen), folder)
    finished = [path for path in (folder / "replaced").iterdir() if (path / "DONE").is_file()]
    assert len(finished) == 4


def test_the_environment_is_that_of_what_was_measured(
    masked_lm_teacher: Path, text_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = (folder / "environment.json").read_text()
    monkeypatch.setattr(runner, "environment", lambda: {"cpu": {"model": "another machine's"}})
    stages = [MAKE, DISTILL, {"kind": "report"}]
    assert ran(recipe(masked_lm_teacher, text_file, *stages), folder)[0] == ["report"]
    assert (folder / "environment.json").read_text() == measured
    ran(recipe(masked_lm_teacher, text_file, MAKE, DISTILL, {"kind": "evaluate"}), folder)
    assert "another machine's" in (folder / "environment.json").read_text()


def test_stages_that_the_recipe_no_longer_has_are_set_aside(
    masked_lm_teacher: Path, text_file: Path, folder: Path
) -> None:
    kinds, _ = ran(recipe(masked_lm_teacher, text_file, MAKE), folder)
    assert kinds == []
    assert [path.name for path in (folder / "stages").iterdir()] == ["01-make_student"]
    kept = sorted(path.name[:8] for path in (folder / "replaced").iterdir())
    assert kept == ["02-disti", "results-"]
    assert weights(folder / "model") == weights(folder / "stages/01-make_student/model")


def test_unfinished_work_of_another_recipe_is_set_aside(
    masked_lm_teacher: Path,
    text_file: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> Any:
        raise TrainingFailed("the loss is not finite")

    published = weights(folder / "model")
    with monkeypatch.context() as patched:
        patched.setattr(train_stage, "train", fail)
        with pytest.raises(TrainingFailed):
            ran(recipe(masked_lm_teacher, text_file, seed=5), folder)
    assert not (folder / "model").exists()  # neither seed 1's nor the untrained student of seed 5
    (kept,) = (folder / "replaced").glob("results-*/model")
    assert weights(kept) == published
    begun = folder / "stages/02-distill"
    (begun / "log.jsonl").write_text('{"event": "start"}\n')
    kinds, _ = ran(recipe(masked_lm_teacher, text_file, seed=6), folder)
    assert kinds == ["make_student", "distill"]
    logs = [path for path in (folder / "replaced").glob("02-distill-*/log.jsonl")]
    assert '{"event": "start"}\n' in [path.read_text() for path in logs]
    events = [json.loads(line)["event"] for line in (begun / "log.jsonl").read_text().splitlines()]
    assert events.count("start") == 1


# --- what is published ----------------------------------------------------------------------------


def test_a_plain_twin_is_not_published(
    masked_lm_teacher: Path, text_file: Path, folder: Path
) -> None:
    plain = {"kind": "finetune", "model": "plain", "training": DISTILL["training"]}
    twin = [{"kind": "make_student", "writes": "plain"}, plain]
    ran(recipe(masked_lm_teacher, text_file, MAKE, DISTILL, *twin), folder)
    assert weights(folder / "model") == weights(folder / "stages/02-distill/model")


def test_what_is_published_is_the_last_student(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    finetune = {"kind": "finetune", "training": {"max_steps": 1, "batch_size": 4}}
    ran(recipe(masked_lm_teacher, text_file, finetune), tmp_path / "teacher")
    tuned = tmp_path / "teacher/stages/01-finetune/model"
    assert weights(tmp_path / "teacher/model") == weights(tuned)
    ran(recipe(masked_lm_teacher, text_file, MAKE, finetune), tmp_path / "student")
    made = tmp_path / "student/stages/01-make_student/model"
    assert weights(tmp_path / "student/model") == weights(made)


def fail(*_: Any) -> Any:
    raise TrainingFailed("the loss is not finite")


def test_a_student_not_trained_yet_is_not_published(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, folder = recipe(masked_lm_teacher, text_file), tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(train_stage, "train", fail)
        with pytest.raises(TrainingFailed):
            ran(settings, folder)
    assert (folder / "stages/01-make_student/DONE").exists()
    assert not (folder / "model").exists()
    with pytest.raises(ValueError, match=r"stage 2 \(distill\), .* is not finished"):
        rebuild_report(folder)
    assert not (folder / "metrics.json").exists()
    ran(settings, folder)
    assert weights(folder / "model") == weights(folder / "stages/02-distill/model")


def test_results_of_another_recipe_are_set_aside_together(
    masked_lm_teacher: Path, text_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuild_report(folder)
    former = {
        path.relative_to(folder): path.read_bytes()
        for name in ("recipe.yaml", "environment.json", "metrics.json", "report.html", "model/*")
        for path in folder.glob(name)
    }
    monkeypatch.setattr(train_stage, "train", fail)
    reporter = Recorder()
    with pytest.raises(TrainingFailed):
        run(recipe(masked_lm_teacher, text_file, seed=5), output=folder, reporter=reporter)
    (kept,) = (folder / "replaced").glob("results-*")
    assert {path: (kept / path).read_bytes() for path in former} == former
    assert f"the former model, metrics.json, report.html are now in {kept}" in reporter.said
    with pytest.raises(ValueError, match=r"is not finished\. Run the recipe again to resume"):
        rebuild_report(folder)
    left = {path.name for path in folder.iterdir()}
    assert left == {".lock", "recipe.yaml", "environment.json", "stages", "replaced"}


def test_a_changed_evaluation_leaves_the_model_in_place(
    masked_lm_teacher: Path, text_file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {"kind": "evaluate"}, {"kind": "report"}
    ran(recipe(masked_lm_teacher, text_file, MAKE, DISTILL, *measured), folder)
    inode = (folder / "model").stat().st_ino
    monkeypatch.setattr(runner, "run_stage", fail)
    changed = {**measured[0], "max_records": 5}, measured[1]
    with pytest.raises(TrainingFailed):
        ran(recipe(masked_lm_teacher, text_file, MAKE, DISTILL, *changed), folder)
    assert (folder / "model").stat().st_ino == inode
    assert not (folder / "metrics.json").exists()
    (kept,) = (folder / "replaced").glob("results-*")
    assert "max_records: null" in (kept / "recipe.yaml").read_text()
    assert (kept / "report.html").is_file()


def test_a_model_changed_by_hand_is_kept_aside(
    masked_lm_teacher: Path, text_file: Path, folder: Path
) -> None:
    (folder / "model/config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config.json is not what stage 2 \(distill\) wrote"):
        rebuild_report(folder)
    assert ran(recipe(masked_lm_teacher, text_file), folder)[0] == []
    (kept,) = (folder / "replaced").glob("results-*/model/config.json")
    assert kept.read_text() == "{}"
    assert (folder / "model/config.json").read_text() != "{}"


def test_a_published_model_that_was_changed_is_published_again(
    masked_lm_teacher: Path, text_file: Path, folder: Path
) -> None:
    whole = weights(folder / "model")
    (folder / "model/model.safetensors").write_bytes(b"malt")
    (folder / "model/README.md").write_text("a card")  # what a stage's model has not may stay
    kinds, _ = ran(recipe(masked_lm_teacher, text_file), folder)
    assert kinds == []
    assert weights(folder / "model") == whole


# --- what a kill leaves ---------------------------------------------------------------------------


class Killed(Exception):
    """As if the process were gone."""


def killed(*_: Any, **__: Any) -> Any:
    raise Killed


def forbid_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(*_: Any) -> None:
        raise AssertionError("a finished training is done again")

    monkeypatch.setattr(loop._Loop, "_step", trained)


def events(stage: Path, kind: str) -> list[dict[str, Any]]:
    lines = (stage / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == kind]


ENDINGS: list[dict[str, Any]] = [
    {"training": {"max_steps": 4}},
    {"training": {"max_steps": 8, "evaluate_every": 2, "patience": 2, "keep": "best"}},
]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_training_killed_before_its_stage_is_done_takes_no_step_again(
    masked_lm_teacher: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: dict[str, Any],
) -> None:
    losses = iter([2.0, 3.0, 4.0])
    if "patience" in ending["training"]:
        monkeypatch.setattr(
            loop._Loop, "evaluate", lambda _: {"loss": next(losses), "components": {}}
        )
    chosen = {**DISTILL, **ending, "training": {"batch_size": 4, **ending["training"]}}
    settings, folder = recipe(masked_lm_teacher, text_file, MAKE, chosen), tmp_path / "run"
    stage, finish = folder / "stages/02-distill", RunFolder.finish

    def finish_others(run: RunFolder, stage_folder: Path, *more: Any) -> None:
        if stage_folder == stage:
            raise Killed
        finish(run, stage_folder, *more)

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "finish", finish_others)
        with pytest.raises(Killed):
            ran(settings, folder)
    before, result = weights(stage / "model"), (stage / "result.json").read_text()
    steps = 6 if "patience" in ending["training"] else 4  # the third evaluation is the second worse
    forbid_steps(monkeypatch)
    kinds, said = ran(settings, folder)
    assert kinds == ["distill"]
    assert f"resuming at step {steps} of {chosen['training']['max_steps']}" in said
    assert weights(stage / "model") == weights(folder / "model") == before
    assert (stage / "result.json").read_text() == result
    assert [event["step"] for event in events(stage, "end")] == [steps]
    assert sorted(path.name for path in stage.iterdir()) == [
        *("DONE", "config.json", "log.jsonl", "model", "result.json")
    ]


def leave_checkpoints(monkeypatch: pytest.MonkeyPatch, settings: Recipe, folder: Path) -> Path:
    """A run that is killed between its stage's DONE and the dropping of the checkpoints."""
    with monkeypatch.context() as patched:
        patched.setattr(runner, "drop_checkpoints", killed)
        with pytest.raises(Killed):
            ran(settings, folder)
    (stage,) = folder.glob("stages/*")
    assert (stage / "DONE").is_file()
    assert list(stage.glob("checkpoints/step-*"))
    return stage


def test_checkpoints_left_beside_a_finished_stage_are_dropped(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(
        masked_lm_teacher, text_file, {"kind": "finetune", "training": DISTILL["training"]}
    )
    stage = leave_checkpoints(monkeypatch, settings, tmp_path / "run")
    (stage / "repeat-2/checkpoints-best/step-00000001").mkdir(parents=True)
    with monkeypatch.context() as patched:
        patched.setenv("RANK", "1")  # another process than the first leaves files alone
        assert ran(settings, tmp_path / "run")[0] == []
    assert list(stage.glob("checkpoints/step-*"))
    assert ran(settings, tmp_path / "run")[0] == []
    assert not list(stage.rglob("checkpoints*"))


def test_a_finished_stage_that_runs_again_does_not_resume_what_it_left(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that it reads came out otherwise, which its fingerprint doesn't say."""
    settings = recipe(
        masked_lm_teacher, text_file, {"kind": "finetune", "training": DISTILL["training"]}
    )
    stage = leave_checkpoints(monkeypatch, settings, tmp_path / "run")
    done = json.loads((stage / "DONE").read_text())
    (stage / "DONE").write_text(json.dumps({**done, "reads": {"teacher": "another"}}))
    kinds, said = ran(settings, tmp_path / "run")
    assert kinds == ["finetune"]
    assert not [message for message in said if "resuming" in message]


def kill_in_repeats(monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """Kill a stage of repeats at a point after the last step of its second training."""
    write, replace = files.write_json, Path.replace
    drop, log = run_folder.drop_checkpoints, "log.jsonl"
    if point == "before its result":
        monkeypatch.setattr(
            *(train_stage, "write_json"),
            lambda path, value: killed() if "repeat-2" in str(path) else write(path, value),
        )
    elif point == "before its checkpoints are dropped":
        monkeypatch.setattr(
            *(train_stage, "drop_checkpoints"),
            lambda folder: killed() if folder.name == "repeat-2" else drop(folder),
        )
    elif point == "between the first one's model and log":
        monkeypatch.setattr(
            *(Path, "replace"),
            lambda path, target: killed() if path.name == log else replace(path, target),
        )
    else:
        monkeypatch.setattr(RunFolder, "finish", killed)


@pytest.mark.parametrize(
    "point",
    [
        "before its result",
        "before its checkpoints are dropped",
        "between the first one's model and log",
        "before DONE",
    ],
)
def test_finished_repeats_take_no_step_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    short = {"max_steps": 2, "batch_size": 4}
    tuned = {"kind": "finetune", "model": "teacher", "training": short, "repeats": 2}
    settings = labelled_recipe(tmp_path, tuned)
    whole, folder = run(settings, output=tmp_path / "whole"), tmp_path / "run"
    with monkeypatch.context() as patched:
        kill_in_repeats(patched, point)
        with pytest.raises(Killed):
            ran(settings, folder)
    forbid_steps(monkeypatch)
    ran(settings, folder)
    stages = [path / "stages/01-finetune" for path in (whole, folder)]
    for name in ("model", "repeat-2/model"):
        assert weights(stages[1] / name) == weights(stages[0] / name)
    left, found = (sorted(p.relative_to(s) for p in s.rglob("*")) for s in stages)
    assert left == found  # no checkpoints, and the first one's files where a single one's are
    for name in (".", "repeat-2"):
        assert len(events(stages[1] / name, "train")) == len(events(stages[0] / name, "train"))


# --- what a copy of the context keeps -------------------------------------------------------------


TRIM = {"kind": "trim_vocabulary", "size": 80}
TRAINED = {"max_steps": 4, "batch_size": 4, "checkpoint_steps": 1, "precision": "fp32"}
SOFT = {"kind": "distill", "objectives": [{"kind": "soft_targets"}], "training": TRAINED}


def killed_in_the_last_training(
    settings: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run, and stop before the third step of the last stage, which trains."""
    kind, step = settings.stages[-1].kind, loop._Loop._step
    last = folder / "stages" / f"{len(settings.stages):02d}-{kind}"

    def stop(loop: loop._Loop, number: int, batches: Any) -> None:
        if loop.job.folder == last and number == 2:
            raise Killed
        step(loop, number, batches)

    with monkeypatch.context() as patched:
        patched.setattr(loop._Loop, "_step", stop)
        with pytest.raises(Killed):
            ran(settings, folder)


def trimmed_and_trained(number: int, teacher: Path, text: Path, folder: Path) -> Recipe:
    """Recipes whose last training reads text that was cut for a stage before it."""
    make, trim = {"kind": "make_student"}, {**TRIM, "model": "teacher"}
    if number == 0:
        return labelled_recipe(folder, trim, make, SOFT, SOFT)
    if number == 1:
        soft = {**SOFT, "teacher": "small"}
        small = [{**trim, "writes": "small"}, {**make, "teacher": "small"}]
        return recipe(teacher, text, *small, soft, soft)
    tuned = {"kind": "finetune", "model": "student", "training": TRAINED}
    export = {"kind": "export", "model": "student"}
    return recipe(teacher, text, make, SOFT, {**TRIM, "model": "student"}, export, tuned)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_training_resumes_whose_text_was_cut_for_a_stage_before(
    number: int,
    masked_lm_teacher: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = trimmed_and_trained(number, masked_lm_teacher, text_file, tmp_path)
    whole = run(settings, output=tmp_path / "whole")
    killed_in_the_last_training(settings, tmp_path / "cut", monkeypatch)
    kinds, said = ran(settings, tmp_path / "cut")
    assert kinds == [settings.stages[-1].kind]
    assert "resuming at step 2 of 4" in said
    assert not [message for message in said if "another configuration" in message]
    stage = f"stages/{len(settings.stages):02d}-{kinds[0]}/model"
    assert weights(tmp_path / "cut" / stage) == weights(whole / stage)


# --- mistakes -------------------------------------------------------------------------------------


def test_a_mistake_writes_nothing(masked_lm_teacher: Path, text_file: Path, tmp_path: Path) -> None:
    for settings in (
        recipe("./nowhere", text_file),
        recipe(masked_lm_teacher, tmp_path / "nowhere.txt"),
        recipe(masked_lm_teacher, text_file, {**MAKE, "layers": [9]}, DISTILL),
        recipe(masked_lm_teacher, text_file, MAKE, {"kind": "benchmark", "lengths": [65]}),
    ):
        with pytest.raises(ValueError, match=r"nowhere|out of range|sequence length"):
            ran(settings, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_mistake_leaves_a_finished_run_as_it_was(
    masked_lm_teacher: Path, text_file: Path, folder: Path
) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=r"was not found\. Check the path of the model folder"):
        ran(recipe("./nowhere", text_file), folder)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_two_runs_at_once_are_refused(
    masked_lm_teacher: Path, text_file: Path, folder: Path
) -> None:
    with open_run(folder, "little").lock(), pytest.raises(ValueError, match="another potstill"):
        ran(recipe(masked_lm_teacher, text_file), folder)


def test_a_run_by_name_and_overrides(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_files.dump_recipe(recipe(masked_lm_teacher, text_file, MAKE)))
    assert run(path, ["make_student.depth=3"]) == Path("runs/little")
    result = json.loads(Path("runs/little/stages/01-make_student/result.json").read_text())
    assert result["layers"] == [0, 2, 3]


def test_rebuild_writes_report_and_card_anew(folder: Path) -> None:
    assert rebuild_report(folder) == folder / "report.html"
    assert (folder / "metrics.json").is_file()
    assert (folder / "model/README.md").is_file()
    with pytest.raises(ValueError, match="stages: not a run folder, there is no recipe"):
        rebuild_report(folder / "stages")


def test_other_pairs_are_another_evaluation(
    sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    """What they hold is part of the fingerprint, not what they are called alone."""
    pairs = tmp_path / "sts.tsv"
    pairs.write_text("sentence1\tsentence2\tscore\noak\tpeat\t3\n")
    evaluate = {"kind": "evaluate", "pairs": {"sources": str(pairs)}}
    settings = recipe(
        *(sentence_teacher, text_file, {"kind": "make_student"}, evaluate),
        task="sentence_embedding",
    )
    given = {"teacher": sentence_teacher}
    before = stage_fingerprints(settings, given)
    pairs.write_text("sentence1\tsentence2\tscore\noak\tpeat\t4\n")
    after = stage_fingerprints(settings, given)
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)
    pairs.unlink()
    with pytest.raises(ValueError, match=r"sts\.tsv: the file was not found"):
        check_inputs(settings, tmp_path / "run")


def test_a_benchmark_runs_again_where_its_text_has_changed(tmp_path: Path) -> None:
    text = tmp_path / "timed.txt"
    timed = Benchmark(pass_over=TextPass(sources=[str(text)]))
    digests = []
    for content in ("copper\n", "copper\n", "oak\n"):
        text.write_text(content)
        digests.append(stage_digest("", timed))
    assert digests[0] == digests[1] != digests[2]
