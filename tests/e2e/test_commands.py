"""Whole runs through the command, from files to a published model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from conftest import Finished, sentences

Potstill = Callable[..., Finished]
KINDS = ["make_student", "distill", "evaluate", "benchmark", "report"]


def recipe(task: str, teacher: Path, text: list[dict[str, Any]]) -> dict[str, Any]:
    sentence = task == "sentence_embedding"
    names = {"title": "query", "body": "passage", "label": "label"}
    scored = {key: column for column, key in names.items()} if sentence else {"max_records": 40}
    return {
        "name": task,
        "task": task,
        "teacher": str(teacher),
        "corpus": {
            "sources": text,
            "columns": ["title", "body"] if sentence else ["text"],
            "max_length": 40,
            "min_length": 4,
            "heldout": 0.3,
        },
        "stages": [
            {"kind": "make_student", "writes": "untrained"},
            {
                "kind": "distill",
                "model": "untrained",
                "writes": "student",
                "objectives": [
                    {"kind": "soft_targets", "temperature": 2.0},
                    {"kind": "hard_targets", "target": "teacher" if sentence else "gold"},
                    {"kind": "hidden_cosine"},
                ],
                "training": {"max_steps": 12, "batch_size": 8, "evaluate_every": 4},
            },
            {"kind": "evaluate", **scored},
            {
                "kind": "benchmark",
                "models": ["student"],
                "lengths": [8, 16],
                "rounds": 3,
                "repeats": 1,
            },
            {"kind": "report", "language": "en"},
        ],
    }


def documents(folder: Path) -> str:
    """Text files whose first line is a title, in two folders that are their topics."""
    for number, text in enumerate(sentences(120, seed=7)):
        path = folder / ("copper", "oak")[number % 2] / f"{number:03}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        words = text.split()
        path.write_text(f"{' '.join(words[:5])}\n{text} {' '.join(reversed(words))}\n")
    return f"{folder}/*/*.txt"


@dataclass(frozen=True)
class Run:
    """A finished run: where the command was given, and what it said."""

    work: Path
    folder: Path
    out: str
    err: str


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
    masked_lm_teacher: Path,
    sentence_teacher: Path,
    text_file: Path,
) -> dict[str, Run]:
    """Both recipes, run as a user does: in processes of their own, at the same time."""
    base = tmp_path_factory.mktemp("runs")
    lines = {"kind": "files", "paths": [str(text_file)]}
    folders = {"kind": "files", "paths": [documents(base / "documents")], "unit": "document"}
    recipes = {
        "masked_lm": recipe("masked_lm", masked_lm_teacher, [lines]),
        "sentence_embedding": recipe("sentence_embedding", sentence_teacher, [folders]),
    }
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "POTSTILL_CACHE": str(base / "cache")}
    started = {}
    for task, tree in recipes.items():
        work = base / task
        work.mkdir()
        (work / "recipe.yaml").write_text(yaml.safe_dump(tree))
        started[task] = subprocess.Popen(
            [sys.executable, "-m", "potstill", "run", "recipe.yaml"],
            cwd=work,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    found = {}
    for task, process in started.items():
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        found[task] = Run(base / task, base / task / "runs" / task, out, err)
    return found


@pytest.fixture(params=["masked_lm", "sentence_embedding"])
def whole(request: pytest.FixtureRequest, runs: dict[str, Run]) -> Run:
    """Either run, to look at."""
    return runs[request.param]


@pytest.fixture(params=["masked_lm", "sentence_embedding"])
def again(
    request: pytest.FixtureRequest,
    runs: dict[str, Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """A copy of either run, to go on with."""
    run = runs[request.param]
    shutil.copytree(run.work, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return Run(tmp_path / "work", Path("runs") / request.param, run.out, run.err)


# --- what a run leaves ----------------------------------------------------------------------------


def test_the_terminal_tells_the_stages_and_nothing_of_libraries(whole: Run) -> None:
    assert whole.err == ""
    finished = re.findall(r"^  ✓ (\d)/5 (\w+): \d+:\d\d$", whole.out, re.MULTILINE)
    assert finished == [(str(n), kind) for n, kind in enumerate(KINDS, start=1)]
    assert "Done in " in whole.out
    for name in ("model", "report.html", "metrics.json"):
        assert f"{whole.folder.relative_to(whole.work)}/{name}" in whole.out


def test_the_run_folder_holds_what_the_design_says(whole: Run) -> None:
    resolved = yaml.safe_load((whole.folder / "recipe.yaml").read_text())
    assert resolved["stages"][1]["training"]["warmup"] == 0.05  # a default, written out
    environment = json.loads((whole.folder / "environment.json").read_text())
    assert {"potstill", "torch", "transformers"} <= set(environment["versions"])
    for number, kind in enumerate(KINDS, start=1):
        stage = whole.folder / "stages" / f"{number:02}-{kind}"
        for name in ("config.json", "result.json", "DONE"):
            assert (stage / name).is_file()
    steps = [
        json.loads(line)
        for line in (whole.folder / "stages/02-distill/log.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in steps if line["event"] == "evaluate"] == [4, 8, 12]
    assert not (whole.folder / "stages/02-distill/checkpoints").exists()


def test_the_student_is_the_distilled_one(whole: Run) -> None:
    def weights(path: str) -> dict[str, torch.Tensor]:
        return load_file(whole.folder / path / "model.safetensors")

    published = weights("model")
    distilled, made = weights("stages/02-distill/model"), weights("stages/01-make_student/model")
    assert all(torch.equal(published[name], distilled[name]) for name in distilled)
    assert any(not torch.equal(distilled[name], made[name]) for name in made)


def test_metrics_have_the_design_s_shape(whole: Run) -> None:
    metrics = json.loads((whole.folder / "metrics.json").read_text())
    assert list(metrics)[:3] == ["models", "comparisons", "settings"]
    assert set(metrics["models"]) == {"teacher", "student", "untrained"}
    for name in ("teacher", "student"):
        model = metrics["models"][name]
        assert isinstance(model["parameters"], int)
        assert isinstance(model["weight_bytes"], int)
        assert set(model["latency_ms"]) == {"8", "16"}
        assert all(set(value) >= {"p50", "p95"} for value in model["latency_ms"].values())
        assert model["throughput_per_s"] > 0
        assert model["peak_memory_bytes"] > 0
        assert model["scores"]
    comparison = metrics["comparisons"]["student"]
    own = {"retention", "retention_by_score", "speedup", "size_ratio"}
    assert own <= set(comparison) <= own | {"retention_intervals", "throughput_ratio"}
    assert set(comparison["speedup"]) == {"8", "16"}
    # a layer of the tiny models, and what the two have beside layers
    assert metrics["models"]["teacher"]["parameters"] > metrics["models"]["student"]["parameters"]
    assert "teacher" not in metrics["comparisons"]
    assert metrics["settings"]["threads"] == 1
    assert metrics["settings"]["batch"] == 1


def test_scores_of_each_task(runs: dict[str, Run]) -> None:
    def scores(task: str) -> dict[str, Any]:
        metrics = json.loads((runs[task].folder / "metrics.json").read_text())
        found: dict[str, Any] = metrics["models"]["student"]["scores"]
        return found

    masked = scores("masked_lm")
    assert {"masked_lm", "agreement", "hidden"} <= set(masked)
    assert set(masked["masked_lm"]) >= {"loss", "perplexity", "top1"}
    sentence = scores("sentence_embedding")
    assert set(sentence["retrieval"]) == {"mrr", "recall_at_1", "seeds"}
    assert "accuracy" in sentence["topic_probe"]
    assert "pearson" in sentence["similarity"]
    assert "cosine" in sentence["hidden"]


class _Addresses(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            loads = name in ("src", "srcset", "data", "poster", "xlink:href")
            if value and (loads or (tag == "link" and name == "href")):
                self.found.append(value)


def test_the_report_needs_nothing_from_outside(whole: Run) -> None:
    page = (whole.folder / "report.html").read_text()
    parser = _Addresses()
    parser.feed(page)
    assert all(address.startswith(("data:", "#")) for address in parser.found)
    assert "@import" not in page
    assert all(url.startswith(("data:", "#")) for url in re.findall(r"url\(['\"]?([^'\")]+)", page))
    assert "<script src" not in page


def test_the_student_loads_without_potstill(runs: dict[str, Run]) -> None:
    """With transformers and sentence-transformers, in a process that can't import Potstill."""
    code = """
import sys
sys.modules["potstill"] = None
import json, torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForMaskedLM, AutoTokenizer
masked, sentence = sys.argv[1:]
model, info = AutoModelForMaskedLM.from_pretrained(masked, output_loading_info=True)
inputs = AutoTokenizer.from_pretrained(masked)("malt and oak", return_tensors="pt")
vectors = SentenceTransformer(sentence, device="cpu").encode(["malt and oak", "copper"])
print(json.dumps({
    "class": type(model).__name__,
    "missing": sorted(info["missing_keys"]),
    "unexpected": sorted(info["unexpected_keys"]),
    "logits": list(model(**inputs).logits.shape),
    "vectors": vectors.tolist(),
}))
"""
    published = [runs[task].folder / "model" for task in ("masked_lm", "sentence_embedding")]
    finished = subprocess.run(
        [sys.executable, "-c", code, *map(str, published)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    found = json.loads(finished.stdout.splitlines()[-1])
    assert found["class"] == "DistilBertForMaskedLM"
    assert found["missing"] == found["unexpected"] == []
    assert found["logits"] == [1, 5, 87]

    from potstill.tasks import predict

    ours = predict(published[1], ["malt and oak", "copper"], "sentence_embedding")
    torch.testing.assert_close(
        torch.tensor(found["vectors"]), torch.tensor(ours.tolist()), atol=1e-6, rtol=0
    )


# --- the same command again -----------------------------------------------------------------------


def stamps(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in (folder / "stages").rglob("*")
        if path.is_file()
    }


def test_the_same_command_again_skips_everything(again: Run, potstill: Potstill) -> None:
    before = stamps(again.folder)
    finished = potstill("run", "recipe.yaml")
    assert finished.code == 0
    assert finished.err == ""
    for number, kind in enumerate(KINDS, start=1):
        assert f"✓ {number}/5 {kind}: done before, skipped" in finished.out
    assert stamps(again.folder) == before
    assert not (again.folder / "replaced").exists()


def test_a_plan_of_a_finished_run(again: Run, potstill: Potstill) -> None:
    before = {str(p): p.stat().st_mtime_ns for p in again.work.rglob("*")}
    finished = potstill("run", "recipe.yaml", "--plan")
    assert finished.code == 0
    assert finished.err == ""
    assert finished.out.count("done, will be skipped") == 5
    assert {str(p): p.stat().st_mtime_ns for p in again.work.rglob("*")} == before


@pytest.mark.parametrize("again", ["masked_lm"], indirect=True)
def test_another_temperature_runs_again_from_there(again: Run, potstill: Potstill) -> None:
    former = (again.folder / "stages/02-distill/model/model.safetensors").read_bytes()
    finished = potstill(
        *("run", "recipe.yaml", "distill.objectives.soft_targets.temperature=4"),
        "benchmark.models=[]",  # one process less to start
    )
    assert finished.code == 0, finished.err
    assert finished.err == ""
    assert "✓ 1/5 make_student: done before, skipped" in finished.out
    assert finished.out.count("skipped") == 1
    assert "the recipe changed: 02-distill runs again; its former result is now in" in finished.out
    kept = sorted(path.name for path in (again.folder / "replaced").iterdir())
    stages = [f"{n:02}-{kind}" for n, kind in list(enumerate(KINDS, start=1))[1:]]
    assert [name.rsplit("-", 1)[0] for name in kept] == [*stages, "results"]
    assert (again.folder / "replaced" / kept[0] / "model/model.safetensors").read_bytes() == former
    published = (again.folder / "model/model.safetensors").read_bytes()
    assert published == (again.folder / "stages/02-distill/model/model.safetensors").read_bytes()
    assert published != former


def test_a_damaged_model_is_made_again(again: Run, potstill: Potstill) -> None:
    """The stage runs again, those after it need not, and what is published is still the student."""
    published = (again.folder / "model/model.safetensors").read_bytes()
    path = again.folder / "stages/01-make_student/model/model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    finished = potstill("run", "recipe.yaml")
    assert finished.code == 0, finished.err
    assert "01-make_student runs again: " in finished.out
    assert "model.safetensors is missing or changed" in finished.out
    assert "✓ 2/5 distill: done before, skipped" in finished.out
    assert path.read_bytes() == whole
    assert (again.folder / "model/model.safetensors").read_bytes() == published
    assert (again.folder / "model/README.md").is_file()


def test_what_was_published_comes_back(again: Run, potstill: Potstill) -> None:
    published = (again.folder / "model/model.safetensors").read_bytes()
    shutil.rmtree(again.folder / "model")
    (again.folder / "report.html").unlink()
    finished = potstill("run", "recipe.yaml")
    assert finished.code == 0, finished.err
    assert finished.out.count("done before, skipped") == 4  # the report is written anew
    assert (again.folder / "model/model.safetensors").read_bytes() == published
    assert (again.folder / "model/README.md").is_file()
    assert (again.folder / "report.html").is_file()


def test_a_report_is_written_anew(again: Run, potstill: Potstill) -> None:
    before = (again.folder / "metrics.json").read_bytes()
    (again.folder / "metrics.json").unlink()
    finished = potstill("report", again.folder)
    assert finished.code == 0, finished.err
    assert finished.out == f"wrote {again.folder}/report.html\n"
    assert (again.folder / "metrics.json").read_bytes() == before


# --- stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("again", "number", "code"),
    [("masked_lm", signal.SIGINT, 130), ("sentence_embedding", signal.SIGTERM, 143)],
    indirect=["again"],
)
def test_a_stopped_run_goes_on_where_it_was(
    again: Run,
    potstill: Potstill,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
) -> None:
    from potstill.training import loop

    step = loop._Loop._step

    def stop_at_6(loop: Any, done: int, batches: Any) -> None:
        step(loop, done, batches)
        if done == 5:
            signal.raise_signal(number)

    published = (again.folder / "model/model.safetensors").read_bytes()
    tree = yaml.safe_load(Path("recipe.yaml").read_text())
    Path("recipe.yaml").write_text(yaml.safe_dump({**tree, "stages": tree["stages"][:2]}))
    command = ("run", "recipe.yaml", "seed=2")
    with monkeypatch.context() as patched:
        patched.setattr(loop._Loop, "_step", stop_at_6)
        stopped = potstill(*command)
    assert stopped.code == code
    assert stopped.err == "stopped at step 6; run the same command to resume there\n"
    (kept,) = (again.folder / "replaced").glob("results-*/model/model.safetensors")
    assert kept.read_bytes() == published  # and not beside the recipe of another seed
    assert not (again.folder / "model").exists()
    finished = potstill(*command, "--plan")
    assert "begun, resumes from its checkpoint" in finished.out
    finished = potstill(*command)
    assert finished.code == 0
    assert "resuming at step 6 of 12" in finished.out
    assert (again.folder / "model/model.safetensors").read_bytes() != published


# --- other commands -------------------------------------------------------------------------------


def test_help_is_quick(potstill: Potstill) -> None:
    code = (
        "import sys, potstill.cli.entry\nsys.argv = ['potstill', '--help']\n"
        "try:\n    potstill.cli.entry.main()\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "slow = {'torch', 'transformers', 'datasets', 'numpy', 'sklearn'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    commands = (
        "run",
        "quickstart",
        "recipes",
        "evaluate",
        "bench",
        "report",
        "compare",
        "demo",
        "doctor",
    )
    missing = [name for name in commands if not re.search(rf"│ {name} ", finished.stdout)]
    assert missing == []


def test_evaluate_and_bench_print_tables(
    runs: dict[str, Run], potstill: Potstill, masked_lm_teacher: Path, text_file: Path
) -> None:
    student = runs["masked_lm"].folder / "model"
    finished = potstill("evaluate", student, "--baseline", masked_lm_teacher, "--text", text_file)
    assert finished.code == 0, finished.err
    assert finished.err == ""
    assert "Masked-LM top-1" in finished.out
    assert "Agreement of top-1" in finished.out
    finished = potstill("bench", student, "--length", 8, "--rounds", 3)
    assert finished.code == 0, finished.err
    assert finished.err == ""
    assert "of 8 tokens (ms)" in finished.out
