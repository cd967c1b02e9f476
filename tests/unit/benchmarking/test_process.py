"""The process of one model: its answers, and the error for one that is gone."""

from __future__ import annotations

import io
import signal
from pathlib import Path

import pytest
from tiny_bert import write_folders

from potstill.benchmarking.process import Child
from potstill.errors import BenchmarkFailed


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_folders(tmp_path_factory.mktemp("models"))


def test_child_that_dies_is_an_error_in_one_sentence(folders):
    with Child("x", folders["student"], 1) as child:
        answer = child.run(8, 1, 2, seed=0)
        assert len(answer["wall_s"]) == len(answer["cpu_s"]) == 2
        child._process.kill()
        with pytest.raises(
            BenchmarkFailed,
            match=r"model 'x' .* was ended by signal 9, as happens when memory runs out\. "
            r"Lower benchmark\.throughput_batch or benchmark\.lengths\.$",
        ):
            child.run(8, 1, 1, seed=0)


ENDED = "its process was ended by"
TWO_ERRORS = """a warning
Traceback (most recent call last):
  File "auto.py", line 1, in from_pretrained
    config[name]
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "auto.py", line 3, in from_pretrained
    raise ValueError(
ValueError: model type `x` is not known

You can update the library.
"""


class Gone:
    """A process that has ended."""

    def __init__(self, code):
        self.code = code

    def wait(self):
        return self.code


@pytest.mark.parametrize(
    ("code", "said", "loaded", "kind", "what"),
    [
        (1, "Traceback:\nOSError: no such model", False, ValueError, "'OSError: no such model'"),
        (1, "Traceback:\nAssertionError: x", True, RuntimeError, "'AssertionError: x'"),
        (1, TWO_ERRORS, False, ValueError, "'ValueError: model type `x` is not known'"),
        (
            -9,
            "a warning",
            False,
            RuntimeError,
            f"{ENDED} signal 9, as happens when memory runs out",
        ),
        (-11, "", True, RuntimeError, f"{ENDED} signal 11"),
        (3, "", True, RuntimeError, f"{ENDED} code 3"),
        (1, "MemoryError", False, RuntimeError, "memory ran out"),
        (
            1,
            "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried ...",
            True,
            *(
                RuntimeError,
                "memory ran out. Lower benchmark.throughput_batch or benchmark.lengths",
            ),
        ),
    ],
)
def test_what_is_told_of_a_child_that_is_gone(tmp_path, code, said, loaded, kind, what):
    child = Child("x", tmp_path, 1)
    child.ready = {"parameters": 1} if loaded else {}
    child._process = Gone(code)
    child._stderr = io.BytesIO(said.encode())
    error = child._death()
    assert isinstance(error, kind)
    failed = "the measurement failed with " if "Error: " in what else ""
    assert str(error) == f"model 'x' ({tmp_path}): {failed}{what}."


def test_child_is_ended_when_the_parent_is_interrupted(folders, monkeypatch):
    def interrupted(child):
        assert child._process.poll() is None
        raise KeyboardInterrupt

    monkeypatch.setattr(Child, "_answer", interrupted)
    child = Child("y", folders["student"], 1)
    with pytest.raises(KeyboardInterrupt):
        child.__enter__()
    assert child._process.returncode == -signal.SIGTERM
