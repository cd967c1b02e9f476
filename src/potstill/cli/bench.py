"""Turn the models and texts of `potstill bench` into settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from potstill.recipe import Files, TextPass


def folders_of(models: Sequence[str]) -> dict[str, Path]:
    """Return the models by their names, which are the paths as typed.

    Raises:
        ValueError: Two paths lead to the same model.
    """
    places = [Path(model).expanduser().resolve() for model in models]
    for model, place in zip(models, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"{model}: the model is given twice. Give each model once.")
    return {model: Path(model) for model in models}


def pass_over(
    data: Sequence[str], columns: Sequence[str] | None, limit: int | None
) -> TextPass | None:
    """Return the passes over texts that --data, --column and --limit ask for.

    Raises:
        ValueError: Options without --data, or more than two columns.
    """
    if not data:
        if columns or limit:
            option = "--column" if columns else "--limit"
            raise ValueError(f"{option}: it needs --data. Name the files of the texts, too.")
        return None
    named = list(columns or ["text"])
    if len(named) > 2:
        raise ValueError(f"--column: {len(named)} columns are given. Give one, or two for pairs.")
    return TextPass(sources=[Files(paths=[path]) for path in data], columns=named, max_texts=limit)
