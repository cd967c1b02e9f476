"""Words and tags to word pieces with labels, and what is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import tiny_tokenizer
from potstill.data.sequences import IGNORED, UNLABELED
from potstill.recipe import Task, TaskData
from potstill.tasks import TaskRows, tokenize_task
from potstill.tasks.reading import read_task
from potstill.tasks.tokens.examples import first_pieces, sorted_tags
from tiny_families import NAMES
from tiny_tasks import tagged_sentences, write_conll
from tiny_tokenizers import family_tokenizer

LABELS = ["O", "B-cask", "I-cask", "B-still", "I-still"]


def read(train: Any, teacher: list[str] | None = None, **settings: Any) -> TaskRows:
    row = Task(Task.TOKEN_CLASSIFICATION)
    assert row is not None
    given = {"train": train, "text": "tokens", "label": "tags", "heldout": 0.3, **settings}
    return read_task(TaskData.model_validate(given), row, 1, teacher_labels=teacher)


def columns(count: int = 40) -> list[dict[str, Any]]:
    found = []
    for sentence in tagged_sentences(count):
        words, tags = zip(*sentence, strict=True)
        found.append({"tokens": list(words), "tags": list(tags)})
    return found


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def problem(train: Any, **settings: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        tokenize_task(read(train, **settings), tiny_tokenizer())
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is read ---------------------------------------------------------------------------------


def test_conll(tmp_path: Path) -> None:
    path = tmp_path / "train.conll"
    path.write_text(
        "\ufeffLow\tO\tDT\r\nstill\tB-still\tNN\r\n\r\n \noak\tB-cask\nno brake\tI-cask\n", "utf-8"
    )
    found = read(str(path), heldout=0.0, dev=str(path))
    assert [(e.texts, e.origin) for e in found.sides["train"]] == [
        (("Low", "still"), f"{path}:1"),
        (("oak", "no brake"), f"{path}:5"),
    ]
    assert found.labels == LABELS
    assert [e.gold for e in found.sides["train"]] == [[0, 3], [1, 2]]
    renamed = path.rename(tmp_path / "train.txt")
    source = {"kind": "files", "paths": [str(renamed)], "format": "conll"}
    assert read(source, heldout=0.0, dev=source).sides["train"][1].gold == [1, 2]


def test_every_form_gives_the_same(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

    rows = columns()
    numbered = [{**row, "tags": [LABELS.index(tag) for tag in row["tags"]]} for row in rows]
    pq.write_table(pa.Table.from_pylist(numbered), tmp_path / "train.parquet")
    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=LABELS))})
    saved = Dataset.from_list(numbered, features=features)
    DatasetDict({"train": saved}).save_to_disk(tmp_path / "saved")
    sources = [
        (write_conll(tmp_path / "train.conll", tagged_sentences(40)), {}),
        (jsonl(tmp_path / "train.jsonl", rows), {}),
        (str(tmp_path / "train.parquet"), {"labels": LABELS}),
        ({"kind": "dataset_folder", "path": str(tmp_path / "saved"), "split": "train"}, {}),
    ]
    expected = None
    for source, settings in sources:
        found = read(source, **settings)
        assert found.labels == LABELS
        sides = {side: [(e.texts, e.gold) for e in each] for side, each in found.sides.items()}
        assert sides["train"]
        assert sides["dev"]
        expected = expected or sides
        assert sides == expected


def test_labels(tmp_path: Path) -> None:
    assert sorted_tags({"I-b", "O", "B-a"}) == ["O", "B-a", "I-a", "B-b", "I-b"]
    train = jsonl(tmp_path / "t.jsonl", columns())
    order = ["B-still", "I-still", "O", "B-cask", "I-cask"]
    assert read(train, labels=order).labels == order
    assert read(train, teacher=order).labels == order
    assert "is not one of the model's labels: O, B-per, I-per" in problem(
        train, teacher=["O", "B-per", "I-per"]
    )


def test_text_for_the_teacher_needs_no_tags(tmp_path: Path) -> None:
    (tmp_path / "more.conll").write_text("oak\npeat\n\nlow\twine\n")
    train = write_conll(tmp_path / "train.conll", tagged_sentences(40))
    found = read(train, unlabelled=str(tmp_path / "more.conll"))
    assert [(e.texts, e.gold) for e in found.sides["unlabeled"]] == [
        (("oak", "peat"), None),
        (("low",), None),
    ]
    examples = tokenize_task(found, tiny_tokenizer())
    assert examples.unlabeled is not None
    assert examples.unlabeled.gold.tolist() == [
        *(IGNORED, UNLABELED, UNLABELED, IGNORED),
        *(IGNORED, UNLABELED, IGNORED),
    ]
    both = examples.train + examples.unlabeled
    assert len(both.words) == len(both.tags) == both.items == len(both)


# --- word pieces ----------------------------------------------------------------------------------


def test_pieces_are_those_of_word_ids(tmp_path: Path) -> None:
    """Against transformers' own alignment of words that were split before."""
    sentence = [("stillness", "O"), ("oak", "B-cask"), ("don't", "I-cask"), ("o", "O")]
    given = [*tagged_sentences(40), sentence]
    found = tokenize_task(
        read(write_conll(tmp_path / "t.conll", given), heldout=0.5), tiny_tokenizer()
    )
    for side in (found.train, found.dev):
        for index, words in enumerate(side.words):
            encoded = tiny_tokenizer()(list(words), is_split_into_words=True)
            assert side[index].tolist() == encoded["input_ids"]
            expected, before = [], None
            for word in encoded.word_ids():
                first = word is not None and word != before
                expected.append(side.tags[index][word] if first else IGNORED)
                before = word
            part = slice(side.offsets[index], side.offsets[index + 1])
            assert side.gold[part].tolist() == expected


@pytest.mark.parametrize("name", NAMES)
def test_each_word_has_one_first_piece_where_it_begins(name: str) -> None:
    words = ("still", "potstill", "smoke", "a", "wine")
    text = " ".join(words)
    encoded = family_tokenizer(name)(text, return_offsets_mapping=True)
    found = first_pieces(words, encoded["offset_mapping"])
    assert sorted(found[found >= 0].tolist()) == list(range(len(words)))
    starts = [text.index(f" {word}") + 1 if n else 0 for n, word in enumerate(words)]
    for token in np.flatnonzero(found >= 0).tolist():
        begin, end = encoded["offset_mapping"][token]
        assert text[begin:end].strip() != ""
        assert begin + len(text[begin:end]) - len(text[begin:end].lstrip()) == starts[found[token]]


def test_words_beyond_the_length_are_told(tmp_path: Path) -> None:
    long = [("low", "O")] * 7 + [("oak", "B-cask")] * 2
    given = [[("oak", "B-cask"), ("oak", "I-cask"), ("wine", "O")]] * 20
    train = write_conll(tmp_path / "t.conll", [*given, long])
    found = tokenize_task(read(train, heldout=0.0, dev=train, max_length=8), tiny_tokenizer())
    assert any(
        w.startswith("3 of 69 words of train have no token, most of them beyond data.max_length (8")
        for w in found.warnings
    )
    assert len(found.train.tags[20]) == 9
    everything = write_conll(tmp_path / "long.conll", [long])
    said = problem(everything, heldout=0.0, dev=everything, max_length=8)
    assert "data.max_length: 8 tokens cut every text of data.train" in said


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "line", "message"),
    [
        (
            "low\tO\noak\tI-cask",
            2,
            "the tag 'I-cask' of 'oak' (word 2) comes after O: in IOB2 an entity begins with "
            "B-cask. Correct it.",
        ),
        ("low\tB-still\noak\tI-cask", 2, "the tag 'I-cask' of 'oak' (word 2) comes after B-still"),
        ("oak\tI-cask", 1, "the tag 'I-cask' of 'oak' (word 1) comes after O"),
        ("low\tO\nlow\tO\noak\tcask", 3, "the tag 'cask' of 'oak' (word 3) is neither O, nor B-"),
        ("oak\tB-", 1, "the tag 'B-' of 'oak' (word 1) is neither O, nor B- or I- with a type"),
        ("oak\tS-cask", 1, "the tag 'S-cask' of 'oak' (word 1) is neither O"),
        ("low\tO\noak", 2, "the word 'oak' has no tag. Write one (in a .conll file after a tab)"),
        ("low\tO\n\tO", 2, "word 2 is empty. Remove it"),
    ],
)
def test_a_line_that_cannot_be_used(lines: str, line: int, message: str, tmp_path: Path) -> None:
    train = write_conll(tmp_path / "train.conll", tagged_sentences(30))
    before = Path(train).read_text()
    Path(train).write_text(f"{before}\n{lines}\n\noak\tB-cask\n")
    said = problem(train)
    assert said.startswith(f"{train}:{before.count(chr(10)) + 1 + line}: {message}")
    assert said.endswith("Or skip such rows with data.on_bad_row=skip.")
    found = read(train, on_bad_row="skip")
    assert sum(len(side) for side in found.sides.values()) == 31
    assert found.labels == LABELS


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["oak"], "tags": ["O", "O"]}, "1 words, but 2 tags"),
        ({"tokens": "oak", "tags": ["O"]}, "column 'tokens' holds a str. Write a list of words"),
        (
            {"tokens": ["oak", 3], "tags": ["O", "O"]},
            "column 'tokens' holds a list. Write a list of wor",
        ),
        ({"tokens": [], "tags": []}, "the text column 'tokens' is empty"),
        ({"tokens": ["oak"], "tags": "O"}, "label column 'tags' holds a str. Write a list of tags"),
        ({"tokens": ["oak"], "tags": [None]}, "the word 'oak' has no tag"),
        ({"tokens": ["oak"]}, "no column 'tags' (data.label). The columns are tokens"),
        (
            {"tokens": ["oak"], "tags": ["B-malt"]},
            "label 'B-malt' is not one of the model's labels: O, B-c",
        ),
        ({"tokens": ["oak"], "tags": [2]}, "the tag 'I-cask' of 'oak' (word 1) comes after O"),
    ],
)
def test_a_row_that_cannot_be_used(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", [*columns(), row])
    assert problem(train, labels=LABELS).startswith(f"{train}:41: {message}")


def test_numbers_without_names(tmp_path: Path) -> None:
    rows = [{**r, "tags": [LABELS.index(tag) for tag in r["tags"]]} for r in columns()]
    said = problem(jsonl(tmp_path / "t.jsonl", rows))
    assert said.startswith(
        "data.labels: '0' is not a tag of IOB2 (O, B-type, I-type). Name the tags"
    )
    only = [{"tokens": ["oak"], "tags": ["B-cask"]}] * 20
    assert "data.labels: O, the tag of words outside entities, is missing" in problem(
        jsonl(tmp_path / "o.jsonl", only), labels=["B-cask", "I-cask"]
    )


def test_a_type_without_an_example(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "t.jsonl", columns())
    assert "data.train: no example of the label malt" in problem(train, labels=[*LABELS, "B-malt"])


def test_two_columns_of_words(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "t.jsonl", columns())
    assert "token_classification reads one column, a list of words" in problem(
        train, text=["tokens", "others"]
    )
    assert "token_classification has one label column, and 2 are named" in problem(
        train, label=["tags", "others"]
    )
