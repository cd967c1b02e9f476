from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from potstill.weights import writing


def test_what_safetensors_says_is_an_os_error(tmp_path: Path) -> None:
    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(OSError, match=r"No space left on device") as caught, writing(tmp_path):
        raise SafetensorError(said)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))
    with pytest.raises(OSError, match=r"Input/output error") as caught, writing(tmp_path):
        raise SafetensorError("something else")
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("what", ["save_file", "checkpoint"])
def test_a_file_that_may_not_grow(what: str, tmp_path: Path) -> None:
    """In a process of its own: a limit on file sizes can't be raised again."""
    code = f"""
import resource, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from potstill.checkpoint import save_checkpoint
from potstill.weights import writing
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
tensors = {{"w": torch.zeros(4096)}}
path = Path({str(tmp_path)!r})
try:
    if {what!r} == "checkpoint":
        save_checkpoint(path, 1, {{"model": tensors}}, {{}})
    else:
        with writing(path):
            save_file(tensors, path / "w.safetensors")
except OSError as error:
    print(error.errno)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(errno.EFBIG)
    assert not list(tmp_path.glob("step-*"))
