"""The page: opens offline, escapes what comes from outside, shows the numbers of metrics.json."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_run import distill_result, fake_run, make_student_result, stage, write_log

from potstill.recipe import Report
from potstill.recipe import files as recipe_files
from potstill.reporting import metrics_json
from potstill.reporting import report as report_page
from potstill.reporting.results import read_results

EVIL = '<script>alert("x")</script>'
VOID = {"meta", "link", "img", "br", "hr", "input", "path", "use", "base"}


class Page(HTMLParser):
    """Elements with their attributes and the text inside; checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[dict[str, Any]] = []
        self._open: list[dict[str, Any]] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        element = {
            "tag": tag,
            "attrs": dict(attrs),
            "text": "",
            "in": [e["tag"] for e in self._open],
        }
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append({"tag": tag, "attrs": dict(attrs), "text": "", "in": []})

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [element for element in self.elements if element["tag"] == tag]

    def texts(self, tag: str) -> list[str]:
        return [" ".join(element["text"].split()) for element in self.all(tag)]


def write(run: Path, **settings: Any) -> Page:
    path = report_page.write_report(run, Report(**settings))
    assert path == run / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return fake_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run) -> Page:
    return write(run)


def test_sections_come_in_order(page):
    assert page.texts("h2") == [
        "Step by step",
        "Size, speed and quality",
        "What is kept of each score",
        "Comparison",
        "Layer map",
        "Training loss",
        "Temperature",
        "Where they differ",
        "Data",
        "Environment",
        "Repeat it",
    ]
    assert page.texts("h1") == ["fake-news"]
    assert page.texts("p")[0].startswith("The student keeps 98.1% of the teacher's MRR")


def test_nothing_is_fetched_and_nothing_runs(page, run):
    html = (run / "report.html").read_text()
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    tags = {element["tag"] for element in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for element in page.elements:
        for name, value in element["attrs"].items():
            assert not name.startswith("on")
            assert name not in {"src", "srcset", "action", "data", "poster", "xlink:href"}
            if name == "href" or "url(" in (value or ""):
                assert re.fullmatch(r"(url\()?#[\w.-]+\)?", value)
    policies = [
        element["attrs"]["content"]
        for element in page.all("meta")
        if element["attrs"].get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policies) == 1
    [style] = page.all("style")
    digest = base64.b64encode(hashlib.sha256(style["text"].encode()).digest()).decode()
    assert policies[0] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert not any("style" in element["attrs"] for element in page.elements)


def test_page_can_be_read_by_everybody(page):
    assert page.all("html")[0]["attrs"]["lang"] == "en"
    ids = [e["attrs"]["id"] for e in page.elements if "id" in e["attrs"]]
    assert len(ids) == len(set(ids))
    for element in page.elements:
        for label in element["attrs"].get("aria-labelledby", "").split():
            assert label in ids
    assert all(th["attrs"].get("scope") in {"col", "row", "rowgroup"} for th in page.all("th"))
    # every table scrolls in a box of its own that the keyboard reaches
    boxes = [div for div in page.all("div") if div["attrs"].get("class") == "scroll"]
    assert len(boxes) == len(page.all("table"))
    assert all(box["attrs"]["tabindex"] == "0" for box in boxes)
    figures = page.all("figure")
    assert len(figures) == len(page.all("figcaption")) == 5


def test_all_figures_are_there_with_titles(page):
    svgs = page.all("svg")
    assert all(svg["attrs"]["role"] == "img" for svg in svgs)
    titles = [e["text"] for e in page.all("title") if "svg" in e["in"]]
    assert titles == [
        "Retrieval MRR over ms for one text of 16 tokens",
        "Retrieval MRR over ms for one text of 128 tokens",
        "Retrieval MRR over MB of weights",
        "Kept of the teacher's score",
        "Layer map: 6 teacher layers, 3 student layers",
        "Total: the weighted sum over the steps",
        "Soft targets over the steps",
        "Hard targets over the steps",
        "Hidden cosine over the steps",
        "Softened distribution at T = 0.5",
        "Softened distribution at T = 1",
        "Softened distribution at T = 2",
        "Softened distribution at T = 4",
    ]
    assert len(page.all("desc")) == len(svgs) == len(titles)


def test_numbers_shown_are_those_of_metrics_json(page, run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics == metrics_json.build_metrics(run)
    shown = [(float(e["attrs"]["value"]), e["text"]) for e in page.all("data")]
    expected = {}
    for model in metrics["models"].values():
        expected[model["parameters"]] = f"{model['parameters'] / 1e6:.1f}"
        for scores in model["scores"].values():
            values = [value for key, value in scores.items() if key != "seeds"]
            expected |= {value: f"{value:.3f}" for value in values}
        for latency in model.get("latency_ms", {}).values():
            expected[latency["p50"]] = f"{latency['p50']:.3g}"
    for compared in metrics["comparisons"].values():
        expected |= {value: f"{value:.1%}" for value in compared["retention_by_score"].values()}
        for value in compared.get("speedup", {}).values():
            expected[value] = f"{value:.2f}\N{MULTIPLICATION SIGN}"
    assert expected.items() <= dict(shown).items()
    heads = [e["text"] for e in page.all("th") if e["attrs"]["scope"] == "col"]
    first = heads.index("Measure")
    assert heads[first : first + 5] == ["Measure", "teacher", "student", "untrained", "TF-IDF"]


def test_softened_table_shows_every_temperature(page):
    cells = page.texts("td")
    # softmax([6.1, 5.6, ...] / T) * 0.97, the rest is 0.03 at every temperature
    assert cells.count("0.030") == 4
    assert "1. Mobile games come of age as phones get faster" in page.texts("th")


def test_what_comes_from_outside_is_escaped(tmp_path):
    run = fake_run(tmp_path)
    for path in [*run.glob("stages/*/result.json"), *run.glob("stages/*/config.json")]:
        text = path.read_text()
        escaped = json.dumps(EVIL)[1:-1]
        text = text.replace("Mobile games", f"{escaped} games")
        if "teacher_layers" not in text:  # there "student" is a role, not a name
            text = text.replace('"student"', f'"{escaped}"')
        text = text.replace("12 held-out", f"{escaped} held-out").replace("distilbert", escaped)
        path.write_text(text.replace("sequences", escaped).replace("hidden_cosine", escaped))
    environment = {"cpu": {EVIL: EVIL}}
    (run / "environment.json").write_text(json.dumps(environment))
    with (run / "recipe.yaml").open("a") as stream:
        stream.write(f"# {EVIL}\n")
    page = write(run, title=EVIL)
    html = (run / "report.html").read_text()
    assert "<script" not in html
    assert page.texts("h1") == [EVIL]
    assert EVIL in page.texts("th")
    assert f"{EVIL} held-out texts are also in the training text." in page.texts("p")
    assert any(EVIL in text for text in page.texts("pre"))
    assert any(EVIL in text for text in page.texts("figcaption"))


def test_noise_is_said(tmp_path, page):
    noisy = write(fake_run(tmp_path, noisy=True))
    message = "Noisy machine: the timed passes took 1.42 times their CPU time. Measure again."
    assert message in noisy.texts("p")
    assert not any("Noisy" in text for text in page.texts("p"))


def test_stages_that_did_not_run_leave_out_their_sections(tmp_path):
    run = fake_run(tmp_path)
    (run / "stages" / "03-evaluate" / "result.json").unlink()
    (run / "environment.json").unlink()
    page = write(run)
    assert page.texts("h2") == [
        "Step by step",
        "Comparison",
        "Layer map",
        "Training loss",
        "Data",
        "Repeat it",
    ]
    (run / "stages" / "04-benchmark" / "result.json").unlink()
    (run / "stages" / "02-distill" / "result.json").unlink()
    assert write(run).texts("h2") == ["Step by step", "Comparison", "Layer map", "Repeat it"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "3 of the teacher's 6 layers were copied."),
        (
            {"initialise": "random"},
            "As deep as 3 of the teacher's 6 layers, with random weights.",
        ),
        (
            {"widths": {"hidden": 192}, "teacher_widths": {"hidden": 384}},
            "3 of the teacher's 6 layers were projected to its width.",
        ),
        (
            {"widths": {"hidden": 384}, "teacher_widths": {"hidden": 384}, "chosen": f"3 {EVIL}"},
            f"were copied. Layers are counted from 0. Shape: 3 {EVIL}.",
        ),
    ],
)
def test_what_a_student_started_from(tmp_path, changes, said):
    result = make_student_result() | changes
    stage(tmp_path, "01-make_student", {"writes": "student"}, result)
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    assert any(said in text for text in write(tmp_path).texts("figcaption"))


def test_projections_are_named(tmp_path):
    run = fake_run(tmp_path)
    path = run / "stages" / "02-distill" / "result.json"
    path.write_text(json.dumps(distill_result() | {"projections": ["hidden_mse (384 x 192)"]}))
    said = "Trained beside the student and not part of it: hidden_mse (384 x 192)."
    assert any(said in text for text in write(run).texts("figcaption"))


def test_masked_lm_run(tmp_path):
    stage(tmp_path, "01-make_student", {"writes": "student"}, make_student_result())
    log = stage(tmp_path, "02-distill", {"model": "student"}, distill_result())
    write_log(log, steps=20)
    result = {
        "task": "masked_lm",
        "records": 402,
        "baseline": "teacher",
        "models": {
            "teacher": {"masked_lm": {"loss": 2.1, "perplexity": 8.1662, "top1": 0.55}},
            "student": {
                "masked_lm": {"loss": 2.5, "perplexity": 12.1825, "top1": 0.49},
                "agreement": {"top1": 0.7, "kl": 0.3},
            },
        },
        "references": {"unigram": {"masked_lm": {"loss": 7.0, "top1": 0.05}}},
        "retention": {"student": {"masked_lm.top1": 0.8909}},
        "softened": {
            "text": "a [MASK] day",
            "candidates": ["good", "fine"],
            "temperatures": {"1": [0.25, 0.5], "2": [0.3, 0.4]},
        },
        "examples": [
            {
                "query": "a [MASK] day",
                "expected": "sunny",
                "teacher": {"top": "fine", "p": 0.5},
                "student": {"top": "good", "p": 0.4},
            }
        ],
    }
    stage(tmp_path, "03-evaluate", {}, result)
    page = write(tmp_path)
    assert page.texts("p")[0] == (
        "The student keeps only 89.1% of the teacher's masked-LM top-1 accuracy "
        "with 0.76 of its parameters."
    )
    assert "Speedup at 128 tokens" not in page.texts("th")
    assert [th for th in page.texts("th") if th in ("Text", "Expected", "unigram")] == [
        "unigram",
        "Text",
        "Expected",
    ]
    assert "fine p = 0.50" in [re.sub(r"(?<=fine)", " ", td) for td in page.texts("td")]
    # the likeliest first, and what the two leave to all others
    rows = [th for th in page.texts("th") if th in ("1. fine", "2. good", "all others")]
    assert rows == ["1. fine", "2. good", "all others"]
    assert page.texts("td").count("0.250") == 2


def test_number_of_examples_is_the_settings(run, tmp_path):
    page = write(fake_run(tmp_path), examples=2)
    notes = [text for text in page.texts("small") if text.startswith("expected one at rank")]
    assert notes == ["expected one at rank 7", "expected one at rank 6"]
    assert "Where they differ" not in write(tmp_path, examples=0).texts("h2")


def test_command_names_a_shipped_recipe_only_if_nothing_was_changed(tmp_path, page):
    assert "potstill run recipe.yaml --output again" in page.texts("pre")

    def command(*overrides: str) -> str:
        text = recipe_files.dump_recipe(recipe_files.load_recipe(name, overrides))
        (run / "recipe.yaml").write_text(text)
        return report_page._command(read_results(run))

    run, name = fake_run(tmp_path), "distilbert"
    assert command() == f"potstill run {name}"
    assert command("seed=7") == "potstill run recipe.yaml --output again"
    name = "embedding"  # has no teacher until its user names one
    changed = command("teacher=./teacher", "corpus.sources=text.txt")
    assert changed == "potstill run recipe.yaml --output again"


def test_missing_matplotlib_is_one_sentence_and_writes_nothing(tmp_path, monkeypatch):
    run = fake_run(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"potstill\[report\]"):
        report_page.write_report(run, Report())
    assert not (run / "metrics.json").exists()


def task_run(run: Path, count: int = 2) -> Path:
    """A finished classification of so many labels, three trainings each."""
    labels = [f"label {n}" for n in range(count)]
    stage(run, "01-make_student", {"writes": "start"}, make_student_result())
    stage(run, "02-finetune", {"model": "start", "writes": "plain"}, {})
    stage(run, "03-distill", {"model": "start", "writes": "student"}, distill_result())

    def scores(*seeds: float) -> dict[str, Any]:
        return {"classification": {"accuracy": sum(seeds) / len(seeds), "seeds": list(seeds)}}

    right = [[9 if row == column else 0 for column in range(count)] for row in range(count)]
    wrong = [list(row) for row in right]
    wrong[0][:2] = [6, 3]
    result = {
        "task": "classification",
        "records": 9 * count,
        "baseline": "teacher",
        "labels": labels,
        "metric": "accuracy",
        "twin": "plain",
        "models": {
            "teacher": {"classification": {"accuracy": 0.9}},
            "plain": scores(0.75, 0.85, 0.8),
            "student": scores(0.7, 0.8, 0.75),
        },
        "references": {"majority": {"classification": {"accuracy": 0.5}}},
        "retention": {"student": {"classification.accuracy": 0.8333}},
        "intervals": {},
        "findings": ["student does not beat plain, trained without a teacher (accuracy)"],
        "confusion": {"teacher": right, "plain": wrong, "student": wrong},
        "examples": [
            {
                "query": "a text",
                "expected": "label 0",
                "teacher": {"top": "label 0", "p": 0.99},
                "student": {"top": "label 1", "p": 0.98},
            }
        ],
    }
    stage(run, "04-evaluate", {}, result)
    return run


def test_a_twin_that_is_not_beaten_is_said_at_the_top(tmp_path):
    page = write(task_run(tmp_path))
    notes = [e for e in page.all("p") if e["attrs"].get("class") == "note"]
    assert notes[0]["in"][-1] == "header"
    assert notes[0]["text"] == "Student does not beat plain, trained without a teacher (accuracy)."
    assert json.loads((tmp_path / "metrics.json").read_text())["findings"]
    told = "Held-out texts to which the models give different answers, "
    assert f"{told}those of which both are surest first." in page.texts("p")


def test_seeds_are_drawn_where_a_model_was_trained_more_than_once(tmp_path, page):
    [desc] = [e["text"] for e in write(task_run(tmp_path)).all("desc") if "mean" in e["text"]]
    assert desc == (
        "teacher 0.9, mean 0.9; plain 0.75, 0.85, 0.8, mean 0.8; student 0.7, 0.8, 0.75, mean 0.75."
    )
    assert "Seeds" not in page.texts("h2")


def test_confusion_is_a_table_a_model(tmp_path):
    page = write(task_run(tmp_path))
    matrices = [t for t in page.all("table") if t["attrs"]["class"] == "numbers matrix"]
    assert len(matrices) == 3
    cells = [(e["text"], e["attrs"]["class"]) for e in page.all("td") if "class" in e["attrs"]]
    tenths = [cell for cell in cells if cell[1] in {f"t{n}" for n in range(11)}]
    # 9 of 9; 6 and 3 of 9
    assert tenths[:4] == [("9", "t10"), ("0", "t0"), ("0", "t0"), ("9", "t10")]
    assert tenths[4:8] == [("6", "t6"), ("3", "t3"), ("0", "t0"), ("9", "t10")]


def test_of_many_labels_the_commonest_confusions_are_listed(tmp_path):
    page = write(task_run(tmp_path, 20))
    assert "matrix" not in {t["attrs"]["class"] for t in page.all("table")}
    rows = page.texts("tr")
    assert rows.count("label 0label 139") == 2  # plain and student: 3 of 9; the teacher has none


def test_what_is_shipped_has_a_sentence_of_its_own(tmp_path, page):
    run = fake_run(tmp_path)
    graph = {
        "model": "student",
        "opset": 18,
        "files": ["model.onnx"],
        "difference": 1e-6,
        "tolerance": 1e-4,
        "corners": [],
        "weight_bytes": 22_000_000,
        "parameters": 17_241_216,
    }
    stage(run, "025-export", {"model": "student", "writes": "onnx"}, graph)
    (run / "stages/025-export").rename(run / "stages/2-export")
    path = run / "stages/03-evaluate/result.json"
    found = json.loads(path.read_text())
    found["models"]["onnx"] = {"retrieval": {"mrr": 0.8601}}
    found["retention"]["onnx"] = {"retrieval.mrr": 0.9761}
    path.write_text(json.dumps(found))
    verdicts = [e["text"] for e in write(run).all("p") if e["attrs"].get("class") == "verdict"]
    # 22,000,000 / (22,713,216 * 4 + 11,000) = 0.242
    assert verdicts[1] == (
        "The ONNX graph onnx keeps 97.6% of the teacher's MRR with 0.24 of its bytes."
    )
    assert len([e for e in page.all("p") if e["attrs"].get("class") == "verdict"]) == 1
