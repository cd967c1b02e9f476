"""Digest what decides what a stage does: its configuration, text, models and version."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from potstill.data.sources import sources_fingerprint
from potstill.pipeline.stages.stage import file_of
from potstill.recipe import Corpus, Recipe, Stage, Task, TaskData
from potstill.recipe.config import digested
from potstill.storage.manifest import manifest_digest, model_manifest, model_part, sha256

# Like a stage's VERSION, for what all stages of a task do.
_TASK_VERSIONS = {"token_classification": 2}


def stage_fingerprints(recipe: Recipe, given: Mapping[str, Path]) -> list[str]:
    """Digest for each stage all that decides what it does: given models, text, stages up to it.

    Raises:
        ValueError: A source can't be found or read.
    """
    further = [given[name] for name in sorted(given.keys() - {"teacher"})]
    models = [given["teacher"], *further]
    found = [inputs_digest(recipe.task, recipe.seed, recipe.text, models)]
    for stage in recipe.stages:
        found.append(stage_digest(found[-1], stage))
    return found[1:]


def given_digests(given: Iterable[str]) -> dict[str, str]:
    """Return digests of the models that no stage writes: every fingerprint contains them."""
    return dict.fromkeys(given, "as fingerprinted")


def inputs_digest(
    task: Task, seed: int, settings: Corpus | TaskData, models: Iterable[Path]
) -> str:
    """Digest all that decides what stages do, except the stages: task, text and given models.

    Raises:
        ValueError: A source can't be found or read.
    """
    text = digested(settings), sources_fingerprint(settings.all_sources)
    version = [_TASK_VERSIONS[task]] if task in _TASK_VERSIONS else []
    return _digest(
        task, *version, seed, *text, *(manifest_digest(model_manifest(m)) for m in models)
    )


def stage_digest(before: str, stage: Stage) -> str:
    """Digest a stage and what comes before it."""
    parts = [before, file_of(stage).VERSION, digested(stage)]
    if stage.text_sources:
        parts.append(sources_fingerprint(stage.text_sources))
    return _digest(*parts)


def is_current(done: Mapping[str, Any], fingerprint: str, reads: Mapping[str, str]) -> bool:
    """Return whether a finished stage did what it would do now, with today's models."""
    return bool(done["fingerprint"] == fingerprint and done.get("reads") == reads)


def written_digests(done: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of each model that a finished stage wrote, by name."""
    return {
        name: manifest_digest(model_part(done["files"], folder))
        for name, folder in done["writes"].items()
    }


def _digest(*parts: Any) -> str:
    return sha256(json.dumps(parts, sort_keys=True).encode())
