"""Files, data set folders and hub data sets as one stream of records, and what is held out."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar, assert_never

from potstill.data.files import File, Row, brief, count_rows, expand
from potstill.recipe import DatasetFolder, Files, HubDataset, Source
from potstill.recipe.config import digested
from potstill.storage.manifest import blake2b
from potstill.storage.places import resolve_path

T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """Hold a record: its text columns (numbers as text, nulls omitted) and where it came from.

    `origin` is "file:line", "file" for a document, "name[row]" for tables and data sets.
    """

    columns: dict[str, str]
    origin: str

    def texts(self, columns: Iterable[str]) -> Iterator[str]:
        """Yield the texts of those of the columns that it has."""
        return (self.columns[name] for name in columns if name in self.columns)


def read_records(sources: Sequence[Source], columns: Sequence[str]) -> Iterator[Record]:
    """Yield all records of the sources, in order, with all columns that hold text.

    A null leaves its column out of the record; a record that has none of `columns` is skipped.

    Raises:
        ValueError: A source is missing or unreadable, a line does not parse, one of `columns` is
            missing or is not text, or there is no record at all.
    """
    yield from _some(_records(_opened(sources, columns), columns), "text", sources)


def read_rows(sources: Sequence[Source], columns: Sequence[str]) -> Iterator[Row]:
    """Yield all rows of the sources with their origins ("file:line"), whatever their columns hold.

    There must be one, as in `read_records`.
    """
    yield from _some(_opened(sources, columns), "row", sources)


def heldout_side(
    record: Record, columns: Sequence[str], group_by: str | None, fraction: float, seed: int
) -> bool:
    """Decide whether a record is held out: by a hash of its text and the seed.

    The text is that of `group_by`, or of all `columns` together. Texts that are equal but for white
    space fall on the same side, on every machine.
    """
    if fraction <= 0:
        return False
    if group_by is not None and group_by not in record.columns:
        missing = _no_column(group_by, record.columns)
        raise ValueError(f"{record.origin}: group_by: {missing}, or the column is null.")
    names = [group_by] if group_by is not None else columns
    texts = [" ".join(record.columns.get(name, "").split()) for name in names]
    value = int.from_bytes(blake2b("\n".join([str(seed), *texts]).encode(), size=8), "big")
    return value < fraction * 2**64


def sources_fingerprint(sources: Sequence[Source]) -> str:
    """Hash what the sources hold: 32 hex digits, the same on every machine.

    Files count by their bytes and by how they are read, data set folders by the fingerprint that
    `datasets` gave them, hub data sets by name, config, split and revision.
    """
    parts: list[object] = []
    for source in sources:
        match source:
            case Files():
                parts += [
                    [
                        *(file.format, source.unit, source.encodings, file.digest()),
                        # a document's label
                        file.path.absolute().parent.name if source.unit == "document" else None,
                    ]
                    for file in expand(source)
                ]
            case DatasetFolder():
                parts.append([source.split, _load_folder(source)._fingerprint])
            case HubDataset():
                parts.append(digested(source))
            case _ as never:
                assert_never(never)
    return blake2b(json.dumps(parts).encode()).hex()


@dataclass(frozen=True)
class Part:
    """Describe a part of a source that can be read by itself: a file, or a data set."""

    source: Source
    name: str
    size: int | None  # None: unknown without reading all of it
    unit: Literal["bytes", "records"]
    path: Path | None = None  # of a file whose size is in bytes

    def records(self, columns: Sequence[str]) -> Iterator[Record]:
        """Yield its records, as `read_records` does; there may be none."""
        return _records(_open_source(self.source, columns), columns)


def source_parts(source: Source) -> list[Part]:
    """List what a source consists of, and how large it is, without reading its text."""
    if isinstance(source, Files):
        return [_file_part(file) for file in expand(source)]
    size = len(_load_folder(source)) if isinstance(source, DatasetFolder) else None
    return [Part(source, describe(source), size, "records")]


def _file_part(file: File) -> Part:
    alone = file.source.model_copy(update={"paths": [file.name], "format": file.format})
    if (rows := count_rows(file)) is not None:
        return Part(alone, file.name, rows, "records")
    return Part(alone, file.name, file.path.stat().st_size, "bytes", file.path)


def describe(source: Source) -> str:
    """Name a source in messages and results."""
    match source:
        case Files():
            return ", ".join(source.paths)
        case DatasetFolder():
            return source.path + (f":{source.split}" if source.split else "")
        case HubDataset():
            return ":".join(filter(None, [source.name, source.config, source.split]))
        case _ as never:
            assert_never(never)


def _opened(sources: Sequence[Source], columns: Sequence[str]) -> Iterator[Row]:
    # Opened before the first is read: a typing error in the last source is found at once.
    return chain.from_iterable([_open_source(source, columns) for source in sources])


def _open_source(source: Source, columns: Sequence[str]) -> Iterator[Row]:
    if isinstance(source, Files):
        return chain.from_iterable(file.rows(columns) for file in expand(source))
    dataset = _load_folder(source) if isinstance(source, DatasetFolder) else _load_hub(source)
    return _dataset_rows(dataset, columns, describe(source))


def _some(items: Iterable[T], noun: str, sources: Sequence[Source]) -> Iterator[T]:
    """Yield all items; there must be one."""
    empty = True
    for item in items:
        empty = False
        yield item
    if empty:
        names = ", ".join(describe(source) for source in sources)
        raise ValueError(f"{names}: there is no {noun}. Give files that hold some.")


def _records(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[Record]:
    for row, origin in rows:
        texts: dict[str, str] = {}
        for name, value in row.items():
            if isinstance(value, str):
                texts[name] = value
            elif isinstance(value, (int, float)):
                texts[name] = str(value)
            elif value is not None and name in columns:
                kind = type(value).__name__
                raise ValueError(
                    f"{origin}: column '{name}' holds a value of type {kind}. Name a text column."
                )
        if (missing := next((name for name in columns if name not in row), None)) is not None:
            raise ValueError(f"{origin}: {_no_column(missing, row)}.")
        if any(column in texts for column in columns):
            yield Record(texts, origin)


def _no_column(name: str, existing: Collection[str]) -> str:
    nearest = difflib.get_close_matches(name, existing, n=20, cutoff=0) if existing else []
    hint = ""
    if list(existing) == ["text"] and name in {"title", "body", "label"}:
        hint = " (a .txt file has title, body and label with unit: document)"
    return f"no column '{name}'; there are: {', '.join(nearest) or 'none'}{hint}"


def _load_folder(source: DatasetFolder) -> Any:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(resolve_path(source.path)))
    except Exception as error:  # whatever the library raises on a folder that isn't one
        raise ValueError(
            f"{source.path}: not a folder of datasets' save_to_disk ({brief(error)}). Give one, or "
            "name files with kind: files."
        ) from None
    if not isinstance(loaded, datasets.DatasetDict):
        if source.split is not None and source.split != str(loaded.split):
            raise ValueError(f"{source.path}: holds one data set without splits. Remove split.")
        return loaded
    split = source.split or (next(iter(loaded)) if len(loaded) == 1 else None)
    if split is None or split not in loaded:
        problem = "no split is set" if split is None else f"no split '{split}'"
        raise ValueError(f"{source.path}: {problem}. Set split to one of {', '.join(loaded)}.")
    return loaded[split]


def _load_hub(source: HubDataset) -> Any:
    import datasets

    # What an earlier load_dataset has left in the cache can be had offline, but not as a stream.
    offline = bool(datasets.config.HF_HUB_OFFLINE)
    try:
        return datasets.load_dataset(
            source.name,
            source.config,
            split=source.split,
            revision=source.revision,
            streaming=not offline,
        )
    except Exception as error:  # network, name, config, split: the library has a type for each
        hint = "Unset HF_HUB_OFFLINE" if offline else "Check its name"
        problem = f"the hub data set could not be downloaded ({brief(error)})"
        raise ValueError(f"{describe(source)}: {problem}. {hint}.") from None


def _dataset_rows(dataset: Any, columns: Sequence[str], name: str) -> Iterator[Row]:
    from datasets import ClassLabel, Value

    features = dataset.features or {}  # a stream may know them only from its first row
    labels = {key: kind for key, kind in features.items() if isinstance(kind, ClassLabel)}
    listed = {
        key: kind.feature
        for key, kind in features.items()
        if key in columns and isinstance(getattr(kind, "feature", None), ClassLabel)
    }
    dataset = dataset.with_format(None)  # a saved one may yield tensors
    if features:  # pictures, sound and vectors beside the text are not decoded
        simple = [
            k for k, v in features.items() if k in columns or isinstance(v, (Value, ClassLabel))
        ]
        dataset = dataset.select_columns(simple)
    try:
        for number, row in enumerate(dataset):
            named: dict[str, object] = {key: _label(labels[key], row[key]) for key in labels}
            for key, kind in listed.items():
                named[key] = [_label(kind, value) for value in row[key] or []]
            yield {**row, **named}, f"{name}[{number}]"
    except Exception as error:  # network and decoding: types of many libraries
        raise ValueError(f"{name}: reading stopped ({brief(error)}). Run it again.") from None


def _label(kind: Any, value: int | None) -> str | None:
    return None if value is None or value < 0 else str(kind.int2str(value))
