"""Models: their architecture, their folder, and their signals about a batch.

`families.py` is the only file that knows architectures, a row each. `loading.py` opens, checks and
saves model folders; `signals.py` is what a model says of a batch, with a head to call; `runtime.py`
asks a saved model, in PyTorch or ONNX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill._lazy import lazily

if TYPE_CHECKING:
    from potstill.models.config import load_config, task_of
    from potstill.models.loading import LoadedModel, load_model, save_model
    from potstill.models.runtime import Runtime
    from potstill.models.signals import Signals

__all__ = [
    "LoadedModel",
    "Runtime",
    "Signals",
    "load_config",
    "load_model",
    "save_model",
    "task_of",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "config": ["load_config", "task_of"],
        "loading": ["LoadedModel", "load_model", "save_model"],
        "runtime": ["Runtime"],
        "signals": ["Signals"],
    },
)
