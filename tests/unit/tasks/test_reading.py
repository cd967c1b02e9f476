"""Labelled files to examples: what is read, and what is refused with its line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import sentences, tiny_tokenizer
from potstill.data import collate
from potstill.data.sequences import UNLABELED
from potstill.recipe import Task, TaskData
from potstill.tasks import TaskRows, tokenize_task
from potstill.tasks.labels import resolve_labels
from potstill.tasks.reading import read_task


def file(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def rows(count: int = 30, labels: tuple[Any, ...] = ("bad", "good")) -> list[dict[str, Any]]:
    return [
        {"text": text, "label": labels[number % len(labels)]}
        for number, text in enumerate(sentences(count))
    ]


def read(
    train: str,
    task: Task = "classification",
    teacher: list[str] | None = None,
    **settings: Any,
) -> TaskRows:
    row = Task(task)
    assert row is not None
    data = TaskData.model_validate({"train": train, "heldout": 0.3, **settings})
    return read_task(data, row, 1, teacher_labels=teacher)


def problem(*arguments: Any, **settings: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        tokenize_task(read(*arguments, **settings), tiny_tokenizer())
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_row_is_on_one_side(tmp_path: Path) -> None:
    train = file(tmp_path, "train.tsv", rows())
    found = read(train)
    assert found.labels == ["bad", "good"]
    assert len(found.sides["train"]) + len(found.sides["dev"]) == 30
    assert found.sides["dev"]
    by_text = {row["text"]: row["label"] for row in rows()}
    for side in found.sides.values():
        for example in side:
            assert found.labels[example.gold] == by_text[example.texts[0]]
    assert found.sides["train"][0].origin.startswith(f"{train}:")
    assert read(train).sides == found.sides


def test_tokens_are_the_tokenizers(tmp_path: Path) -> None:
    pairs = [
        {"a": f"{t} wash", "b": "low wine", "label": n % 2} for n, t in enumerate(sentences(20))
    ]
    found = tokenize_task(
        read(file(tmp_path, "pairs.tsv", pairs), text=["a", "b"], max_length=24), tiny_tokenizer()
    )
    assert found.train.types is not None
    for index, texts in enumerate(found.train.texts):
        expected = tiny_tokenizer()(*texts, truncation=True, max_length=24)
        assert found.train[index].tolist() == expected["input_ids"]
        start, end = found.train.offsets[index : index + 2]
        assert found.train.types[start:end].tolist() == expected["token_type_ids"]
    assert any("are longer than data.max_length (24 tokens)" in w for w in found.warnings)


def test_special_tokens_in_a_text_are_text(tmp_path: Path) -> None:
    given = [*rows(20), {"text": "oak [SEP] peat", "label": "good"}]
    found = read(
        file(tmp_path, "train.tsv", given), heldout=0.0, dev=file(tmp_path, "d.tsv", rows())
    )
    tokens = tokenize_task(found, tiny_tokenizer()).train
    assert tokens[20].tolist().count(3) == 1


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(("b", "a"), ["a", "b"]), ((10, 9, 2), ["2", "9", "10"]), ((1.0, 0.0), ["0", "1"])],
)
def test_labels_are_sorted(labels: tuple[Any, ...], expected: list[str], tmp_path: Path) -> None:
    assert read(file(tmp_path, "train.jsonl", rows(30, labels))).labels == expected


def test_labels_by_number_of_a_teacher_with_names(tmp_path: Path) -> None:
    train = file(tmp_path, "train.tsv", rows(30, (0, 1)))
    found = read(train, teacher=["NEG", "POS"])
    assert found.labels == ["NEG", "POS"]
    golds = {example.texts[0]: example.gold for example in found.sides["train"]}
    assert all(
        golds[row["text"]] == row["label"] for row in rows(30, (0, 1)) if row["text"] in golds
    )


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.MULTI_LABEL, "token_classification"])
def test_numbers_count_in_the_order_of_data_labels(task: Task, tmp_path: Path) -> None:
    """Whatever order a teacher has the same names in."""
    teacher, given = ["O", "B-still", "B-cask"], ["O", "B-cask", "B-still"]
    texts = sentences(30)
    every = [n % 3 for n in range(30)]
    labels: list[Any] = every if task == "classification" else [[n] for n in every]
    words: list[Any] = list(texts)
    if task == "token_classification":
        words, labels = [t.split()[:3] for t in texts], [[n, 0, 0] for n in every]
    train = [{"text": w, "label": label} for w, label in zip(words, labels, strict=True)]
    found = read(file(tmp_path, "train.jsonl", train), task, teacher=teacher, labels=given)
    assert found.labels == teacher
    for example in (one for side in found.sides.values() for one in side):
        number = int(example.origin.rpartition(":")[2]) - 1
        gold = example.gold
        if task != "classification":
            gold = gold.index(1) if task == "multi_label" else gold[0]
        assert teacher[gold] == given[every[number]]


def test_resolve_labels() -> None:
    unnamed = ["LABEL_0", "LABEL_1"]
    assert resolve_labels({"x", "y"}, None, None) == ["x", "y"]
    assert resolve_labels({"x", "y"}, ["y", "x"], None) == ["y", "x"]
    # a teacher's order counts, whatever order the recipe gives the same names in
    assert resolve_labels({"x", "y"}, ["y", "x"], ["x", "y"]) == ["x", "y"]
    assert resolve_labels({"x", "y"}, ["y", "x"], unnamed) == ["y", "x"]
    assert resolve_labels({"0", "1"}, None, unnamed) == unnamed
    with pytest.raises(ValueError, match=r"Set data\.labels in the order of the teacher's"):
        resolve_labels({"x", "y"}, None, unnamed)
    with pytest.raises(ValueError, match="3 names, but the teacher has 2 labels"):
        resolve_labels({"x"}, ["x", "y", "z"], ["x", "y"])
    with pytest.raises(ValueError, match=r"x, z are not the teacher's labels\. They are x, y"):
        resolve_labels({"x"}, ["x", "z"], ["x", "y"])


def test_several_labels(tmp_path: Path) -> None:
    texts = sentences(20)
    as_list = [{"text": t, "label": [["a"], [], ["a", "b"]][n % 3]} for n, t in enumerate(texts)]
    as_text = [{"text": t, "label": ["a", "", "a, b"][n % 3]} for n, t in enumerate(texts)]
    as_columns = [
        {"text": t, "a": int(n % 3 != 1), "b": int(n % 3 == 2)} for n, t in enumerate(texts)
    ]
    found = [
        read(file(tmp_path, "list.jsonl", as_list), Task.MULTI_LABEL),
        read(file(tmp_path, "text.tsv", as_text), Task.MULTI_LABEL),
        read(file(tmp_path, "columns.tsv", as_columns), Task.MULTI_LABEL, label=["a", "b"]),
    ]
    for one in found:
        assert one.labels == ["a", "b"]
        golds = {e.texts[0]: e.gold for side in one.sides.values() for e in side}
        assert [golds[t] for t in texts[:3]] == [[1, 0], [0, 0], [1, 1]]


def test_values_and_unlabelled_text(tmp_path: Path) -> None:
    more = tmp_path / "more.txt"
    more.write_text("\n".join(sentences(8, seed=3)), encoding="utf-8")
    scored = file(tmp_path, "train.tsv", rows(20, (0.5, 2, "3e0")))
    found = read(scored, Task.REGRESSION, unlabelled=str(more), max_unlabelled=5)
    assert {e.gold for e in found.sides["train"]} == {0.5, 2.0, 3.0}
    assert len(found.sides["unlabeled"]) == 5
    assert all(math.isnan(e.gold) for e in found.sides["unlabeled"])
    examples = tokenize_task(found, tiny_tokenizer())
    assert examples.train.gold.dtype == "float32"
    labelled = read(file(tmp_path, "l.tsv", rows()), unlabelled=str(more))
    assert {e.gold for e in labelled.sides["unlabeled"]} == {UNLABELED}


def test_pairs_that_are_encoded_apart(tmp_path: Path) -> None:
    texts = sentences(24)
    pairs = [
        {"a": texts[n], "b": texts[n + 12], "score": (n % 6) - 1.0 if n else 4.0} for n in range(12)
    ]
    more = file(tmp_path, "more.tsv", [{"a": t, "b": t} for t in texts[:3]])
    settings = {"text": ["a", "b"], "label": "score", "unlabelled": str(more), "heldout": 0.0}
    path = file(tmp_path, "train.tsv", pairs)
    found = read(path, Task.SENTENCE_SIMILARITY, dev=str(path), **settings)
    # the least and the greatest score are the cosines 0 and 1
    assert [e.gold for e in found.sides["train"]] == [(p["score"] + 1) / 5 for p in pairs]
    assert all(math.isnan(e.gold) for e in found.sides["unlabeled"])
    given = read(path, Task.SENTENCE_SIMILARITY, dev=str(path), score_range=[-1, 9], **settings)
    assert found.sides["train"][0].gold == 2 * given.sides["train"][0].gold == 1.0
    tokenizer = tiny_tokenizer()
    examples = tokenize_task(found, tokenizer).train
    batch = collate(examples, np.array([3, 0]), 0)
    both = batch.input_ids_BL, batch.attention_mask_BL
    rows = [row[mask.bool()].tolist() for row, mask in zip(*both, strict=True)]
    assert rows == [tokenizer(texts[n])["input_ids"] for n in (3, 0, 15, 12)]
    assert batch.gold_BL.tolist() == pytest.approx([(pairs[n]["score"] + 1) / 5 for n in (3, 0)])
    assert batch.numbers_B is not None
    assert batch.numbers_B.tolist() == [3, 0]
    longer = examples + examples.chosen(np.array([5]))
    last = collate(longer, np.array([12]), 0).input_ids_BL
    assert torch.equal(last, collate(examples, np.array([5]), 0).input_ids_BL)


@pytest.mark.parametrize(
    ("score", "settings", "message"),
    [
        ("1", {}, r"data.train: all pairs have the score 1. Give pairs with different scores"),
        ("high", {}, r"train.tsv:2: label column 'score' holds 'high'. Write a number"),
        ("1", {"text": "a"}, r"data.text: sentence_similarity compares two columns"),
    ],
)
def test_pairs_that_can_not_be_used(
    tmp_path: Path, score: str, settings: dict[str, Any], message: str
) -> None:
    train = file(tmp_path, "train.tsv", [{"a": t, "b": t, "score": score} for t in sentences(30)])
    with pytest.raises(ValueError, match=message):
        read(train, Task.SENTENCE_SIMILARITY, **{"text": ["a", "b"], "label": "score", **settings})


def test_a_fixed_subset(tmp_path: Path) -> None:
    train = file(tmp_path, "train.tsv", rows(200))
    some = read(train, max_train=50).sides["train"]
    assert len(some) == 50
    assert some == read(train, max_train=50).sides["train"]
    everything = read(train).sides["train"]
    assert all(example in everything for example in some)
    assert some != everything[:50]


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"text": " ", "label": "bad"}, {}, "the text column 'text' is empty"),
        ({"text": "oak", "label": ""}, {}, "the label column 'label' is empty"),
        ({"text": math.nan, "label": "bad"}, {}, "the text column 'text' is empty"),
        ({"text": "oak", "label": " "}, {}, "the label column 'label' is empty"),
        ({"text": "oak", "label": math.nan}, {}, "the label column 'label' is empty"),
        ({"text": ["oak"], "label": "bad"}, {}, "column 'text' holds a list, not text"),
        ({"text": "oak", "label": 0.5}, {}, "label 0.5 is a fraction"),
        ({"text": "oak", "label": ["bad"]}, {}, "label column 'label' holds a list"),
        (
            {"text": "oak", "lable": "bad"},
            {},
            "no column 'label' (data.label). The columns are text",
        ),
        ({"words": "oak", "label": "bad"}, {}, "no column 'text' (data.text)"),
        (
            {"text": "oak", "label": "ugly"},
            {"labels": ["bad", "good"]},
            "label 'ugly' is not one of the model's labels: bad, good",
        ),
    ],
)
def test_a_row_that_cannot_be_used(
    row: dict[str, Any], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    train = file(tmp_path, "train.jsonl", [*rows(20), row, *rows(10)])
    said = problem(train, **settings)
    assert said.startswith(f"{train}:21: {message}")
    assert said.endswith("Or skip such rows with data.on_bad_row=skip.")
    found = tokenize_task(read(train, on_bad_row="skip", **settings), tiny_tokenizer())
    assert len(found.train) + len(found.dev) == 30
    assert any(w.startswith("1 rows are skipped (train.") for w in found.warnings)


def test_a_value_that_is_none(tmp_path: Path) -> None:
    train = file(tmp_path, "train.tsv", [*rows(10, (1, 2)), {"text": "oak", "label": "many"}])
    assert "label column 'label' holds 'many'. Write a number" in problem(train, Task.REGRESSION)


def test_what_no_example_teaches(tmp_path: Path) -> None:
    train = file(tmp_path, "train.tsv", rows())
    labels = ["bad", "good", "ugly"]
    assert "no example of the label ugly" in problem(train, labels=labels)
    same = file(tmp_path, "same.tsv", rows(20, ("good",)))
    assert "all examples have the label 'good'" in problem(same)
    several = file(tmp_path, "several.jsonl", rows(20, (["a"], [])))
    assert "no example of the label b" in problem(several, Task.MULTI_LABEL, labels=["a", "b"])
    flags = [{"text": t, "a": n % 2, "b": n % 3 % 2, "c": 0} for n, t in enumerate(sentences(20))]
    columns = file(tmp_path, "columns.tsv", flags)
    assert "no example of the label c" in problem(columns, Task.MULTI_LABEL, label=["a", "b", "c"])


def test_columns_that_hold_no_flags(tmp_path: Path) -> None:
    given = [{"text": t, "a": "yes", "b": 0} for t in sentences(5)]
    said = problem(file(tmp_path, "f.tsv", given), Task.MULTI_LABEL, label=["a", "b"])
    assert "label column 'a' holds 'yes'. Write 0 or 1" in said


def test_all_texts_are_cut(tmp_path: Path) -> None:
    train = file(tmp_path, "train.tsv", [{**r, "text": r["text"] + " malt" * 9} for r in rows()])
    said = problem(train, max_length=8)
    assert said.startswith("data.max_length: 8 tokens cut every text of data.train. Raise it, or")
    found = tokenize_task(read(train, max_length=8, beginnings=True), tiny_tokenizer())
    assert set(found.train.lengths.tolist()) == {8}
    assert any("are longer than data.max_length (8 tokens)" in w for w in found.warnings)


def test_texts_on_two_sides_are_told(tmp_path: Path) -> None:
    train = file(tmp_path, "train.tsv", rows())
    found = tokenize_task(read(train, dev=train), tiny_tokenizer())
    assert (
        "data.train: 30 of 30 texts of dev are also in train, so their scores are too high."
        in found.warnings
    )
    test = file(tmp_path, "test.tsv", [{"text": t, "label": "good"} for t in sentences(9, seed=5)])
    more = file(tmp_path, "more.tsv", [{"text": t} for t in sentences(4, seed=5)])
    found = tokenize_task(read(train, test=test, unlabelled=more), tiny_tokenizer())
    assert found.warnings[-1] == (
        "data.unlabeled: 4 of 9 texts of test are also in unlabeled, so the student learns the "
        "teacher's answers to them."
    )


def test_few_examples_of_a_class_are_told(tmp_path: Path) -> None:
    given = [*rows(30, ("good",)), *rows(3, ("bad",))]
    dev = file(tmp_path, "dev.tsv", rows())
    found = tokenize_task(read(file(tmp_path, "t.tsv", given), dev=dev), tiny_tokenizer())
    assert (
        "data.train: few examples of bad (3), so the model learns little about them."
        in found.warnings
    )


def test_no_row_can_be_used(tmp_path: Path) -> None:
    empty = file(tmp_path, "e.jsonl", [{"text": "", "label": "a"}])
    said = problem(empty, on_bad_row="skip")
    assert said == (
        f"data.train: no row can be used. In {empty}:1, the text column 'text' is empty. "
        "Fill it in."
    )
    (tmp_path / "nothing.jsonl").write_text("")
    assert "nothing.jsonl: there is no row. " in problem(str(tmp_path / "nothing.jsonl"))


def test_a_metric_that_the_task_has_not(tmp_path: Path) -> None:
    train = file(tmp_path, "train.tsv", rows())
    said = problem(train, metric="bleu")
    assert said.startswith(
        "data.metric: classification has no metric 'bleu'. The metrics are accuracy"
    )
    assert read(train, metric="matthews").labels == ["bad", "good"]
    three = file(tmp_path, "three.tsv", rows(30, ("a", "b", "c")))
    said = problem(three, metric="f1")
    assert said == "data.metric: f1 is for two labels, and the data has 3. Set macro_f1."
    assert read(train, metric="f1").labels == ["bad", "good"]


def test_names_and_numbers_as_labels(tmp_path: Path) -> None:
    mixed = file(tmp_path, "mixed.jsonl", [*rows(20), {"text": "oak", "label": 1}])
    dev = file(tmp_path, "dev.jsonl", rows())
    for teacher in (None, ["bad", "good"]):
        said = problem(mixed, teacher=teacher, dev=dev)
        assert said.startswith(
            f"{mixed}:21: label '1' is a number, and 'bad' of {mixed}:1 is a name."
        )
    named = ["bad", "good", "1"]  # a name that is a number, meant so
    assert read(mixed, dev=dev, labels=named).labels == named


@pytest.mark.parametrize("label", [[0, 1, 0], [0.0, 1.0, 0.0], "0,1,0"])
def test_a_list_of_flags_is_no_list_of_names(label: Any, tmp_path: Path) -> None:
    train = file(tmp_path, "flags.jsonl", [*rows(3, (["a"], ["b", "c"])), *rows(1, (label,))])
    said = problem(train, Task.MULTI_LABEL, teacher=["a", "b", "c"])
    assert said.startswith(f"{train}:4: label column 'label' names '0")
    assert "one column of 0 and 1 per label" in said


@pytest.mark.parametrize("label", [math.nan, [None], [math.nan]])
def test_no_number_is_no_name(label: Any, tmp_path: Path) -> None:
    train = file(tmp_path, "nan.jsonl", [*rows(3, (["a"], ["b"])), *rows(1, (label,))])
    said = problem(train, Task.MULTI_LABEL)
    assert said.startswith(f"{train}:4: label column 'label' holds ")
    assert "Write a list of names" in said


def test_a_share_without_an_example(tmp_path: Path) -> None:
    train = file(tmp_path, "few.tsv", rows(4))
    said = problem(train, heldout=0.0001)
    assert said == (
        "data.heldout: 0.0001 holds out no example of data.train. Raise it, or give data.dev."
    )


def test_a_number_of_the_rarer_kind_is_left_out(tmp_path: Path) -> None:
    mixed = file(tmp_path, "mixed.jsonl", [*rows(20), {"text": "oak", "label": 1}])
    found = read(
        mixed, dev=file(tmp_path, "dev.jsonl", rows()), on_bad_row="skip", labels=["bad", "good"]
    )
    assert found.counts["train.mixed_label"] == 1
    assert len(found.sides["train"]) == 20


def test_numbers_in_dev_where_only_the_alphabet_orders_the_names_of_train(tmp_path: Path) -> None:
    """Another corpus' 0 may be what comes second by name."""
    train, dev = (
        file(tmp_path, "t.tsv", rows(20, ("no", "yes"))),
        file(tmp_path, "d.tsv", rows(9, (1, 0))),
    )
    said = problem(train, dev=dev)
    assert said.startswith(f"{dev}:2: label '1' is a number, and train has names (no, yes). Write")
    for known in ({"teacher": ["yes", "no"]}, {"labels": ["yes", "no"]}):
        assert [example.gold for example in read(train, dev=dev, **known).sides["dev"]][:2] == [
            1,
            0,
        ]


def test_plain_text_is_unlabelled_text_whatever_the_column_is_called(tmp_path: Path) -> None:
    train = file(tmp_path, "t.tsv", [{"sentence": r["text"], "label": r["label"]} for r in rows()])
    (tmp_path / "more.txt").write_text("the low wine\nthe oak cask\n")
    found = read(train, text="sentence", unlabelled=str(tmp_path / "more.txt"))
    assert [e.texts for e in found.sides["unlabeled"]] == [("the low wine",), ("the oak cask",)]
    pairs = file(tmp_path, "p.tsv", [{"a": "oak", "b": "peat", "label": n % 2} for n in range(40)])
    said = problem(pairs, text=["a", "b"], dev=pairs, unlabelled=str(tmp_path / "more.txt"))
    assert "more.txt:1: no column 'a' (data.text). The columns are text" in said


def test_ids_that_two_rows_have(tmp_path: Path) -> None:
    given = [{"key": number, **row} for number, row in enumerate(rows())]
    given[7]["key"] = 3
    train = file(tmp_path, "t.tsv", given)
    assert len(read(train).sides) == 2  # nobody said that it is an id
    assert problem(train, id="key").startswith(
        f"{train}:9: the id '3' is also the id of {train}:5. "
    )
    found = read(train, id="key", on_bad_row="skip")
    assert found.counts["train.duplicate_id"] == 1
    said = problem(train, id="index")
    assert said.startswith(f"{train}:2: no column 'index' (data.id). The columns are")
    # the same id on another side is another example's, and text for the teacher needs none
    good = file(tmp_path, "g.tsv", given[:7])
    more = file(tmp_path, "m.jsonl", [{"text": "oak"}])
    assert read(good, id="key", dev=good, unlabelled=more).sides["unlabeled"]


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, "multi_label"])
def test_texts_with_several_labels_are_told(task: Task, tmp_path: Path) -> None:
    given = rows(30)
    again = [{**given[4], "label": "good"}, {**given[5], "label": "good"}]  # one of them was bad
    train = file(tmp_path, "t.tsv", [*given, *again])
    dev = file(tmp_path, "dev.tsv", rows())
    found = tokenize_task(read(train, task, dev=dev), tiny_tokenizer())
    assert (
        f"data.train: 1 text has different labels in different rows, the first in {train}:6 and "
        f"{train}:32. No model can learn both; correct them."
    ) in found.warnings
