"""The run folder: lock, DONE manifests of stages, published model; nothing here imports torch.

    runs/<name>/recipe.yaml, environment.json, stages/01-kind/{..., DONE}, model/, metrics.json

Whatever must survive a crash is written whole: into a temporary name of the same folder, flushed to
the disk, then renamed. A stage is finished when its DONE file lists files that are all there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import psutil
import yaml

from potstill.onnx_files import folder_of, is_onnx
from potstill.weights import MODEL_FILES, check_folder

LIBRARIES = (
    *("torch", "transformers", "tokenizers", "datasets", "accelerate", "safetensors"),
    *("huggingface_hub", "numpy", "scipy", "scikit-learn", "onnx", "onnxruntime"),
)
# What decides how fast a CPU runs int8 and bf16; names as in Linux's /proc/cpuinfo.
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16")

Manifest = dict[str, dict[str, Any]]

CHECKPOINTS = ("checkpoints", "checkpoints-best")  # below a training's folder


# --- files ----------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that a crash leaves the old file or the new one, never a part.

    Raises:
        OSError: the folder is missing or can't be written.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
            # mkstemp makes private files; a run is as readable as anything else its user writes
            os.fchmod(stream.fileno(), 0o666 & ~_umask())
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON; NaN and infinities are refused, as other readers refuse them.

    Raises:
        ValueError: the value holds NaN or an infinity. TypeError: it holds what JSON has not.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: not there, not readable or not JSON; the message names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: can't be read ({error.strerror})") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors
        raise ValueError(f"{path}: not valid JSON ({error})") from None


def sync_file(path: Path) -> None:
    """Flush to the disk what another library wrote."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_below(folder: Path) -> None:
    """Flush to the disk a folder and all that is below it."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            sync_file(path)
    sync_folder(folder)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


# --- manifests ------------------------------------------------------------------------------------


def manifest(folder: Path) -> Manifest:
    """Relative path -> {"bytes": int, "sha256": str} of every file below a folder, sorted."""
    return _manifest(folder, folder.rglob("*"))


def model_manifest(folder: Path) -> Manifest:
    """`manifest` of what loading a model reads: configs, weights, tokenizer, modules.

    A model card beside them, or a whole project around them, changes no model.

    Args:
        folder: or an .onnx file, which is read with the model folder that it lies in.
    """
    if is_onnx(folder):
        graph, folder = folder, folder_of(folder)
        weights = graph.parent.glob(f"{graph.name}*")
        return model_manifest(folder) | _manifest(folder, (path.absolute() for path in weights))
    found = chain(folder.glob("*"), folder.glob("*/*"))
    return _manifest(folder, (path for path in found if path.suffix in MODEL_FILES))


def model_part(files: Manifest, folder: str) -> Manifest:
    """The `model_manifest` of a folder below the one that `files` are of, or of an .onnx file,
    without reading them.
    """
    if is_onnx(folder):
        parent = PurePosixPath(folder).parent.parent.as_posix()
        weights = {
            name.removeprefix(f"{parent}/"): entry
            for name, entry in files.items()
            if name.startswith(folder)
        }
        return model_part(files, parent) | weights
    below = {
        name.removeprefix(f"{folder}/"): entry
        for name, entry in files.items()
        if name.startswith(f"{folder}/")
    }
    return {
        name: entry
        for name, entry in below.items()
        if name.count("/") <= 1 and Path(name).suffix in MODEL_FILES
    }


def _manifest(folder: Path, paths: Iterable[Path]) -> Manifest:
    files = sorted((path.relative_to(folder).as_posix(), path) for path in paths if path.is_file())
    return {name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in files}


def verify_manifest(folder: Path, expected: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the manifest's files that are missing or differ; files not listed are ignored."""
    return [name for name, entry in expected.items() if not _matches(folder / name, entry)]


def manifest_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """One sha256 (hex) for a manifest, independent of the order of its entries."""
    lines = [f"{name}\0{entry['bytes']}\0{entry['sha256']}\n" for name, entry in files.items()]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _matches(path: Path, entry: Mapping[str, Any]) -> bool:
    try:
        return bool(path.stat().st_size == entry["bytes"] and _sha256(path) == entry["sha256"])
    except OSError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
        files = _manifest(stage_folder, (p for p in paths if _lasts(p.relative_to(stage_folder))))
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
    if set(path.parts[:-1]) & set(CHECKPOINTS):
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


# --- environment ----------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Versions, CPU, memory (bytes), threads, GPUs, git revision: what environment.json stores.

    GPUs and torch's threads are null unless torch is already imported: asking costs seconds.
    """
    model, flags = read_cpu()
    torch = sys.modules.get("torch")
    return {
        "versions": {
            "potstill": installed_version("potstill"),
            "python": platform.python_version(),
            **{name: installed_version(name) for name in LIBRARIES},
        },
        "platform": platform.platform(),
        "cpu": {
            "model": model,
            "flags": [flag for flag in CPU_FLAGS if flag in flags],
            "logical_cores": psutil.cpu_count(logical=True),
            "physical_cores": psutil.cpu_count(logical=False),
        },
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": None if torch is None else _gpus(torch),
        "threads": {
            "torch": None if torch is None else torch.get_num_threads(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        },
        "git_revision": _git_revision(),
    }


def installed_version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def read_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, frozenset[str]]:
    """The CPU's model name and its feature flags; no flags without /proc/cpuinfo."""
    values: dict[str, str] = {}
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        values.setdefault(key.strip(), value.strip())
    name = values.get("model name") or platform.processor() or platform.machine()
    return name, frozenset(values.get("flags", values.get("Features", "")).split())


def _gpus(torch: Any) -> list[str]:
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _git_revision() -> str | None:
    """Revision of the checkout that this code runs from, "+" where it has uncommitted changes."""
    here = Path(__file__).resolve().parent
    try:
        revision = _git(here, "rev-parse", "HEAD")
        # an installed package may lie inside the checkout of something else
        _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
        return f"{revision}+" if changed else revision
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    finished = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
    )
    return finished.stdout.strip()
