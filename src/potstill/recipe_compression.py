"""The stages that make a trained model smaller, or another kind of file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from potstill.recipe_base import Config, Name


class Export(Config):
    """Write a model as an ONNX graph, and refuse one that answers otherwise than its source."""

    kind: Literal["export"] = "export"
    model: Name = "student"
    writes: Name = "onnx"
    # Largest difference from the source's outputs, relative to the largest of them.
    tolerance: Annotated[float, Field(gt=0)] = 1e-4
