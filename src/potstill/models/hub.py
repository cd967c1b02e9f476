"""Model repositories, local or on the hub, and what goes wrong with one in a sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import logging as transformers_logging

from potstill.storage.onnx_files import folder_of, is_onnx
from potstill.storage.places import local_folder


@dataclass(frozen=True)
class Repository:
    """Locate a model: a local folder, or a repository of the hub."""

    path: str
    name: str  # in messages
    revision: str | None

    @staticmethod
    def of(spec: str | os.PathLike[str], revision: str | None = None) -> Repository:
        """Find what a model's name stands for; an .onnx file is read with its model folder.

        Raises:
            ValueError: There is no such folder or file.
        """
        name = os.fspath(spec)
        place = os.fspath(folder_of(name)) if is_onnx(name) else name
        return Repository(os.fspath(local_folder(place, name) or place), name, revision)

    def config(self) -> PretrainedConfig:
        """Read its config.json."""
        with quiet(), one_sentence(self.name):
            config: PretrainedConfig = AutoConfig.from_pretrained(
                self.path, revision=self.revision, trust_remote_code=False
            )
        return config

    def json(self, relative: str) -> Any:
        """Read one of its JSON files; None where there is none."""
        from transformers.utils.hub import cached_file

        with quiet(), one_sentence(self.name):
            found = cached_file(
                self.path,
                relative,
                revision=self.revision,
                _raise_exceptions_for_missing_entries=False,
            )
        try:
            return json.loads(Path(found).read_text(encoding="utf-8")) if found else None
        except (OSError, ValueError):
            raise ValueError(
                f"{self.name}: {relative} is not readable as JSON. Save the model again."
            ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing load reports and bars that our own checks replace."""
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
        advice = "Download or save the model again."
        if isinstance(error, SafetensorError):
            first = f"its safetensors file is damaged: {first}"
        elif "couldn't connect" in first:
            first = "it is not a local folder, and the hub cannot be reached or is switched off"
            advice = "Check the name and the connection."
        elif "safetensors" in str(error):
            first = "it has no model.safetensors, and pickled .bin weights are not read"
            advice = "Save the model as safetensors."
        problem = f"the model cannot be loaded ({first.rstrip('.')})"
        raise ValueError(f"{name}: {problem}. {advice}") from None
