"""Each kind of head through its one face, against values worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from conftest import tiny_tokenizer
from potstill.data import Examples, collate
from potstill.data.sequences import UNLABELED
from potstill.models import load_model
from potstill.models.config import label_names
from potstill.recipe import Head, Task, TaskData
from potstill.tasks.kind import Kind
from potstill.tasks.kinds import kind_of
from potstill.tasks.metrics import Case, accuracy
from potstill.tasks.rows import BadRow, Cut, Cutting, Labelled, RawExample
from potstill.tasks.sequence.kind import CosineKind, LabelKind, MultiLabelKind, ValueKind
from potstill.tasks.sequence.scores import Chosen
from potstill.tasks.spans.kind import SpansKind
from potstill.tasks.spans.scores import Given
from potstill.tasks.tokens.kind import TokensKind
from potstill.tasks.tokens.scores import Tagged
from tiny_runs import LABELS, TAGS, tiny_teacher

IOB2 = ["O", "B-cask", "I-cask"]
SENTENCES = [("low", "oak", "cask", "runs"), ("the", "oak", "wine")]
TAGGED = [[0, 1, 2, 0], [0, 1, 0]]
QUESTIONS = [
    ("low ?", "the oak cask runs. the malt never boils."),
    ("wine ?", "low oak. warm wine"),
]


def kind(task: Task) -> Kind:
    return kind_of(Task(task))


def data(**settings: Any) -> TaskData:
    return TaskData.model_validate({"train": "train.tsv", **settings})


def tokenized(task: Task, texts: list[tuple[str, ...]], gold: list[Any]) -> Any:
    found = [Labelled(one, own, "f:1") for one, own in zip(texts, gold, strict=True)]
    cutting = Cutting(data(max_length=32, stride=8), tiny_tokenizer(), "train", may_lack=True)
    return kind(task).tokenize(found, cutting).examples


def words() -> Any:
    return tokenized(Task.TOKEN_CLASSIFICATION, SENTENCES, TAGGED)


def answers() -> Any:
    return tokenized(Task.QUESTION_ANSWERING, QUESTIONS, [[(4, "oak cask")], []])


def values(scored: Mapping[str, Any]) -> dict[str, float]:
    return {name: one.value for name, one in scored.items()}


def at_words(examples: Examples, tags: list[list[int]]) -> np.ndarray:
    """Logits that say these tags at the words' first pieces."""
    flat = np.zeros((len(examples.ids), len(IOB2)))
    for item, own in enumerate(tags):
        start = examples.offsets[item]
        for token in range(start, examples.offsets[item + 1]):
            if examples.word_at[token] >= 0:
                flat[token, own[examples.word_at[token]]] = 5.0
    return flat


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Task.CLASSIFICATION, LabelKind),
        (Task.MULTI_LABEL, MultiLabelKind),
        (Task.REGRESSION, ValueKind),
        (Task.SENTENCE_SIMILARITY, CosineKind),
        (Task.TOKEN_CLASSIFICATION, TokensKind),
        (Task.QUESTION_ANSWERING, SpansKind),
    ],
)
def test_each_head_has_its_kind(task: Task, expected: type) -> None:
    assert type(kind_of(task)) is expected


def test_no_head_is_without_a_kind() -> None:
    heads = {task.head for task in Task if kind_of_or_none(task)}
    assert heads == set(get_args(Head))


def kind_of_or_none(task: Task) -> Kind | None:
    if task.reads_text:
        with pytest.raises(ValueError, match=f"^task: {task} is learned from plain text"):
            kind_of(task)
        return None
    assert kind_of(task).said["majority"]
    return kind_of(task)


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "settings", "row", "texts", "label"),
    [
        (Task.CLASSIFICATION, {}, {"text": "low wine", "label": 1.0}, ("low wine",), "1"),
        (Task.MULTI_LABEL, {}, {"text": "oak", "label": "a,b"}, ("oak",), ["a", "b"]),
        (Task.REGRESSION, {}, {"text": "oak", "label": "2.5"}, ("oak",), 2.5),
        (
            Task.SENTENCE_SIMILARITY,
            {"text": ["one", "two"]},
            {"one": "oak", "two": "malt", "label": 4},
            ("oak", "malt"),
            4.0,
        ),
        (
            Task.TOKEN_CLASSIFICATION,
            {},
            {"text": ["oak", "runs"], "label": ["B-cask", "O"]},
            ("oak", "runs"),
            ["B-cask", "O"],
        ),
        (
            Task.QUESTION_ANSWERING,
            {"text": ["question", "context"], "label": "answers"},
            {
                "question": "low ?",
                "context": "the oak",
                "answers": {"text": ["oak"], "answer_start": [4]},
            },
            ("low ?", "the oak"),
            [(4, "oak")],
        ),
    ],
)
def test_a_row_is_read(
    task: Task, settings: dict[str, Any], row: dict[str, Any], texts: Any, label: Any
) -> None:
    chosen = kind(task)
    chosen.check_columns(data(**settings))
    assert chosen.read(row, "f:1", data(**settings), True) == (texts, label)
    assert chosen.read(row, "f:1", data(**settings), False) == (texts, None)


@pytest.mark.parametrize(
    ("task", "text", "said"),
    [
        (Task.SENTENCE_SIMILARITY, ["text"], "compares two columns"),
        (Task.TOKEN_CLASSIFICATION, ["one", "two"], "one column, a list of words"),
        (Task.QUESTION_ANSWERING, ["text"], "reads two columns"),
    ],
)
def test_another_number_of_columns_is_refused(task: Task, text: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kind(task).check_columns(data(text=text))


def test_what_is_held_out_together() -> None:
    pair = data(text=["question", "context"])
    named = {"question": "low ?", "context": "oak"}
    for task in (Task.SENTENCE_SIMILARITY, Task.QUESTION_ANSWERING):
        assert kind(task).columns(("low ?", "oak"), pair) == named
    assert kind(Task.TOKEN_CLASSIFICATION).columns(("low", "oak"), data()) == {"text": "low oak"}
    assert [kind(task).group(pair) for task in Task if task.head] == [None] * 5 + ["context"]
    assert [kind(task).own_id for task in Task if task.head] == [None] * 5 + ["id"]


def test_scores_of_pairs_become_cosines() -> None:
    def sides() -> dict[str, list[RawExample]]:
        labels = {"train": [1.0, 5.0], "dev": [2.0, None]}
        return {
            side: [RawExample(("a", "b"), label, "f:1") for label in found]
            for side, found in labels.items()
        }

    found = kind(Task.SENTENCE_SIMILARITY).scaled(sides(), data())
    assert [example.label for example in found["train"]] == [0.0, 1.0]
    assert [example.label for example in found["dev"]] == [0.25, None]
    for task in (
        Task.REGRESSION,
        Task.CLASSIFICATION,
        Task.TOKEN_CLASSIFICATION,
        Task.QUESTION_ANSWERING,
    ):
        assert kind(task).scaled(sides(), data()) == sides()


@pytest.mark.parametrize(
    ("task", "read", "teacher", "expected"),
    [
        (Task.CLASSIFICATION, ["b", "a", "b"], None, ["a", "b"]),
        (Task.CLASSIFICATION, ["b", "a"], ["b", "a"], ["b", "a"]),
        (Task.MULTI_LABEL, [["b"], [], ["c", "a"]], None, ["a", "b", "c"]),
        (Task.REGRESSION, [1.0, 2.0], ["LABEL_0"], ["label"]),
        (Task.SENTENCE_SIMILARITY, [1.0, 2.0], None, ["label"]),
        (
            Task.TOKEN_CLASSIFICATION,
            [["I-x", "O"], ["B-y"]],
            None,
            ["O", "B-x", "I-x", "B-y", "I-y"],
        ),
        (Task.TOKEN_CLASSIFICATION, [["B-x"]], ["B-x", "O"], ["B-x", "O"]),
        (Task.QUESTION_ANSWERING, [[(0, "oak")], []], None, ["start", "end"]),
    ],
)
def test_labels(task: Task, read: Any, teacher: list[str] | None, expected: list[str]) -> None:
    assert kind(task).labels(read, data(), teacher) == expected


def test_labels_that_can_not_be_learnt() -> None:
    with pytest.raises(
        ValueError, match=r"all examples have the label 'a'\. Give examples of at least two labels"
    ):
        kind(Task.CLASSIFICATION).labels(["a", "a"], data(), None)
    with pytest.raises(ValueError, match="'person' is not a tag of IOB2"):
        kind(Task.TOKEN_CLASSIFICATION).labels([["O"]], data(), ["O", "person"])


@pytest.mark.parametrize(
    ("task", "texts", "label", "labels", "expected"),
    [
        (Task.CLASSIFICATION, ("oak",), "b", ["a", "b"], 1),
        (Task.CLASSIFICATION, ("oak",), None, ["a", "b"], UNLABELED),
        (Task.MULTI_LABEL, ("oak",), ["b"], ["a", "b"], [0, 1]),
        (Task.MULTI_LABEL, ("oak",), None, ["a", "b"], [UNLABELED] * 2),
        (Task.REGRESSION, ("oak",), 0.5, ["label"], 0.5),
        (Task.SENTENCE_SIMILARITY, ("oak", "malt"), 0.5, ["label"], 0.5),
        (Task.TOKEN_CLASSIFICATION, ("oak", "runs"), ["B-cask", "O"], IOB2, [1, 0]),
        (Task.TOKEN_CLASSIFICATION, ("oak", "runs"), None, IOB2, None),
        (Task.QUESTION_ANSWERING, ("low ?", "oak"), [(0, "oak")], ["start", "end"], [(0, "oak")]),
        (Task.QUESTION_ANSWERING, ("low ?", "oak"), None, ["start", "end"], None),
    ],
)
def test_gold(task: Task, texts: Any, label: Any, labels: list[str], expected: Any) -> None:
    example = RawExample(texts, label, "f:1")
    assert kind(task).gold(example, labels, None) == expected


def test_gold_of_no_value_and_of_no_label() -> None:
    nobody = RawExample(("oak", "malt"), None, "f:1")
    for task in (Task.REGRESSION, Task.SENTENCE_SIMILARITY):
        assert math.isnan(kind(task).gold(nobody, ["label"], None))
    with pytest.raises(BadRow, match="label 'c' is not one of the model's labels"):
        kind(Task.CLASSIFICATION).gold(RawExample(("oak",), "c", "f:1"), ["a", "b"], None)


@pytest.mark.parametrize(
    ("task", "gold", "labels", "expected"),
    [
        (Task.CLASSIFICATION, [0, 2, 2], ["a", "b", "c"], [("a", 1), ("b", 0), ("c", 2)]),
        (Task.MULTI_LABEL, [[1, 0], [1, 1]], ["a", "b"], [("a", 2), ("b", 1)]),
        (Task.TOKEN_CLASSIFICATION, TAGGED, IOB2, [("cask", 2)]),
        (Task.REGRESSION, [0.1, 0.2], ["label"], []),
        (Task.SENTENCE_SIMILARITY, [0.1, 0.2], ["label"], []),
        (Task.QUESTION_ANSWERING, [[(0, "oak")], []], ["start", "end"], []),
    ],
)
def test_examples_of_each_class(
    task: Task, gold: list[Any], labels: list[str], expected: list[tuple[str, int]]
) -> None:
    train = [Labelled(("oak",), own, "f:1") for own in gold]
    assert kind(task).class_counts(labels, train) == expected


# --- tokens and outputs ---------------------------------------------------------------------------


def test_token_sequences_of_texts() -> None:
    found = [Labelled(("low wine",), 1, "f:1"), Labelled(("oak " * 9,), 0, "f:2")]
    cut = kind(Task.CLASSIFICATION).tokenize(
        found, Cutting(data(max_length=8), tiny_tokenizer(), "train")
    )
    assert cut.examples.lengths.tolist() == [4, 8]  # with [CLS] and [SEP]
    assert (cut.cut, cut.lost, list(cut.warnings)) == (1, 0, [])
    assert (cut.examples.gold.dtype, cut.examples.gold.tolist()) == (np.int64, [1, 0])
    value = kind(Task.REGRESSION).tokenize(
        found, Cutting(data(max_length=8), tiny_tokenizer(), "train")
    )
    assert value.examples.gold.dtype == np.float32


def test_token_sequences_of_pairs_that_are_encoded_apart() -> None:
    examples = tokenized(Task.SENTENCE_SIMILARITY, [("low wine", "oak")], [0.5])
    assert (examples.lengths.tolist(), examples.second_at.tolist()) == ([7], [4])


def test_token_sequences_of_words() -> None:
    found = [Labelled(SENTENCES[0] * 2, TAGGED[0] * 2, "f:1")]
    cut: Cut[Any] = kind(Task.TOKEN_CLASSIFICATION).tokenize(
        found, Cutting(data(max_length=8), tiny_tokenizer(), "train")
    )
    assert (cut.cut, cut.lost) == (1, 2)  # six words and two special tokens have room
    assert cut.examples.word_at.tolist() == [-1, 0, 1, 2, 3, 4, 5, -1]


def test_a_question_without_room_is_told_as_who_gave_it_knows_it() -> None:
    found = [Labelled(("low wine never runs", "oak"), None, "f:1")]
    settings = data(max_length=8, stride=2)
    asked, read = (
        Cutting(settings, tiny_tokenizer()),
        Cutting(settings, tiny_tokenizer(), "dev"),
    )
    with pytest.raises(ValueError, match=r"^the question leaves its context no room in 8 tokens"):
        kind(Task.QUESTION_ANSWERING).tokenize(found, asked)
    with pytest.raises(ValueError, match=r"^f:1: the question's 4 tokens leave 1 of data"):
        kind(Task.QUESTION_ANSWERING).tokenize(found, read)
    skipped = settings.model_copy(update={"on_bad_row": "skip"})
    skipping = Cutting(skipped, tiny_tokenizer(), "dev")
    with pytest.raises(ValueError, match="no question leaves room"):
        kind(Task.QUESTION_ANSWERING).tokenize(found, skipping)
    assert skipping.counts == {"dev.long_question": 1}


@pytest.mark.parametrize("task", [task for task in Task if task.head])
def test_outputs_and_what_they_stand_for(task: Task, tmp_path: Path) -> None:
    loaded, chosen = load_model(tiny_teacher(tmp_path / "model", task), task), kind(task)
    texts = {"tokens": SENTENCES, "spans": QUESTIONS, "cosine": [("low", "oak"), ("warm", "malt")]}
    given = texts.get(Task(task).head, [("low wine",), ("oak",)])
    examples = tokenized(task, given, [chosen.blank] * 2)
    batch = collate(examples, np.arange(2), 0)
    with torch.inference_mode():
        outputs = chosen.outputs(loaded, batch)
    classes = {"regression": 1, "sentence_similarity": 1, "question_answering": 2}.get(
        task, len(TAGS if task == "token_classification" else LABELS)
    )
    tokens = [int(examples.lengths.max())] if chosen.by_token else []
    assert list(outputs.shape) == [2, *tokens, classes]
    flat = outputs.numpy()
    if chosen.by_token:
        flat = np.concatenate(
            [one[:length] for one, length in zip(flat, examples.lengths, strict=True)]
        )
    decided = chosen.decide(flat, examples, label_names(loaded.model.config))
    kinds = {"regression": float, "sentence_similarity": float}
    kinds |= {"token_classification": Tagged, "question_answering": Given}
    assert [type(one) for one in decided] == [kinds.get(task, Chosen)] * 2
    if task == "sentence_similarity":
        assert decided == outputs[:, 0].tolist()


# --- scores ---------------------------------------------------------------------------------------


def test_scores_of_labels() -> None:
    examples = tokenized(Task.CLASSIFICATION, [("oak",), ("malt",), ("wine",)], [1, 0, 1])
    case, chosen = (
        Case(Task.CLASSIFICATION, ["a", "b"], examples, examples),
        kind(Task.CLASSIFICATION),
    )
    outputs, base = np.eye(2)[[1, 1, 0]], np.eye(2)[[1, 0, 0]]
    assert chosen.given(outputs, examples, case) is outputs
    assert chosen.scores(outputs, case)["accuracy"].value == pytest.approx(1 / 3)
    assert chosen.constant(case)["accuracy"] == pytest.approx(2 / 3)
    assert chosen.agreement(outputs, base, case)["top1"] == pytest.approx(2 / 3)
    [shown] = chosen.show(base, outputs, case, 5)
    assert (shown["query"], shown["expected"]) == ("malt", "a")
    found = chosen.references(case, 1)
    assert found["majority"]["accuracy"].value == pytest.approx(2 / 3)
    expected = accuracy(examples.gold, np.array([1, 1, 1])).value
    assert found["majority"]["accuracy"].value == expected


@pytest.mark.parametrize("task", [Task.REGRESSION, Task.SENTENCE_SIMILARITY])
def test_scores_of_values(task: Task) -> None:
    texts = [("oak wine", "oak"), ("malt", "peat"), ("copper still", "still pot")]
    examples = tokenized(task, texts, [0.9, 0.1, 0.5])
    case, chosen = Case(task, ["label"], examples, examples), kind(task)
    outputs = np.array([[0.7], [0.3], [0.5]])
    assert chosen.scores(outputs, case)["mse"].value == pytest.approx(0.08 / 3)
    assert chosen.scores(outputs, case)["spearman"].value == pytest.approx(1)
    assert chosen.constant(case) == {"pearson": 0.0, "spearman": 0.0}
    assert chosen.agreement(outputs, -outputs, case) == {"pearson": pytest.approx(-1)}
    assert set(chosen.references(case, 1)) == {"majority", "tfidf"} == set(chosen.said)
    assert [one["query"] for one in chosen.show(outputs, 2 * outputs, case, 1)] == [
        "oak wine | oak"
    ]


def test_scores_of_tags() -> None:
    examples = words()
    case, chosen = (
        Case(Task.TOKEN_CLASSIFICATION, IOB2, examples, examples),
        kind(Task.TOKEN_CLASSIFICATION),
    )
    outputs = at_words(examples, [[0, 1, 0, 0], [0, 1, 0]])  # the first entity ends too early
    assert chosen.given(outputs, examples, case) is outputs
    found = values(chosen.scores(outputs, case))
    assert (found["f1"], found["accuracy"]) == (pytest.approx(0.5), pytest.approx(6 / 7))
    base = at_words(examples, TAGGED)
    assert chosen.agreement(outputs, base, case)["top1"] == pytest.approx(6 / 7)
    [shown] = chosen.show(base, outputs, case, 5)
    assert (shown["expected"], shown["student"]["top"]) == ("I-cask", "O")
    references = {name: values(one) for name, one in chosen.references(case, 1).items()}
    assert references["majority"]["accuracy"] == pytest.approx(4 / 7)
    assert references["lexicon"]["f1"] == 1  # learnt from the very sentences
    assert set(references) == set(chosen.said)


def test_the_most_that_one_tag_for_all_words_scores() -> None:
    """Always O is right of four words in seven; always B-cask finds one of its seven entities."""
    constant = kind(Task.TOKEN_CLASSIFICATION).constant(
        Case(Task.TOKEN_CLASSIFICATION, IOB2, words())
    )
    assert constant["accuracy"] == pytest.approx(4 / 7)
    assert constant["f1"] == pytest.approx(2 * 1 / (2 + 7))


def test_tags_of_another_tokenizer_are_brought_to_the_words() -> None:
    examples = words()
    found = [Labelled(one, own, "f:1") for one, own in zip(SENTENCES, TAGGED, strict=True)]
    settings = data().model_copy(update={"max_length": 5})  # the last word of four has no token
    cutting = Cutting(settings, tiny_tokenizer(), "train")
    short = kind(Task.TOKEN_CLASSIFICATION).tokenize(found, cutting).examples
    case = Case(Task.TOKEN_CLASSIFICATION, IOB2, examples)
    given = kind(Task.TOKEN_CLASSIFICATION).given(at_words(short, TAGGED), short, case)
    assert given.shape == (len(examples.ids), 3)
    assert kind(Task.TOKEN_CLASSIFICATION).scores(given, case)["f1"].value == 1


def test_scores_of_answers() -> None:
    examples, chosen = answers(), kind(Task.QUESTION_ANSWERING)
    case = Case(Task.QUESTION_ANSWERING, ["start", "end"], examples)
    outputs = np.zeros((len(examples.ids), 2))
    outputs[examples.offsets[:-1]] = 9.0  # the first token: no answer
    given = chosen.given(outputs, examples, case)
    assert [one.text for one in given] == ["", ""]
    assert values(chosen.scores(given, case)) == {"exact_match": 0.5, "f1": 0.5}
    assert chosen.constant(case) == {"exact_match": 0.5, "f1": 0.5}
    base = [Given("oak cask", 0.9), Given("", 0.9)]
    assert chosen.agreement(given, base, case) == {"top1": 0.5, "f1": 0.5}
    [shown] = chosen.show(base, given, case, 5)
    assert (shown["teacher"]["top"], shown["student"]["top"]) == ("oak cask", "(no answer)")
    found = chosen.references(case, 1)
    assert set(found) == {"majority", "sentence"} == set(chosen.said)
    assert found["majority"]["exact_match"].value == 0.5
