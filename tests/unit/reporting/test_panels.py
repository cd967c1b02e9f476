"""What is drawn of a run's numbers: which models, in which plot, and of a suite."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fake_run import fake_run, fake_suite

from potstill.reporting import panels
from potstill.reporting.metrics_json import metrics_of
from potstill.reporting.results import read_results


def read(run):
    results = read_results(run)
    return results, metrics_of(results)


def descriptions(svg: str) -> str:
    return svg.partition("<desc")[2].partition("</desc>")[0].partition(">")[2]


def test_the_front_holds_what_nothing_beats():
    rng = np.random.default_rng(0)
    costs, scores = rng.integers(0, 9, (2, 40)).tolist()

    def beaten(a: int, b: int) -> bool:
        no_worse = costs[b] <= costs[a] and scores[b] >= scores[a]
        return no_worse and (costs[b] < costs[a] or scores[b] > scores[a])

    everyone = range(len(costs))
    best = {a for a in everyone if not any(beaten(a, b) for b in everyone)}
    front = panels.pareto_front(costs, scores)
    # of equal points one stands for all
    assert set(front) <= best
    assert {(costs[n], scores[n]) for n in front} == {(costs[n], scores[n]) for n in best}
    assert [costs[n] for n in front] == sorted(costs[n] for n in front)


def test_models_are_judged_by_the_headline(tmp_path):
    results, metrics = read(fake_run(tmp_path))
    assert panels.headline_score(results, metrics) == "retrieval.mrr"
    for model in metrics["models"].values():
        del model["scores"]
    metrics["comparisons"] = {}
    assert panels.headline_score(results, metrics) is None
    assert panels.pareto(results, metrics) is None


def test_a_loss_is_no_headline(tmp_path):
    run = fake_run(tmp_path)
    path = run / "stages/03-evaluate/result.json"
    result = json.loads(path.read_text())
    result |= {"task": "regression", "metric": "mse", "retention": {}, "intervals": {}}
    scores = {"regression": {"mse": 0.5, "pearson": 0.9}}
    result["models"] = {name: scores for name in result["models"]}
    path.write_text(json.dumps(result))
    assert panels.headline_score(*read(run)) == "regression.pearson"


def test_every_model_that_was_timed_and_scored_is_in_the_plots(tmp_path):
    found = panels.pareto(*read(fake_run(tmp_path)))
    assert [panel["title"] for panel in found["panels"]] == [
        "ms for one text of 16 tokens",
        "ms for one text of 128 tokens",
        "MB of weights",
    ]
    # 5.126 ms and 0.8812; 5.126 * 0.52 ms and 0.8645; TF-IDF 0.8023
    assert descriptions(found["panels"][0]["svg"]) == (
        "ms for one text of 16 tokens, Retrieval MRR: teacher (on the front) 5.126, 0.8812; "
        "student (on the front) 2.666, 0.8645; TF-IDF scores 0.8023."
    )
    assert found["left_out"] == ["untrained"]  # it has neither a time nor a size


def test_without_a_benchmark_there_is_no_plot(tmp_path):
    run = fake_run(tmp_path)
    (run / "stages/04-benchmark/result.json").unlink()
    assert panels.pareto(*read(run)) is None


def test_kept_scores_have_their_intervals(tmp_path):
    told = descriptions(panels.kept(*read(fake_run(tmp_path))))
    assert told == (
        "Retrieval MRR: student 98.1%, untrained 84.0%; Retrieval recall@1: student 97.1%, "
        "untrained 78.6%; Topic accuracy, linear probe: student 99.6%, untrained 98.2%."
    )


def test_a_suite_in_the_run_folder_is_shown(tmp_path):
    run = fake_run(tmp_path)
    assert panels.suite(read_results(run)) is None
    (run / "suite.json").write_text(json.dumps(fake_suite()))
    results, metrics = read(run)
    found = panels.suite(results)
    assert found["partial"] == ["2 of 9 tasks", "3 seeds instead of 5"]
    # of WNLI, where the baseline guesses, nothing is kept
    assert descriptions(found["figure"]) == "CoLA: small 90.0%."
    dash = "\N{EN DASH}"
    rows = {row.label: [(c.text, c.note) for c in row.cells.values()] for row in found["rows"]}
    assert rows == {
        "CoLA, Matthews' correlation": [
            ("51.0", f"50.0{dash}52.0"),
            ("45.9", f"44.9{dash}46.9, 90.0% kept"),
        ],
        "WNLI, accuracy, a small set": [
            ("60.0", f"50.0{dash}60.0"),
            ("60.0", f"50.0{dash}60.0"),
        ],
        "Average of 2 tasks": [("55.5", ""), ("53.0", "95.0% kept")],
        "Average without WNLI": [("51.0", ""), ("45.9", "90.0% kept")],
        "Where there is retention": [("", ""), ("", "90.0% kept")],
    }
    assert metrics["suite"]["partial"] is True
    assert metrics["suite"]["retention"] == fake_suite()["retention"]


def test_a_whole_suite_is_not_marked(tmp_path):
    run = fake_run(tmp_path)
    (run / "suite.json").write_text(json.dumps(fake_suite(partial=False)))
    assert panels.suite(read_results(run))["partial"] == []


@pytest.mark.parametrize("text", ["[]", '{"suite": "glue"}'])
def test_another_file_of_that_name_is_refused(tmp_path, text):
    run = fake_run(tmp_path)
    (run / "suite.json").write_text(text)
    with pytest.raises(
        ValueError,
        match=r"suite\.json: the key 'suite' of a suite's result is missing"
        if text == "[]"
        else r"suite\.json: the key 'partial' of a suite's result is missing",
    ):
        read_results(run)
