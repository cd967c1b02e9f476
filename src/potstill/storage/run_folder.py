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

from potstill.storage.files import read_json, sync, write_json
from potstill.storage.manifest import Manifest, manifest, verify_manifest
from potstill.storage.model_folders import check_folder

CHECKPOINTS = ("checkpoints", "checkpoints-best")  # below a training's folder


def sync_below(folder: Path) -> None:
    """Flush a folder and all that is below it to the disk."""
    for path in (*folder.rglob("*"), folder):
        if path.is_dir() or path.is_file():
            sync(path)


@dataclass
class RunFolder:
    """Hold a run's folder; `open_run` makes and checks one."""

    path: Path
    # stage folder -> why `done` returned None although the stage once finished
    damage: dict[Path, str] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        """Locate the published model."""
        return self.path / "model"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run folder, a stopped `publish` repaired; freed however the process ends."""
        with (self.path / ".lock").open("a+", encoding="utf-8") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                pid = stream.read().strip() or "unknown"
                raise ValueError(
                    f"{self.path}: another potstill process (pid {pid}) is using this folder. Wait "
                    "until it ends, or choose another --output."
                ) from None
            stream.truncate(0)
            stream.write(f"{os.getpid()}\n")
            stream.flush()
            self._repair()
            # closing the file frees the lock; the file itself stays, since deleting a lock file
            # that another process has just opened would let two processes in
            yield

    def stage_folder(self, number: int, kind: str) -> Path:
        """Name a stage's folder, stages/NN-kind, counted from 1; it is not created."""
        return self.path / "stages" / f"{number:02d}-{kind}"

    def done(self, stage_folder: Path) -> dict[str, Any] | None:
        """Read DONE of a finished stage; None where it is not finished or no longer whole.

        Sizes are compared before hashes, so a truncated file costs no reading. Where a stage
        finished once but is damaged now, `damage[stage_folder]` says how.
        """
        self.damage.pop(stage_folder, None)
        path = stage_folder / "DONE"
        if not path.exists():
            return None
        try:
            record: dict[str, Any] = read_json(path)
            files: Manifest = record["files"]
            bad = verify_manifest(stage_folder, files)
        except (ValueError, KeyError, TypeError, AttributeError):
            self.damage[stage_folder] = f"{path} is not readable"
            return None
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            self.damage[stage_folder] = f"{stage_folder / bad[0]}{more} is missing or changed"
            return None
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
            writes: Model name -> path relative to the stage folder.
            reads: Model name -> digest of the model folder it read.
        """
        sync_below(stage_folder)
        for parent in stage_folder.parents:
            if not parent.is_relative_to(self.path):
                break
            sync(parent)
        lasting = (p for p in stage_folder.rglob("*") if _lasts(p.relative_to(stage_folder)))
        record = {
            "fingerprint": fingerprint,
            "writes": dict(writes),
            "reads": dict(reads),
            "seconds": seconds,
            "files": manifest(stage_folder, lasting),
        }
        write_json(stage_folder / "DONE", record)

    def publish(self, source_model_folder: Path) -> None:
        """Replace model/ by a copy of a model folder: readers see the old or the new one, whole.

        Between two renames there is no model/ for a moment; `lock` mends what a crash left there. A
        link that leads out of the folder is refused: its target would be published.
        """
        check_folder(source_model_folder, source_model_folder.rglob("*"))
        self._clear()
        shutil.copytree(source_model_folder, self._new)
        sync_below(self._new)
        if self.model.exists():
            os.rename(self.model, self._old)
        os.rename(self._new, self.model)
        sync(self.path)
        shutil.rmtree(self._old, ignore_errors=True)

    def _repair(self) -> None:
        """Undo an interrupted `publish`: bring the old model back where there is none."""
        if self._old.exists() and not self.model.exists():
            os.rename(self._old, self.model)
        self._clear()

    def _clear(self) -> None:
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
    """Return whether a file, named from its stage's folder, belongs to what the stage made."""
    own = path.parts[1:] if path.parts[0].startswith("repeat-") else path.parts
    if len(own) > 1 and own[0] in CHECKPOINTS:
        return False
    return not path.as_posix().startswith((".lock", "DONE")) and not path.name.endswith(".tmp")


def open_run(path: str | os.PathLike[str], recipe_name: str) -> RunFolder:
    """Create or reopen a run's folder, as `check_run` allows; nothing is written into it.

    `RunFolder.lock` is the next step: it also repairs what an interrupted `publish` left.
    """
    check_run(path, recipe_name)
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, f"cannot be used ({error.strerror})") from None
    return RunFolder(folder)


def check_run(path: str | os.PathLike[str], recipe_name: str) -> None:
    """Refuse a folder that cannot hold the run of the recipe of that name; nothing is created."""
    folder = Path(path)
    try:
        if folder.exists() and not folder.is_dir():
            raise _unusable(folder, "is a file, not a folder")
        # what there is of the path decides whether the rest can be made
        base = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        # .lock alone is a run that was stopped before it wrote its recipe
        entries = {entry.name for entry in base.iterdir()} - {".lock"}
    except OSError as error:
        raise _unusable(folder, f"cannot be used ({error.strerror})") from None
    if not os.access(base, os.W_OK | os.X_OK):
        raise _unusable(folder, "cannot be written")
    if base != folder:
        return
    if "recipe.yaml" in entries:
        _check_name(folder, recipe_name)
    elif not all(name.startswith(".") and name.endswith(".tmp") for name in entries):
        raise _unusable(folder, "is not empty and is not a run (it has no recipe.yaml)")


def _unusable(folder: Path, problem: str) -> ValueError:
    return ValueError(f"--output: {folder} {problem}. Choose another folder.")


def _check_name(folder: Path, recipe_name: str) -> None:
    path = folder / "recipe.yaml"
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        tree = None
    held = tree.get("name") if isinstance(tree, dict) else None
    if held is None:
        raise _unusable(folder, "is not a run (its recipe.yaml is not a recipe with a name)")
    if held != recipe_name:
        raise ValueError(
            f"--output: {folder} holds the run of recipe '{held}'. Choose another folder, or "
            "delete that run."
        )
