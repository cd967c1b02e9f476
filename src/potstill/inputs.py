"""What a recipe is given: its teachers, its text, its run folder; mistakes found in a second."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from potstill.files import expand, resolve_path
from potstill.recipe import (
    Benchmark,
    Evaluate,
    Files,
    Recipe,
    Source,
    Stage,
    Teacher,
    TrimVocabulary,
)
from potstill.runfolder import check_run
from potstill.weights import check_folder

CACHE_VARIABLE = "POTSTILL_CACHE"


def check_inputs(recipe: Recipe, folder: Path) -> None:
    """Look at paths alone: run folder, local teachers, files of text. Nothing is read or written.

    Importing torch and transformers takes ten seconds; a mistyped path is found before.

    Raises:
        ValueError: a path is missing, or the run folder can't hold this run.
    """
    check_run(folder, recipe.name)
    for key, teacher in _given(recipe).values():
        _local(key, teacher)
    own = [source for stage in recipe.stages for source in stage_sources(stage)]
    for source in [*recipe.text.all_sources, *own]:
        if isinstance(source, Files):
            expand(source)


def stage_sources(stage: Stage) -> Sequence[Source]:
    """Text that a stage alone reads."""
    match stage:
        case TrimVocabulary():
            return stage.sources or []
        case Evaluate():
            return stage.pairs.sources if stage.pairs is not None else []
        case Benchmark():
            return stage.pass_over.sources if stage.pass_over is not None else []
        case _:
            return []


def given_folders(
    recipe: Recipe, *, names: Collection[str] | None = None, fetch: bool = True
) -> dict[str, Path]:
    """Folders here of the models that no stage writes, by name: the teacher's, and any further.

    A hub name is fetched (safetensors, configs, tokenizer only).

    Args:
        names: those that are wanted; None: all.
        fetch: False takes from the hub's cache alone, and writes nothing.

    Raises:
        ValueError: no such folder or package, or the hub can't be reached.
    """
    return {
        name: model_folder(key, teacher, fetch)
        for name, (key, teacher) in _given(recipe).items()
        if names is None or name in names
    }


def _given(recipe: Recipe) -> dict[str, tuple[str, Teacher]]:
    """Name of a model -> (the recipe's key for it, what stands there)."""
    further = {name: (f"teachers.{name}.model", t) for name, t in recipe.teachers.items()}
    return {"teacher": ("teacher.model", recipe.teacher), **further}


def model_folder(key: str, teacher: Teacher, fetch: bool = True) -> Path:
    """The folder here of a model; `key` is what messages call the place where it is named.

    Raises:
        ValueError: no such folder or package, or the hub can't be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    local = _local(key, teacher)
    if local is not None:
        return local
    name = teacher.model
    try:
        found = Path(
            snapshot_download(
                name,
                revision=teacher.revision,
                allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"],
                ignore_patterns=["onnx/*", "openvino/*"],
                local_files_only=not fetch,
            )
        )
        check_folder(found)
        return found
    except LocalEntryNotFoundError:
        problem = (
            "it is no folder here, and the hub can't be reached or is switched off (HF_HUB_OFFLINE)"
            if fetch
            else "it is no folder here and not in the hub's cache, and nothing is fetched for this"
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        problem = str(error).strip().splitlines()[0]
    raise ValueError(f"{key}: {name} can't be had: {problem}")


def cache_folder() -> Path:
    """Where tokenised text is kept between runs: $POTSTILL_CACHE, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "potstill"
    return Path(os.environ.get(CACHE_VARIABLE) or default)


def _local(key: str, teacher: Teacher) -> Path | None:
    """A model's folder, or None for the hub's."""
    name = teacher.model
    packaged = name.startswith("package:")
    local = resolve_path(name) if packaged else Path(name).expanduser()
    if packaged or local.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        if not local.exists():
            raise ValueError(f"{key}: {name}: no such folder")
        if not (local / "config.json").is_file():
            raise ValueError(f"{key}: {name} is not a model folder (it has no config.json)")
        check_folder(local)
        return local
    return None
