"""Files as rows: what a path, a glob or `package:NAME/...` stands for, and readers of each format.

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
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from potstill.recipe import Files
from potstill.storage.places import package_folder, resolve_path

_FORMATS = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".conll": "conll",
    ".json": "squad",
}
_CHUNK = 1 << 20
_HEAD = 1 << 16
_ROWS = 256  # rows of a Parquet file that are in memory at a time

Row = tuple[Mapping[str, object], str]  # columns, origin


class Sentence(dict[str, object]):
    """Columns of a row whose words stand one a line, the first of them at the row's origin."""


@dataclass(frozen=True)
class File:
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


def expand(source: Files) -> list[File]:
    """The files that a source names, each once, sorted within a glob."""
    files: dict[Path, File] = {}
    for spec in source.paths:
        for path, name in _matches(spec):
            files.setdefault(path, File(path, name, _format(source, name)))
    return list(files.values())


def _matches(spec: str) -> list[tuple[Path, str]]:
    root, rest = package_folder(spec)
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


def file_rows(file: File, source: Files, columns: Sequence[str]) -> Iterator[Row]:
    match file.format:
        case "txt":
            return _txt(file, source)
        case "jsonl":
            return _jsonl(file, source)
        case "csv" | "tsv":
            return _csv(file, source)
        case "conll":
            return _conll(file, source)
        case "squad":
            return _squad(file, source)
        case _:
            return _parquet(file, columns)


def _txt(file: File, source: Files) -> Iterator[Row]:
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


def _jsonl(file: File, source: Files) -> Iterator[Row]:
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


def _csv(file: File, source: Files) -> Iterator[Row]:
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


def _conll(file: File, source: Files) -> Iterator[Row]:
    """CoNLL's columns: a word, a tab, its tag; an empty line ends a sentence.

    Further columns are ignored. `tags` has None where a line has no tag.
    """
    with file.lines(source.encodings) as lines:
        words: list[str] = []
        tags: list[str | None] = []
        number = 0
        for number, line in enumerate(lines, start=1):
            if line.strip():
                word, *more = line.rstrip("\r\n").split("\t")
                words.append(word.strip())
                tags.append(more[0].strip() if more else None)
            elif words:
                yield Sentence(tokens=words, tags=tags), f"{file.name}:{number - len(words)}"
                words, tags = [], []
        if words:
            yield Sentence(tokens=words, tags=tags), f"{file.name}:{number - len(words) + 1}"


def _squad(file: File, source: Files) -> Iterator[Row]:
    """SQuAD's own JSON, 1.1 or 2.0: a row a question."""
    with file.lines(source.encodings) as lines:
        try:
            tree = json.load(lines)
        except (ValueError, RecursionError) as error:
            line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            problem = error.msg if isinstance(error, json.JSONDecodeError) else "too deep"
            raise ValueError(
                f"{file.name}{line}: not valid JSON ({problem}); one object a line is a .jsonl"
            ) from None
    number = 0
    for a, article in enumerate(_list_at(tree, "data", file.name)):
        at = f"{file.name}: data[{a}]"
        for p, paragraph in enumerate(_list_at(article, "paragraphs", at)):
            within = f"{at}.paragraphs[{p}]"
            for question in _list_at(paragraph, "qas", within):
                if not isinstance(question, dict):
                    raise ValueError(f"{within}.qas: a question is an object with its own keys")
                columns = {"context": paragraph.get("context"), **question}
                if question.get("is_impossible"):
                    columns["answers"] = []
                yield (
                    {name: _well_formed(value) for name, value in columns.items()},
                    (f"{file.name}[{number}]"),
                )
                number += 1


def _list_at(tree: Any, key: str, where: str) -> list[Any]:
    found = tree.get(key) if isinstance(tree, dict) else None
    if not isinstance(found, list):
        raise ValueError(
            f"{where}: no list '{key}': a .json file is read as SQuAD's (data, paragraphs, qas); "
            "give rows as .jsonl"
        )
    return found


def _parquet(file: File, columns: Sequence[str]) -> Iterator[Row]:
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
        raise ValueError(f"{file.name}: not a readable Parquet file ({brief(error)})") from None


def parquet_rows(file: File) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file.open().close()
    try:
        return int(pq.read_metadata(file.path).num_rows)
    except pa.ArrowException as error:
        raise ValueError(f"{file.name}: not a readable Parquet file ({brief(error)})") from None


def brief(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return (text[:200] + "…" if len(text) > 200 else text) or type(error).__name__
