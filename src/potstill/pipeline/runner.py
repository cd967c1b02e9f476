"""Run a recipe's stages in order: skip what is done, run again what changed."""

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
    stage_fingerprints,
    written_digests,
)
from potstill.pipeline.inputs import check_inputs, given_folders
from potstill.pipeline.rehearsal import rehearse
from potstill.pipeline.replaced import published_problem, set_aside_results, set_aside_stages
from potstill.pipeline.stages.report import has_results, write_results
from potstill.pipeline.stages.stage import check_ahead, run_stage
from potstill.recipe import (
    Recipe,
    Report,
    dump_recipe,
    load_recipe,
    main_model,
    plain_twin,
    published_chain,
    repeated,
)
from potstill.storage import RunFolder, environment, open_run
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
    """Run a recipe; the same call again resumes.

    Args:
        recipe: A Recipe, a shipped recipe's name, or the path of a YAML file.
        overrides: `KEY=VALUE` settings, for a name or path.
        output: The run folder; None means runs/<name of the recipe>.
        reporter: Receives progress updates; None means nobody does.

    Returns:
        The run folder.

    Raises:
        ValueError: The input is wrong.
        TrainingFailed, Interrupted: See `potstill.training`.
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
        # Mistakes in the input are found before anything is written, let alone replaced.
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
        stages, context = self.recipe.stages, self._context(given)
        ran, digests, chain = False, given_digests(given), published_chain(stages)
        for number, (stage, fingerprint) in enumerate(zip(stages, fingerprints, strict=True), 1):
            folder = run.stage_folder(number, stage.kind)
            done = run.done(folder)
            reads = {name: digests[name] for name in stage.reads_among(digests)}
            skipped = done is not None and is_current(done, fingerprint, reads)
            # What a report writes lies outside its folder, and shows the stages before it.
            skipped &= not stage.reports or (not ran and has_results(run.path))
            self._wait()  # all have looked before the first one writes
            self.reporter.stage(number, len(stages), stage.kind, skipped)
            if not skipped:
                ran = True
                if self.is_main:
                    self._prepare(run, number, fingerprint)
                    if stage.trains:
                        check_ahead(stages[number - 1 :], context)
                self._wait()
                start = time.perf_counter()
                if self.is_main or stage.trains:
                    writes = run_stage(stage, folder, context, fingerprint)
                if self.is_main:
                    run.finish(folder, fingerprint, writes, reads, time.perf_counter() - start)
                self._wait()
                done = read_json(folder / "DONE")
            assert done is not None
            context.models.update({n: folder / path for n, path in done["writes"].items()})
            digests |= written_digests(done)
            if self.is_main:
                drop_checkpoints(folder)  # of a skipped stage, too, which may have been killed
                if number in chain and (not skipped or published_problem(run, stages)):
                    run.publish(folder / "model")  # the recipe's model, as far as it has come
            self._wait()

    def _context(self, given: Mapping[str, Path]) -> Context:
        recipe = self.recipe
        about = main_model(recipe.stages)
        return Context(
            recipe.task,
            recipe.seed,
            recipe.text,
            self.folder,
            dict(given),
            self.reporter,
            is_main=self.is_main,
            student=recipe.stages[about - 1].written[0] if about else None,
            twin=plain_twin(recipe.stages),
            repeats=repeated(recipe.stages),
        )

    def _prepare(self, run: RunFolder, number: int, fingerprint: str) -> None:
        """Make room for a stage that runs (again), and write what it is."""
        stage = self.recipe.stages[number - 1]
        folder = run.stage_folder(number, stage.kind)
        if not stage.reports:  # which measures nothing
            write_json(self.folder / "environment.json", environment())
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
        config = {"stage": stage.model_dump(mode="json"), "fingerprint": fingerprint}
        write_json(folder / "config.json", config)

    def _set_aside_former(self, run: RunFolder, fingerprints: Sequence[str]) -> None:
        """Set aside what another configuration did, before any stage of this one runs.

        Otherwise a run that stops halfway would hold results of both, side by side.
        """
        stages = enumerate(self.recipe.stages, start=1)
        folders = [run.stage_folder(number, stage.kind) for number, stage in stages]
        expected = dict(zip(folders, fingerprints, strict=True))
        said = [f"the recipe changed: {moved}" for moved in set_aside_stages(run, expected)]
        stale = published_problem(run, self.recipe.stages) is not None
        if said or stale:
            said += set_aside_results(run, model=stale)
        for message in said:
            self.reporter.say(message)

    def _wait(self) -> None:
        if self.world > 1:
            wait_for_all()


def rebuild_report(folder: str | os.PathLike[str]) -> Path:
    """Regenerate a finished run's metrics.json, report.html and model card.

    Args:
        folder: The run folder.

    Returns:
        The path of report.html.

    Raises:
        ValueError: It is not a run folder, or the model that the run is about is not there yet.
    """
    folder = Path(folder)
    if not (folder / "recipe.yaml").is_file():
        raise ValueError(f"{folder}: not a run folder, there is no recipe.yaml. Give a run folder.")
    recipe = load_recipe(folder / "recipe.yaml")
    settings = next((s for s in reversed(recipe.stages) if s.kind == "report"), Report())
    run = open_run(folder, recipe.name)
    with run.lock():
        problem = published_problem(run, recipe.stages)
        if problem is not None:
            raise ValueError(f"{folder}: {problem}. Run the recipe again to resume.")
        return write_results(folder, settings)
