"""Runs side by side: what differs, what can be compared, and the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_run import fake_run, fake_suite

from potstill.reporting import compare_runs, write_comparison

EVALUATION, BENCHMARK = "stages/03-evaluate/result.json", "stages/04-benchmark/result.json"
EVIL = '<script>alert("x")</script>'


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [fake_run(tmp_path / name) for name in ("one", "two")]


def change(path: Path, edit: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def set_recipe(run: Path, **values: Any) -> None:
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    for key, value in values.items():
        node = tree
        *path, last = key.split("__")
        for part in path:
            node = node[int(part)] if part.isdigit() else node[part]
        node[last] = value
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree))


def teacher_scores(run: Path, mrr: float) -> None:
    def edit(result: Any) -> None:
        result["models"]["teacher"]["retrieval"]["mrr"] = mrr

    change(run / EVALUATION, edit)


def rows(found: dict[str, Any], role: str) -> dict[str, list[Any]]:
    [table] = [table for table in found["tables"] if table["role"] == role]
    return {
        row["measure"]: [None if c is None else (c["text"], c["note"]) for c in row["cells"]]
        for row in table["rows"]
    }


def test_two_runs_of_one_recipe(runs):
    def worse(result: Any) -> None:
        result["models"]["student"]["retrieval"]["mrr"] = 0.85
        result["retention"]["student"]["retrieval.mrr"] = 0.9646

    change(runs[1] / EVALUATION, worse)
    set_recipe(runs[1], stages__1__training__learning_rate=0.002, stages__4__title="Another")
    found = compare_runs(runs)
    json.dumps(found, allow_nan=False)
    assert [run["name"] for run in found["runs"]] == ["one", "two"]
    assert found["differences"] == {"distill.training.learning_rate": [0.0005, 0.002]}
    assert found["environment"] == {}
    assert found["comparable"] == {"scores": True, "retention": True, "speed": True}
    assert found["warnings"] == []
    dash, times = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"
    student = rows(found, "The student")
    assert student["Retrieval MRR"] == [("0.865", ""), ("0.850", "")]
    spread = f"96.8{dash}99.3"
    assert student["Kept: Retrieval MRR"] == [("98.1%", spread), ("96.5%", spread)]
    assert student["Speedup at 16 tokens"] == [(f"1.88{times}", f"1.84{dash}1.92")] * 2
    assert student["Weights, share of the bytes"] == [("0.76", "")] * 2
    assert rows(found, "The baseline")["Retrieval MRR"] == [("0.881", "")] * 2
    assert [table["role"] for table in found["tables"]] == ["The student", "The baseline"]


def test_what_one_run_lacks_is_empty(runs):
    (runs[1] / BENCHMARK).unlink()
    student = rows(compare_runs(runs), "The student")
    assert student["Speedup at 16 tokens"][1] is None
    assert student["Parameters (millions)"] == [("17.2", "")] * 2


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"corpus__heldout": 0.2}, "corpus.heldout"),
        ({"seed": 2}, "seed"),
        ({"corpus__group_by": "title", "seed": 2}, "seed, corpus.group_by"),
    ],
)
def test_scores_on_other_texts_are_not_comparable(runs, values, keys):
    set_recipe(runs[1], **values)
    teacher_scores(runs[1], 0.87)
    found = compare_runs(runs)
    assert found["comparable"]["scores"] is found["comparable"]["retention"] is False
    assert found["warnings"] == [
        f"Scores can't be compared, nor what is kept: the data settings differ ({keys})."
    ]


def test_a_run_without_scores_is_told(runs):
    shutil.rmtree((runs[1] / EVALUATION).parent)
    found = compare_runs(runs)
    assert found["comparable"]["scores"] is found["comparable"]["retention"] is False
    assert found["warnings"][0] == "Scores can't be compared: there are none in two."


def test_other_settings_with_the_same_texts_are_told_by_the_teacher_s_scores(runs):
    set_recipe(runs[1], seed=2)
    found = compare_runs(runs)
    assert found["comparable"]["scores"] is True
    assert found["notes"][0] == (
        "The data settings differ (seed), but the teacher scores the same in all: the held-out "
        "texts are the same."
    )
    [warning] = found["warnings"]
    assert warning.startswith("The seeds differ (1, 2): a part of each difference is the chance")


def test_a_seed_leaves_held_out_sources_as_they_are(runs):
    for seed, run in enumerate(runs):
        set_recipe(run, corpus__heldout_sources=["held.txt"], seed=seed)
    teacher_scores(runs[1], 0.8815)  # another machine
    found = compare_runs(runs)
    assert found["comparable"]["scores"] is True
    assert len(found["warnings"]) == 1


def test_texts_that_changed_under_the_same_settings(runs):
    teacher_scores(runs[1], 0.8912)
    found = compare_runs(runs)
    assert found["comparable"]["scores"] is False
    # 0.8912 - 0.8812
    assert found["warnings"] == [
        "Scores can't be compared, nor what is kept: the same teacher scores differently in them, "
        "by up to 0.010."
    ]


def test_other_teachers(runs):
    set_recipe(runs[1], teacher__model="org/another")
    found = compare_runs(runs)
    assert found["comparable"] == {"scores": True, "retention": False, "speed": False}
    assert found["warnings"][0].startswith("The teachers differ (example-org/all-MiniLM-L6-v2, org")


def test_other_processors_and_noise(runs):
    change(runs[1] / "environment.json", lambda found: found["cpu"].update(model="Another"))
    change(runs[0] / BENCHMARK, lambda result: result["noise"].update(noisy=True))
    found = compare_runs(runs)
    assert found["comparable"]["speed"] is False
    assert found["environment"] == {"cpu, model": ["A processor @ 2.5 GHz", "Another"]}
    assert found["warnings"] == [
        "Speed can't be compared: the processors differ (A processor @ 2.5 GHz, Another).",
        "Speed was measured on a noisy machine: one.",
    ]


def test_lists_are_told_by_the_kinds_of_their_entries(runs):
    objectives = [{"kind": "hidden_cosine", "weight": 1.0}, {"kind": "soft_targets", "weight": 3.0}]
    for run in runs:
        set_recipe(run, stages__1__objectives=objectives[1:])
    set_recipe(runs[1], stages__1__objectives=objectives)
    assert compare_runs(runs)["differences"] == {
        "distill.objectives.hidden_cosine": [None, "there"],
        "distill.objectives.hidden_cosine.weight": [None, 1.0],
    }


def test_folders_of_one_name_are_told_apart(tmp_path):
    runs = [fake_run(tmp_path / name / "run") for name in ("a", "b")]
    assert [run["name"] for run in compare_runs(runs)["runs"]] == ["a/run", "b/run"]


def test_suites_in_the_run_folders_are_shown(runs, tmp_path):
    assert all(table["role"] != "GLUE" for table in compare_runs(runs)["tables"])
    (runs[1] / "suite.json").write_text(json.dumps(fake_suite()))
    found = compare_runs(runs)
    dash = "\N{EN DASH}"
    assert rows(found, "GLUE")["CoLA, Matthews' correlation"] == [
        None,
        ("45.9", f"44.9{dash}46.9, 90.0% kept"),
    ]
    assert "GLUE of two is a quick look: 2 of 9 tasks; 3 seeds instead of 5." in found["warnings"]
    write_comparison(found, tmp_path / "page.html")
    assert ">GLUE</h2>" in (tmp_path / "page.html").read_text()


def test_what_is_refused(runs, tmp_path):
    with pytest.raises(
        ValueError, match=r"^RUN: a comparison needs two runs, and 1 is given\. Give two or more\.$"
    ):
        compare_runs(runs[:1])
    with pytest.raises(ValueError, match="one is given twice"):
        compare_runs([runs[0], tmp_path / "two" / ".." / "one"])
    with pytest.raises(ValueError, match="nowhere: the folder does not exist"):
        compare_runs([runs[0], tmp_path / "nowhere"])
    change(runs[1] / EVALUATION, lambda result: result.update(task="classification"))
    message = r"different tasks \(one: sentence_embedding, two: classification\)"
    with pytest.raises(ValueError, match=message):
        compare_runs(runs)


def test_the_page_is_escaped_and_fetches_nothing(runs, tmp_path):
    set_recipe(runs[1], stages__1__training__learning_rate=0.002, name=EVIL)
    evil = runs[1].rename(tmp_path / "two <b>bold<_b>")
    path = tmp_path / "page.html"
    write_comparison(compare_runs([runs[0], evil]), path)
    page = path.read_text()
    assert "<script" not in page
    assert "<b>bold" not in page
    assert "two &lt;b&gt;bold&lt;_b&gt;" in page
    assert "http" not in page.replace('http-equiv="', "")
    assert " style=" not in page
    assert "default-src &#39;none&#39;; style-src &#39;sha256-" in page
    assert "distill.training.learning_rate" in page
    assert page.count("<svg") == 1
