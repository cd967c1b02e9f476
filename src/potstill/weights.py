"""Writing models: whole or not at all, and what goes wrong is an OSError, as with any file."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def whole_or_gone(folder: Path) -> Iterator[None]:
    """Leave nothing of a folder that doesn't come to its end."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn safetensors' own error into the operating system's that is behind it.

    Raises:
        OSError: the disk is full, or the file larger than allowed; it names `path`.
    """
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from None
