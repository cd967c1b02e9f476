"""Stages that make a trained model smaller, or another kind of file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from potstill.recipe.config import Config, Name, StageConfig
from potstill.recipe.data import Source, Sources

LayerRule = Literal["alternate", "uniform", "first", "last"]
StudentFamily = Literal["bert", "distilbert"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_FRACTIONS = {"half": 1 / 2, "third": 1 / 3, "quarter": 1 / 4, "fifth": 1 / 5}


class ModelStage(StageConfig):
    """Base of the stages that make another model, or another kind of file, of one."""

    compresses: ClassVar[bool] = True

    model: Name = "student"
    writes: Name | None = None  # null: the same name

    @property
    def reads(self) -> list[str]:
        return [self.model]

    @property
    def written(self) -> list[str]:
        return [self.writes or self.model]


class TrimVocabulary(ModelStage):
    """Remove the subword tokens that a text does not use, with their embeddings."""

    needs_labels: ClassVar[bool] = False

    kind: Literal["trim_vocabulary"] = "trim_vocabulary"
    # The text whose tokens are kept, one source or several (languages); null: the recipe's own.
    sources: Sources | None = None
    columns: Annotated[list[str], Field(min_length=1)] | None = None  # of sources; null: [text]
    # The fraction of their records that the coverage is measured on, and no token is kept for.
    # null: 0.05; for the recipe's own text, its own held-out part.
    heldout: Annotated[float, Field(ge=0, lt=1)] | None = None
    min_count: Annotated[int, Field(ge=1)] = 1  # how often a token must occur in the text
    # Vocabulary size at most, with the tokens that are always kept; null: all that min_count keeps.
    size: Annotated[int, Field(ge=1)] | None = None
    # Tokens, or words with all of their tokens, that are kept in any case.
    keep: list[Annotated[str, Field(min_length=1)]] = []

    @model_validator(mode="after")
    def _of_sources(self) -> TrimVocabulary:
        for key in ("columns", "heldout"):
            if self.sources is None and getattr(self, key) is not None:
                raise ValueError(
                    f"{key}: the stage has no sources of its own. Set sources, or omit {key} to "
                    "read the recipe's text as the recipe does."
                )
        return self

    @property
    def text_sources(self) -> Sequence[Source]:
        return self.sources or []


def _only_taylor_reads_texts(config: Prune | GraphPruning) -> None:
    # a resolved recipe has all defaults written out
    if config.importance == "magnitude" and (
        config.texts != type(config).model_fields["texts"].default
    ):
        raise ValueError("texts: importance magnitude reads no texts. Omit texts.")


class Prune(ModelStage):
    """Remove the least important parts of a model; its shape stays one that config.json has."""

    kind: Literal["prune"] = "prune"
    # What stays; null: all. Intermediate (FFN) size: a number, or a fraction between 0 and 1.
    ffn: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None = None
    layers: Annotated[int, Field(ge=1)] | None = None
    # Hidden size; heads keep their size, so fewer of them stay.
    width: Annotated[int, Field(ge=1)] | None = None
    # What a width is made of: channels of the hidden states, or their principal components.
    directions: Literal["channels", "components"] = "channels"
    # taylor: by how much the loss on training text would change, to first order. magnitude: by the
    # size of the weights.
    importance: Literal["taylor", "magnitude"] = "taylor"
    texts: Annotated[int, Field(ge=1)] = 512  # of training that taylor reads

    @model_validator(mode="before")
    @classmethod
    def _number_or_fraction(cls, value: Any) -> Any:
        ffn = value.get("ffn") if isinstance(value, dict) else None
        wrong = isinstance(ffn, str) or (isinstance(ffn, float) and not 0 < ffn < 1)
        if wrong or (isinstance(ffn, int) and ffn < 1):
            raise ValueError(
                f"ffn: {ffn} is out of range. Give a fraction between 0 and 1, or the number of "
                "units to keep."
            )
        return value

    @model_validator(mode="after")
    def _something(self) -> Prune:
        if self.ffn is None and self.layers is None and self.width is None:
            raise ValueError("this would prune nothing. Set ffn, layers or width.")
        if self.width is None and self.directions != "channels":
            raise ValueError("directions: they apply to a width, and none is set. Set width.")
        _only_taylor_reads_texts(self)
        if self.importance == "magnitude" and self.layers is not None:
            raise ValueError(
                "layers: the size of weights does not rank whole layers. Set importance to taylor, "
                "or use make_student, which spreads the layers evenly."
            )
        return self


class GraphPruning(Config):
    """Remove attention heads and FFN units, a different number of them in each layer."""

    # The fractions that stay, over all layers together; each layer keeps at least one of both.
    heads: Annotated[float, Field(gt=0, lt=1)] | None = None
    ffn: Annotated[float, Field(gt=0, lt=1)] | None = None
    # taylor: by how much the task's loss would change. magnitude: by the size of the weights.
    importance: Literal["taylor", "magnitude"] = "taylor"
    texts: Annotated[int, Field(ge=1)] = 128  # of training, whose loss taylor reads
    # The lowest agreement with the whole model on held-out text that is accepted. null: any.
    agreement: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _something(self) -> GraphPruning:
        if self.heads is None and self.ffn is None:
            raise ValueError("this would prune nothing. Set heads, ffn or both.")
        _only_taylor_reads_texts(self)
        return self


class Export(ModelStage):
    """Write a model as an ONNX graph, and refuse a graph whose outputs differ from the model's."""

    writes_onnx: ClassVar[bool] = True

    kind: Literal["export"] = "export"
    writes: Name = "onnx"
    # Largest difference from the model's outputs, relative to the largest of them.
    tolerance: Annotated[float, Field(gt=0)] = 1e-4
    # A smaller shape that only a graph can have; the folder's weights stay whole. null: unpruned.
    prune: GraphPruning | None = None


class Quantize(ModelStage):
    """Quantize an ONNX graph, within limits on what its score may lose."""

    reads_onnx: ClassVar[bool] = True
    writes_onnx: ClassVar[bool] = True

    kind: Literal["quantize"] = "quantize"
    model: Name = "onnx"
    writes: Name = "quantized"
    # dynamic: int8, ranges of activations computed for each text. static: int8, ranges from the
    # training text. 4bit: weights alone, in blocks. fp16: for GPUs.
    method: Literal["dynamic", "static", "4bit", "fp16"] = "dynamic"
    embeddings: bool = True  # quantize the embedding tables, too, by row
    # int8 weights of 7 bits. auto: on an x86 CPU without VNNI, whose sums would saturate.
    reduce_range: Literal["auto", True, False] = "auto"
    calibration: Literal["minmax", "percentile", "entropy"] = "minmax"  # static
    block: Literal[16, 32, 64, 128, 256] = 32  # 4bit: weights per scale
    texts: Annotated[int, Field(ge=1)] = 32  # of training, to calibrate and to compare layers on
    # Sentence embeddings: the columns of the held-out records for the score of max_drop, as in
    # evaluate; without a query the similarities of all texts count.
    query: str | None = None
    passage: str | None = None
    label: str | None = None
    # Layers that stay in float: names as in the result; * matches any part.
    float_layers: list[str] = []
    # The largest drop of the score (0.01 of an accuracy is one point): the layers that cost most
    # stay in float, as few as possible. null: no limit.
    max_drop: Annotated[float, Field(ge=0)] | None = None
    # The lowest agreement with its source on held-out text that is accepted: the fraction of equal
    # labels or tokens; for sentence vectors the mean cosine. null: any.
    agreement: Annotated[float, Field(gt=0, le=1)] | None = None
    # Fail (exit code 1) unless it is faster than its source at every length.
    require_faster: bool = False
    lengths: Annotated[list[Annotated[int, Field(ge=3)]], Field(min_length=1)] = [16, 128]
    rounds: Annotated[int, Field(ge=3)] = 5

    @model_validator(mode="after")
    def _fit(self) -> Quantize:
        if self.method == "fp16" and (self.max_drop is not None or self.float_layers):
            raise ValueError(
                "method: fp16 converts the whole graph. Omit max_drop and float_layers."
            )
        for key in ("query", "passage", "label"):
            if self.max_drop is None and getattr(self, key) is not None:
                raise ValueError(f"{key}: only max_drop reads it. Set max_drop, or omit {key}.")
        return self

    def unreadable(self, writer: StageConfig | None) -> str | None:
        if writer is None or not writer.writes_onnx:
            return "is not an ONNX file. Export it first, and name what the export stage writes."
        if writer.kind == self.kind:
            return "is already quantized. Name the model that it was made from."
        return None


def _as_count(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+\.?\d*)\s*([kKmMgGbB]?)\s*", value)
    return round(float(found[1]) * _UNITS[found[2].lower()]) if found else value


def _as_fraction(value: Any) -> Any:
    return _FRACTIONS.get(value, value) if isinstance(value, str) else value


class Student(Config):
    """Describe the student: by layers and widths, or by what it may cost."""

    layers: LayerRule | list[Annotated[int, Field(ge=0)]] = "alternate"
    depth: Annotated[int, Field(ge=1)] | None = None  # layers, for a rule; null: half, rounded up
    width: Annotated[int, Field(ge=1)] | None = None  # hidden size; null: the teacher's
    # Intermediate (FFN) size; null: in proportion to the width.
    ffn: Annotated[int, Field(ge=1)] | None = None
    # Parameters at most ("15 M"); depth and widths are chosen.
    at_most: Annotated[int, Field(ge=1), BeforeValidator(_as_count)] | None = None
    # The same as a fraction of the teacher's cost per token, in parameters of layers ("half").
    ratio: Annotated[float, Field(gt=0, le=1), BeforeValidator(_as_fraction)] | None = None
    # random: to compare with a student that starts from the teacher's weights.
    initialize: Literal["teacher", "random"] = "teacher"
    family: StudentFamily | None = None
    pairs: bool = False  # the teacher reads text pairs, so token types must stay

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> Student:
        budgets = [key for key in ("at_most", "ratio") if getattr(self, key) is not None]
        sizes = [key for key in ("depth", "width", "ffn") if getattr(self, key) is not None]
        if not isinstance(self.layers, str):
            sizes.append("layers")
        if len(budgets) == 2:
            raise ValueError("at_most: it and ratio both choose the student's shape. Omit one.")
        if budgets and sizes:
            raise ValueError(f"{budgets[0]}: it chooses the shape. Omit {' and '.join(sizes)}.")
        return self


class _Making(StageConfig):
    kind: Literal["make_student"] = "make_student"
    teacher: Name = "teacher"
    writes: Name = "student"

    @property
    def reads(self) -> list[str]:
        return [self.teacher]

    @property
    def written(self) -> list[str]:
        return [self.writes]


class MakeStudent(Student, _Making):
    """Build a smaller student from a teacher's own weights."""
