"""Recipes as files: finding and reading them, `KEY=VALUE` overrides, mistakes in one sentence."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from potstill.recipe.config import Config
from potstill.recipe.data import Source
from potstill.recipe.objectives import Objective
from potstill.recipe.recipe import Recipe
from potstill.recipe.stages import Stage


class RecipeError(ValueError):
    """A recipe that can't be read or run; the message is one sentence a user can act on."""


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with Potstill."""
    folder = Path(str(resources.files("potstill.recipe"))) / "shipped"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(name_or_path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name or a file by path, apply `KEY=VALUE` overrides, check it.

    Raises:
        RecipeError: no such recipe, YAML that does not parse, an unknown key or a value that does
            not fit.
    """
    text, origin = _read(name_or_path)
    tree = _unshared(parse_yaml(text, origin))
    for override in overrides:
        _override(tree, override)
    return parse_recipe(tree, origin)


def parse_yaml(text: str, origin: str) -> dict[str, Any]:
    """A recipe's text as the mapping that it must be, whatever is in it.

    Raises:
        RecipeError: YAML that does not parse, or something else than a mapping.
    """
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}:{mark.line + 1}" if mark else origin
        problem = getattr(error, "problem", None) or "it does not parse"
        raise RecipeError(f"{where}: not valid YAML ({problem})") from None
    if not isinstance(tree, dict):
        raise RecipeError(
            f"{origin}: a recipe is a mapping of keys to values, this is {_kind_of(tree)}"
        )
    return tree


def parse_recipe(tree: dict[str, Any], origin: str) -> Recipe:
    """Check a mapping against the recipe's models; `origin` is how errors call it.

    Raises:
        RecipeError: the first thing that is wrong, with the nearest valid name for an unknown key.
    """
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(f"{origin}: {explain(error, Recipe)}") from None


Block = TypeVar("Block", bound=Config)


def checked(kind: type[Block], settings: dict[str, Any]) -> Block:
    """Settings as a block of a recipe: of a student, or of a stage.

    Raises:
        RecipeError: a value that does not fit.
    """
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise RecipeError(explain(error, kind)) from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out."""
    # `student` has been handed to the stages, where each key stands now
    return yaml.safe_dump(
        recipe.model_dump(mode="json", exclude={"student"}),
        sort_keys=False,
        allow_unicode=True,
        width=100,
    )


def _read(name_or_path: str | os.PathLike[str]) -> tuple[str, str]:
    shipped = shipped_recipes()
    name = os.fspath(name_or_path)
    path = shipped.get(name, Path(name))
    if not path.is_file():
        near = difflib.get_close_matches(name, shipped, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"shipped recipes: {', '.join(shipped)}"
        raise RecipeError(f"recipe '{name}' is neither a file nor a shipped recipe; {hint}")
    try:
        return path.read_text(encoding="utf-8"), name
    except UnicodeDecodeError:
        raise RecipeError(f"{name}: not a UTF-8 text file, so not a recipe") from None
    except OSError as error:
        raise RecipeError(f"{name}: can't be read ({error.strerror})") from None


def _kind_of(value: Any) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"


def _unshared(value: Any) -> Any:
    """A copy in which YAML aliases are parts of their own: changing one leaves the others."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _override(tree: dict[str, Any], text: str) -> None:
    """Apply `a.b.c=value` in place; a list is entered by number, or by its entries' kind."""
    key, equals, raw = text.partition("=")
    if not equals or not key:
        raise RecipeError(
            f"'{text}' is not KEY=VALUE, for example seed=2 or distill.training.max_steps=100"
        )
    try:
        value = yaml.safe_load(raw) if raw else None
    except yaml.YAMLError:
        value = raw  # *.txt and [ab].txt are globs here, not YAML's aliases and lists
    path = key.split(".")
    if path[0] not in tree and path[0] not in Recipe.model_fields:
        path = ["stages", *path]  # distill.training… is short for stages.distill.training…
    node: Any = tree
    for done, part in enumerate(path[:-1], start=1):
        node = _enter(node, part, ".".join(path[:done]), text)
    last = path[-1]
    if isinstance(node, list):
        node[_index(node, last, key)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise RecipeError(f"{text}: '{'.'.join(path[:-1])}' has no keys below it")


def _enter(node: Any, part: str, where: str, text: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, where)]
    if not isinstance(node, dict):
        raise RecipeError(f"{text}: '{where}' is not a key of this recipe that has keys below it")
    if node.get(part) is None:
        node[part] = {}
    return node[part]


def _index(items: list[Any], part: str, where: str) -> int:
    kinds = [item.get("kind") if isinstance(item, dict) else None for item in items]
    if part.isdigit():
        if int(part) >= len(items):
            raise RecipeError(f"{where}: there are {len(items)} entries, counted from 0")
        return int(part)
    if kinds.count(part) == 1:
        return kinds.index(part)
    if part in kinds:
        raise RecipeError(
            f"{where}: {kinds.count(part)} entries are of kind {part}; name one by its number, "
            "counted from 0"
        )
    names = [kind for kind in kinds if kind] + list(Recipe.model_fields)
    near = difflib.get_close_matches(part, names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(names)}"
    raise RecipeError(f"unknown key '{part}' in the override {where}; {hint}")


# --- explaining -----------------------------------------------------------------------------------


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """One sentence for what pydantic found wrong: the key, what is wrong, what would fit."""
    first = _most_telling(error.errors())
    loc = _keys(first["loc"])
    where = ".".join(str(part) for part in loc) or "the recipe"
    kind, given = first["type"], first.get("input")
    if kind == "extra_forbidden":
        parent = ".".join(str(part) for part in loc[:-1])
        names = _fields_at(root, first["loc"][:-1])
        near = difflib.get_close_matches(str(loc[-1]), names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"valid keys: {', '.join(names)}"
        return f"unknown key '{loc[-1]}'{f' in {parent}' if parent else ''}; {hint}"
    if kind == "missing" or (kind in _NO_MAPPING and given is None):
        return f"{where} is not set: give it in the recipe or as {where}=VALUE"
    if kind == "union_tag_invalid":
        expected = [tag.strip("' ") for tag in first["ctx"]["expected_tags"].split(",")]
        near = difflib.get_close_matches(str(first["ctx"]["tag"]), expected, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(expected)}"
        return f"{where}: unknown kind '{first['ctx']['tag']}'; {hint}"
    if kind == "union_tag_not_found":
        within = [part for part in loc if part in _KINDS]
        return f"{where}: no kind is given; there are: {', '.join(_KINDS[within[-1]])}"
    if kind in _NO_MAPPING:
        return f"{where}: keys and values belong here (given: {given!r})"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    shown = (
        "" if kind == "value_error" or isinstance(given, (dict, list)) else f" (given: {given!r})"
    )
    return f"{where}: {message}{shown}"


# pydantic's words for these name a Python class
_NO_MAPPING = ("model_type", "model_attributes_type", "dict_type")


def _most_telling(errors: Sequence[Any]) -> Any:
    """Of all that pydantic complains about, what its user most probably did."""
    unknown = [error for error in errors if error["type"] == "extra_forbidden"]
    if unknown:  # a misspelt key is also a missing one: the spelling is what helps
        return unknown[0]
    first = errors[0]
    # Where a word or a list may stand, one that is a list fails as a word too.
    if isinstance(first["input"], list):
        within = [e for e in errors[1:] if len(e["loc"]) > len(first["loc"])]
        beside = first["loc"][:-1]
        return next((e for e in within if e["loc"][: len(beside)] == beside), first)
    return first


def _kinds_of(union: Any) -> list[str]:
    """The kinds that a union of models is told apart by."""
    models = get_args(get_args(union)[0])  # of Annotated[union, ...]
    return [str(get_args(model.model_fields["kind"].annotation)[0]) for model in models]


# The key of a list whose entries have kinds -> what they can be.
_KINDS = {
    "sources": _kinds_of(Source),
    "heldout_sources": _kinds_of(Source),
    "objectives": _kinds_of(Objective),
    "stages": _kinds_of(Stage),
}
_TAGS = frozenset(kind for kinds in _KINDS.values() for kind in kinds)


def _keys(loc: Sequence[str | int]) -> list[str | int]:
    """A location as its user wrote it.

    pydantic puts the discriminator's value into it, behind the number of an entry, and the arms of
    plain unions. A key may have a kind's name, as export's `prune` does.
    """
    kinds = [isinstance(before, int) and part in _TAGS for before, part in pairwise(("", *loc))]
    return [part for part, kind in zip(loc, kinds, strict=True) if not (kind or _is_arm(part))]


def _is_arm(part: str | int) -> bool:
    return isinstance(part, str) and (
        "[" in part or part in {"str", "constrained-str", "int", "list"}
    )


def _fields_at(root: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """Names of the keys that are valid at a location of pydantic's error."""
    candidates = [root]
    for part in loc:
        if isinstance(part, int):
            continue
        below = [
            model
            for candidate in candidates
            for name, field in candidate.model_fields.items()
            if name == part or part in _TAGS
            for model in _models_in(field.annotation)
        ]
        tagged = [
            m
            for m in [*below, *candidates]
            if "kind" in m.model_fields and get_args(m.model_fields["kind"].annotation) == (part,)
        ]
        candidates = tagged or below or candidates
    return sorted({name for candidate in candidates for name in candidate.model_fields})


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
