"""Read a suite's official files, or the hub's, as labeled examples in a cache folder."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, assert_never

import numpy as np

from potstill.data.files import File, expand
from potstill.data.sources import read_rows, sources_fingerprint
from potstill.recipe import Files, HubDataset, Task, TaskData
from potstill.storage import cache_folder
from potstill.storage.caches import kept, key_of, read_meta, write_meta
from potstill.storage.files import write_text
from potstill.suites.catalog import Split, SuiteTask

_VERSION = 2  # raise it when the same files would give other examples
_WATCHED = 256  # scored examples that training looks at when it ends
_CHOICE = 11  # seed of the examples that a limit takes: the same ones for all models and seeds

Row = dict[str, Any]


@dataclass(frozen=True)
class SuiteData:
    """Hold a task's examples, ready to be read.

    Attributes:
        folder: Folder of .jsonl files: train, watch, and each of `scored`.
        counts: Examples per part; `of.PART`: examples without a limit; `left_out.PART`: rows that
            can't be used.
    """

    task: SuiteTask
    folder: Path
    counts: Mapping[str, int]

    @property
    def fingerprint(self) -> str:
        """Return the hash of the examples: the same on every machine."""
        paths = [str(self.folder / f"{name}.jsonl") for name in self._parts]
        return sources_fingerprint([Files(paths=paths)] if paths else [])

    @property
    def _parts(self) -> list[str]:
        return [key.removeprefix("of.") for key in self.counts if key.startswith("of.")]

    @property
    def cut(self) -> dict[str, tuple[int, int]]:
        """Return the parts that a limit made smaller: number of used and of all examples."""
        sizes = {name: (self.counts[name], self.counts[f"of.{name}"]) for name in self._parts}
        return {name: size for name, size in sizes.items() if size[0] < size[1]}

    def to_train(self, max_length: int) -> TaskData:
        """Return the settings that read the training examples."""
        return self._data("train", "watch", max_length)

    def to_score(self, suffix: str, max_length: int) -> TaskData:
        """Return the settings that read only one part of `task.scored`."""
        part = _scored_part(suffix)
        return self._data(part, part, max_length)

    def _data(self, train: str, dev: str, max_length: int) -> TaskData:
        task, sides = self.task, {"train": train, "dev": dev}
        spans = task.layout == "squad"
        return TaskData.model_validate(
            {
                **{side: str(self.folder / f"{part}.jsonl") for side, part in sides.items()},
                "text": list(task.text) if spans else ["first", "second"][: len(task.text)],
                "label": task.label if spans else "label",
                "labels": list(task.labels) or None,
                "metric": task.metrics[0],
                "max_length": max_length,
                "beginnings": True,
                "on_bad_row": "skip",
            }
        )


def check_files(tasks: Iterable[SuiteTask], data_dir: Path | None) -> None:
    """Check that all needed files exist, before any is read.

    Args:
        tasks: The tasks that are run.
        data_dir: Folder in the official layout; None: the hub, which is not checked.

    Raises:
        ValueError: A file is missing.
    """
    if data_dir is None:
        return
    if not data_dir.is_dir():
        raise ValueError(
            f"--data-dir: {data_dir} is not a folder. Name the folder of the official files."
        )
    for task in tasks:
        for split in (task.train, *task.scored.values()):
            if _place(split, data_dir) is None:
                raise ValueError(
                    f"--data-dir: {data_dir} has no {split.files[0]}, which {task.title} needs. "
                    "Add the file as published, or name other tasks with --tasks."
                )


def read_suite_task(
    task: SuiteTask,
    data_dir: Path | None,
    limit: int | None,
    say: Callable[[str], None] = lambda _: None,
) -> SuiteData:
    """Read a task's parts into the cache folder, or find them there.

    Args:
        task: The task.
        data_dir: Folder in the official layout; None: the hub, at the pinned revision.
        limit: Largest number of examples per part, chosen at random with a fixed seed; None: all.
        say: Receives a sentence if the cache is damaged.

    Raises:
        ValueError: A file or the hub's data can't be read, or no example of a label is left.
    """
    scored = {_scored_part(suffix): split for suffix, split in task.scored.items()}
    parts = {"train": task.train, **scored}
    sources = {name: _source(task, split, data_dir) for name, split in parts.items()}
    digests = {name: sources_fingerprint([source]) for name, source in sources.items()}
    row, keys = asdict(task), ("text", "label", "labels", "header", "hub_labels", "layout")
    told = {key: row[key] for key in keys}
    key = key_of([_VERSION, told, digests, limit])

    def build(folder: Path) -> None:
        counts: dict[str, int] = {}
        for name, source in sources.items():
            try:
                rows, left_out = _usable(task, source)
            except ValueError as error:
                advice = f"{error}".rstrip(".") + ". Name a folder of the files with --data-dir."
                raise ValueError(advice if data_dir is None else f"{error}") from None
            counts[f"of.{name}"] = len(rows)
            rows = _limited(rows, limit)
            _check_labels(task, name, rows, limit)
            _write(folder / f"{name}.jsonl", rows)
            counts[name] = len(rows)
            if left_out:
                counts[f"left_out.{name}"] = left_out
            if name == next(iter(scored)):
                _write(folder / "watch.jsonl", rows[:_WATCHED])
        write_meta(folder, {"counts": counts})

    def opened(folder: Path) -> SuiteData:
        return SuiteData(task, folder, read_meta(folder)["counts"])

    place = cache_folder() / "suites" / f"{task.name}-{key[:16]}"
    return kept(place, build, opened, f"cache of {task.title}'s data", say)


def _scored_part(suffix: str) -> str:
    return f"scored{suffix}"


def _place(split: Split, data_dir: Path) -> Path | None:
    return next((data_dir / name for name in split.files if (data_dir / name).exists()), None)


def _source(task: SuiteTask, split: Split, data_dir: Path | None) -> Files | HubDataset:
    if data_dir is None:
        return HubDataset(split=split.hub, **task.hub._asdict())
    place = _place(split, data_dir)
    assert place is not None, "files are checked before they are read"
    if task.layout == "folders":
        paths = [str(Path(glob.escape(str(place / label))) / "*.txt") for label in task.labels]
        return Files(paths=paths, unit="document")
    return Files(paths=[str(place)])


# --- rows -----------------------------------------------------------------------------------------


def _usable(task: SuiteTask, source: Files | HubDataset) -> tuple[list[Row], int]:
    """Return a part's usable rows, and the number of those without a text or a known label.

    Some lines of the official files are broken; every reader of them skips those.
    """
    hub = isinstance(source, HubDataset)
    every = [_row(task, row, hub, number) for number, row in enumerate(_raw(task, source))]
    found = [row for row in every if row is not None]
    if not found:
        name = source.paths[0] if isinstance(source, Files) else f"{source.name}:{source.split}"
        raise ValueError(f"{name}: no row has the texts and a label of {task.title}.")
    return found, len(every) - len(found)


def _raw(task: SuiteTask, source: Files | HubDataset) -> Iterator[Mapping[str, Any]]:
    if isinstance(source, HubDataset):
        columns = [*(task.hub_text or task.text), task.hub_label, "id"]
        return (row for row, _ in read_rows([source], columns))
    match task.layout:
        case "tsv":
            return _table(task, expand(source)[0])
        case "folders" | "squad":
            return (row for file in expand(source) for row, _ in file.rows([]))
        case _:
            assert_never(task.layout)


def _table(task: SuiteTask, file: File) -> Iterator[Mapping[str, Any]]:
    """Yield the lines of a .tsv by column; a short line lacks its last columns.

    Raises:
        ValueError: The header lacks a column.
    """
    with file.lines() as lines:
        rows = (line.rstrip("\n").split("\t") for line in lines if line.strip())
        header = task.header or next(rows, ())
        missing = next((c for c in (*task.text, task.label) if c not in header), None)
        if missing is not None:
            raise ValueError(
                f"{file.name}:1: the official column '{missing}' of {task.title} is missing. Use "
                f"the file as published. Its columns are {', '.join(header)}."
            )
        for fields in rows:
            yield dict(zip(header, fields, strict=False))


def _row(task: SuiteTask, row: Mapping[str, Any], hub: bool, number: int) -> Row | None:
    columns = (task.hub_text or task.text) if hub else task.text
    texts = [str(row.get(name) or "").strip() for name in columns]
    if task.layout == "squad":
        answers = row.get(task.label)
        if not all(texts) or answers is None:
            return None
        # not stripped: answers are counted in characters from the context's first one
        whole = {name: str(row[name]) for name in columns}
        return {**whole, "id": str(row.get("id", number)), task.label: answers}
    named = dict(zip(("first", "second"), texts, strict=False))
    label = _label(task, row.get(task.hub_label if hub else task.label))
    return None if label is None or not all(texts) else {**named, "label": label}


def _label(task: SuiteTask, value: Any) -> str | float | None:
    """Return the official label; None if it is not one of the task's."""
    if task.task == Task.REGRESSION:
        try:
            score = float(value)
        except (TypeError, ValueError):
            return None
        return score if np.isfinite(score) else None
    name = str(value).strip()
    if name in task.labels:
        return name
    if task.hub_labels is not None and name in task.hub_labels:
        return task.labels[task.hub_labels.index(name)]
    return None


def _limited(rows: list[Row], limit: int | None) -> list[Row]:
    if limit is None or limit >= len(rows):
        return rows
    chosen = np.random.default_rng(_CHOICE).permutation(len(rows))[:limit]
    return [rows[number] for number in sorted(chosen.tolist())]


def _check_labels(task: SuiteTask, part: str, rows: list[Row], limit: int | None) -> None:
    if part != "train" or not task.labels:
        return
    found = {row["label"] for row in rows}
    absent = next((label for label in task.labels if label not in found), None)
    if absent is not None:
        how = f"--limit: {limit} leaves" if limit is not None else "--data-dir: the files have"
        raise ValueError(
            f"{how} no training example of {task.title} with the label '{absent}'. "
            + ("Raise --limit." if limit is not None else "Use the files as published.")
        )


def _write(path: Path, rows: Iterable[Row]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(path, "".join(lines))
