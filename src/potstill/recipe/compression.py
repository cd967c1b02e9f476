"""The stages that make a trained model smaller, or another kind of file."""

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
_SHARES = {"half": 1 / 2, "third": 1 / 3, "quarter": 1 / 4, "fifth": 1 / 5}


class TrimVocabulary(StageConfig):
    """Keep the word pieces that a text uses; the others leave tokenizer and embeddings."""

    compresses: ClassVar[bool] = True

    kind: Literal["trim_vocabulary"] = "trim_vocabulary"
    model: Name = "student"
    writes: Name | None = None  # null: the same name
    # The text whose pieces are kept, one source or several (languages); null: the recipe's own.
    sources: Sources | None = None
    columns: Annotated[list[str], Field(min_length=1)] | None = None  # of sources; null: [text]
    # The share of their records that the coverage is measured on, and no piece is kept for. null:
    # 0.05; of the recipe's own text its own held-out part.
    heldout: Annotated[float, Field(ge=0, lt=1)] | None = None
    min_count: Annotated[int, Field(ge=1)] = 1  # a piece is kept that stands so often in the text
    # Pieces at most, those kept in any case included; null: all that min_count keeps.
    size: Annotated[int, Field(ge=1)] | None = None
    # Tokens, or words whose pieces, that are kept whatever the text says.
    keep: list[Annotated[str, Field(min_length=1)]] = []

    @model_validator(mode="after")
    def _of_sources(self) -> TrimVocabulary:
        for key in ("columns", "heldout"):
            if self.sources is None and getattr(self, key) is not None:
                raise ValueError(
                    f"{key} is of the stage's own sources, and it has none: add sources, or leave "
                    f"{key} out and the recipe's own text is read as the recipe says"
                )
        return self

    @property
    def models_read(self) -> list[str]:
        return [self.model]

    @property
    def models_written(self) -> list[str]:
        return [self.writes or self.model]

    @property
    def text_sources(self) -> Sequence[Source]:
        return self.sources or []


def _default(config: Config, key: str) -> Any:
    """A key's default: a resolved recipe has all of them written out."""
    return type(config).model_fields[key].default


class Prune(StageConfig):
    """Cut what matters least out of a model; what is left is uniform, so config.json says it."""

    compresses: ClassVar[bool] = True

    kind: Literal["prune"] = "prune"
    model: Name = "student"
    writes: Name | None = None  # null: the same name
    # What stays; null: all. Inner units of each layer's FFN: a number, or a share between 0 and 1.
    ffn: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None = None
    layers: Annotated[int, Field(ge=1)] | None = None
    # Hidden size; heads keep theirs, so fewer of them stay.
    width: Annotated[int, Field(ge=1)] | None = None
    # What of the hidden states a width is of: channels as they are, or their principal components.
    directions: Literal["channels", "components"] = "channels"
    # taylor: to first order what the loss changes by without it, on training text. magnitude: the
    # size of its weights.
    importance: Literal["taylor", "magnitude"] = "taylor"
    texts: Annotated[int, Field(ge=1)] = 512  # of training that taylor reads

    @model_validator(mode="before")
    @classmethod
    def _share(cls, value: Any) -> Any:
        ffn = value.get("ffn") if isinstance(value, dict) else None
        wrong = isinstance(ffn, str) or (isinstance(ffn, float) and not 0 < ffn < 1)
        if wrong or (isinstance(ffn, int) and ffn < 1):
            raise ValueError(
                f"ffn is {ffn}: give a share between 0 and 1, or how many units stay as a whole "
                "number"
            )
        return value

    @model_validator(mode="after")
    def _something(self) -> Prune:
        if self.ffn is None and self.layers is None and self.width is None:
            raise ValueError("nothing would be pruned: set ffn, layers or width")
        if self.width is None and self.directions != _default(self, "directions"):
            raise ValueError("directions are those of a width: set width, or leave directions out")
        if self.importance == "magnitude" and self.texts != _default(self, "texts"):
            raise ValueError("importance magnitude reads no texts: leave texts out")
        if self.importance == "magnitude" and self.layers is not None:
            raise ValueError(
                "layers: the size of weights says nothing of whole layers: use importance taylor, "
                "or make_student, which spreads them evenly"
            )
        return self

    @property
    def models_read(self) -> list[str]:
        return [self.model]

    @property
    def models_written(self) -> list[str]:
        return [self.writes or self.model]


class GraphPruning(Config):
    """Attention heads and inner FFN units that leave, in each layer another number of them."""

    # The shares that stay, over all layers together; one of each layer stays in any case.
    heads: Annotated[float, Field(gt=0, lt=1)] | None = None
    ffn: Annotated[float, Field(gt=0, lt=1)] | None = None
    # taylor: by what the task's loss on texts would change. magnitude: by the size of the weights.
    importance: Literal["taylor", "magnitude"] = "taylor"
    texts: Annotated[int, Field(ge=1)] = 128  # of training, whose loss taylor looks at
    # The least agreement with the whole model on held-out text that is accepted. null: any.
    agreement: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_validator(mode="after")
    def _something(self) -> GraphPruning:
        if self.heads is None and self.ffn is None:
            raise ValueError("prune has nothing to prune: set heads, ffn or both")
        if self.importance == "magnitude" and self.texts != _default(self, "texts"):
            raise ValueError("importance magnitude reads no texts: leave texts out")
        return self


class Export(StageConfig):
    """Write a model as an ONNX graph, and refuse one that answers otherwise than its source."""

    compresses: ClassVar[bool] = True
    writes_onnx: ClassVar[bool] = True

    kind: Literal["export"] = "export"
    model: Name = "student"
    writes: Name = "onnx"
    # Largest difference from the source's outputs, relative to the largest of them.
    tolerance: Annotated[float, Field(gt=0)] = 1e-4
    # A smaller shape that only a graph can have; the folder's weights stay whole. null: the same.
    prune: GraphPruning | None = None

    @property
    def models_read(self) -> list[str]:
        return [self.model]

    @property
    def models_written(self) -> list[str]:
        return [self.writes]


class Quantize(StageConfig):
    """Write an ONNX graph with smaller numbers, within a budget of what it may cost."""

    compresses: ClassVar[bool] = True
    reads_onnx: ClassVar[bool] = True
    writes_onnx: ClassVar[bool] = True

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
    # The least agreement with its source on held-out text that is accepted: the share of equal
    # labels or tokens; of sentence vectors the mean cosine. null: any.
    agreement: Annotated[float, Field(gt=0, le=1)] | None = None
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
        for key in ("query", "passage", "label"):
            if self.max_drop is None and getattr(self, key) is not None:
                raise ValueError(
                    f"{key} is what max_drop is judged by: set max_drop, or leave {key} out"
                )
        return self

    @property
    def models_read(self) -> list[str]:
        return [self.model]

    @property
    def models_written(self) -> list[str]:
        return [self.writes]


def _as_count(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+\.?\d*)\s*([kKmMgGbB]?)\s*", value)
    return round(float(found[1]) * _UNITS[found[2].lower()]) if found else value


def _as_share(value: Any) -> Any:
    return _SHARES.get(value, value) if isinstance(value, str) else value


class Student(Config):
    """The student that is asked for: by layers and widths, or by what it may cost."""

    layers: LayerRule | list[Annotated[int, Field(ge=0)]] = "alternate"
    depth: Annotated[int, Field(ge=1)] | None = None  # layers, for a rule; null: half, rounded up
    width: Annotated[int, Field(ge=1)] | None = None  # hidden size; null: the teacher's
    # Inner width of the FFN; null: in proportion to the width.
    ffn: Annotated[int, Field(ge=1)] | None = None
    # Parameters it may have ("15 M"); depth and widths are chosen.
    at_most: Annotated[int, Field(ge=1), BeforeValidator(_as_count)] | None = None
    # The same for the share of what a token costs the teacher, in parameters of layers ("half").
    ratio: Annotated[float, Field(gt=0, le=1), BeforeValidator(_as_share)] | None = None
    # random: to compare with a student that starts from the teacher's weights.
    initialise: Literal["teacher", "random"] = "teacher"
    family: StudentFamily | None = None
    pairs: bool = False  # the teacher reads text pairs, so token types must stay

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> Student:
        budgets = [key for key in ("at_most", "ratio") if getattr(self, key) is not None]
        if len(budgets) == 2:
            raise ValueError("at_most and ratio both choose the student's shape: leave one out")
        sizes = [key for key in ("depth", "width", "ffn") if getattr(self, key) is not None]
        if not isinstance(self.layers, str):
            sizes.append("layers as a list")
        if budgets and sizes:
            raise ValueError(f"{budgets[0]} chooses the shape: leave {' and '.join(sizes)} out")
        return self


class _Making(StageConfig):
    kind: Literal["make_student"] = "make_student"
    teacher: Name = "teacher"
    writes: Name = "student"

    @property
    def models_read(self) -> list[str]:
        return [self.teacher]

    @property
    def models_written(self) -> list[str]:
        return [self.writes]


def asked_for(wanted: dict[str, Any]) -> list[tuple[str, Any]]:
    """The known keys of a `student` block, with their fields."""
    return [(key, field) for key, field in Student.model_fields.items() if key in wanted]


class MakeStudent(Student, _Making):
    """Build a smaller student from a teacher's own weights."""
