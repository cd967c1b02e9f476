"""The base of every part of a recipe."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from potstill.recipe.data import Source  # whose parts are made of this file's Config

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]


@dataclass(frozen=True)
class AddedLater:
    """Marks a key that older runs and caches were made without; see `digested`."""


ADDED_LATER = AddedLater()


class Config(BaseModel):
    """Base of every part of a recipe: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    # Keys that older versions had -> why they are gone and what to do. Recipes of older runs may
    # hold them as null, and `digested` still has them so.
    removed: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_removed(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not cls.removed:
            return value
        for key, why in cls.removed.items():
            if value.get(key) is not None:
                raise ValueError(f"{key} {why}")
        return {key: item for key, item in value.items() if key not in cls.removed}

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


class StageConfig(Config):
    """Base of every stage: what it reads and writes, which none of its keys says alone.

    Attributes:
        trains: all processes of a distributed run take part; the first alone does other stages.
        compresses: it makes another model, or another kind of file, of one without training it.
        reads_onnx, writes_onnx: models that are .onnx files.
    """

    trains: ClassVar[bool] = False
    compresses: ClassVar[bool] = False
    reads_onnx: ClassVar[bool] = False
    writes_onnx: ClassVar[bool] = False

    @property
    @abstractmethod
    def models_read(self) -> list[str]:
        """Models that the stage names."""

    @property
    @abstractmethod
    def models_written(self) -> list[str]:
        """Names of the models that the stage writes: none, one, or one for each repeat."""

    @property
    def reads_every_model(self) -> bool:
        """Whether it reads all models that there are, beside those that it names."""
        return False

    @property
    def made_from(self) -> str | None:
        """The model that the stage makes another of; None of one that writes none."""
        return self.models_read[0] if self.models_written else None

    @property
    def text_sources(self) -> Sequence[Source]:
        """Text that the stage alone reads."""
        return []


# labels: [no, yes] is a list of false and true
_QUOTE = '; YAML reads yes, no, on and off so: put such a word in quotes, as in "no"'


def _takes_words(annotation: Any) -> bool:
    return annotation is str or any(_takes_words(one) for one in get_args(annotation))


def digested(config: Config) -> dict[str, Any]:
    """Return the part of a config that enters fingerprints of stages and cache keys.

    Runs and caches of older versions stay valid: a key that is added to an existing config is
    marked, as in `key: Annotated[int, ADDED_LATER] = 3`, and does not enter while its value is the
    default. The default must therefore do what was done before the key existed, and must never
    change. The mark stands outermost: `Annotated[Annotated[int, Field(ge=1)] | None, ADDED_LATER]`.
    The rule holds in parts of the config and in lists of parts, too.

    A key that is removed enters as null, as it did where it was not set: see `Config.removed`.

    Args:
        config: A stage, a corpus, or any other part of a recipe.

    Returns:
        `config.model_dump(mode="json")` without the marked keys that are not set.
    """
    found = config.model_dump(mode="json")
    _as_before(config, found)
    return found


def _as_before(value: Any, dumped: Any) -> None:
    """Change what a value was dumped as in place to what older versions would have dumped."""
    if isinstance(value, Config):
        for key in list(dumped):
            field, item = type(value).model_fields[key], getattr(value, key)
            default = field.get_default(call_default_factory=True, validated_data={})
            if ADDED_LATER in field.metadata and item == default:
                del dumped[key]
            else:
                _as_before(item, dumped[key])
        dumped.update(dict.fromkeys(type(value).removed))
    elif isinstance(value, (list, tuple)):
        for one, part in zip(value, dumped, strict=True):
            _as_before(one, part)
    elif isinstance(value, dict):
        for key, one in value.items():
            _as_before(one, dumped[key])
