"""`potstill demo` as its user meets it: the command, and its page in a real browser."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from browser import Page, open_browser
from conftest import Finished
from potstill.cli.demo.playground import open_playground
from potstill.cli.demo.server import listen, server_of
from potstill.pipeline.run_models import models_of_run
from potstill.recipe import Task
from tiny_runs import LABELS, tiny_run

Potstill = Callable[..., Finished]
DONE = "document.querySelector('#status').textContent === 'Done.'"
RIGHT, LEFT = ("ArrowRight", 39), ("ArrowLeft", 37)


@contextmanager
def served(run: Path) -> Iterator[str]:
    """The address of a run's page, served by a thread of this process."""
    with listen(0) as listener:
        server = server_of(open_playground(models_of_run(run), {}, lambda _: None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


def shares(page: Page, column: int) -> dict[str, float]:
    """The drawn table: choice -> percent, of the first model (1) or the one beside it (2)."""
    rows: list[list[str]] = page.evaluate(
        "[...document.querySelectorAll('#distribution tbody tr')]"
        ".map(row => [...row.children].map(cell => cell.textContent))"
    )
    return {row[0]: float(row[column].removesuffix("%")) for row in rows}


def clean(page: Page, address: str) -> None:
    assert page.errors == []
    assert page.requests
    assert page.requested_elsewhere(address) == []


def test_a_classifier_in_the_browser(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "classification")
    text = "copper & <b>oak</b> never boils"
    logits = {}
    for name, folder in (("teacher", "teacher"), ("student", "run/stages/02-distill/model")):
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / folder)
        with torch.no_grad():
            logits[name] = model(**tokenizer(text, return_tensors="pt")).logits[0].double()

    def expected(name: str, temperature: float) -> Any:
        found = 100 * torch.softmax(logits[name] / temperature, -1)
        return pytest.approx(dict(zip(LABELS.values(), found.tolist(), strict=True)), abs=0.051)

    with served(run) as address, open_browser(tmp_path) as browser:
        page = browser.open(address)
        page.wait_for(DONE)
        page.type("#field1", text)
        page.click("#ask")
        page.wait_for(f"!({DONE})")
        page.wait_for(DONE)
        # the names of labels are text, whatever they hold
        assert page.evaluate("document.querySelectorAll('#answers b, #softened b').length") == 0
        headline = LABELS[int(logits["teacher"].argmax())]
        assert page.text(".card .headline") == headline
        times = page.evaluate(
            "[...document.querySelectorAll('.card .time')].map(one => one.textContent)"
        )
        assert len(times) == 4
        assert re.fullmatch(r"[\d.]+ ms", times[0])
        ratio = r"[\d.]+ ms, [\d.]+\u00d7 (faster|slower) than teacher"
        assert all(re.fullmatch(ratio, time) for time in times[1:])

        assert page.text("#shown-temperature") == "T = 1"
        assert shares(page, 1) == expected("teacher", 1)
        assert shares(page, 2) == expected("student", 1)
        page.evaluate("document.querySelector('#temperature').focus()")
        page.press(*RIGHT, times=3)  # over 1.5 and 2 to the run's own
        assert page.text("#shown-temperature") == "T = 2.5"
        assert shares(page, 1) == expected("teacher", 2.5)
        assert shares(page, 2) == expected("student", 2.5)
        page.press(*LEFT, times=4)
        assert page.text("#shown-temperature") == "T = 0.5"
        assert shares(page, 2) == expected("student", 0.5)
        # the bars are as long as the numbers say
        [share, drawn] = page.evaluate(
            """(() => {
              const cell = document.querySelector('#distribution td');
              const [outer, inner] = [cell.querySelector('.bar'), cell.querySelector('i')];
              return [cell.textContent, inner.style.width];
            })()"""
        )
        assert float(drawn.removesuffix("%")) == pytest.approx(
            float(share.removesuffix("%")), abs=0.06
        )

        page.type("#field1", " ")
        page.press("Enter", 13, modifiers=2)
        page.wait_for("!document.querySelector('#problem').hidden")
        assert page.text("#problem") == "“Text” is empty. Type some text into it."
        # a sentence is no error of the page, yet Chromium logs each reply of 422
        page.errors = [told for told in page.errors if "status of 422" not in told]
        clean(page, address)


def test_masks_are_filled_in_the_browser_on_a_phone(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "masked_lm")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "teacher").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "teacher")
    inputs = tokenizer("the [MASK] boils [MASK]", return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0][inputs["input_ids"][0] == tokenizer.mask_token_id]
    expected = torch.softmax(logits.double() / 20, -1)
    with served(run) as address, open_browser(tmp_path) as browser:
        page = browser.open(address, width=390, height=800, dark=True)
        page.wait_for(DONE)
        page.type("#field1", "the [MASK] boils ")
        page.click("#mask")
        page.click("#ask")
        page.wait_for("document.querySelectorAll('#which option').length === 2")
        page.wait_for(DONE)
        page.evaluate("document.querySelector('#which').focus()")
        page.press("ArrowDown", 40)
        page.evaluate("document.querySelector('#temperature').focus()")
        page.press("End", 35)
        assert page.text("#shown-temperature") == "T = 20"
        found = shares(page, 1)
        assert sum(found.values()) == pytest.approx(100, abs=1)
        for row, share in found.items():
            if row != "all others":
                token = tokenizer.convert_tokens_to_ids(row)
                assert share == pytest.approx(100 * expected[1][token].item(), abs=0.051)
        assert page.overflow() == 0
        clean(page, address)


@pytest.mark.parametrize(
    "task", ["sentence_embedding", "token_classification", "question_answering", "multi_label"]
)
def test_the_example_of_other_tasks_is_answered(tmp_path: Path, task: Task) -> None:
    run = tiny_run(tmp_path, task)
    with served(run) as address, open_browser(tmp_path) as browser:
        page = browser.open(address, width=390, height=800)
        page.wait_for(DONE)
        assert page.evaluate("document.querySelectorAll('.card .answer > *').length") >= 4
        before = shares(page, 1)
        page.evaluate("document.querySelector('#temperature').focus()")
        page.press("End", 35)
        assert shares(page, 1) != before
        assert page.overflow() == 0
        clean(page, address)


# --- the command ----------------------------------------------------------------------------------


def test_bad_input_is_told_in_a_sentence(potstill: Potstill, tmp_path: Path) -> None:
    for arguments, message in (
        ([tmp_path / "nothing"], f"{tmp_path}/nothing: not found. Give the folder"),
        ([tmp_path], f"{tmp_path}: not a run folder, there is no recipe.yaml. Give the folder"),
    ):
        found = potstill("demo", *arguments)
        assert found.code == 2
        assert found.err.startswith(f"error: {message}")
        assert found.err.count("\n") == 1
    run = tiny_run(tmp_path, "regression")
    recipe = (run / "recipe.yaml").read_text()
    (run / "stages/03-export/DONE").unlink()
    found = potstill("demo", run)
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert f"{run}: stage 3 (export) is not finished." in found.err
    (run / "recipe.yaml").write_text(recipe.replace("regression", "regresion"))
    found = potstill("demo", run)
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert json.dumps(found.err).count("recipe.yaml: task") == 1


@contextmanager
def told_of(action: Any) -> Iterator[None]:
    """What a process that is started here does at Ctrl-C before it says otherwise."""
    before = signal.signal(signal.SIGINT, action)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("stop", "at_first"),
    [
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGINT, signal.SIG_IGN),  # as in the background of a script
        (signal.SIGTERM, signal.default_int_handler),
    ],
)
def test_it_serves_until_it_is_stopped(
    potstill: Potstill, tmp_path: Path, stop: signal.Signals, at_first: Any
) -> None:
    run = tiny_run(tmp_path, "regression")
    command = [sys.executable, "-m", "potstill", "demo", str(run), "--port", "0", "--no-browser"]
    with told_of(at_first):
        started = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    with started as process:
        try:
            assert process.stdout is not None
            said = [process.stdout.readline(), process.stdout.readline()]
            assert said[0] == f"Loading 4 models of {run}.\n"
            found = re.fullmatch(
                r"The playground is at (http://127\.0\.0\.1:(\d+)/) \(Ctrl-C ends it\)\.\n", said[1]
            )
            assert found is not None, said
            address, port = found.groups()
            with urllib.request.urlopen(address) as reply:
                assert b"<title>tiny.run: Potstill playground</title>" in reply.read()
            other = potstill("demo", run, "--port", port, "--no-browser")
            assert (other.code, other.err) == (
                2,
                f"error: --port: {port} is taken. Choose another port, or 0 for any free one.\n",
            )
            process.send_signal(stop)
            assert process.stdout.read() == "stopped\n"
            assert process.wait() == 128 + stop
        finally:
            process.kill()
