"""Time a model in its own process, which answers one command per line with one line.

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
from typing import IO, Any

from potstill.errors import BenchmarkFailed
from potstill.storage.machine import tells_out_of_memory


class Child:
    """Start a model in its own process; leaving the context ends it whatever it is doing.

    Attributes:
        ready: The child's first answer, once the model is loaded; empty before.
        advice: What to do where memory runs out after that.
    """

    advice = "Lower benchmark.throughput_batch or benchmark.lengths."

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self.name, self.folder, self.threads = name, folder, threads
        self.ready: dict[str, Any] = {}

    @property
    def arguments(self) -> list[str]:
        """Return the arguments of Python that start the child."""
        worker = ["-m", "potstill.benchmarking.worker", str(self.folder.resolve())]
        return [*worker, "--threads", str(self.threads)]

    def __enter__(self) -> Child:
        # A file, not a pipe: nobody reads it while the child runs, and a full pipe would block it.
        self._stderr: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, *self.arguments],
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
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
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

    def run(self, length: int, batch: int, repeats: int, seed: int) -> dict[str, list[float]]:
        """Time passes over one batch of random tokens: seconds of wall and of CPU time."""
        return self.ask("run", length=length, batch=batch, repeats=repeats, seed=seed)

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send the child a command and return its answer.

        Raises:
            ValueError: The model cannot be loaded.
            BenchmarkFailed: The process died.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the missing answer says more
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
        """Return the error to raise for a dead child: a model that does not load is bad input."""
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode("utf-8", "replace").strip()
        no_memory, killed = tells_out_of_memory(said), code == -signal.SIGKILL
        if no_memory:
            what = "memory ran out"
        elif said and code >= 0:
            what = f"the measurement failed with {_last_error(said)!r}"
        else:
            what = f"its process was ended by {f'signal {-code}' if code < 0 else f'code {code}'}"
        if killed:
            what += ", as happens when memory runs out"
        advice = f" {self.advice}" if self.ready and (no_memory or killed) else ""
        message = f"model '{self.name}' ({self.folder}): {what}.{advice}"
        unloadable = not self.ready and code >= 0 and not no_memory
        return ValueError(message) if unloadable else BenchmarkFailed(message)


def _last_error(said: str) -> str:
    """Return the first line of the error that ended a process.

    An error's message may have several lines. Without a traceback it is the last line.
    """
    *_, last = said.rpartition("Traceback (most recent call last):")
    lines = last.strip("\n").splitlines()
    outside = [line for line in lines if not line.startswith(" ")]
    return (outside[0] if len(outside) < len(lines) else lines[-1]).strip()


def child_environment(threads: int) -> dict[str, str]:
    """Return a child's environment: `threads` for every library, no network, our own code."""
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
