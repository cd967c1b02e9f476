"""log.jsonl and trackers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from potstill.training import log
from potstill.training.log import TrainingLog, check_trackers


class Process:
    """The part of accelerate's Accelerator that a log needs."""

    def __init__(self, main: bool = True) -> None:
        self.is_main_process = main
        self.calls: list[Any] = []

    def init_trackers(self, name: str, config: dict[str, Any]) -> None:
        self.calls.append(("init", name, config))

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append(("log", values, step))

    def end_training(self) -> None:
        self.calls.append("end")


def log_of(path: Path, process: Process | None = None, trackers: bool = False) -> TrainingLog:
    accelerator: Any = process or Process()
    return TrainingLog(accelerator, path, trackers)


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    log = log_of(path)
    log.write("start", steps=9)
    for step in (1, 2, 3):
        log.write("train", step=step, loss=1 / step)
    with path.open("a") as file:
        file.write('{"event": "train", "st')  # killed while it wrote
    return path


def test_a_line_an_event(path: Path) -> None:
    first, *lines = path.read_text().splitlines()
    assert first == '{"event": "start", "steps": 9}'
    assert len(lines) == 4


def test_a_resumed_training_drops_what_it_does_again(path: Path) -> None:
    log = log_of(path)
    log.begin(2)
    log.write("resume")
    told = [(event["event"], event.get("step")) for event in events(path)]
    assert told == [("start", None), ("train", 1), ("train", 2), ("resume", None)]


def test_a_training_that_goes_on_has_one_end(path: Path) -> None:
    log = log_of(path)
    log.begin(3)
    for _ in range(2):
        log.write("end", step=3)
        log.begin(3)
    log.write("end", step=3)
    assert [event["event"] for event in events(path)].count("end") == 1


def test_a_training_from_the_start_begins_an_empty_log(path: Path) -> None:
    log_of(path).begin(None)
    assert path.read_text() == ""


def test_only_the_first_process_writes(path: Path) -> None:
    before = path.read_bytes()
    other = log_of(path, Process(main=False))
    other.begin(None)
    other.write("train", step=4)
    assert path.read_bytes() == before


def test_trackers_get_plain_values_and_the_step(path: Path) -> None:
    process = Process()
    log = log_of(path, process, trackers=True)
    log.begin_tracking({"steps": 3, "betas": (0.9, 0.98), "clip": None, "compile": False})
    log.track({"train/loss": 0.5}, 3)
    log.end_tracking()
    assert process.calls == [
        (
            "init",
            "potstill",
            {"steps": 3, "betas": "(0.9, 0.98)", "clip": "None", "compile": False},
        ),
        ("log", {"train/loss": 0.5}, 3),
        "end",
    ]


def test_without_trackers_nothing_is_tracked(path: Path) -> None:
    process = Process()
    log = log_of(path, process)
    log.begin_tracking({"steps": 3})
    log.track({"train/loss": 0.5}, 3)
    log.end_tracking()
    assert process.calls == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["wandb"], "training.trackers: wandb is not installed. Install with `pip install wandb`."),
        (
            ["mlflow", "trackio", "wandb", "mlflow"],
            "training.trackers: mlflow and wandb are not installed. Install with `pip install "
            "mlflow wandb`.",
        ),
        (["tensorboard"], "training.trackers: tensorboard is not installed"),
    ],
)
def test_trackers_that_are_not_installed(
    monkeypatch: pytest.MonkeyPatch, names: list[str], message: str
) -> None:
    monkeypatch.setattr(log, "get_available_trackers", lambda: ["trackio"])
    with pytest.raises(ValueError, match=f"^{message}"):
        check_trackers(names)


def test_a_tracker_that_is_installed_is_known_to_accelerate() -> None:
    check_trackers([])
    pytest.importorskip("tensorboard", reason="tensorboard is in the test extra")
    check_trackers(["tensorboard"])
