"""Bytes on disk: what is written is written whole, or not at all.

A run's folder, cache folders, model folders and .onnx files; manifests of what is in them, and
what a path or a name stands for. Nothing here imports torch, so that a mistyped path is found
within a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill._lazy import lazily

if TYPE_CHECKING:
    from potstill.storage.caches import cache_folder
    from potstill.storage.machine import environment
    from potstill.storage.run_folder import RunFolder, open_run

__all__ = ["RunFolder", "cache_folder", "environment", "open_run"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "caches": ["cache_folder"],
        "machine": ["environment"],
        "run_folder": ["RunFolder", "open_run"],
    },
)
