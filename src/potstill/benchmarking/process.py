"""A model in a process of its own, which answers one command a line.

The child is `python -m potstill.benchmarking.worker MODEL`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from potstill.errors import BenchmarkFailed
from potstill.storage.machine import tells_out_of_memory


class Child:
    """A model in its own process; leaving the context ends the process whatever it is doing."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self.name, self.folder, self.threads = name, folder, threads
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> Child:
        # A file, not a pipe: nobody reads it while the child runs, and a full pipe would block it.
        self._stderr: IO[bytes] = tempfile.TemporaryFile()
        command = [sys.executable, "-m", "potstill.benchmarking.worker", str(self.folder.resolve())]
        self._process = subprocess.Popen(
            [*command, "--threads", str(self.threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            env=child_environment(self.threads),
        )
        try:
            self.ready = self._answer()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def run(self, length: int, batch: int, repeats: int, seed: int) -> dict[str, list[float]]:
        """Time `repeats` passes over one batch of random tokens: seconds of wall and CPU time."""
        shape = {"length": length, "batch": batch, "seed": seed}
        return self.ask("run", **shape, repeats=repeats)

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """What it answers to a command of `potstill.benchmarking.worker`.

        Raises:
            ValueError: a model that does not load. BenchmarkFailed: the process died.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # a dead child has no answer: told below
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _death(self) -> Exception:
        """What to raise for a child that is gone: a model that does not load is bad input."""
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode("utf-8", "replace").strip()
        no_memory, killed = tells_out_of_memory(said), code == -signal.SIGKILL
        if no_memory:
            what = "memory ran out"
        elif said and code >= 0:
            what = _last_error(said)
        else:
            what = f"its process was ended by {f'signal {-code}' if code < 0 else f'code {code}'}"
        if killed:
            what += ", as happens when memory runs out"
        if no_memory or killed:
            what += ": lower benchmark.throughput_batch or the lengths" if self.ready else ""
        message = f"the model '{self.name}' ({self.folder}) can't be measured: {what}"
        unloadable = not self.ready and code >= 0 and not no_memory
        return ValueError(message) if unloadable else BenchmarkFailed(message)

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


def _last_error(said: str) -> str:
    """The first line of the error that ended a process, whose message may have several; the last
    line of what it said where there is no traceback.
    """
    *_, last = said.rpartition("Traceback (most recent call last):")
    lines = last.strip("\n").splitlines()
    outside = [line for line in lines if not line.startswith(" ")]
    return (outside[0] if len(outside) < len(lines) else lines[-1]).strip()


def child_environment(threads: int) -> dict[str, str]:
    """Environment variables of a child: `threads` for every library, no network, our own code."""
    # Thread pools are sized when libraries load, so this has to be there before the child starts.
    pools = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
    package = str(Path(__file__).resolve().parents[1])
    # Ahead of the standard library, which a folder of other packages must never be.
    first = [] if package == sysconfig.get_path("purelib") else [package]
    return {
        **os.environ,
        **{f"{pool}_NUM_THREADS": str(threads) for pool in pools},
        "VECLIB_MAXIMUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONSAFEPATH": "1",  # with -m, a random.py in the working folder would be imported
        "PYTHONPATH": os.pathsep.join(filter(None, [*first, os.environ.get("PYTHONPATH")])),
    }
