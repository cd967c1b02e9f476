"""The report and the comparison of runs, as a browser shows them: in both themes and on a phone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from fake_run import fake_run, stage

from browser import Browser, Page, open_browser
from potstill.recipe import Report
from potstill.reporting import compare_runs, write_comparison, write_report

ROOT = Path(__file__).resolve().parents[2]
LIGHT, DARK = (255, 255, 255), (21, 23, 27)  # --page of the style sheet
# In a rectangle of every figure something is drawn; text is inherited from the page.
FIGURES = """[...document.querySelectorAll("svg")].map(svg => {
  const box = svg.getBoundingClientRect(), text = svg.querySelector("text");
  return {
    name: svg.querySelector("title").textContent,
    width: box.width, height: box.height, right: box.right,
    colour: getComputedStyle(text).fill,
    cut: [...svg.querySelectorAll("text")].filter(one => {
      const own = one.getBoundingClientRect();
      return own.left < box.left - 1 || own.right > box.right + 1
        || own.top < box.top - 1 || own.bottom > box.bottom + 1;
    }).map(one => one.textContent),
    fills: [...svg.querySelectorAll("path, use")].map(one => getComputedStyle(one).fill),
  };
})"""


def long_run(folder: Path) -> Path:
    """A run with much that the page can hold: labels, seeds, long names and words."""
    run = fake_run(folder)
    path = run / "stages/03-evaluate/result.json"
    result = json.loads(path.read_text())
    result |= {
        "labels": ["business", "a-label-without-any-place-to-break-it", "sport"],
        "confusion": {
            name: [[40, 3, 1], [2, 50, 0], [9, 9, 30]] for name in ("teacher", "student")
        },
        "findings": ["student does not beat TF-IDF (MRR)"],
        "metric": "mrr",
        "task": "retrieval",
    }
    long = "a-model-of-a-rather-long-name"
    result["models"][long] = {"retrieval": {"mrr": 0.86251, "recall_at_1": 0.79}}
    result["retention"][long] = {"retrieval.mrr": 0.9788}
    result["models"]["student"]["retrieval"]["seeds"] = [0.85, 0.86, 0.88]
    result["examples"][0]["query"] = "without_a_space_" * 12
    path.write_text(json.dumps(result))
    path = run / "stages/04-benchmark/result.json"
    result = json.loads(path.read_text())
    result["models"][long] = result["models"]["student"]
    path.write_text(json.dumps(result))
    export = {
        "model": "student",
        "opset": 18,
        "files": ["model.onnx"],
        "difference": 1e-6,
        "tolerance": 1e-4,
        "corners": [
            {"corner": "one text", "texts": 1, "tokens": 9, "difference": {"logits": 1e-6}}
        ],
        "weight_bytes": 22_000_000,
        "parameters": 17_241_216,
    }
    stage(run, "05-export", {"model": "student", "writes": "onnx"}, export)
    return run


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    runs = [long_run(folder / name) for name in ("one", "two")]
    compared = folder / "compare.html"
    write_comparison(compare_runs(runs), compared)
    return {"report": write_report(runs[0], Report()), "comparison": compared}


@pytest.mark.parametrize("name", ["report", "comparison"])
@pytest.mark.parametrize(("width", "dark"), [(1100, False), (1100, True), (375, False)])
def test_page(
    browser: Browser, pages: dict[str, Path], tmp_path: Path, name: str, width: int, dark: bool
) -> None:
    address = pages[name].as_uri()
    page = browser.open(address, width=width, dark=dark)
    assert page.errors == []
    assert page.requests == [address]
    assert page.overflow() == 0  # wide tables scroll in themselves
    check_figures(page, width, "rgb(230, 232, 235)" if dark else "rgb(28, 30, 34)")
    shot = page.screenshot(tmp_path / "page.png", whole=False)
    assert first_pixel(shot) == (DARK if dark else LIGHT)


def check_figures(page: Page, width: int, ink: str) -> None:
    """Figures are as wide as they may be, readable, in the page's ink, with colours of their own.

    The last two need that the policy allows what the figures' attributes say.
    """
    figures = page.evaluate(FIGURES)
    assert figures
    for figure in figures:
        assert figure["width"] > 120, figure
        assert figure["height"] > 60, figure
        assert figure["right"] <= width, figure
        assert figure["cut"] == [], figure  # no text crosses the figure's edge
        assert figure["colour"] in (ink, "rgb(255, 255, 255)", "rgb(128, 128, 128)"), figure
    fills = {fill for figure in figures for fill in figure["fills"]}
    assert fills & {"rgb(59, 130, 196)", "rgb(204, 106, 28)"}


def test_wide_tables_can_be_scrolled_by_the_keyboard(
    browser: Browser, pages: dict[str, Path]
) -> None:
    page = browser.open(pages["report"].as_uri(), width=375)
    wide = "[...document.querySelectorAll('.scroll')].filter(b => b.scrollWidth > b.clientWidth)"
    assert page.evaluate(f"{wide}.length") > 2
    assert page.evaluate(f"{wide}.every(b => b.tabIndex === 0)") is True
    page.evaluate(f"{wide}[0].focus()")
    page.press("ArrowRight", 39, times=3)
    page.wait_for(f"{wide}[0].scrollLeft > 0")


def test_a_script_that_got_in_would_not_run(
    browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    """The policy is the second lock: an escape that was forgotten still does nothing."""
    text = pages["report"].read_text(encoding="utf-8")
    inside = "<script>document.title = 'taken'</script><img src='http://example.org/x.png'>"
    path = tmp_path / "page.html"
    path.write_text(text.replace("<main>", f"<main>{inside}"), encoding="utf-8")
    page = browser.open(path.as_uri())
    assert page.evaluate("document.title") == "fake-news: Potstill report"
    refused = [error for error in page.errors if "Content Security Policy" in error]
    assert len(refused) == len(page.errors) == 2  # the script and the picture


def test_the_picture_in_readme_can_be_made(pages: dict[str, Path], tmp_path: Path) -> None:
    from browser import chromium

    chromium()  # or skip
    script, run = ROOT / "benchmarks" / "report_picture.py", pages["report"].parent
    command = [sys.executable, str(script), str(run), str(tmp_path / "report.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert first_pixel(tmp_path / "report.png") == LIGHT
    assert (tmp_path / "report.png").stat().st_size < 300_000
    missing = subprocess.run([*command[:2], str(tmp_path), command[3]], capture_output=True)
    assert missing.returncode == 2
    assert b"report.html is not there" in missing.stderr


def first_pixel(path: Path) -> tuple[int, int, int]:
    """The upper left pixel of a picture."""
    pixel = Image.open(path).convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel[0], pixel[1], pixel[2]
