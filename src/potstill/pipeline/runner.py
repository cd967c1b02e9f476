"""A recipe's stages in order: what is done is skipped, what changed runs again with the rest."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from potstill.pipeline.context import Context, Reporter, Silent
from potstill.pipeline.fingerprints import (
    given_digests,
    is_current,
    models_read,
    stage_fingerprints,
    written_digests,
)
from potstill.pipeline.inputs import check_inputs, given_folders
from potstill.pipeline.rehearsal import rehearse
from potstill.pipeline.replaced import published_problem, set_aside_results, set_aside_stages
from potstill.pipeline.stages.distill import check_teachers
from potstill.pipeline.stages.evaluate import check_heldout
from potstill.pipeline.stages.report import has_results, write_results
from potstill.pipeline.stages.stage import run_stage
from potstill.recipe import (
    Evaluate,
    Recipe,
    Report,
    Stage,
    dump_recipe,
    load_recipe,
    main_model,
    plain_twin,
    published_chain,
    repeated,
)
from potstill.storage import RunFolder, cache_folder, environment, open_run
from potstill.storage.files import read_json, write_json, write_text
from potstill.storage.run_folder import drop_checkpoints
from potstill.training.distributed import wait_for_all


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
    return _Runner(recipe, folder, reporter or Silent()).run()


class _Runner:
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
            given = given_folders(self.recipe)
            self._stages(RunFolder(self.folder), given, stage_fingerprints(self.recipe, given))
            return self.folder
        check_inputs(self.recipe, self.folder)
        given = given_folders(self.recipe)
        # What is wrong with the input shows before anything is written, let alone replaced.
        rehearse(self.recipe, given)
        fingerprints = stage_fingerprints(self.recipe, given)
        run = open_run(self.folder, self.recipe.name)
        with run.lock():
            self._set_aside_former(run, fingerprints)
            write_text(self.folder / "recipe.yaml", dump_recipe(self.recipe))
            self._wait()
            self._stages(run, given, fingerprints)
        return self.folder

    def _stages(
        self, run: RunFolder, given: Mapping[str, Path], fingerprints: Sequence[str]
    ) -> None:
        recipe = self.recipe
        about, chain = main_model(recipe.stages), published_chain(recipe.stages)
        context = Context(
            task=recipe.task,
            seed=recipe.seed,
            text_settings=recipe.text,
            run=self.folder,
            cache=cache_folder() / "tokens",
            models=dict(given),
            reporter=self.reporter,
            is_main=self.is_main,
            student=recipe.stages[about - 1].models_written[0] if about else None,
            twin=plain_twin(recipe.stages),
            repeats=repeated(recipe.stages),
        )
        ran = False
        digests = given_digests(given)
        for number, stage in enumerate(recipe.stages, start=1):
            folder = run.stage_folder(number, stage.kind)
            fingerprint = fingerprints[number - 1]
            done = run.done(folder)
            reads = {name: digests[name] for name in models_read(stage, digests)}
            skipped = done is not None and is_current(done, fingerprint, reads)
            if isinstance(stage, Report):
                # What it writes lies outside its folder, and tells what the stages before it found.
                skipped = skipped and not ran and has_results(run.path)
            self._wait()  # all have looked before the first one writes
            self.reporter.stage(number, len(recipe.stages), stage.kind, skipped)
            if not skipped:
                ran = True
                if self.is_main:
                    if not isinstance(stage, Report):  # which measures nothing
                        write_json(self.folder / "environment.json", environment())
                    self._clear(run, folder)
                    config = {"stage": stage.model_dump(mode="json"), "fingerprint": fingerprint}
                    write_json(folder / "config.json", config)
                    if stage.trains:
                        self._check_evaluations(number, context)
                        check_teachers(self.recipe.stages[number - 1 :], context)
                self._wait()
                self._one(stage, folder, context, run, reads, fingerprint)
                done = read_json(folder / "DONE")
            assert done is not None
            if self.is_main:  # of a stage that is skipped too, which may have been killed before
                drop_checkpoints(folder)
            context.models.update({n: folder / path for n, path in done["writes"].items()})
            digests |= written_digests(done)
            if self.is_main and number in chain:
                self._publish(run, number, skipped)
            self._wait()

    def _check_evaluations(self, number: int, context: Context) -> None:
        """Refuse now what an evaluation after this training would refuse then."""
        for later in self.recipe.stages[number:]:
            if isinstance(later, Evaluate):
                check_heldout(later, context)

    def _one(
        self,
        stage: Stage,
        folder: Path,
        context: Context,
        run: RunFolder,
        reads: Mapping[str, str],
        fingerprint: str,
    ) -> None:
        start = time.perf_counter()
        if self.is_main or stage.trains:
            writes = run_stage(stage, folder, context, fingerprint)
        if self.is_main:
            seconds = time.perf_counter() - start
            run.finish(folder, fingerprint, writes, reads, seconds)
        self._wait()

    def _clear(self, run: RunFolder, folder: Path) -> None:
        """Make room for a stage that runs (again)."""
        if folder in run.damage:
            self.reporter.say(f"{folder.name} runs again: {run.damage[folder]}")
        if folder in run.damage or (folder / "DONE").is_file():  # not one that was interrupted
            drop_checkpoints(folder)  # before DONE goes: what they are of is not to be resumed
            for repeat in folder.glob("repeat-*"):
                shutil.rmtree(repeat)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("DONE", "result.json"):
            (folder / name).unlink(missing_ok=True)
        if not (folder / "repeat-1" / "result.json").is_file():  # or it may be that repeat's model
            shutil.rmtree(folder / "model", ignore_errors=True)

    def _set_aside_former(self, run: RunFolder, fingerprints: Sequence[str]) -> None:
        """Keep aside what another configuration did, before any stage of this one runs.

        Otherwise a run that stops halfway would hold results of both, side by side.
        """
        expected = {
            run.stage_folder(number, stage.kind): fingerprint
            for number, (stage, fingerprint) in enumerate(
                zip(self.recipe.stages, fingerprints, strict=True), start=1
            )
        }
        said = [f"the recipe changed: {moved}" for moved in set_aside_stages(run, expected)]
        stale = published_problem(run, self.recipe.stages) is not None
        if said or stale:
            said += set_aside_results(run, model=stale)
        for message in said:
            self.reporter.say(message)

    def _publish(self, run: RunFolder, number: int, skipped: bool) -> None:
        """Publish the model that the recipe is about, as far as it has come."""
        stage = self.recipe.stages[number - 1]
        if not skipped or published_problem(run, self.recipe.stages) is not None:
            run.publish(run.stage_folder(number, stage.kind) / "model")

    def _wait(self) -> None:
        if self.world > 1:
            wait_for_all()


def rebuild(folder: Path) -> Path:
    """Write a finished run's metrics.json, report.html and model card anew.

    Returns:
        The path of report.html.

    Raises:
        ValueError: not a run folder, or the model that the run is about isn't there (yet).
    """
    if not (folder / "recipe.yaml").is_file():
        raise ValueError(f"{folder} is not a run folder (it has no recipe.yaml)")
    recipe = load_recipe(folder / "recipe.yaml")
    settings = next((s for s in reversed(recipe.stages) if isinstance(s, Report)), Report())
    run = open_run(folder, recipe.name)
    with run.lock():
        problem = published_problem(run, recipe.stages)
        if problem is not None:
            raise ValueError(
                f"{folder}: {problem}: run the recipe again, which goes on where it stopped"
            )
        return write_results(folder, settings)
