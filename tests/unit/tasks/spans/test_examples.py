"""Questions to windows of their contexts: where answers are, and what is refused with its row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import sentences, tiny_tokenizer
from potstill.data import collate
from potstill.data.sequences import UNLABELED, Questions
from potstill.recipe import Task, TaskData
from potstill.tasks import TaskRows, tokenize_task
from potstill.tasks.reading import read_task
from potstill.tasks.spans.examples import answer_tokens
from tiny_families import MISSING, NAMES
from tiny_tasks import questions, write_squad
from tiny_tokenizers import family_tokenizer


def read(train: Any, **settings: Any) -> TaskRows:
    row = Task(Task.QUESTION_ANSWERING)
    assert row is not None
    basic = {"text": ["question", "context"], "label": "answers", "heldout": 0.3, "max_length": 24}
    data = TaskData.model_validate({"train": train, **basic, **settings})
    return read_task(data, row, 1, teacher_labels=["LABEL_0", "LABEL_1"])


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def problem(train: Any, **settings: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        tokenize_task(read(train, **settings), tiny_tokenizer())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def windows(side: Questions) -> list[list[int]]:
    """The numbers of each item's windows."""
    return [np.flatnonzero(side.of == item).tolist() for item in range(side.items)]


def places(side: Questions, window: int) -> np.ndarray:
    return side.spans[side.offsets[window] : side.offsets[window + 1]]


# --- what is read ---------------------------------------------------------------------------------


def test_every_form_gives_the_same(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

    rows = questions(40)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    as_list = [
        {
            **row,
            "answers": [
                {"text": text, "answer_start": at}
                for text, at in zip(*row["answers"].values(), strict=True)
            ],
        }
        for row in rows
    ]
    expected = None
    for source in (
        write_squad(tmp_path / "train.json", rows),
        jsonl(tmp_path / "train.jsonl", rows),
        jsonl(tmp_path / "list.jsonl", as_list),
        str(tmp_path / "train.parquet"),
        {"kind": "dataset_folder", "path": str(tmp_path / "saved")},
    ):
        found = read(source)
        sides = {side: [(e.texts, e.gold) for e in each] for side, each in found.sides.items()}
        assert sides["dev"]
        expected = expected or sides
        assert sides == expected
    assert found.labels == ["start", "end"]
    golds = {texts: gold for side in sides.values() for texts, gold in side}
    for row in rows:
        pairs = list(zip(row["answers"]["answer_start"], row["answers"]["text"], strict=True))
        assert golds[row["question"], row["context"]] == pairs


def test_questions_of_a_context_are_on_one_side(tmp_path: Path) -> None:
    rows = [
        {**row, "id": f"{row['id']}-{n}", "question": f"{row['question']} {n}"}
        for row in questions(30)
        for n in range(3)
    ]
    found = read(jsonl(tmp_path / "t.jsonl", rows))
    contexts = {side: {e.texts[1] for e in each} for side, each in found.sides.items()}
    assert contexts["train"]
    assert contexts["dev"]
    assert not contexts["train"] & contexts["dev"]


def test_an_answer_of_squad_that_is_impossible_is_none(tmp_path: Path) -> None:
    rows = questions(20, lacking=0.0)
    tree = json.loads(Path(write_squad(tmp_path / "t.json", rows)).read_text())
    tree["data"][0]["paragraphs"][3]["qas"][0]["is_impossible"] = True
    (tmp_path / "t.json").write_text(json.dumps(tree))
    found = read(str(tmp_path / "t.json"), heldout=0.0, dev=str(tmp_path / "t.json"))
    assert [e.gold == [] for e in found.sides["train"]] == [n == 3 for n in range(20)]
    assert found.sides["train"][3].origin == f"{tmp_path}/t.json[3]"


# --- windows --------------------------------------------------------------------------------------


def test_windows_overlap_and_cover_the_context(tmp_path: Path) -> None:
    rows = questions(30)
    train = jsonl(tmp_path / "t.jsonl", rows)
    side = tokenize_task(
        read(train, heldout=0.0, dev=train, max_length=16, stride=5), tiny_tokenizer()
    ).train
    assert len(side) > side.items == 30
    for item, numbers in enumerate(windows(side)):
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        tokens = tiny_tokenizer()(rows[item]["context"], add_special_tokens=False)["input_ids"]
        joined: list[int] = []
        for window in numbers:
            assert side.lengths[window] <= 16
            own = side[window][places(side, window)[:, 0] >= 0].tolist()
            assert joined[len(joined) - 5 :] == own[:5] or not joined
            joined += own if not joined else own[5:]
        assert joined == tokens


@pytest.mark.parametrize("name", [name for name in NAMES if (name, "answers") not in MISSING])
def test_gold_tokens_are_the_answer(name: str, tmp_path: Path) -> None:
    """Every window's gold is its first answer, letter by letter, or the first token."""
    rows = questions(40)
    train = jsonl(tmp_path / "t.jsonl", rows)
    found = read(train, heldout=0.0, dev=train, max_length=40, stride=12)
    side = tokenize_task(found, family_tokenizer(name)).train
    held = 0
    for item, numbers in enumerate(windows(side)):
        texts = rows[item]["answers"]["text"]
        for window in numbers:
            start, end = side.gold[window].tolist()
            if (start, end) == (0, 0):
                continue
            begin, stop = places(side, window)[start][0], places(side, window)[end][1]
            assert rows[item]["context"][begin:stop].strip() == texts[0]
            held += 1
        assert texts or not side.gold[numbers].any()
    assert held >= sum(bool(row["answers"]["text"]) for row in rows)


def test_answers_at_the_edges_of_a_window() -> None:
    places_L2 = np.array([[-1, -1], [-1, -1], [10, 14], [15, 16], [16, 20], [-1, -1]])
    assert answer_tokens(places_L2, (10, "abcd"), False, False) == (2, 2)
    assert answer_tokens(places_L2, (12, "cd ef"), False, False) == (2, 4)  # parts of tokens
    assert answer_tokens(places_L2, (15, "efghi"), False, False) == (3, 4)
    assert answer_tokens(places_L2, (9, "xabc"), False, False) is None
    assert answer_tokens(places_L2, (9, "xabc"), True, False) == (2, 2)
    assert answer_tokens(places_L2, (16, "fghij"), False, False) is None
    assert answer_tokens(places_L2, (16, "fghij"), False, True) == (4, 4)
    assert answer_tokens(places_L2, (14, " e"), False, False) == (3, 3)
    assert answer_tokens(places_L2, (30, "far"), True, False) is None
    assert answer_tokens(places_L2[:2], (0, "a"), True, True) is None


def test_where_an_answer_may_be(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "t.jsonl", questions(30))
    side = tokenize_task(
        read(train, heldout=0.0, dev=train, max_length=16, stride=5), tiny_tokenizer()
    ).train
    batch = collate(side, np.array([0, 5, 7]), 0)
    assert batch.answerable_BL is not None
    for row, window in enumerate((0, 5, 7)):
        allowed = [0, *np.flatnonzero(places(side, window)[:, 0] >= 0).tolist()]
        assert np.flatnonzero(batch.answerable_BL[row]).tolist() == allowed
        # the question's two tokens, the separators and padding are not among them
        assert side[window][1:4].tolist()[-1] == 3
        assert not batch.answerable_BL[row, 1:4].any()
    assert batch.gold_BL.tolist() == side.gold[[0, 5, 7]].tolist()


def test_text_for_the_teacher_needs_no_answers(tmp_path: Path) -> None:
    more = [{"question": "low ?", "context": "the oak"}]
    train = jsonl(tmp_path / "t.jsonl", questions(30))
    found = tokenize_task(
        read(train, unlabelled=jsonl(tmp_path / "m.jsonl", more)), tiny_tokenizer()
    )
    assert found.unlabeled is not None
    assert found.unlabeled.gold.tolist() == [[UNLABELED, UNLABELED]]
    both = found.train + found.unlabeled
    assert both.questions[both.of[-1]] == ("low ?", "the oak")
    few = both.first(3)
    assert few.items == 3
    assert set(few.of.tolist()) == {0, 1, 2}
    assert len(few) == sum(int(n) < 3 for n in both.of)


def test_what_no_window_holds_is_told(tmp_path: Path) -> None:
    text = " ".join(sentences(1, seed=4)[0].split()[:14])
    row = {"question": "low ?", "context": text, "answers": {"text": [text], "answer_start": [0]}}
    train = jsonl(tmp_path / "t.jsonl", [*questions(20, lacking=0), row])
    found = tokenize_task(
        read(train, heldout=0.0, dev=train, max_length=16, stride=4, max_answer=1), tiny_tokenizer()
    )
    assert any(w.startswith("1 of 21 answers of train are in no window") for w in found.warnings)
    assert any(
        "answers of train have more tokens than data.max_answer (1), so the model cannot give them"
        in w
        for w in found.warnings
    )


# --- what is refused ------------------------------------------------------------------------------

GOOD = {"question": "low ?", "context": "the oak cask", "answers": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"answers": {"text": ["cask"], "answer_start": [4]}},
            "the answer 'cask' is not at character 4 of the context, but at 8. Correct",
        ),
        (
            {"answers": {"text": ["peat"], "answer_start": [4]}},
            "the answer 'peat' is not at character 4 of the context, nor anywhere else",
        ),
        (
            {"answers": {"text": ["oak"], "answer_start": [-8]}},
            "the answer 'oak' is not at character",
        ),
        (
            {"answers": {"text": ["oak"]}},
            "label column 'answers' holds no answers. Write as many text",
        ),
        ({"answers": {"text": ["oak"], "answer_start": ["4"]}}, "label column 'answers' holds no"),
        ({"answers": {"text": [""], "answer_start": [4]}}, "label column 'answers' holds no"),
        ({"answers": "oak"}, "label column 'answers' holds no answers"),
        ({"question": " "}, "the text column 'question' is empty"),
        ({"context": None}, "the text column 'context' is empty"),
        ({"id": "q0-3"}, "the id 'q0-3' is also the id of "),
        ({"question": "low " * 20}, "the question's 20 tokens leave 1 of data.max_length (24)"),
    ],
)
def test_a_row_that_cannot_be_used(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    train = jsonl(tmp_path / "t.jsonl", [*questions(30), {**GOOD, **changes}])
    settings = {"heldout": 0.0, "dev": jsonl(tmp_path / "dev.jsonl", questions(10, seed=2))}
    said = problem(train, **settings)
    assert said.startswith(f"{train}:31: {message}")
    assert said.endswith("Or skip such rows with data.on_bad_row=skip.")
    found = tokenize_task(read(train, on_bad_row="skip", **settings), tiny_tokenizer())
    assert found.train.items == 30
    assert any(w.startswith("1 rows are skipped (train.") for w in found.warnings)


def test_one_text_column_alone(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "t.jsonl", questions(30))
    assert "data.text: question_answering reads two columns" in problem(train, text="question")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data": [', ":1: not valid JSON (Expecting value)"),
        ("[]", ": no list 'data'. A .json file is read as SQuAD's"),
        ('{"data": [{"title": "x"}]}', ": data[0]: no list 'paragraphs'"),
        ('{"data": [{"paragraphs": [{"qas": 3}]}]}', ": data[0].paragraphs[0]: no list 'qas'"),
        ('{"data": [{"paragraphs": [{"qas": [3]}]}]}', ": data[0].paragraphs[0].qas: a question"),
        ('{"data": [{"paragraphs": [{"qas": [{"question": "x"}]}]}]}', "[0]: the text column 'con"),
        ('{"data": []}', ": there is no row. "),
    ],
)
def test_a_file_that_is_not_squads(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(content)
    assert message in problem(str(tmp_path / "t.json"))
