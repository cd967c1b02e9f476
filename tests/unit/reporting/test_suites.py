"""A suite's rows, of suite.json with two tasks and two models."""

from __future__ import annotations

from fake_run import fake_suite

from potstill.reporting.suites import suite_rows, suites_of_runs
from potstill.reporting.table import Cell


def test_a_whole_suite_and_a_part_of_it() -> None:
    found = suite_rows(fake_suite())
    assert found["title"] == "GLUE"
    assert found["partial"] == ["2 of 9 tasks", "3 seeds instead of 5"]
    assert found["models"] == ["big", "small"]
    assert suite_rows(fake_suite(partial=False))["partial"] == []


def test_a_task_of_several_metrics_has_its_score_too_and_one_task_no_average() -> None:
    one = {"median": 0.5, "min": 0.5, "max": 0.5, "all": [0.5]}
    found = {
        **fake_suite(partial=False),
        "models": {"big": {"tasks": {"mrpc": {"accuracy": one, "f1": one, "score": one}}}},
        "retention": {},
        "tasks": {"mrpc": {"title": "MRPC", "metrics": ["accuracy", "f1"], "small": False}},
    }
    assert [(row.label, row.cells) for row in suite_rows(found)["rows"]] == [
        ("MRPC, accuracy", {"big": Cell(50.0, "50.0")}),
        ("MRPC, F1", {"big": Cell(50.0, "50.0")}),
        ("MRPC, score", {"big": Cell(50.0, "50.0")}),
    ]


def test_suites_of_runs_suites_of_runs() -> None:
    more = fake_suite(partial=False)
    more["tasks"] = {"cola": more["tasks"]["cola"]}
    [table], warnings = suites_of_runs({"a": fake_suite(), "b": None, "c": more})
    assert table["role"] == "GLUE"
    assert table["models"] == ["small", None, "small"]
    dash = "\N{EN DASH}"
    cola = {"value": 45.9, "text": "45.9", "note": f"44.9{dash}46.9, 90.0% kept"}
    wnli = {"value": 60.0, "text": "60.0", "note": f"50.0{dash}60.0"}
    assert {row["measure"]: row["cells"] for row in table["rows"][:2]} == {
        "CoLA, Matthews' correlation": [cola, None, cola],
        "WNLI, accuracy, a small set": [wnli, None, None],
    }
    assert warnings == ["GLUE of a is a quick look: 2 of 9 tasks; 3 seeds instead of 5."]
    assert suites_of_runs({"a": None, "b": None}) == ([], [])


def test_suites_that_were_measured_in_other_ways_are_told() -> None:
    runs = {
        name: {**fake_suite(partial=False), "settings": {"seeds": [1, 2, 3], "threads": threads}}
        for name, threads in (("a", 1), ("b", 2))
    }
    assert suites_of_runs(runs)[1] == []
    runs["b"]["settings"]["seeds"] = [1]
    [warning] = suites_of_runs(runs)[1]
    assert warning.startswith("GLUE was measured with other examples, trainings or seeds")
