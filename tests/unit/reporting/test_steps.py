"""Artifacts, the Pareto front and the steps to the last one, against hand-computed numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fake_run import fake_run, stage

from potstill.reporting.metrics_json import metrics_of
from potstill.reporting.results import read_results
from potstill.reporting.steps import artifacts, headline_score, pareto_front, steps_of

TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"


def read(run):
    results = read_results(run)
    return results, metrics_of(results)


def test_the_front_holds_what_nothing_beats():
    rng = np.random.default_rng(0)
    costs, scores = rng.integers(0, 9, (2, 40)).tolist()

    def beaten(a: int, b: int) -> bool:
        no_worse = costs[b] <= costs[a] and scores[b] >= scores[a]
        return no_worse and (costs[b] < costs[a] or scores[b] > scores[a])

    everyone = range(len(costs))
    best = {a for a in everyone if not any(beaten(a, b) for b in everyone)}
    front = pareto_front(costs, scores)
    # of equal points one stands for all
    assert set(front) <= best
    assert {(costs[n], scores[n]) for n in front} == {(costs[n], scores[n]) for n in best}
    assert [costs[n] for n in front] == sorted(costs[n] for n in front)


def test_a_model_without_its_cost_or_score_has_none(tmp_path):
    results, metrics = read(fake_run(tmp_path))
    assert headline_score(results, metrics) == "retrieval.mrr"
    found = {one.name: one for one in artifacts(metrics, "retrieval.mrr")}
    assert (found["untrained"].latency, found["untrained"].weight_bytes) == ({}, None)
    assert found["student"].score == 0.8645
    assert found["student"].latency["16"] == pytest.approx(5.126 * 0.52)
    assert all(one.score is None for one in artifacts(metrics, None))


def test_a_loss_is_no_headline(tmp_path):
    run = fake_run(tmp_path)
    path = run / "stages/03-evaluate/result.json"
    result = json.loads(path.read_text())
    result |= {"task": "regression", "metric": "mse", "retention": {}, "intervals": {}}
    scores = {"regression": {"mse": 0.5, "pearson": 0.9}}
    result["models"] = {name: scores for name in result["models"]}
    path.write_text(json.dumps(result))
    assert headline_score(*read(run)) == "regression.pearson"


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
    assert (found.lengths, found.score) == (["16", "128"], "Retrieval MRR")
    rows = {
        step.name: [(one.text, one.change) for one in (step.parameters, *step.speeds, step.kept)]
        for step in found.rows
    }
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
    steps = [(step.name, step.what, step.parameters.text) for step in steps_of(*read(run)).rows]
    assert steps[2:] == [
        ("student", "distilled", "17.2 M"),
        ("narrow", "pruned to 768 of 1,536 inner units of each layer", "15.5 M"),
        ("recovered", "distilled", "15.5 M"),
    ]


def test_a_run_that_made_no_student_has_no_steps(tmp_path):
    stage(tmp_path, "01-finetune", {"model": "teacher"}, {})
    assert steps_of(*read(tmp_path)) is None
