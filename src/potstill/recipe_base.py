"""The base of every part of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, get_args

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
            if field is None or field.annotation is bool or True in get_args(field.annotation):
                continue
            for one in item if isinstance(item, list) else [item]:
                if isinstance(one, bool):
                    has = "has" if isinstance(item, list) else "is"
                    raise ValueError(
                        f"{key} {has} {str(one).lower()}, where another kind of value belongs"
                        f"{_QUOTE if _takes_words(field.annotation) else ''}"
                    )
        return value


# labels: [no, yes] is a list of false and true
_QUOTE = '; YAML reads yes, no, on and off so: put such a word in quotes, as in "no"'


def _takes_words(annotation: Any) -> bool:
    return annotation is str or any(_takes_words(one) for one in get_args(annotation))
