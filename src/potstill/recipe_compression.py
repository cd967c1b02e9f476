"""The stages that make a trained model smaller, or another kind of file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from potstill.recipe_base import Config, Name


class Export(Config):
    """Write a model as an ONNX graph, and refuse one that answers otherwise than its source."""

    kind: Literal["export"] = "export"
    model: Name = "student"
    writes: Name = "onnx"
    # Largest difference from the source's outputs, relative to the largest of them.
    tolerance: Annotated[float, Field(gt=0)] = 1e-4


class Quantize(Config):
    """Write an ONNX graph with smaller numbers, within a budget of what it may cost."""

    kind: Literal["quantize"] = "quantize"
    model: Name = "onnx"
    writes: Name = "quantized"
    # dynamic: int8, ranges of activations taken anew for each text. static: int8, ranges seen on
    # the training text. 4bit: weights alone, in blocks. fp16: for GPUs.
    method: Literal["dynamic", "static", "4bit", "fp16"] = "dynamic"
    embeddings: bool = True  # tables of embeddings, too, by row
    # int8 weights of 7 bits. auto: on an x86 CPU without VNNI, whose sums would saturate.
    reduce_range: Literal["auto", True, False] = "auto"
    calibration: Literal["minmax", "percentile", "entropy"] = "minmax"  # static
    block: Literal[16, 32, 64, 128, 256] = 32  # 4bit: weights that share a scale
    texts: Annotated[int, Field(ge=1)] = 32  # of training, to calibrate and to compare layers on
    # Sentence embeddings: the columns of the held-out records that max_drop is judged by, as in
    # evaluate; without a query by the similarities of all texts.
    query: str | None = None
    passage: str | None = None
    label: str | None = None
    # Layers that stay in float: names as in the result, * stands for any part.
    float_layers: list[str] = []
    # The score may fall by so much (0.01 of an accuracy is one point): the layers that hurt most
    # stay in float, as few as will do. null: the score isn't looked at.
    max_drop: Annotated[float, Field(ge=0)] | None = None
    # Fail (exit code 1) unless it is faster than its source at every length.
    require_faster: bool = False
    lengths: Annotated[list[Annotated[int, Field(ge=3)]], Field(min_length=1)] = [16, 128]
    rounds: Annotated[int, Field(ge=3)] = 5

    @model_validator(mode="after")
    def _fit(self) -> Quantize:
        if self.method == "fp16" and (self.max_drop is not None or self.float_layers):
            raise ValueError(
                "method fp16 converts the whole graph: leave max_drop and float_layers out"
            )
        return self
