"""Reading text: what becomes a record, where it came from, and one sentence for every mistake."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from potstill.data import read_records
from potstill.data.sources import Record, heldout_side, read_rows, sources_fingerprint
from potstill.recipe import DatasetFolder, Files, HubDataset


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(path: str, content: str | bytes) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: str, columns: Sequence[str] = ("text",), **settings: Any) -> list[Record]:
    return list(read_records([Files(paths=[path], **settings)], columns))


def texts(path: str, **settings: Any) -> list[tuple[str, str]]:
    return [(r.columns["text"], r.origin) for r in read(path, **settings)]


# --- formats --------------------------------------------------------------------------------------


def test_lines() -> None:
    write("a.txt", "\ufeffone\n\n  two \r\n\u2028three")
    assert texts("a.txt") == [("one", "a.txt:1"), ("two", "a.txt:3"), ("three", "a.txt:4")]


def test_paragraphs() -> None:
    write("a.txt", "\none\nstill one\n\n \ntwo\n\nthree\nstill three")
    assert texts("a.txt", unit="paragraph") == [
        ("one\nstill one", "a.txt:2"),
        ("two", "a.txt:6"),
        ("three\nstill three", "a.txt:8"),
    ]


def test_documents() -> None:
    write("sports/a.txt", "\n Title \n\nbody\nmore\n")
    write("sports/b.txt", " \n")
    columns = {"text": "Title \n\nbody\nmore", "title": "Title", "body": "body\nmore"}
    assert read("sports/*.txt", ["title", "body"], unit="document") == [
        Record({**columns, "label": "sports"}, "sports/a.txt")
    ]


def test_jsonl() -> None:
    rows = [{"text": "a", "n": 3, "list": [1]}, "bare", {"text": None}, {"text": "half \ud83d"}]
    write("a.jsonl", "\n".join(["", *(json.dumps(row) for row in rows)]))
    assert read("a.jsonl") == [
        Record({"text": "a", "n": "3"}, "a.jsonl:2"),
        Record({"text": "bare"}, "a.jsonl:3"),
        Record({"text": "half \ufffd"}, "a.jsonl:5"),  # the null of line 4 is no text
    ]


def test_a_null_leaves_the_other_columns() -> None:
    write("a.jsonl", '{"title": null, "body": "b"}')
    assert read("a.jsonl", ["title", "body"]) == [Record({"body": "b"}, "a.jsonl:1")]


def test_csv_keeps_strings_and_counts_lines_within_quotes() -> None:
    long = "x" * 200_000  # above the csv module's own limit
    with open("a.csv", "w", newline="", encoding="utf-8-sig") as stream:
        rows = [["text", "id"], ["two\nlines", "NA"], ["null", ""], [long, "1"]]
        csv.writer(stream).writerows(rows)
    assert read("a.csv") == [
        Record({"text": "two\nlines", "id": "NA"}, "a.csv:2"),
        Record({"text": "null", "id": ""}, "a.csv:4"),
        Record({"text": long, "id": "1"}, "a.csv:5"),
    ]


def test_quotes_in_a_tsv_are_text() -> None:
    write("a.tsv", 'text\tn\n"Go" she said, "now\t1\n\n"\t2\n')
    assert texts("a.tsv") == [('"Go" she said, "now', "a.tsv:2"), ('"', "a.tsv:4")]


def test_parquet() -> None:
    table = pa.table({"text": ["a", None, "NA"], "n": [1.5, 2.5, 3.5], "v": [[1], [2], [3]]})
    pq.write_table(table, "a.parquet")
    assert read("a.parquet") == [
        Record({"text": "a", "n": "1.5"}, "a.parquet[0]"),
        Record({"text": "NA", "n": "3.5"}, "a.parquet[2]"),
    ]


def test_globs_are_recursive_sorted_and_read_a_file_once() -> None:
    for name in ("d/b.txt", "d/a/z.txt", "c.txt"):
        write(name, name)
    source = Files(paths=["c.txt", "**/*.txt"])
    found = [record.columns["text"] for record in read_records([source], ["text"])]
    assert found == ["c.txt", "d/a/z.txt", "d/b.txt"]


def test_format_overrides_the_suffix() -> None:
    write("a.log", '{"text": "a"}')
    assert texts("a.log", format="jsonl") == [("a", "a.log:1")]
    assert texts("a.log", format="txt") == [('{"text": "a"}', "a.log:1")]


def test_encodings_are_tried_in_order() -> None:
    write("utf8.txt", "Zoë")
    write("latin.txt", "Zoë".encode("latin-1"))
    write("wide.txt", "Zoë".encode("utf-16"))
    encodings = ["utf-8", "utf-16", "latin-1"]
    assert texts("utf8.txt", encodings=encodings) == [("Zoë", "utf8.txt:1")]
    assert texts("wide.txt", encodings=encodings) == [("Zoë", "wide.txt:1")]
    assert texts("latin.txt", encodings=["utf-8", "latin-1"]) == [("Zoë", "latin.txt:1")]


@pytest.mark.parametrize("padding", [0, (1 << 20) - 9])  # or the character lies across two chunks
def test_the_first_byte_that_does_not_decode_is_named(padding: int) -> None:
    good = "é" * 2 + "\n" + "x" * padding + "\n"
    write("a.txt", good.encode() + b"ab\xe2\x82(")
    where = len(good.encode()) + 2
    with pytest.raises(
        ValueError,
        match=(
            rf"^a.txt: not utf-8 at byte {where} \(line 3\) \(nor ascii\)\. Set the "
            rf".*latin-1\]\.$"
        ),
    ):
        read("a.txt", encodings=["utf-8", "ascii"])


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "where", "settings"),
    [
        ("a.txt", b"ab\nc\xff\n", r"byte 4 \(line 2\)", {}),
        ("a.txt", b"ab\n\nc\xff\n", r"byte 5 \(line 3\)", {"unit": "paragraph"}),
        ("a.txt", b"ab\n\nc\xff\n", r"byte 5 \(line 3\)", {"unit": "document"}),
        ("a.txt", b"ab\nc\xc3", r"byte 4 \(line 2\)", {}),  # the file ends within a character
        ("a.jsonl", b'{"text": "a"}\n"b\xff"\n', r"byte 16 \(line 2\)", {}),
        ("a.csv", b"text\na\nb\xff\n", r"byte 8 \(line 3\)", {}),
        ("a.csv", b"te\xffxt\na\n", r"byte 2 \(line 1\)", {}),
        ("a.tsv", b"text\na\nb\xff\n", r"byte 8 \(line 3\)", {}),
        ("a.conll", b"a\tO\n\nb\xff\tO\n", r"byte 6 \(line 3\)", {}),
        ("a.json", b'{"data":\n["\xff"]}', r"byte 11 \(line 2\)", {}),
    ],
)
def test_a_byte_that_is_not_utf_8(
    name: str, content: bytes, where: str, settings: dict[str, Any]
) -> None:
    write(name, content)
    with pytest.raises(ValueError, match=rf"^{name}: not utf-8 at {where}\. Set .*latin-1\]\.$"):
        list(read_rows([Files(paths=[name], **settings)], ["text"]))


def test_a_text_of_a_parquet_file_that_is_not_utf_8() -> None:
    offsets = pa.py_buffer(np.array([0, 1, 3], np.int32))
    text = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"ab\xff")])
    pq.write_table(pa.table({"text": text}), "a.parquet")
    with pytest.raises(ValueError, match=r"^a\.parquet\[0\] to \[1\]: a text is not utf-8 \("):
        read("a.parquet")


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": ', {}, r"^a\.jsonl:2: not valid JSON \(Expecting"),
        ("a.jsonl", "[" * 100_000, {}, r"^a\.jsonl:1: not valid JSON \("),
        ("a.jsonl", "[1]", {}, r"^a\.jsonl:1: a JSON list\. Write an object or a string\.$"),
        ("a.jsonl", '{"text": ["a"]}', {}, r"^a\.jsonl:1: column 'text' holds .* type list"),
        (
            "a.jsonl",
            '{"n": 1, "texts": "a"}',
            {},
            r"^a\.jsonl:1: no column 'text'; there are: texts, n\.$",
        ),
        ("a.jsonl", "{}", {}, r"^a\.jsonl:1: no column 'text'; there are: none\.$"),
        ("a.txt", "a", {"columns": ["title"]}, r"no column 'title'.* with unit: document\)\.$"),
        (
            "a.csv",
            'text,n\n"a\nb",1\nc,2,3\n',
            {},
            r"^a\.csv:4: 3 fields, but the header has 2\. Quote",
        ),
        ("a.csv", "text,n\nc\n", {}, r"^a\.csv:2: 1 fields, but the header has 2"),
        ("a.csv", 'text,n\na,1\n"b,2\nc,3\n', {}, r"^a\.csv:3: not valid csv \(unexpected end"),
        ("a.csv", "text,text\na,b\n", {}, r"^a\.csv:1: two columns are called 'text'"),
        ("a.tsv", "text\tn\na\tb\tc\n", {}, r"^a\.tsv:2: 3 fields.*\. A \.tsv has no quoting\.$"),
        ("a.txt", b"PK\x03\x00\x01", {}, r"^a\.txt: a binary file, not text"),
        ("a.txt", "a", {"encodings": ["utf-88"]}, r"^encodings: 'utf-88' is not the name"),
        ("a.txt", "a", {"encodings": ["rot13"]}, r"^encodings: 'rot13' is not the name"),
        ("a.parquet", b"not parquet", {}, r"^a\.parquet: not a readable Parquet file \("),
        ("a.gz", b"a", {}, r"^a\.gz: unknown suffix '\.gz' \(known: \.txt, .*format: txt\.$"),
        ("a.txt", "\n \n", {}, r"^a\.txt: there is no text\. Give files that hold some\.$"),
        (
            "a.jsonl",
            '{"text": null}',
            {},
            r"^a\.jsonl: there is no text\. Give files that hold some\.$",
        ),
        ("a.csv", "", {}, r"^a\.csv: there is no text\. Give files that hold some\.$"),
    ],
)
def test_a_mistake_is_one_sentence(
    name: str, content: str | bytes, settings: dict[str, Any], message: str
) -> None:
    write(name, content)
    with pytest.raises(ValueError, match=message):
        read(name, **settings)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "texts/trian.txt",
            r"^texts/trian\.txt: the file was not found\. Did you mean 'train\.txt'\?$",
        ),
        ("elsewhere/a.txt", r"^elsewhere/a\.txt: the file was not found\. Check the path\.$"),
        ("texts/*.csv", r"^texts/\*\.csv: no file matches\. Check the pattern"),
        ("texts", r"^texts: a folder, not a file\. Name its files, as in texts/\*\.txt\.$"),
        ("saved", r"^saved: a folder, not a file\. Set kind: dataset_folder\.$"),
    ],
)
def test_a_path_that_is_no_file(path: str, message: str) -> None:
    write("texts/train.txt", "a")
    write("saved/state.json", "{}")
    with pytest.raises(ValueError, match=message):
        read(path)


def test_a_file_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.txt", "a")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        ValueError, match=r"^a\.txt: the file cannot be read \(Permission denied\)\.$"
    ):
        read("a.txt")


def test_a_missing_last_source_is_found_before_the_first_is_read() -> None:
    write("a.txt", "a")
    records = read_records([Files(paths=["a.txt"]), Files(paths=["b.txt"])], ["text"])
    with pytest.raises(ValueError, match=r"^b\.txt: the file was not found"):
        next(records)


def test_an_empty_corpus_names_all_its_sources() -> None:
    write("a.txt", "")
    write("b.txt", "")
    with pytest.raises(ValueError, match=r"^a\.txt, b\.txt: there is no text\."):
        list(read_records([Files(paths=["a.txt"]), Files(paths=["b.txt"])], ["text"]))


# --- data sets ------------------------------------------------------------------------------------


def two_rows() -> datasets.Dataset:
    features = datasets.Features(
        text=datasets.Value("string"),
        topic=datasets.ClassLabel(names=["tech", "sport"]),
        vector=datasets.List(datasets.Value("float32")),
    )
    rows = {"text": ["a", "NA", None], "topic": [1, 0, 0], "vector": [[0.0], [1.0], [2.0]]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_dataset_folder() -> None:
    two_rows().with_format("numpy").save_to_disk("one")
    records = list(read_records([DatasetFolder(path="one")], ["text"]))
    assert records == [
        Record({"text": "a", "topic": "sport"}, "one[0]"),
        Record({"text": "NA", "topic": "tech"}, "one[1]"),
    ]
    with pytest.raises(ValueError, match=r"^one\[0\]: column 'vector' holds a value of type list"):
        list(read_records([DatasetFolder(path="one")], ["vector"]))


def test_splits_of_a_dataset_folder() -> None:
    datasets.DatasetDict(train=two_rows(), test=two_rows().select([1])).save_to_disk("both")
    records = list(read_records([DatasetFolder(path="both", split="test")], ["text"]))
    assert records == [Record({"text": "NA", "topic": "tech"}, "both:test[0]")]
    for split, message in ((None, "no split is set"), ("dev", "no split 'dev'")):
        expected = rf"^both: {message}\. Set split to one of train, test\.$"
        with pytest.raises(ValueError, match=expected):
            list(read_records([DatasetFolder(path="both", split=split)], ["text"]))
    datasets.DatasetDict(only=two_rows()).save_to_disk("single")
    assert len(list(read_records([DatasetFolder(path="single")], ["text"]))) == 2


def test_a_folder_that_is_no_data_set() -> None:
    write("texts/a.txt", "a")
    for path in ("texts", "nowhere"):
        with pytest.raises(
            ValueError, match=rf"^{path}: not a folder of datasets' save_to_disk \("
        ):
            list(read_records([DatasetFolder(path=path)], ["text"]))
    two_rows().save_to_disk("one")
    with pytest.raises(ValueError, match=r"^one: holds one data set without splits"):
        list(read_records([DatasetFolder(path="one", split="train")], ["text"]))


@pytest.mark.parametrize("offline", [False, True])
def test_hub_dataset(offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def load_dataset(*names: str, **settings: object) -> Any:
        asked.append((names, settings))
        return two_rows() if offline else two_rows().to_iterable_dataset()

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = HubDataset(name="org/set", config="en", revision="abc")
    records = list(read_records([source], ["text"]))
    assert [record.columns["text"] for record in records] == ["a", "NA"]
    assert records[1].origin == "org/set:en:train[1]"
    settings = {"split": "train", "revision": "abc", "streaming": not offline}
    assert asked == [(("org/set", "en"), settings)]


def test_a_hub_data_set_that_can_not_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError,
        match=(
            r"^org/no-such-set:train: the hub data set could not be downloaded \(.*Unset "
            r"HF_HUB_OFFLINE\.$"
        ),
    ):
        list(read_records([HubDataset(name="org/no-such-set")], ["text"]))


def test_a_hub_data_set_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Any:
        yield {"text": "a"}
        raise TimeoutError("the connection\nwas lost.")

    stream = datasets.IterableDataset.from_generator(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
    with pytest.raises(
        ValueError, match=r"^org/set:train: reading stopped \(.*\)\. Run it again\.$"
    ):
        list(read_records([HubDataset(name="org/set")], ["text"]))


# --- held-out side --------------------------------------------------------------------------------


def test_the_share_held_out_is_the_fraction() -> None:
    records = [Record({"text": f"text {i}"}, "") for i in range(4000)]
    sides = [heldout_side(record, ["text"], None, 0.2, seed=1) for record in records]
    # Binomial(4000, 0.2): mean 800, standard deviation 25.3
    assert abs(sum(sides) - 800) < 4 * 25.3
    others = [heldout_side(record, ["text"], None, 0.2, seed=2) for record in records]
    assert sides != others
    assert not any(heldout_side(record, ["text"], None, 0.0, seed=1) for record in records)


def test_equal_texts_fall_on_the_same_side() -> None:
    sides = set()
    for i in range(50):
        one = Record({"title": f"title {i}", "body": f"a  body {i}\n"}, "a:1")
        two = Record({"title": "other", "body": f"a body {i}"}, "b:7")
        columns = ["title", "body"]
        side = heldout_side(one, columns, "body", 0.5, seed=1)
        assert side == heldout_side(two, columns, "body", 0.5, seed=1)
        sides.add(side)
    assert sides == {True, False}


def test_all_columns_decide_without_group_by() -> None:
    pairs = [Record({"a": "x", "b": f"{i}"}, "") for i in range(50)]
    assert {heldout_side(record, ["a", "b"], None, 0.5, seed=1) for record in pairs} == {
        True,
        False,
    }


def test_a_missing_group_column() -> None:
    record = Record({"text": "a", "title": "b"}, "a.csv:2")
    with pytest.raises(
        ValueError, match=r"^a\.csv:2: group_by: no column 'titel'; there are: title, text"
    ):
        heldout_side(record, ["text"], "titel", 0.5, seed=1)


# --- fingerprint ----------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_content() -> None:
    write("one/a.txt", "a")
    write("two/a.txt", "a")
    write("two/b.txt", "b")
    one, two = Files(paths=["one/*.txt"]), Files(paths=["two/*.txt"])
    first = sources_fingerprint([one])
    assert first == sources_fingerprint([Files(paths=["two/a.txt"])])  # of wherever it lies
    assert first != sources_fingerprint([two])
    assert first != sources_fingerprint([Files(paths=["one/a.txt"], unit="paragraph")])
    documents = [Files(paths=[f"{folder}/a.txt"], unit="document") for folder in ("one", "two")]
    assert sources_fingerprint(documents[:1]) != sources_fingerprint(documents[1:])  # the labels
    write("one/a.txt", "c")
    assert first != sources_fingerprint([one])


def test_the_fingerprint_of_data_sets() -> None:
    two_rows().save_to_disk("one")
    shutil.copytree("one", "copy")
    two_rows().select([0]).save_to_disk("other")
    of = {n: sources_fingerprint([DatasetFolder(path=n)]) for n in ("one", "copy", "other")}
    assert of["one"] == of["copy"] != of["other"]
    hub = [HubDataset(name="org/set", revision=revision) for revision in ("a", "b")]
    assert sources_fingerprint(hub[:1]) != sources_fingerprint(hub[1:])
