from __future__ import annotations

import io

import pytest
from rich.console import Console

from potstill.cli import terminal
from potstill.cli.terminal import TerminalReporter


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(terminal.time, "monotonic", clock)
    return clock


def shown_in(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool = False
) -> tuple[io.StringIO, TerminalReporter]:
    """A reporter, and what it prints."""
    stream = io.StringIO()
    monkeypatch.setattr(
        terminal,
        "out",
        Console(file=stream, force_terminal=is_terminal, width=120, color_system=None),
    )
    return stream, TerminalReporter()


def test_a_log_has_a_line_a_stage_and_one_now_and_then(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    stream, reporter = shown_in(monkeypatch)
    with reporter.live():
        reporter.stage(1, 3, "make_student", True)
        reporter.stage(2, 3, "distill", False)
        reporter.say("a note with [brackets]")
        for second in range(0, 61, 5):
            clock.now = 100 + second
            reporter.progress(second / 100, f"step {second}")
        reporter.stage(3, 3, "report", False)
        clock.now += 3
    assert stream.getvalue().splitlines() == [
        "  ✓ 1/3 make_student: done before, skipped",
        "  … 2/3 distill",
        "      a note with [brackets]",
        "    2/3 distill  25%  0:25, 1:15 left  step 25",
        "    2/3 distill  50%  0:50, 0:50 left  step 50",
        "  ✓ 2/3 distill: 1:00",
        "  … 3/3 report",
        "  ✓ 3/3 report: 0:03",
    ]


def test_remaining_time_counts_from_where_a_resumed_training_begins(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    stream, reporter = shown_in(monkeypatch)
    with reporter.live():
        reporter.stage(1, 1, "distill", False)
        reporter.progress(0.8)
        clock.now += 30
        reporter.progress(0.9)  # a tenth in 30 seconds
    assert "    1/1 distill  90%  0:30, 0:30 left" in stream.getvalue().splitlines()


def test_a_failed_stage_gets_no_tick(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    stream, reporter = shown_in(monkeypatch)

    def fail() -> None:
        with reporter.live():
            reporter.stage(1, 1, "distill", False)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert "✓" not in stream.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    stream, reporter = shown_in(monkeypatch, is_terminal=True)
    with reporter.live():
        reporter.stage(1, 1, "distill", False)
        for _ in range(11):
            clock.now += 10
            reporter.progress(0.5 + (clock.now - 110) / 400, "step 5")
            assert reporter._live is not None
            reporter._live.refresh()
    assert "… 1/1 distill" in stream.getvalue()
    assert "━" * 12 + "╌" * 12 in stream.getvalue()  # half of 24
    assert "75%  1:50, 1:40 left  step 5" in stream.getvalue()
    assert "✓ 1/1 distill: 1:50" in stream.getvalue()


def test_only_the_first_process_of_several_speaks(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setenv("RANK", "1")
    stream, reporter = shown_in(monkeypatch)
    with reporter.live():
        reporter.stage(1, 1, "distill", False)
        reporter.say("a note")
        clock.now += 60
        reporter.progress(0.5)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")]
)
def test_clock(seconds: float, shown: str) -> None:
    assert terminal._clock(seconds) == shown
