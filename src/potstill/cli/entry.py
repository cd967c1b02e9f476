"""Run the `potstill` command, and turn errors into sentences and exit codes."""

from __future__ import annotations

import signal
import sys
from typing import Any

import typer

from potstill.cli.commands import app
from potstill.cli.terminal import fail_with
from potstill.errors import (
    BenchmarkFailed,
    Interrupted,
    NotFinite,
    ParityFailed,
    QuantizationFailed,
    TrainingFailed,
)
from potstill.storage.machine import is_out_of_memory

FAILED = (BenchmarkFailed, NotFinite, ParityFailed, QuantizationFailed, TrainingFailed)
INPUT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def main() -> None:
    """Run the command that was typed, and exit.

    Exit codes: 0 done, 1 failed run, 2 bad usage or input, 130 or 143 stopped with the work saved.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = app(standalone_mode=False)
        if code == 128 + signal.SIGINT:  # what typer makes of Ctrl-C
            fail_with("stopped", code)
    except KeyboardInterrupt:
        code = fail_with("stopped", 128 + signal.SIGINT)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
        if code == 128 + signal.SIGTERM:
            fail_with("stopped", code)
    except Exception as error:
        code = _explain(error)
    sys.exit(code if isinstance(code, int) else 0)


def _terminate(number: int, _: Any) -> None:
    raise SystemExit(128 + number)


def _explain(error: Exception) -> int:
    """Print an error as one sentence and return its exit code."""
    # typer carries its own click, under a private name: know its errors by what they can do
    if hasattr(error, "show") and hasattr(error, "exit_code"):
        error.show()
        return int(error.exit_code)
    if isinstance(error, typer.Abort):
        return fail_with("stopped", 128 + signal.SIGINT)
    if isinstance(error, Interrupted):
        return fail_with(str(error), 128 + error.signum)
    if isinstance(error, FAILED):
        return fail_with(f"error: {error}", 1)
    if is_out_of_memory(error):
        advice = (
            "If this was training, lower training.micro_batch_size; otherwise free some memory."
        )
        return fail_with(f"error: Memory ran out. {advice}", 1)
    if isinstance(error, ValueError):
        return fail_with(f"error: {error}", 2)
    if isinstance(error, OSError) and error.strerror:  # a full disk names no file
        where = f"{error.filename}: " if error.filename else ""
        return fail_with(f"error: {where}{error.strerror}", 2 if isinstance(error, INPUT) else 1)
    raise error


if __name__ == "__main__":
    main()
