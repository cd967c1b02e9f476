"""What is read from a run folder, and metrics.json, against the numbers that were put in."""

from __future__ import annotations

import json
import math

import pytest
from fake_run import benchmark_result, evaluate_result, fake_run, stage

from potstill.reporting.losses import loss_curves
from potstill.reporting.metrics_json import build_metrics
from potstill.reporting.results import read_results


def test_metrics_hold_what_the_stages_measured(tmp_path):
    metrics = build_metrics(fake_run(tmp_path))
    assert list(metrics) == ["models", "comparisons", "settings", "references"]
    assert metrics["references"] == evaluate_result()["references"]
    assert list(metrics["models"]) == ["teacher", "student", "untrained"]
    assert metrics["models"]["student"] == {
        "parameters": 17241216,
        "weight_bytes": 17241216 * 4 + 11000,
        "latency_ms": {
            "16": {"p50": 5.126 * 0.52, "p95": 6.871 * 0.52, "p99": 7.204 * 0.52},
            "128": {"p50": 24.618 * 0.52, "p95": 29.994 * 0.52, "p99": 31.5 * 0.52},
        },
        "multiply_adds": {"16": 88_920_000, "128": 748_800_000},
        "throughput_per_s": 51.37 / 0.52,
        "peak_memory_bytes": 400_000_000 + 17241216 * 4,
        "folder_bytes": 69964864,
        "load_s": 0.2,
        "scores": {
            "retrieval": {"mrr": 0.8645, "recall_at_1": 0.7905, "seeds": [0.8645]},
            "topic_probe": {"accuracy": 0.9743, "seeds": [0.9743]},
            "similarity": {"pearson": 0.9419, "seeds": [0.9419]},
            "hidden": {"cosine": 0.8867, "seeds": [0.8867]},
        },
    }
    # never timed, so no more than its count and its scores
    assert set(metrics["models"]["untrained"]) == {"parameters", "scores"}
    assert metrics["models"]["untrained"]["parameters"] == 17241216
    for name, told in metrics["comparisons"].items():
        assert told.pop("retention_intervals") == evaluate_result()["intervals"][name]
    assert metrics["comparisons"] == {
        "student": {
            "retention": {"retrieval": 0.98105, "topic_probe": 0.9959},
            "retention_by_score": {
                "retrieval.mrr": 0.98105,
                "retrieval.recall_at_1": 0.9709,
                "topic_probe.accuracy": 0.9959,
            },
            "speedup": {"16": 1.8814, "128": 1.9227},
            "size_ratio": 0.7592,
        },
        "untrained": {
            "retention": {"retrieval": 0.8399, "topic_probe": 0.9818},
            "retention_by_score": {
                "retrieval.mrr": 0.8399,
                "retrieval.recall_at_1": 0.7864,
                "topic_probe.accuracy": 0.9818,
            },
        },
    }
    assert metrics["settings"] == {
        "recipe": "fake-news",
        "task": "sentence_embedding",
        "seed": 1,
        "baseline": "teacher",
        "records": 506,
        "threads": 1,
        "batch": 1,
        "rounds": 10,
        "repeats": 10,
        "throughput_batch": 32,
        "throughput_length": 128,
        "noisy": False,
    }


def test_metrics_of_a_task_have_differences_and_intervals(tmp_path):
    run = fake_run(tmp_path)
    result = evaluate_result()
    result["differences"] = {
        "tfidf": {"metric": "mrr", "difference": 0.06, "interval": [0.01, 0.1]}
    }
    result["intervals"] = {"student": {"retrieval.mrr": [0.97, 0.99]}}
    stage(run, "10-finetune", {"model": "untrained", "writes": "plain"}, {})
    stage(run, "11-evaluate", {}, result)
    metrics = build_metrics(run)
    assert metrics["differences"] == result["differences"]
    kept = metrics["comparisons"]["student"]
    assert kept["retention_intervals"] == {"retrieval.mrr": [0.97, 0.99]}
    # as large as what it was trained from
    assert read_results(run).counted["plain"] == 17241216


@pytest.mark.parametrize(
    ("steps", "early", "told"), [(400, False, 0), (370, False, 0), (40, False, 1), (40, True, 0)]
)
def test_a_twin_that_was_trained_for_fewer_steps_is_told(tmp_path, steps, early, told):
    """With data.unlabelled an epoch of the student is longer than one of the twin."""
    run = fake_run(tmp_path)  # whose student was trained for 400
    result = {**evaluate_result(), "twin": "plain"}
    result["models"]["plain"] = result["models"]["untrained"]
    training = {"steps": steps, "stopped_early": early}
    stage(run, "10-finetune", {"model": "untrained", "writes": "plain"}, training)
    stage(run, "11-evaluate", {}, result)
    found = [said for said in read_results(run).findings if "steps" in said]
    assert len(found) == told
    if told:
        assert found[0].startswith("student was trained for 400 steps and plain for 40, so")


def test_the_last_evaluation_and_the_last_benchmark_count(tmp_path):
    run = fake_run(tmp_path)
    later, slower = evaluate_result(), benchmark_result()
    later["models"]["student"]["retrieval"]["mrr"] = 0.5
    slower["ratios"]["student"]["size_ratio"] = 0.25
    # 10 comes after 4, although not in the order of letters
    stage(run, "10-evaluate", {}, later)
    stage(run, "11-benchmark", {}, slower)
    metrics = build_metrics(run)
    assert metrics["models"]["student"]["scores"]["retrieval"]["mrr"] == 0.5
    assert metrics["comparisons"]["student"]["size_ratio"] == 0.25
    assert [one.name for one in read_results(run).stages][-2:] == ["10-evaluate", "11-benchmark"]


def test_seeds_are_of_the_score_that_the_task_is_judged_by(tmp_path):
    run = fake_run(tmp_path)
    found = evaluate_result() | {"metric": "recall_at_1"}
    found["models"]["student"]["retrieval"]["seeds"] = [0.7, 0.8]
    stage(run, "05-evaluate", {}, found)
    models = build_metrics(run)["models"]
    assert models["student"]["scores"]["retrieval"]["seeds"] == [0.7, 0.8]
    assert models["teacher"]["scores"]["retrieval"]["seeds"] == [0.8142]


def test_the_chain_leads_from_the_teacher_to_the_last_artifact(tmp_path):
    run = fake_run(tmp_path)
    stage(run, "05-finetune", {"model": "untrained", "writes": "plain"}, {})
    stage(run, "06-export", {"model": "plain", "writes": "other"}, {})
    stage(run, "07-trim_vocabulary", {"model": "student", "writes": None}, {})
    stage(run, "08-export", {"model": "student", "writes": "onnx"}, {})
    results = read_results(run)
    assert [(name, [one.kind for one in stages]) for name, stages in results.chain] == [
        ("untrained", ["make_student"]),
        ("student", ["distill", "trim_vocabulary"]),
        ("onnx", ["export"]),
    ]
    assert results.twin == "plain"


def test_a_chain_goes_through_several_trainings(tmp_path):
    for number, (kind, settings) in enumerate(
        [
            ("finetune", {"model": "teacher"}),
            ("make_student", {"teacher": "teacher", "writes": "student"}),
            ("distill", {"model": "student"}),
            ("prune", {"model": "student", "writes": "pruned"}),
            ("distill", {"model": "pruned", "writes": "recovered"}),
        ]
    ):
        result = {"parameters": {"before": 2, "after": 1}} if kind == "prune" else {}
        stage(tmp_path, f"{number:02}-{kind}", settings, result)
    chain = [(name, [s.kind for s in stages]) for name, stages in read_results(tmp_path).chain]
    assert chain == [
        ("student", ["make_student", "distill"]),
        ("pruned", ["prune"]),
        ("recovered", ["distill"]),
    ]


def test_the_kind_is_that_of_the_configuration_not_of_the_folder(tmp_path):
    run = fake_run(tmp_path)
    (run / "stages" / "03-evaluate").rename(run / "stages" / "03-other")
    assert "scores" in build_metrics(run)["models"]["student"]


def test_numbers_that_are_not_finite_become_null(tmp_path):
    run = fake_run(tmp_path)
    path = run / "stages" / "03-evaluate" / "result.json"
    result = json.loads(path.read_text())
    result["models"]["student"]["hidden"]["cosine"] = math.nan
    path.write_text(json.dumps(result))
    metrics = build_metrics(run)
    assert metrics["models"]["student"]["scores"]["hidden"]["cosine"] is None
    json.dumps(metrics, allow_nan=False)


def test_unfinished_stages_are_left_out(tmp_path):
    run = fake_run(tmp_path)
    (run / "stages" / "03-evaluate" / "result.json").unlink()
    (run / "stages" / "04-benchmark" / "result.json").unlink()
    metrics = build_metrics(run)
    # counted by make_student; distillation trains the untrained one and keeps its size
    assert metrics["models"] == {
        "teacher": {"parameters": 22713216},
        "student": {"parameters": 17241216},
        "untrained": {"parameters": 17241216},
    }
    assert metrics["comparisons"] == {}


def test_the_student_is_the_last_one_distilled(tmp_path):
    run = fake_run(tmp_path)
    assert read_results(run).student == "student"
    stage(run, "05-finetune", {"model": "untrained", "writes": "plain"}, {})
    assert read_results(run).student == "student"
    stage(run, "06-distill", {"model": "student", "writes": "again"}, {})
    assert read_results(run).student == "again"


def test_loss_curves_take_the_later_of_two_lines_and_skip_a_broken_one(tmp_path):
    lines = [
        {"event": "start"},
        {"event": "train", "step": 2, "loss": 9.0, "components": {"a": 4.0, "b": 1.0}},
        {"event": "train", "step": 1, "loss": 7.0, "components": {"a": 3.0, "b": 1.0}},
        {"event": "resume", "step": 1},
        {"event": "train", "step": 2, "loss": 5.0, "components": {"a": 2.0, "b": 1.0}},
        {"event": "evaluate", "step": 2, "loss": 6.0, "components": {"a": 2.5, "b": 1.0}},
    ]
    folder = stage(tmp_path, "01-distill", {"model": "student"}, {})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "log.jsonl").write_text(text + '{"event": "train", "st')
    curves = loss_curves(read_results(tmp_path).stages[0])
    assert [(curve.key, curve.train, curve.evaluated) for curve in curves] == [
        ("loss", [(1, 7.0), (2, 5.0)], [(2, 6.0)]),
        ("a", [(1, 3.0), (2, 2.0)], [(2, 2.5)]),
        ("b", [(1, 1.0), (2, 1.0)], [(2, 1.0)]),
    ]


def test_a_single_component_is_shown_once(tmp_path):
    folder = stage(tmp_path, "01-distill", {"model": "student"}, {})
    line = {"event": "train", "step": 1, "loss": 3.0, "components": {"hard_targets": 3.0}}
    (folder / "log.jsonl").write_text(json.dumps(line))
    curves = loss_curves(read_results(tmp_path).stages[0])
    assert [curve.key for curve in curves] == ["hard_targets"]


def test_errors_name_the_thing(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: the folder does not exist"):
        read_results(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no stage is finished"):
        read_results(tmp_path)
    run = fake_run(tmp_path)
    (run / "stages" / "03-evaluate" / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"03-evaluate/result\.json"):
        read_results(run)
    (run / "stages" / "03-evaluate" / "result.json").write_text("[]")
    with pytest.raises(
        ValueError, match=r"03-evaluate/result\.json: this is a JSON list, not an object"
    ):
        read_results(run)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: [", r"recipe\.yaml:1: the YAML is not valid"),
        ("- x", r"recipe\.yaml: the recipe is a list"),
    ],
)
def test_a_damaged_recipe_is_named(tmp_path, text, what):
    run = fake_run(tmp_path)
    (run / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=what):
        read_results(run)


def test_a_suite_s_result_that_is_none_is_named(tmp_path):
    run = fake_run(tmp_path)
    whole = {"suite": "glue", "partial": False, "partial_reasons": [], "baseline": "teacher"}
    whole |= {"models": {}, "retention": {}, "tasks": {}}
    (run / "suite.json").write_text(json.dumps(whole))
    assert read_results(run).suite == whole
    for wrong, what in (([], "the key 'suite'"), (whole | {"tasks": 6}, "the key 'tasks'")):
        (run / "suite.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=rf"suite\.json.*{what}"):
            build_metrics(run)


def test_nothing_is_told_of_a_student_or_a_baseline_that_was_written_anew(tmp_path):
    run = fake_run(tmp_path)
    before = build_metrics(run)
    result = {"pieces": {}, "parameters": {"before": 17241216, "after": 9000000}}
    stage(run, "10-trim_vocabulary", {"model": "student"}, result)
    metrics = build_metrics(run)
    assert metrics["models"].pop("student", {}) in ({}, {"parameters": 9000000})
    assert metrics["models"] == {k: v for k, v in before["models"].items() if k != "student"}
    assert set(metrics["comparisons"]) == {"untrained"}
    assert read_results(run).evaluation.get("examples") is None
    again = {**evaluate_result(), "models": {"teacher": {}, "student": {"hidden": {"cosine": 0.5}}}}
    stage(run, "11-evaluate", {}, again)
    assert build_metrics(run)["models"]["student"]["scores"]["hidden"]["cosine"] == 0.5
    stage(run, "12-finetune", {"model": "teacher"}, {})
    assert read_results(run).evaluation == {}


def test_a_pass_over_texts_by_a_model_that_was_written_anew_is_not_told(tmp_path):
    run = fake_run(tmp_path)
    result = benchmark_result()
    passes = {name: {"seconds": 9.0} for name in ("teacher", "student")}
    result["pass"] = {"texts": 3, "models": passes, "ratios": {"student": {"median": 2.0}}}
    stage(run, "05-benchmark", {}, result)
    assert read_results(run).benchmark["pass"] == result["pass"]
    trimmed = {"pieces": {}, "parameters": {"before": 17241216, "after": 9000000}}
    stage(run, "10-trim_vocabulary", {"model": "student"}, trimmed)
    found = read_results(run).benchmark["pass"]
    assert found == {"texts": 3, "models": {"teacher": {"seconds": 9.0}}, "ratios": {}}
