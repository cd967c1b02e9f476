"""A suite's data: every official layout, broken rows, limits, and the hub's tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from potstill.suites.catalog import SUITES, SuiteTask, suite_tasks
from potstill.suites.data import check_files, read_suite_task
from tiny_suites import SCORED, TRAIN, write_glue, write_imdb, write_squads

TASKS = {task.name: task for tasks in SUITES.values() for task in tasks}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squads(write_imdb(write_glue(tmp_path_factory.mktemp("official"))))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_official_layouts(task: SuiteTask, folder: Path) -> None:
    check_files([task], folder)
    found = read_suite_task(task, folder, None)
    assert found.counts["train"] == TRAIN
    assert all(found.counts[f"scored{suffix}"] == SCORED for suffix in task.scored)
    assert not [key for key in found.counts if key.startswith("left_out")]
    assert not found.cut
    data = found.to_train(64)
    for row in rows(found.folder / "train.jsonl"):
        assert set(data.text) | set(data.label) <= set(row)
        if task.labels:
            assert row["label"] in task.labels


def test_cola_has_no_header_and_quotes_are_text(tmp_path: Path) -> None:
    own = tmp_path / "CoLA"
    own.mkdir()
    lines = ['gj04\t1\t\t"Quoted" he said.', "gj04\t0\t*\tHim sleeps."]
    for name in ("train", "dev"):
        (own / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = read_suite_task(TASKS["cola"], tmp_path, None)
    assert rows(found.folder / "scored.jsonl") == [
        {"first": '"Quoted" he said.', "label": "1"},
        {"first": "Him sleeps.", "label": "0"},
    ]


def test_a_score_that_is_no_number_is_left_out_and_counted(tmp_path: Path) -> None:
    folder = write_glue(tmp_path, ["STS-B"])
    path = folder / "STS-B" / "train.tsv"
    header, first, second, *others = path.read_text(encoding="utf-8").splitlines()
    first, second = (line.rpartition("\t")[0] for line in (first, second))
    lines = [header, f"{first}\tnan", f"{second}\tinf", *others]
    path.write_text("\n".join(lines), encoding="utf-8")
    found = read_suite_task(TASKS["stsb"], folder, None)
    assert found.counts["left_out.train"] == 2
    assert found.counts["train"] == TRAIN - 2


def test_broken_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    own = tmp_path / "QQP"
    own.mkdir()
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    good = ["1\t2\t3\tone ?\ttwo ?\t0", "1\t2\t3\tone ?\ttwo ?\t1"]
    bad = ["5\t6\tcut here", "1\t2\t3\t\ttwo ?\t0", "1\t2\t3\tone ?\ttwo ?\tmaybe"]
    (own / "train.tsv").write_text("\n".join([header, *good, *bad]) + "\n", encoding="utf-8")
    (own / "dev.tsv").write_text("\n".join([header, *good]) + "\n", encoding="utf-8")
    found = read_suite_task(TASKS["qqp"], tmp_path, None)
    assert found.counts["train"] == 2
    assert found.counts["left_out.train"] == 3


def test_a_missing_file_is_named(folder: Path, tmp_path: Path) -> None:
    write_glue(tmp_path, ["RTE"])
    [cola, rte] = suite_tasks("glue", ["cola", "rte"])
    check_files([rte], tmp_path)
    with pytest.raises(
        ValueError, match=r"--data-dir: .* has no CoLA/train.tsv, which CoLA needs\. Add"
    ):
        check_files([cola, rte], tmp_path)
    (tmp_path / "RTE" / "dev.tsv").unlink()
    with pytest.raises(ValueError, match=r"has no RTE/dev\.tsv"):
        check_files([rte], tmp_path)
    with pytest.raises(ValueError, match=r"nowhere is not a folder\. Name the folder"):
        check_files([rte], tmp_path / "nowhere")


def test_another_files_header_is_refused(tmp_path: Path) -> None:
    write_glue(tmp_path, ["RTE", "QNLI"])
    (tmp_path / "QNLI" / "train.tsv").rename(tmp_path / "RTE" / "train.tsv")
    with pytest.raises(
        ValueError, match=r"RTE/train\.tsv:1: the official column 'sentence1'.*question"
    ):
        read_suite_task(TASKS["rte"], tmp_path, None)


def test_a_limit_takes_the_same_examples_each_time_and_says_so(folder: Path) -> None:
    whole = read_suite_task(TASKS["sst2"], folder, None)
    some, again = (read_suite_task(TASKS["sst2"], folder, 6) for _ in range(2))
    taken = rows(some.folder / "train.jsonl")
    assert len(taken) == 6
    assert taken == rows(again.folder / "train.jsonl")
    everything = rows(whole.folder / "train.jsonl")
    assert [row for row in everything if row in taken] == taken  # in their order
    assert some.cut == {"train": (6, TRAIN), "scored": (6, SCORED)}
    assert some.fingerprint != whole.fingerprint
    assert read_suite_task(TASKS["sst2"], folder, TRAIN).fingerprint == whole.fingerprint
    with pytest.raises(
        ValueError, match=r"--limit: 1 leaves no training example of SST-2 with the label '.'"
    ):
        read_suite_task(TASKS["sst2"], folder, 1)


def test_damaged_data_is_read_again_and_said(tmp_path: Path) -> None:
    write_glue(tmp_path, ["WNLI"])
    before = read_suite_task(TASKS["wnli"], tmp_path, None)
    path = before.folder / "train.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"label": "0"', b'"label": "1"', 1))
    assert path.read_bytes() != whole
    said: list[str] = []
    for _ in range(2):
        read_suite_task(TASKS["wnli"], tmp_path, None, said.append)
    assert path.read_bytes() == whole
    assert said == [
        f"{before.folder}: the cache of WNLI's data is damaged (train.jsonl has changed). It is "
        "built again."
    ]


def test_imdb_with_or_without_its_outer_folder(tmp_path: Path) -> None:
    write_imdb(tmp_path)
    outer = read_suite_task(TASKS["imdb"], tmp_path, None)
    inner = read_suite_task(TASKS["imdb"], tmp_path / "aclImdb", None)
    assert outer.fingerprint == inner.fingerprint
    found = rows(outer.folder / "train.jsonl")
    assert all(row["first"].endswith(row["label"]) for row in found)


def test_a_folder_s_name_is_no_pattern(tmp_path: Path) -> None:
    place = tmp_path / "data [2011]"
    write_imdb(place)
    assert read_suite_task(TASKS["imdb"], place, None).counts["train"] == TRAIN


def test_answers_stay_where_they_are(tmp_path: Path) -> None:
    context = "  Copper keeps it clean."  # whose first character is a space
    tree = {
        "data": [
            {
                "paragraphs": [
                    {
                        "context": context,
                        "qas": [
                            {
                                "id": "q",
                                "question": "What keeps?",
                                "answers": [{"text": "Copper", "answer_start": 2}],
                            }
                        ],
                    }
                ]
            }
        ]
    }
    for side in ("train", "dev"):
        (tmp_path / f"{side}-v1.1.json").write_text(json.dumps(tree), encoding="utf-8")
    [row] = rows(read_suite_task(TASKS["squad"], tmp_path, None).folder / "scored.jsonl")
    assert row["context"] == context


# --- the hub's tables, made here ------------------------------------------------------------------


def hub(monkeypatch: pytest.MonkeyPatch, splits: dict[str, Any]) -> list[Any]:
    asked: list[Any] = []

    def load(source: Any) -> Any:
        asked.append(source)
        return splits[source.split]

    monkeypatch.setattr("potstill.data.sources._load_hub", load)
    return asked


def test_the_hubs_labels_become_the_official_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features(
        {
            "sentence": Value("string"),
            "label": ClassLabel(names=["unacceptable", "acceptable"]),
            "idx": Value("int32"),
        }
    )

    def table(labels: list[int]) -> Any:
        texts = [f"text {number}" for number in range(len(labels))]
        values = {"sentence": texts, "label": labels, "idx": list(range(len(labels)))}
        return Dataset.from_dict(values, features=features)

    splits = {"train": table([0, 1, 1]), "validation": table([1, 0])}
    asked = hub(monkeypatch, splits)
    found = read_suite_task(TASKS["cola"], None, None)
    assert [row["label"] for row in rows(found.folder / "train.jsonl")] == ["0", "1", "1"]
    assert {(one.name, one.config) for one in asked} == {("nyu-mll/glue", "cola")}
    assert {one.revision for one in asked} == {TASKS["cola"].hub.revision}


def test_the_hubs_columns_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    values = {"sentence1": ["a b"], "sentence2": ["c"], "label": [2.5], "idx": [0]}
    table = Dataset.from_dict(values)
    hub(monkeypatch, dict.fromkeys(("train", "validation"), table))
    found = read_suite_task(TASKS["stsb"], None, None)
    expected = [{"first": "a b", "second": "c", "label": 2.5}]
    assert rows(found.folder / "scored.jsonl") == expected

    answers = [{"text": ["copper"], "answer_start": [4]}, {"text": [], "answer_start": []}]
    table = Dataset.from_dict(
        {
            "id": ["x", "y"],
            "question": ["what ?", "who ?"],
            "context": ["the copper", "the cask"],
            "answers": answers,
        }
    )
    hub(monkeypatch, dict.fromkeys(("train", "validation"), table))
    found = read_suite_task(TASKS["squad2"], None, None)
    assert [row["answers"] for row in rows(found.folder / "scored.jsonl")] == answers


def test_without_the_hub_the_folder_is_offered() -> None:
    with pytest.raises(
        ValueError, match=r"nyu-mll/glue:rte:train: .*\. Name a folder of the files with --data-dir"
    ):
        read_suite_task(TASKS["rte"], None, None)
