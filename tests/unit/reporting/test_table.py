"""The verdict and the rows of the table, against sentences and numbers written by hand."""

from __future__ import annotations

import json
import shutil

import pytest
from fake_run import fake_run, make_student_result, stage

from potstill.reporting import table, verdict
from potstill.reporting.metrics_json import metrics_of
from potstill.reporting.results import read_results


def change(run, name, edit):
    path = run / "stages" / name / "result.json"
    result = json.loads(path.read_text())
    edit(result)
    path.write_text(json.dumps(result))


def say(run) -> str:
    results = read_results(run)
    return verdict.verdict(results, metrics_of(results))


def test_verdict(tmp_path):
    # 17241216 / 22713216 = 0.7591
    assert say(fake_run(tmp_path)) == (
        "The student keeps 98.1% of the teacher's MRR (84.0% before training) with 0.76 of its "
        "parameters and runs 1.92 times as fast at 128 tokens."
    )


@pytest.mark.parametrize(
    ("kept", "sentence"),
    [
        (1.0123, "reaches 101.2% of the teacher's MRR (84.0% before training)"),
        (0.8712, "keeps only 87.1% of the teacher's MRR (84.0% before training)"),
        (
            0.8012,
            "keeps only 80.1% of the teacher's MRR "
            "(84.0% before training; training it did not help)",
        ),
    ],
)
def test_verdict_is_honest(tmp_path, kept, sentence):
    run = fake_run(tmp_path)

    def worse(result):
        result["retention"]["student"]["retrieval.mrr"] = kept

    def slower(result):
        result["ratios"]["student"]["speedup"]["128"]["median"] = 0.874
        result["noise"]["noisy"] = True

    change(run, "03-evaluate", worse)
    change(run, "04-benchmark", slower)
    assert say(run) == (
        f"The student {sentence} with 0.76 of its parameters and runs only 0.87 times as fast "
        "at 128 tokens (measured on a noisy machine)."
    )


def test_verdict_without_some_of_the_stages(tmp_path):
    run = fake_run(tmp_path)
    (run / "stages" / "03-evaluate" / "result.json").unlink()
    assert say(run) == (
        "The student has 0.76 of the teacher's parameters and runs 1.92 times as fast "
        "at 128 tokens."
    )
    (run / "stages" / "04-benchmark" / "result.json").unlink()
    assert say(run) == "The student has 0.76 of the teacher's parameters."
    shutil.rmtree(run / "stages")
    stage(run, "01-finetune", {"model": "teacher"}, {})
    assert say(run) == "This run has measured no student yet."


def test_verdict_of_a_model_that_was_trained_alone(tmp_path):
    stage(tmp_path, "01-finetune", {"model": "teacher"}, {})
    result = {
        **{"task": "multi_label", "metric": "micro_f1", "records": 1234, "baseline": "teacher"},
        "models": {"teacher": {"multi_label": {"micro_f1": 0.8765, "macro_f1": 0.5}}},
    }
    stage(tmp_path, "02-evaluate", {}, result)
    told = "The model scores 0.876: F1 over all labels on 1,234 held-out examples."
    assert say(tmp_path) == told


def test_verdict_names_models_of_other_names(tmp_path):
    result = make_student_result()
    stage(tmp_path, "01-make_student", {"teacher": "teacher", "writes": "tiny"}, result)
    assert say(tmp_path) == "The model tiny has 0.76 of the teacher's parameters."


def test_verdict_falls_back_to_another_score(tmp_path):
    run = fake_run(tmp_path)

    def masked(result):
        result["retention"] = {"student": {"masked_lm.top1": 0.9512, "agreement.top1": 0.5}}

    change(run, "03-evaluate", masked)
    assert "keeps 95.1% of the teacher's masked-LM top-1 accuracy with" in say(run)
    change(run, "03-evaluate", lambda r: r.update(retention={"student": {"my.own_score": 0.93}}))
    assert "keeps 93.0% of the teacher's my: own score with" in say(run)


def test_rows_in_order_with_their_numbers(tmp_path):
    results = read_results(fake_run(tmp_path))
    rows = table.comparison_rows(results, metrics_of(results))
    shown = [(row.label, {n: (c.text, c.note) for n, c in row.cells.items()}) for row in rows]
    assert [label for label, _ in shown] == [
        "Parameters (millions)",
        "Weights (MB)",
        "Multiply-adds of one text of 16 tokens (millions)",
        "Multiply-adds of one text of 128 tokens (millions)",
        "Latency of one text of 16 tokens (ms)",
        "Latency of one text of 128 tokens (ms)",
        "Throughput, 32 texts of 128 tokens at once (texts/s)",
        "Time to load (s)",
        "Peak memory of the process (MB)",
        "Retrieval MRR",
        "Retrieval recall@1",
        "Topic accuracy, linear probe",
        "Similarity matrix, correlation",
        "Hidden cosine",
        "Kept: Retrieval MRR",
        "Kept: Retrieval recall@1",
        "Kept: Topic accuracy, linear probe",
        "Speedup at 16 tokens",
        "Speedup at 128 tokens",
        "Throughput, times as high",
        "Weights, share of the bytes",
    ]
    cells = dict(shown)
    assert cells["Parameters (millions)"] == {
        "teacher": ("22.7", ""),
        "student": ("17.2", ""),
        "untrained": ("17.2", ""),
    }
    # 5.126 * 0.52 = 2.66552, 6.871 * 0.52 = 3.57292, 7.204 * 0.52 = 3.74608
    assert cells["Latency of one text of 16 tokens (ms)"] == {
        "teacher": ("5.13", "p95 6.87, p99 7.20"),
        "student": ("2.67", "p95 3.57, p99 3.75"),
    }
    assert cells["Multiply-adds of one text of 128 tokens (millions)"] == {
        "teacher": ("1,440", ""),
        "student": ("749", ""),
    }
    assert cells["Time to load (s)"] == {"teacher": ("0.200", ""), "student": ("0.200", "")}
    assert cells["Retrieval MRR"]["tfidf"] == ("0.802", "")
    assert "tfidf" not in cells["Hidden cosine"]
    dash, times = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"
    assert cells["Kept: Retrieval MRR"] == {
        "student": ("98.1%", f"96.8{dash}99.3"),
        "untrained": ("84.0%", f"81.0{dash}86.9"),
    }
    assert cells["Kept: Retrieval recall@1"]["untrained"] == ("78.6%", "")
    assert cells["Speedup at 128 tokens"] == {"student": (f"1.92{times}", f"1.90{dash}1.95")}
    assert cells["Weights, share of the bytes"] == {"student": ("0.76", "")}
    assert {row.group for row in rows} == {
        "Size",
        "Speed on 1 thread",
        "Scores on 506 held-out records",
        "Against the teacher",
    }


def test_what_could_not_be_told_apart_is_said(tmp_path):
    run = fake_run(tmp_path)
    unsure = {"median": 0.98, "low": 0.9, "high": 1.1, "verdict": "can't tell"}
    change(run, "04-benchmark", lambda r: r["ratios"]["student"]["speedup"].update({"128": unsure}))
    assert say(run).endswith(
        "and runs 0.98 times as fast at 128 tokens (faster or slower can't be told)."
    )
    results = read_results(run)
    rows = table.comparison_rows(results, metrics_of(results))
    notes = {row.label: row.cells["student"].note for row in rows if "student" in row.cells}
    dash = "\N{EN DASH}"
    assert notes["Speedup at 128 tokens"] == f"0.90{dash}1.10, can't tell"
    assert notes["Speedup at 16 tokens"] == f"1.84{dash}1.92"


def test_a_pass_over_real_text_has_its_seconds_and_ratios(tmp_path):
    run = fake_run(tmp_path)

    def passes(result):
        result["pass"] = {
            "texts": 1500,
            "models": {
                "teacher": {"seconds": 41.24, "interval": [41.0, 42.5]},
                "student": {"seconds": 20.5, "interval": [20.0, 21.0]},
            },
            "ratios": {"student": {"median": 2.01, "low": 1.99, "high": 2.04, "verdict": "faster"}},
        }

    change(run, "04-benchmark", passes)
    results = read_results(run)
    rows = table.comparison_rows(results, metrics_of(results))
    cells = {row.label: {n: (c.text, c.note) for n, c in row.cells.items()} for row in rows}
    dash, times = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"
    assert cells["A pass over 1,500 texts, one at a time (s)"] == {
        "teacher": ("41.2", f"41.00{dash}42.50"),
        "student": ("20.5", f"20.00{dash}21.00"),
    }
    assert cells["Speedup of the pass over texts"] == {
        "student": (f"2.01{times}", f"1.99{dash}2.04")
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.05123, "0.0512"),
        (1.0, "1.00"),
        (9.996, "10.0"),
        (24.618, "24.6"),
        (123.4, "123"),
        (1234.5, "1,234"),
        (-2.5, "-2.50"),
        (float("inf"), "not finite"),
    ],
)
def test_number(value, text):
    assert table.number(value) == text


def test_scores_of_single_seeds_are_no_rows():
    scores = {"retrieval": {"mrr": 0.5, "seeds": [0.4, 0.6]}}
    assert table.flat_scores(scores) == {"retrieval.mrr": 0.5}


def test_a_score_that_is_not_finite_is_said():
    assert table.score_cell(None).text == "not finite"
    assert table.score_cell(23.456).text == "23.5"
    assert table.score_cell(0.98765).text == "0.988"


def test_a_sentence_encoder_s_difference_is_named_by_the_score_it_is_of(tmp_path):
    run = fake_run(tmp_path)
    told = {"metric": "mrr", "difference": 0.014, "interval": [-0.014, 0.044]}
    change(run, "03-evaluate", lambda found: found.update(differences={"tfidf": told}))
    results = read_results(run)
    rows = table.comparison_rows(results, metrics_of(results))
    [row] = [row for row in rows if row.group == "The student, less each other"]
    assert row.label == "Retrieval MRR"
    assert row.cells["tfidf"].note == "-0.014 to +0.044"
