"""A recipe's stages in order: what is done is skipped, what changed runs again with all that follows."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from potstill.recipe import (
    Distill,
    MakeStudent,
    Recipe,
    Report,
    Stage,
    dump_recipe,
    load_recipe,
    stage_writes,
)
from potstill.runfolder import (
    RunFolder,
    environment,
    manifest,
    manifest_digest,
    open_run,
    write_json,
    write_text,
)
from potstill.stages import Context, Reporter, Silent, run_stage, trains, write_results
from potstill.text import resolve_path, sources_fingerprint

# Raise a stage's number when what it does changes: finished stages of older runs then run again.
STAGE_VERSIONS = {
    "finetune": 1,
    "make_student": 1,
    "distill": 1,
    "evaluate": 1,
    "benchmark": 1,
    "report": 1,
}
CACHE_VARIABLE = "POTSTILL_CACHE"


def run(
    recipe: Recipe | str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    output: str | os.PathLike[str] | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Run a recipe; the same call again goes on where it stopped.

    Args:
        recipe: a Recipe, a shipped recipe's name, or the path of a YAML file.
        overrides: `KEY=VALUE`, for a name or path.
        output: the run folder; None: runs/<name of the recipe>.

    Returns:
        The run folder.

    Raises:
        ValueError: bad input, in one sentence.
        TrainingFailed, Interrupted: see training.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides)
    folder = Path(output) if output is not None else Path("runs") / recipe.name
    return _Run(recipe, folder, reporter or Silent()).run()


def teacher_folder(recipe: Recipe) -> Path:
    """The teacher's folder on this machine; a hub name is fetched (safetensors, configs and tokenizer only).

    Raises:
        ValueError: no such folder or package, or the hub can't be reached.
    """
    name = recipe.teacher.model
    if name.startswith("package:"):
        return resolve_path(name)
    local = Path(name).expanduser()
    if local.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        if not (local / "config.json").is_file():
            raise ValueError(f"teacher.model: {name} is not a model folder (it has no config.json)")
        return local
    try:
        return Path(
            snapshot_download(
                name,
                revision=recipe.teacher.revision,
                allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"],
                ignore_patterns=["onnx/*", "openvino/*"],
            )
        )
    except LocalEntryNotFoundError:
        problem = (
            "it is no folder here, and the hub can't be reached or is switched off (HF_HUB_OFFLINE)"
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        problem = str(error).strip().splitlines()[0]
    raise ValueError(f"teacher.model: {name} can't be had: {problem}")


def cache_folder() -> Path:
    """Where tokenised text is kept between runs: $POTSTILL_CACHE, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "potstill"
    return Path(os.environ.get(CACHE_VARIABLE) or default)


class _Run:
    def __init__(self, recipe: Recipe, folder: Path, reporter: Reporter) -> None:
        self.recipe, self.folder, self.reporter = recipe, folder, reporter
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.is_main = int(os.environ.get("RANK", "0")) == 0

    def run(self) -> Path:
        if self.recipe.threads is not None:
            import torch

            torch.set_num_threads(self.recipe.threads)
        if not self.is_main:
            self._wait()  # until the first process has opened the folder
            self._stages(RunFolder(self.folder))
            return self.folder
        run = open_run(self.folder, self.recipe.name)
        with run.lock():
            write_text(self.folder / "recipe.yaml", dump_recipe(self.recipe))
            write_json(self.folder / "environment.json", environment())
            self._wait()
            self._stages(run)
        return self.folder

    def _stages(self, run: RunFolder) -> None:
        recipe = self.recipe
        context = Context(
            task=recipe.task,
            seed=recipe.seed,
            corpus_settings=recipe.corpus,
            run=self.folder,
            cache=cache_folder() / "tokens",
            models={"teacher": teacher_folder(recipe)},
            reporter=self.reporter,
            is_main=self.is_main,
        )
        fingerprint = self._first_fingerprint(context)
        if self.is_main:
            self._set_aside_strangers(run)
        for number, stage in enumerate(recipe.stages, start=1):
            folder = run.stage_folder(number, stage.kind)
            fingerprint = _digest(
                fingerprint, STAGE_VERSIONS[stage.kind], stage.model_dump(mode="json")
            )
            done = run.done(folder)
            self._wait()  # all have looked before the first one writes
            skipped = done is not None and done["fingerprint"] == fingerprint
            self.reporter.stage(number, len(recipe.stages), stage.kind, skipped)
            if skipped:
                assert done is not None
                writes = done["writes"]
            else:
                if self.is_main:
                    if folder in run.damage:
                        self.reporter.say(f"{folder.name} runs again: {run.damage[folder]}")
                    self._clear(run, folder, done)
                    write_json(folder / "config.json", {"stage": stage.model_dump(mode="json")})
                self._wait()
                context.fingerprint = fingerprint
                writes = self._one(stage, folder, context, run)
            context.models |= {name: folder / path for name, path in writes.items()}
            if self.is_main and self._publishes(number):
                self._publish(run, folder / "model", skipped)
            self._wait()

    def _one(self, stage: Stage, folder: Path, context: Context, run: RunFolder) -> dict[str, str]:
        start = time.perf_counter()
        writes = dict.fromkeys(stage_writes(stage), "model")
        if self.is_main or trains(stage):
            writes = run_stage(stage, folder, context)
        if self.is_main:
            run.finish(folder, context.fingerprint, writes, time.perf_counter() - start)
        self._wait()
        return writes

    def _first_fingerprint(self, context: Context) -> str:
        corpus = self.recipe.corpus
        sources = [*corpus.sources, *(corpus.heldout_sources or [])]
        return _digest(
            self.recipe.task,
            self.recipe.seed,
            corpus.model_dump(mode="json"),
            sources_fingerprint(sources),
            manifest_digest(manifest(context.models["teacher"])),
        )

    def _clear(self, run: RunFolder, folder: Path, done: dict[str, Any] | None) -> None:
        """Make room for a stage that runs (again); finished work of another configuration is kept aside."""
        if done is not None:
            self._set_aside(run, folder, done["fingerprint"])
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / "model", ignore_errors=True)

    def _set_aside(self, run: RunFolder, folder: Path, fingerprint: str) -> None:
        target = run.path / "replaced" / f"{folder.name}-{fingerprint[:8]}"
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
        self.reporter.say(
            f"the recipe changed: {folder.name} runs again, its former result is in {target}"
        )

    def _set_aside_strangers(self, run: RunFolder) -> None:
        """Stage folders that the recipe, as it is now, does not have."""
        expected = {
            run.stage_folder(number, stage.kind).name
            for number, stage in enumerate(self.recipe.stages, start=1)
        }
        for folder in sorted((run.path / "stages").glob("*")):
            if folder.is_dir() and folder.name not in expected:
                done = run.done(folder)
                self._set_aside(run, folder, done["fingerprint"] if done else "unfinished")

    def _publishes(self, number: int) -> bool:
        """Whether a stage's model is (so far) the run's result: students first, else any written model."""
        stages = self.recipe.stages
        students = [i for i, s in enumerate(stages, 1) if isinstance(s, (MakeStudent, Distill))]
        written = students or [i for i, s in enumerate(stages, 1) if stage_writes(s)]
        return number in written

    def _publish(self, run: RunFolder, model: Path, skipped: bool) -> None:
        if skipped and (run.path / "model").is_dir():
            return
        run.publish(model)

    def _wait(self) -> None:
        if self.world > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def rebuild(folder: Path) -> Path:
    """Write a finished run's metrics.json, report.html and model card anew.

    Returns:
        The path of report.html.

    Raises:
        ValueError: not a run folder.
    """
    if not (folder / "recipe.yaml").is_file():
        raise ValueError(f"{folder} is not a run folder (it has no recipe.yaml)")
    recipe = load_recipe(folder / "recipe.yaml")
    settings = next((s for s in reversed(recipe.stages) if isinstance(s, Report)), Report())
    with open_run(folder, recipe.name).lock():
        return write_results(folder, settings)
