"""The base of every part of a recipe, and what of it enters digests."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

from pydantic import AliasChoices, AliasGenerator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:  # their parts are made of this file's Config
    from potstill.recipe.data import Source
    from potstill.recipe.tasks import Task

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]

UNKNOWN = "unknown_key"  # what pydantic's errors call a key that a config does not have


def nearest(given: str, known: Sequence[str], otherwise: str) -> str:
    """Suggest the known name that is nearest to a given one, or list all of them."""
    near = difflib.get_close_matches(given, known, n=1)
    return f"Did you mean '{near[0]}'?" if near else f"{otherwise} {', '.join(known)}."


ADDED_LATER = object()  # marks a key that older runs and caches were made without; see `digested`
# Former names of keys -> today's. Recipes may use both; digests have the former ones.
FORMER = {"initialise": "initialize", "unlabelled": "unlabeled", "max_unlabelled": "max_unlabeled"}
_BEFORE = {name: former for former, name in FORMER.items()}


def today(key: str) -> str:
    """Return a key's name of today, given that or its former name."""
    return FORMER.get(key, key)


def _spellings(key: str) -> str | AliasChoices:
    """Return the names that a key may have in a recipe; an error has the one that was written."""
    return AliasChoices(key, _BEFORE[key]) if key in _BEFORE else key


class Config(BaseModel):
    """Base of every part of a recipe: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        alias_generator=AliasGenerator(validation_alias=_spellings),
    )
    # Keys that older versions had -> why they are gone and what to do. Recipes of older runs may
    # hold them as null, and `digested` still has them so.
    removed: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for key, item in value.items():
            if FORMER.get(key) in value:
                raise ValueError(
                    f"{key}: the key is now called {today(key)}, which is set, too. Omit {key}."
                )
            if key in cls.removed and item is not None:
                raise ValueError(f"{key}: {cls.removed[key]}")
            if today(key) not in {*cls.model_fields, *cls.removed}:
                hint = nearest(str(key), sorted(cls.model_fields), "The valid keys are")
                raise PydanticCustomError(UNKNOWN, "{hint}", {"key": key, "hint": hint})
        return {key: item for key, item in value.items() if key not in cls.removed}

    @model_validator(mode="before")
    @classmethod
    def _no_booleans_as_numbers(cls, value: Any) -> Any:
        # pydantic reads true as 1: `batch_size: yes` is a slip of the pen, not a batch of one
        for key, item in value.items() if isinstance(value, dict) else ():
            field = cls.model_fields.get(today(key))
            if field is None or field.annotation is bool or True in get_args(field.annotation):
                continue
            for one in item if isinstance(item, list) else [item]:
                if isinstance(one, bool):
                    hint = _QUOTE if _takes_words(field.annotation) else "Give another value."
                    raise ValueError(f"{key}: {str(one).lower()} is not valid here. {hint}")
        return value


class StageConfig(Config):
    """Base of every stage, with the names of the models that it reads and writes."""

    trains: ClassVar[bool] = False  # all processes of a distributed run take part; else one
    compresses: ClassVar[bool] = False  # makes another model, or another kind of file, untrained
    reads_onnx: ClassVar[bool] = False  # these models may be .onnx files
    writes_onnx: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True  # for tasks with labels, it reads those, and not any text
    reports: ClassVar[bool] = False  # measures nothing, and shows what the stages before it found

    kind: str

    @property
    def reads(self) -> list[str]:
        """Return the models that the stage names."""
        return []

    @property
    def written(self) -> list[str]:
        """Return the names of the models that it writes: none, one, or one per repeat."""
        return []

    @property
    def reads_every_model(self) -> bool:
        """Return whether it reads all models, and not only those that it names."""
        return False

    def reads_among(self, known: Iterable[str]) -> list[str]:
        """Return the models that it reads, out of those that there are."""
        return list(known) if self.reads_every_model else self.reads

    @property
    def made_from(self) -> str | None:
        """Return the model that the stage starts from; None if it writes no model."""
        return self.reads[0] if self.written else None

    def unfit(self, task: Task) -> str | None:
        """Explain why the stage can't do a task; None if it can."""
        return None

    def unreadable(self, writer: StageConfig | None) -> str | None:
        """Explain why it can't read the model of a stage, or a given one (None); None if it can."""
        if writer is not None and writer.writes_onnx and not self.reads_onnx:
            return "is an ONNX file and can't be changed. Name the model that it was exported from."
        return None

    @property
    def needs_heldout(self) -> bool:
        """Return whether it can't do without held-out text."""
        return False

    @property
    def compared_with(self) -> str | None:
        """Return the model that it compares others with; None if it compares none."""
        return None

    @property
    def text_sources(self) -> Sequence[Source]:
        """Return the sources of text that only this stage reads."""
        return []


# labels: [no, yes] is a list of false and true
_QUOTE = 'YAML reads yes, no, on and off as true or false. Put such a word in quotes, as in "no".'


def _takes_words(annotation: Any) -> bool:
    return annotation is str or any(_takes_words(one) for one in get_args(annotation))


def digested(config: Config) -> dict[str, Any]:
    """Return the part of a config that enters fingerprints of stages and cache keys.

    Runs and caches of older versions stay valid: a key that is added to an existing config is
    marked, as in `key: Annotated[int, ADDED_LATER] = 3`, and does not enter while its value is the
    default. The default must therefore do what was done before the key existed, and must never
    change. The mark stands outermost: `Annotated[Annotated[int, Field(ge=1)] | None, ADDED_LATER]`.
    The rule holds in parts of the config and in lists of parts, too. A key that was renamed enters
    under its former name (`FORMER`), and a removed one as null (`Config.removed`).
    """
    return dict(_as_before(config, config.model_dump(mode="json")))


def _as_before(value: Any, dumped: Any) -> Any:
    """Turn what a value was dumped as into what older versions would have dumped."""
    if isinstance(value, Config):
        kept = {
            _BEFORE.get(key, key): _as_before(item, dumped[key])
            for key, item in value
            if not (
                ADDED_LATER in (field := type(value).model_fields[key]).metadata
                and item == field.get_default(call_default_factory=True, validated_data={})
            )
        }
        return kept | dict.fromkeys(type(value).removed)
    if isinstance(value, (list, tuple)):
        return [_as_before(one, part) for one, part in zip(value, dumped, strict=True)]
    if isinstance(value, dict):
        return {key: _as_before(one, dumped[key]) for key, one in value.items()}
    return dumped
