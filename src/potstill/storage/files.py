"""Text and JSON written whole or not at all; models written whole or gone."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

# --- files ----------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that a crash leaves the old file or the new one, never a part.

    Raises:
        OSError: the folder is missing or can't be written.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
            # mkstemp makes private files; a run is as readable as anything else its user writes
            os.fchmod(stream.fileno(), 0o666 & ~_umask())
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON; NaN and infinities are refused, as other readers refuse them.

    Raises:
        ValueError: the value holds NaN or an infinity. TypeError: it holds what JSON has not.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: not there, not readable or not JSON; the message names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: can't be read ({error.strerror})") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors
        raise ValueError(f"{path}: not valid JSON ({error})") from None


def sync_file(path: Path) -> None:
    """Flush to the disk what another library wrote."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


# --- writing --------------------------------------------------------------------------------------


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
