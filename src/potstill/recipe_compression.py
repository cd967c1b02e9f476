"""The stages that make a trained model smaller, or another kind of file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from potstill.recipe_base import Config, Name
from potstill.recipe_text import Sources


class TrimVocabulary(Config):
    """Keep the word pieces that a text uses; the others leave tokenizer and embeddings."""

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


class Export(Config):
    """Write a model as an ONNX graph, and refuse one that answers otherwise than its source."""

    kind: Literal["export"] = "export"
    model: Name = "student"
    writes: Name = "onnx"
    # Largest difference from the source's outputs, relative to the largest of them.
    tolerance: Annotated[float, Field(gt=0)] = 1e-4
