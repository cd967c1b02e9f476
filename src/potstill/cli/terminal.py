"""Show what happens while a command runs: stages with a bar, notes, errors."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

out = Console()
err = Console(stderr=True)


class TerminalReporter:
    """Show one line per stage: a bar in a terminal, a line now and then in a log."""

    def __init__(self) -> None:
        self.quiet = os.environ.get("RANK", "0") != "0"
        self._title = ""
        self._start = time.monotonic()
        self._first: float | None = None
        self._printed = 0.0
        self._live: Live | None = None

    @contextmanager
    def live(self) -> Iterator[None]:
        if not out.is_terminal or self.quiet:
            yield
            self._close()
            return
        with Live(Text(""), console=out, refresh_per_second=4, transient=True) as self._live:
            yield
            self._close()
        self._live = None

    def say(self, message: str) -> None:
        if not self.quiet:
            print_line(f"      {message}")

    def stage(self, number: int, total: int, kind: str, skipped: bool) -> None:
        self._close()
        self._title, self._start, self._first = f"{number}/{total} {kind}", time.monotonic(), None
        self._printed = self._start
        if self.quiet:
            return
        if skipped:
            print_line(f"  ✓ {self._title}: done before, skipped")
            self._title = ""
        elif self._live is None:
            print_line(f"  … {self._title}")
        else:
            self._live.update(Text(f"  … {self._title}"))

    def progress(self, fraction: float, note: str = "") -> None:
        now = time.monotonic()
        if self._first is None:
            self._first, self._start_measured = fraction, now
        done = fraction - self._first
        left = (now - self._start_measured) * (1 - fraction) / done if done > 0 else None
        remaining = "" if left is None or now - self._start < 3 else f", {_clock(left)} left"
        line = f"{fraction:4.0%}  {_clock(now - self._start)}{remaining}  {note}".rstrip()
        if self._live is not None:
            bar = f"{'━' * round(24 * fraction):╌<24}"
            self._live.update(Text(f"  … {self._title:16} {bar} {line}"))
        elif now - self._printed > 20 and not self.quiet:
            self._printed = now
            print_line(f"    {self._title} {line}")

    def _close(self) -> None:
        if self._title and not self.quiet:
            print_line(f"  ✓ {self._title}: {_clock(time.monotonic() - self._start)}")
        self._title = ""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def print_line(line: str, style: str = "") -> None:
    """Print a line as it is, without reading brackets as markup or breaking long paths."""
    out.print(Text(line, style=style), soft_wrap=True)


def fail_with(message: str, code: int) -> int:
    err.print(Text(message), soft_wrap=True)
    return code
