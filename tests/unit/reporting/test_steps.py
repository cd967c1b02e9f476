"""The steps to the last artifact, against hand-computed numbers."""

from __future__ import annotations

import json

from fake_run import fake_run, stage

from potstill.reporting.metrics_json import metrics_of
from potstill.reporting.results import read_results
from potstill.reporting.steps import steps_of

TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"


def read(run):
    results = read_results(run)
    return results, metrics_of(results)


def test_steps(tmp_path):
    """The chain goes on past the student; each step beside the one before it."""
    run = fake_run(tmp_path)
    trimmed = {
        "from": "student",
        "pieces": {"before": 30522, "after": 19031},
        "parameters": {"before": 17_241_216, "after": 12_822_912},
    }
    stage(run, "02-x", {"kind": "trim_vocabulary", "model": "student", "writes": "small"}, trimmed)
    path = run / "stages/03-evaluate/result.json"
    result = json.loads(path.read_text())
    result["models"]["small"] = {"retrieval": {"mrr": 0.86}}
    result["retention"]["small"] = {"retrieval.mrr": 0.97605}
    path.write_text(json.dumps(result))
    path = run / "stages/04-benchmark/result.json"
    result = json.loads(path.read_text())
    result["models"]["small"] = result["models"]["student"] | {"parameters": 12_822_912}
    ratios = json.loads(json.dumps(result["ratios"]["student"]))
    ratios["speedup"]["128"]["median"] = 1.5
    result["ratios"]["small"] = ratios
    path.write_text(json.dumps(result))
    found = steps_of(*read(run))
    assert found.heads == [
        "Parameters",
        "Weights",
        "Speed, 16 tokens",
        "Speed, 128 tokens",
        "Kept: Retrieval MRR",
    ]
    rows = {step.name: [(one.text, one.note) for one in step.cells] for step in found.rows}
    weights = [cells.pop(1) for cells in rows.values()]
    # (22.713216, 17.241216, 17.241216) * 4 + 0.011; 68.98 / 90.86 - 1 = -24%; not measured
    assert weights == [("90.9 MB", ""), ("", ""), ("69.0 MB", f"{MINUS}24%"), ("69.0 MB", "")]
    assert list(rows) == ["teacher", "untrained", "student", "small"]
    one = (f"1.00{TIMES}", "")
    assert rows["teacher"] == [("22.7 M", ""), one, one, ("100.0%", "")]
    # 17.24 / 22.71 - 1 = -24%; it was not timed; 84.0 - 100
    assert rows["untrained"] == [
        ("17.2 M", f"{MINUS}24%"),
        ("", ""),
        ("", ""),
        ("84.0%", f"{MINUS}16.0 points"),
    ]
    # the step before it that was timed is the teacher
    assert rows["student"] == [
        ("17.2 M", ""),
        (f"1.88{TIMES}", f"1.88{TIMES}"),
        (f"1.92{TIMES}", f"1.92{TIMES}"),
        ("98.1%", "+14.1 points"),
    ]
    # 12.82 / 17.24 - 1 = -26%; 1.5 / 1.9227 = 0.78; 97.605 - 98.105
    assert rows["small"] == [
        ("12.8 M", f"{MINUS}26%"),
        (f"1.88{TIMES}", f"1.00{TIMES}"),
        (f"1.50{TIMES}", f"0.78{TIMES}"),
        ("97.6%", f"{MINUS}0.5 points"),
    ]
    assert [step.what for step in found.rows] == [
        "the start",
        "3 of 6 layers",
        "distilled",
        "vocabulary: 19,031 of 30,522 word pieces kept",
    ]


def test_a_pruning_and_the_training_after_it_are_steps(tmp_path):
    run = fake_run(tmp_path)
    pruned = {
        "from": "student",
        "layers": None,
        "ffn": {"before": 1536, "after": 768},
        "parameters": {"before": 17_241_216, "after": 15_469_056},
        "effect": {"measure": "loss", "before": 1.0, "after": 2.0},
    }
    stage(run, "02-y", {"kind": "prune", "model": "student", "writes": "narrow"}, pruned)
    stage(run, "02-z", {"kind": "distill", "model": "narrow", "writes": "recovered"}, {})
    steps = [(step.name, step.what, step.cells[0].text) for step in steps_of(*read(run)).rows]
    assert steps[2:] == [
        ("student", "distilled", "17.2 M"),
        ("narrow", "pruned to 768 of 1,536 inner units of each layer", "15.5 M"),
        ("recovered", "distilled", "15.5 M"),
    ]


def test_a_run_that_made_no_student_has_no_steps(tmp_path):
    stage(tmp_path, "01-finetune", {"model": "teacher"}, {})
    assert steps_of(*read(tmp_path)) is None
