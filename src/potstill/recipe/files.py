"""Find, read and check recipe files, with `KEY=VALUE` overrides and plain error messages."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from potstill.recipe.config import UNKNOWN, Config, nearest, today
from potstill.recipe.data import Source
from potstill.recipe.objectives import Objective
from potstill.recipe.recipe import Recipe
from potstill.recipe.stages import Stage


class RecipeError(ValueError):
    """Report a recipe that can't be read or run; the message names the key and what to do."""


def shipped_recipes() -> dict[str, Path]:
    """Find the recipes that come with Potstill: name -> file."""
    folder = Path(str(resources.files("potstill.recipe"))) / "shipped"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(name_or_path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name or a file by path, apply `KEY=VALUE` overrides, check it.

    Args:
        name_or_path: The name of a shipped recipe, or the path of a YAML file.
        overrides: Values to change, as in `distill.training.max_steps=100`; the last one counts.

    Raises:
        RecipeError: There is no such recipe, its YAML is not valid, a key is unknown or a value
            does not fit.
    """
    text, origin = _read(name_or_path)
    tree = parse_yaml(text, origin)
    for override in overrides:
        _override(tree, override)
    return parse_recipe(tree, origin)


def parse_yaml(text: str, origin: str) -> dict[str, Any]:
    """Parse a recipe's text as a mapping; `origin` names it in error messages."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}:{mark.line + 1}" if mark else origin
        problem = getattr(error, "problem", None) or "it can't be parsed"
        raise RecipeError(f"{where}: the YAML is not valid ({problem}). Correct it.") from None
    if not isinstance(tree, dict):
        found = "empty" if tree is None else f"a {type(tree).__name__}"
        raise RecipeError(f"{origin}: the recipe is {found}. Write a mapping of keys to values.")
    return tree


def parse_recipe(tree: dict[str, Any], origin: str) -> Recipe:
    """Check a mapping against the recipe's models; `origin` names it in error messages."""
    return checked(Recipe, tree, f"{origin}: ")


Block = TypeVar("Block", bound=Config)


def checked(kind: type[Block], settings: dict[str, Any], where: str = "") -> Block:
    """Check settings as a block of a recipe; a RecipeError is about the first that does not fit."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        raise RecipeError(where + _explained(error)) from None


def dump_recipe(recipe: Recipe) -> str:
    """Write the recipe as YAML with every default, for the run folder."""
    # the keys of `student` are in the make_student stages by now
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
        hint = nearest(name, list(shipped), "The shipped recipes are")
        raise RecipeError(f"{name}: this is neither a file nor a shipped recipe. {hint}")
    try:
        return path.read_text(encoding="utf-8"), name
    except UnicodeDecodeError:
        raise RecipeError(f"{name}: the file is not UTF-8 text. Give a YAML file.") from None
    except OSError as error:
        raise RecipeError(f"{name}: the file can't be read ({error.strerror}).") from None


def _override(tree: dict[str, Any], text: str) -> None:
    """Apply `a.b.c=value` in place; a list is entered by number, or by its entries' kind."""
    key, equals, raw = text.partition("=")
    if not equals or not key:
        raise RecipeError(
            f"{text}: an override has the form KEY=VALUE. Write, for example, seed=2 or "
            "distill.training.max_steps=100."
        )
    try:
        value = yaml.safe_load(raw) if raw else None
    except yaml.YAMLError:
        value = raw  # *.txt and [ab].txt are globs here, not YAML's aliases and lists
    path = key.split(".")
    node: Any = tree
    if path[0] not in tree and path[0] not in Recipe.model_fields:
        # distill.training… is short for stages.distill.training…
        tree["stages"] = node = copy.copy(tree.get("stages") or [])
    for done, part in enumerate(path, start=1):
        if not isinstance(node, (dict, list)):
            raise RecipeError(
                f"{key}: '{'.'.join(path[: done - 1])}' has no keys below it. Remove "
                f"'.{'.'.join(path[done - 1 :])}' from the override."
            )
        if isinstance(node, dict):  # the key may stand there under its other name
            for other in [n for n in node if n != part and today(n) == today(part)]:
                node[part] = node.pop(other)
        at: Any = _index(node, part, ".".join(path[:done])) if isinstance(node, list) else part
        if done == len(path):
            node[at] = value
        else:  # a copy, for a YAML alias may stand elsewhere, too
            below = node.get(at) if isinstance(node, dict) else node[at]
            node[at] = {} if below is None else copy.copy(below)
            node = node[at]


def _index(items: list[Any], part: str, where: str) -> int:
    kinds = [item.get("kind") if isinstance(item, dict) else None for item in items]
    if part.isdigit() and int(part) < len(items):
        return int(part)
    if part.isdigit():
        raise RecipeError(
            f"{where}: the list has {len(items)} entries. Give a number from 0 to {len(items) - 1}."
        )
    if kinds.count(part) == 1:
        return kinds.index(part)
    if part in kinds:
        numbers = " or ".join(str(n) for n, kind in enumerate(kinds) if kind == part)
        raise RecipeError(
            f"{where}: {kinds.count(part)} entries are of kind {part}. Give a number instead: "
            f"{numbers}."
        )
    names = [kind for kind in kinds if kind] + list(Recipe.model_fields)
    raise RecipeError(f"{where}: unknown key. {nearest(part, names, 'The valid keys are')}")


def _explained(error: ValidationError) -> str:
    """Write one message for what pydantic found wrong: the key, what is wrong, what would fit."""
    first = _most_helpful(error.errors())
    loc, ctx = _keys(first["loc"]), first.get("ctx", {})
    where = ".".join(str(part) for part in loc)
    kind, given = first["type"], first.get("input")
    if kind == UNKNOWN:
        return f"{'.'.join([*filter(None, [where]), str(ctx['key'])])}: unknown key. {ctx['hint']}"
    if kind == "missing" or (kind in _NO_MAPPING and given is None):
        return f"{where}: no value is set. Set it in the recipe, or with {where}=VALUE."
    if kind == "union_tag_invalid":
        known = [tag.strip("' ") for tag in ctx["expected_tags"].split(",")]
        hint = nearest(str(ctx["tag"]), known, "The kinds are")
        return f"{where}.kind: '{ctx['tag']}' is not a kind. {hint}"
    if kind == "union_tag_not_found":
        within = [part for part in loc if part in _KINDS]
        return f"{where}.kind: no value is set. The kinds are {', '.join(_KINDS[within[-1]])}."
    if kind in _NO_MAPPING:
        return f"{where}: a mapping of keys to values is required (given: {given!r})."
    message = str(first["msg"]).removeprefix("Value error, ")
    if kind != "value_error":
        shown = "" if isinstance(given, (dict, list)) else f" (given: {given!r})"
        return f"{where}: {message[0].lower()}{message[1:]}{shown}."
    if not where:
        return message
    # a part of the recipe knows its own keys, not where it stands
    return f"{where}.{message}" if re.match(r"[a-z][\w.]*: ", message) else f"{where}: {message}"


# pydantic's words for these name a Python class
_NO_MAPPING = ("model_type", "model_attributes_type", "dict_type")


def _most_helpful(errors: Sequence[Any]) -> Any:
    """Choose, among all that pydantic complains about, what its user most probably did."""
    unknown = [error for error in errors if error["type"] == UNKNOWN]
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
    """List the kinds by which a union of models is discriminated."""
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
_ARMS = ("str", "constrained-str", "int", "list")


def _keys(loc: Sequence[str | int]) -> list[str | int]:
    """Name a location by the keys that its user wrote.

    pydantic puts the discriminator's value into it, behind the number of an entry, and the arms of
    plain unions. A key may have a kind's name, as export's `prune` does.
    """
    return [
        part
        for before, part in pairwise(("", *loc))
        if isinstance(part, int)
        or not ((isinstance(before, int) and part in _TAGS) or "[" in part or part in _ARMS)
    ]
