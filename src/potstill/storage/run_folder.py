"""The run folder: lock, DONE manifests of stages, published model; nothing here imports torch.

    runs/<name>/recipe.yaml, environment.json, stages/01-kind/{..., DONE}, model/, metrics.json

Whatever must survive a crash is written whole: into a temporary name of the same folder, flushed to
the disk, then renamed. A stage is finished when its DONE file lists files that are all there.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from potstill.storage.files import read_json, sync_file, sync_folder, write_json
from potstill.storage.manifest import Manifest, manifest_of, verify_manifest
from potstill.storage.model_folders import check_folder

CHECKPOINTS = ("checkpoints", "checkpoints-best")  # below a training's folder


def sync_below(folder: Path) -> None:
    """Flush to the disk a folder and all that is below it."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            sync_file(path)
    sync_folder(folder)


# --- the run folder -------------------------------------------------------------------------------


@dataclass
class RunFolder:
    """A run's folder; `open_run` makes and checks one."""

    path: Path
    # Stage folder -> why `done` said no although the stage once finished.
    damage: dict[Path, str] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        """Where the published model is."""
        return self.path / "model"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run folder, an interrupted `publish` repaired; freed however the process ends.

        Raises:
            ValueError: another process holds it; the message names its pid.
        """
        with (self.path / ".lock").open("a+", encoding="utf-8") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                pid = stream.read().strip() or "unknown"
                raise ValueError(
                    f"another potstill process (pid {pid}) works in {self.path}: "
                    "wait for it, or choose another --output"
                ) from None
            stream.truncate(0)
            stream.write(f"{os.getpid()}\n")
            stream.flush()
            self._repair()
            # closing the file frees the lock; the file itself stays, since deleting a lock file
            # that another process has just opened would let two processes in
            yield

    def stage_folder(self, number: int, kind: str) -> Path:
        """stages/NN-kind, counted from 1; not created."""
        return self.path / "stages" / f"{number:02d}-{kind}"

    def done(self, stage_folder: Path) -> dict[str, Any] | None:
        """What DONE says of a finished stage, or None where it is not finished or no longer whole.

        Sizes are compared before hashes, so a truncated file costs no reading. Where a stage
        finished once but is damaged now, `damage[stage_folder]` says how.
        """
        self.damage.pop(stage_folder, None)
        path = stage_folder / "DONE"
        if not path.exists():
            return None
        try:
            record = read_json(path)
            files: Manifest = record["files"]
            bad = verify_manifest(stage_folder, files)
        except (ValueError, KeyError, TypeError, AttributeError):
            self.damage[stage_folder] = f"{path} is not readable"
            return None
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            self.damage[stage_folder] = f"{stage_folder / bad[0]}{more} is missing or changed"
            return None
        assert isinstance(record, dict)
        return record

    def finish(
        self,
        stage_folder: Path,
        fingerprint: str,
        writes: Mapping[str, str],
        reads: Mapping[str, str],
        seconds: float,
    ) -> None:
        """Write DONE, the last file of a stage: its fingerprint, what it read and wrote, its files.

        Checkpoints and unfinished temporary files are left out of the manifest: the finished stage
        does not need them. All others are flushed to the disk first: once DONE is there, nothing
        else could bring them back.

        Args:
            writes: model name -> path relative to the stage folder.
            reads: model name -> digest of the model folder it read.
        """
        sync_below(stage_folder)
        for parent in stage_folder.parents:
            if not parent.is_relative_to(self.path):
                break
            sync_folder(parent)
        paths = stage_folder.rglob("*")
        files = manifest_of(stage_folder, (p for p in paths if _lasts(p.relative_to(stage_folder))))
        record = {
            "fingerprint": fingerprint,
            "writes": dict(writes),
            "reads": dict(reads),
            "seconds": seconds,
            "files": files,
        }
        write_json(stage_folder / "DONE", record)

    def publish(self, source_model_folder: Path) -> None:
        """Replace model/ by a copy of a model folder: readers see the old or the new one, whole.

        Between two renames there is no model/ for a moment; `lock` mends what a crash left there.

        Raises:
            ValueError: a link in the folder leads out of it: its target would be published.
        """
        check_folder(source_model_folder, source_model_folder.rglob("*"))
        new, old = self._new, self._old
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        shutil.copytree(source_model_folder, new)
        sync_below(new)
        if self.model.exists():
            os.rename(self.model, old)
        os.rename(new, self.model)
        sync_folder(self.path)
        shutil.rmtree(old, ignore_errors=True)

    def _repair(self) -> None:
        """Undo an interrupted `publish`: bring the old model back where there is none."""
        if self._old.exists() and not self.model.exists():
            os.rename(self._old, self.model)
        for leftover in (self._new, self._old):
            shutil.rmtree(leftover, ignore_errors=True)

    @property
    def _new(self) -> Path:
        return self.path / ".model.new"

    @property
    def _old(self) -> Path:
        return self.path / ".model.old"


def drop_checkpoints(stage_folder: Path) -> None:
    """Delete the checkpoints of a finished stage or repeat, which are three times its model.

    Without them its training would start at step 0: DONE, or a repeat's result.json, comes first.
    """
    for folder in (stage_folder, *stage_folder.glob("repeat-*")):
        for name in CHECKPOINTS:
            shutil.rmtree(folder / name, ignore_errors=True)


def _lasts(path: Path) -> bool:
    """Whether a file of a stage's folder, named from there, belongs to what the stage made."""
    own = path.parts[1:] if path.parts[0].startswith("repeat-") else path.parts
    if len(own) > 1 and own[0] in CHECKPOINTS:
        return False
    return not path.as_posix().startswith((".lock", "DONE")) and not path.name.endswith(".tmp")


def open_run(path: str | os.PathLike[str], recipe_name: str) -> RunFolder:
    """Create or reopen a run's folder for the recipe of that name; writes nothing into it.

    `RunFolder.lock` is the next step: it also repairs what an interrupted `publish` left.

    Raises:
        ValueError: as `check_run`.
    """
    folder = check_run(path, recipe_name).path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from None
    return RunFolder(folder)


def check_run(path: str | os.PathLike[str], recipe_name: str) -> RunFolder:
    """Whether a folder can hold the run of the recipe of that name; creates nothing.

    Raises:
        ValueError: the path is a file, holds something else than a run or another recipe's run, or
            can't be written.
    """
    folder = Path(path)
    try:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file, not a folder: choose another --output")
        # what there is of the path decides whether the rest can be made
        base = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        # .lock alone is a run that was stopped before it wrote its recipe
        entries = {entry.name for entry in base.iterdir()} - {".lock"}
    except OSError as error:
        raise _unusable(folder, error) from None
    if not os.access(base, os.W_OK | os.X_OK):
        raise ValueError(f"{folder} can't be written: choose another --output")
    if base != folder:
        return RunFolder(folder)
    if "recipe.yaml" in entries:
        _check_name(folder, recipe_name)
    elif any(not _is_temporary(name) for name in entries):
        raise ValueError(
            f"{folder} is not empty and no run (it has no recipe.yaml): choose another --output"
        )
    return RunFolder(folder)


def _unusable(folder: Path, error: OSError) -> ValueError:
    return ValueError(f"{folder} can't be used ({error.strerror}): choose another --output")


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _check_name(folder: Path, recipe_name: str) -> None:
    path = folder / "recipe.yaml"
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        tree = None
    held = tree.get("name") if isinstance(tree, dict) else None
    if held is None:
        raise ValueError(
            f"{path} is not a recipe with a name, so {folder} is not a run: choose another --output"
        )
    if held != recipe_name:
        raise ValueError(
            f"{folder} holds the run of recipe '{held}'; choose another --output or delete it"
        )
