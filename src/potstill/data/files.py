"""Files as rows: what a path, a glob or `package:NAME/...` stands for, and readers of each format.

A mistake in the input names its file and line. The readers are our own because a line that does not
parse must be named, and because "NA" is a text (`datasets` reads null).
"""

from __future__ import annotations

import codecs
import csv
import difflib
import glob
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from itertools import groupby
from pathlib import Path
from typing import IO, Any, assert_never, get_args

from potstill.recipe import Files
from potstill.recipe.data import FileFormat
from potstill.storage.manifest import file_blake2b
from potstill.storage.places import package_folder, resolve_path

# A format's suffix is its name, but for SQuAD's.
_FORMATS: dict[str, FileFormat] = {
    **{f".{name}": name for name in get_args(FileFormat) if name != "squad"},
    ".json": "squad",
}
_CHUNK = 1 << 20
_HEAD = 1 << 16
_ROWS = 256  # rows of a Parquet file that are in memory at a time

Row = tuple[Mapping[str, object], str]  # columns, origin


class Sentence(dict[str, object]):
    """Hold columns of a row with one word per line, the first of them at the row's origin."""


@dataclass(frozen=True)
class File:
    """Read one of the files that a source names."""

    path: Path
    name: str  # in messages and origins
    format: FileFormat
    source: Files

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """Yield the file's rows; of a table's nested columns only those in `columns`."""
        match self.format:
            case "txt":
                return _txt(self)
            case "jsonl":
                return _jsonl(self)
            case "csv" | "tsv":
                return _csv(self)
            case "conll":
                return _conll(self)
            case "squad":
                return _squad(self)
            case "parquet":
                return _parquet(self, columns)
            case _:
                assert_never(self.format)

    def open(self) -> BufferedReader:
        """Open the file as bytes."""
        try:
            return self.path.open("rb")
        except OSError as error:
            raise ValueError(f"{self.name}: the file cannot be read ({error.strerror}).") from None

    def digest(self) -> str:
        """Hash the file's bytes."""
        with self.open() as stream:
            return file_blake2b(stream)

    def lines(self, newline: str | None = None) -> IO[str]:
        """Open the file as text in the first encoding that fits it, without byte order mark."""
        encoding = self._encoding()
        if codecs.lookup(encoding).name == "utf-8":
            encoding = "utf-8-sig"
        return self.path.open(encoding=encoding, newline=newline)

    def _encoding(self) -> str:
        encodings = self.source.encodings
        for encoding in encodings:
            try:
                "".encode(encoding)
            except (LookupError, ValueError):
                raise ValueError(
                    f"encodings: '{encoding}' is not the name of a text encoding. Use a name such "
                    "as utf-8."
                ) from None
        with self.open() as stream:
            binary = b"\0" in stream.read(_HEAD)
        wide = [e for e in encodings if codecs.lookup(e).name.startswith(("utf-16", "utf-32"))]
        if binary and not wide:
            raise ValueError(
                f"{self.name}: a binary file, not text. Remove it or convert it to .txt (for "
                "UTF-16 text, set encodings: [utf-16])."
            )
        failures = []
        for encoding in wide if binary else encodings:
            failure = self._undecodable(encoding)
            if failure is None:
                return encoding
            failures.append((encoding, *failure))
        (encoding, offset, line), *others = failures
        nor = f" (nor {', '.join(name for name, *_ in others)})" if others else ""
        raise ValueError(
            f"{self.name}: not {encoding} at byte {offset} (line {line}){nor}. Set the text's "
            "encoding, for example encodings: [utf-8, latin-1]."
        )

    def _undecodable(self, encoding: str) -> tuple[int, int] | None:
        """Find byte offset and line of the first byte that does not decode."""
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


def expand(source: Files) -> list[File]:
    """List the files that a source names, each once, sorted within a glob."""
    files: dict[Path, File] = {}
    for spec in source.paths:
        for path, name in _matches(spec):
            files.setdefault(path, File(path, name, _format(source, name), source))
    return list(files.values())


def _matches(spec: str) -> list[tuple[Path, str]]:
    root, rest = package_folder(spec)
    path = resolve_path(spec)
    if path.is_file():
        return [(path, spec)]
    if path.is_dir():
        saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
        hint = "Set kind: dataset_folder" if saved else f"Name its files, as in {spec}/*.txt"
        raise ValueError(f"{spec}: a folder, not a file. {hint}.")
    if not glob.has_magic(rest):
        beside = os.listdir(path.parent) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else "Check the path."
        raise ValueError(f"{spec}: the file was not found. {hint}")
    # POSIX paths sort alike on every machine, whatever order the file system lists them in.
    found = sorted(glob.glob(os.path.expanduser(rest), root_dir=root, recursive=True))
    prefix = "" if root is None else spec[: len(spec) - len(rest)]
    base = root or Path()
    files = [(base / name, prefix + name) for name in found if (base / name).is_file()]
    if not files:
        raise ValueError(f"{spec}: no file matches. Check the pattern (** matches folders).")
    return files


def _format(source: Files, name: str) -> FileFormat:
    if source.format != "auto":
        return source.format
    suffix = Path(name).suffix.lower()
    if suffix not in _FORMATS:
        raise ValueError(
            f"{name}: unknown suffix '{suffix}' (known: {', '.join(_FORMATS)}). Remove the file or "
            "set its format, for example format: txt."
        )
    return _FORMATS[suffix]


def _txt(file: File) -> Iterator[Row]:
    with file.lines() as lines:
        match file.source.unit:
            case "document":
                text = lines.read().strip()
                if text:
                    title, _, body = text.partition("\n")
                    columns = {"text": text, "title": title.strip(), "body": body.strip()}
                    yield {**columns, "label": file.path.absolute().parent.name}, file.name
            case "paragraph":
                for first, block in _blocks(lines):
                    text = "\n".join(line.strip() for line in block)
                    yield {"text": text}, f"{file.name}:{first}"
            case "line":
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield {"text": line.strip()}, f"{file.name}:{number}"
            case _:
                assert_never(file.source.unit)


def _conll(file: File) -> Iterator[Row]:
    """Read CoNLL's columns: a word, a tab, its tag; an empty line ends a sentence.

    Further columns are ignored. `tags` has None where a line has no tag.
    """
    with file.lines() as lines:
        for first, block in _blocks(lines):
            fields = [line.rstrip("\r\n").split("\t") for line in block]
            words = [word.strip() for word, *_ in fields]
            tags = [more[0].strip() if more else None for _, *more in fields]
            yield Sentence(tokens=words, tags=tags), f"{file.name}:{first}"


def _blocks(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines between empty ones, and the number of the first of them."""
    numbered = groupby(enumerate(lines, start=1), key=lambda item: bool(item[1].strip()))
    for filled, block in numbered:
        if filled:
            numbers, found = zip(*block, strict=True)
            yield numbers[0], list(found)


def _jsonl(file: File) -> Iterator[Row]:
    with file.lines() as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            origin = f"{file.name}:{number}"
            value = _parsed(line.rstrip("\r\n"), file, number, "Write one object per line.")
            if isinstance(value, str):
                value = {"text": value}
            if not isinstance(value, dict):
                kind = type(value).__name__
                raise ValueError(f"{origin}: a JSON {kind}. Write an object or a string.")
            yield {name: _well_formed(text) for name, text in value.items()}, origin


def _squad(file: File) -> Iterator[Row]:
    """Read SQuAD's own JSON, 1.1 or 2.0: one row per question."""
    with file.lines() as lines:
        tree = _parsed(lines.read(), file, 1, "A file with one object per line is a .jsonl.")
    number = 0
    for a, article in enumerate(_list_at(tree, "data", file.name)):
        at = f"{file.name}: data[{a}]"
        for p, paragraph in enumerate(_list_at(article, "paragraphs", at)):
            within = f"{at}.paragraphs[{p}]"
            for question in _list_at(paragraph, "qas", within):
                if not isinstance(question, dict):
                    raise ValueError(
                        f"{within}.qas: a question is not an object with its own keys."
                    )
                columns = {"context": paragraph.get("context"), **question}
                if question.get("is_impossible"):
                    columns["answers"] = []
                yield (
                    {name: _well_formed(value) for name, value in columns.items()},
                    f"{file.name}[{number}]",
                )
                number += 1


def _parsed(text: str, file: File, line: int, advice: str) -> Any:
    """Parse JSON that begins in a line."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = "too deep"
        if isinstance(error, json.JSONDecodeError):
            problem, line = error.msg, line + error.lineno - 1
        raise ValueError(f"{file.name}:{line}: not valid JSON ({problem}). {advice}") from None


def _well_formed(value: object) -> object:
    # JSON can spell half of a surrogate pair, which no tokenizer takes: U+FFFD stands for it.
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def _list_at(tree: Any, key: str, where: str) -> list[Any]:
    found = tree.get(key) if isinstance(tree, dict) else None
    if not isinstance(found, list):
        raise ValueError(
            f"{where}: no list '{key}'. A .json file is read as SQuAD's (data, paragraphs, qas); "
            "write rows to a .jsonl file."
        )
    return found


def _csv(file: File) -> Iterator[Row]:
    # A .tsv has no quoting (IANA text/tab-separated-values): quotes in it are text.
    plain = file.format == "tsv"
    csv.field_size_limit(2**31 - 1)  # a document may be longer than the module's 128 KiB
    with file.lines(newline="") as lines:
        quoting = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if plain else {"strict": True}
        reader = csv.reader(lines, **quoting)
        header: list[str] | None = None
        while True:
            origin = f"{file.name}:{reader.line_num + 1}"
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise ValueError(
                    f"{origin}: not valid {file.format} ({error}). Check the quotes."
                ) from None
            if row is None:
                return
            if not row:
                continue
            if header is None:
                header = row
                if twice := [name for name in row if row.count(name) > 1]:
                    raise ValueError(f"{origin}: two columns are called '{twice[0]}'. Rename one.")
                continue
            if len(row) != len(header):
                hint = "A .tsv has no quoting" if plain else "Quote fields that hold commas"
                raise ValueError(
                    f"{origin}: {len(row)} fields, but the header has {len(header)}. {hint}."
                )
            yield dict(zip(header, row, strict=True)), origin


def _parquet(file: File, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow as pa

    with _parquet_file(file) as table:
        schema = table.schema_arrow
        simple = [f.name for f in schema if f.name in columns or not pa.types.is_nested(f.type)]
        start = 0
        for batch in table.iter_batches(batch_size=_ROWS, columns=simple):
            end = start + len(batch)
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{file.name}[{start}] to [{end - 1}]: a text is not utf-8 ({brief(error)}). "
                    "Write the file again as UTF-8."
                ) from None
            yield from ((row, f"{file.name}[{n}]") for n, row in enumerate(rows, start))
            start = end


def count_rows(file: File) -> int | None:
    """Count the rows of a file whose rows are not lines; None: its bytes are counted."""
    if file.format == "squad":  # one JSON value, which is read whole in any case
        return sum(1 for _ in file.rows(()))
    if file.format != "parquet":
        return None
    with _parquet_file(file) as table:
        return int(table.metadata.num_rows)


@contextmanager
def _parquet_file(file: File) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file.open().close()  # with its own message when it cannot be read
    try:
        with pq.ParquetFile(file.path) as table:
            yield table
    except pa.ArrowException as error:
        raise ValueError(
            f"{file.name}: not a readable Parquet file ({brief(error)}). Write it again."
        ) from None


def brief(error: BaseException) -> str:
    """Shorten an error's message to one line."""
    text = " ".join(str(error).split()).rstrip(".")
    return (text[:200] + "…" if len(text) > 200 else text) or type(error).__name__
