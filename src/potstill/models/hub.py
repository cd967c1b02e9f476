"""Where models are: folders, installed packages, the hub; and what goes wrong in a sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging


def read_remote_json(path: str, relative: str, revision: str | None, name: str) -> Any:
    """A JSON file of a local folder or a hub repository; None where there is none."""
    from transformers.utils.hub import cached_file

    with quiet(), one_sentence(name):
        found = cached_file(
            path, relative, revision=revision, _raise_exceptions_for_missing_entries=False
        )
    try:
        return json.loads(Path(found).read_text(encoding="utf-8")) if found else None
    except (OSError, ValueError):
        raise ValueError(f"{name}: {relative} is not readable as JSON") from None


@contextmanager
def quiet() -> Iterator[None]:
    """transformers prints load reports and bars that say nothing our own checks don't."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def one_sentence(name: str) -> Iterator[None]:
    """Turn the loaders' errors into one sentence that names the model."""
    try:
        yield
    except (OSError, HFValidationError, SafetensorError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, SafetensorError):
            first = f"its safetensors file is damaged ({first})"
        elif "couldn't connect" in first:
            first = "it is no folder here, and the hub can't be reached or is switched off"
        elif "safetensors" in str(error):
            first = "it has no model.safetensors (pickled .bin weights are not read)"
        raise ValueError(f"{name}: the model can't be loaded: {first}") from None
