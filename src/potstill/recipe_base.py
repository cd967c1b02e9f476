"""The base of every part of a recipe."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]


class Config(BaseModel):
    """Base of every part of a recipe: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_booleans_as_numbers(cls, value: Any) -> Any:
        # pydantic reads true as 1: `batch_size: yes` is a slip of the pen, not a batch of one
        for key, item in value.items() if isinstance(value, dict) else ():
            field = cls.model_fields.get(key)
            if field is None or field.annotation is bool:
                continue
            for one in item if isinstance(item, list) else [item]:
                if isinstance(one, bool):
                    has = "has" if isinstance(item, list) else "is"
                    raise ValueError(
                        f"{key} {has} {str(one).lower()}, where another kind of value belongs"
                    )
        return value
