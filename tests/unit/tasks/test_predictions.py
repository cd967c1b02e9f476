"""What models with a head answer, through `predict`, against plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

import potstill
from potstill.models import load_model
from potstill.recipe import Task
from potstill.tasks.predictions import ask, cutting
from potstill.tasks.sequence.scores import Chosen
from potstill.tasks.spans.scores import Given
from potstill.tasks.tokens.scores import Tagged
from tiny_graphs import exported
from tiny_runs import LABELS, TAGS, tiny_teacher

TEXTS = ["copper keeps the spirit warm", "oak", "the wash boils slowly and never runs"]
PAIRS = [("copper keeps", "the spirit warm"), ("oak", "low wine")]
SENTENCE = ("peatsmoke", "runs", "the", "still")  # the first one has several pieces


def logits_of(folder: Path, auto: type, *texts: str) -> torch.Tensor:
    model, tokenizer = auto.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(*texts, return_tensors="pt")).logits[0].double()


@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_labels_of_texts_and_pairs(tmp_path: Path, texts: list[str | tuple[str, str]]) -> None:
    folder = tiny_teacher(tmp_path / "model", Task.CLASSIFICATION)
    _, graph = exported(folder, Task.CLASSIFICATION)
    for model in (folder, graph):
        found = potstill.predict(model, texts, Task.CLASSIFICATION)
        for text, one in zip(texts, found, strict=True):
            given = (text,) if isinstance(text, str) else text
            logits = logits_of(folder, AutoModelForSequenceClassification, *given)
            expected = dict(zip(LABELS.values(), torch.softmax(logits, -1).tolist(), strict=True))
            assert isinstance(one, Chosen)
            assert dict(zip(one.labels, one.probabilities, strict=True)) == pytest.approx(
                expected, abs=1e-5
            )
            assert list(one.probabilities) == sorted(one.probabilities, reverse=True)


def test_each_of_several_labels_is_a_sigmoid(tmp_path: Path) -> None:
    folder = tiny_teacher(tmp_path / "model", Task.MULTI_LABEL)
    [one] = potstill.predict(folder, TEXTS[:1], Task.MULTI_LABEL)
    logits = logits_of(folder, AutoModelForSequenceClassification, TEXTS[0])
    assert isinstance(one, Chosen)
    found = [one.probabilities[one.labels.index(label)] for label in LABELS.values()]
    assert found == pytest.approx((1 / (1 + torch.exp(-logits))).tolist(), abs=1e-6)


def test_values_of_texts_and_cosines_of_pairs(tmp_path: Path) -> None:
    folder = tiny_teacher(tmp_path / "value", Task.REGRESSION)
    found = potstill.predict(folder, TEXTS, Task.REGRESSION)
    expected = [logits_of(folder, AutoModelForSequenceClassification, t).item() for t in TEXTS]
    assert found == pytest.approx(expected, abs=1e-5)

    folder = tiny_teacher(tmp_path / "cosine", Task.SENTENCE_SIMILARITY)
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.eval()
    cosines = []
    for pair in PAIRS:
        with torch.no_grad():
            means = [
                model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
                for text in pair
            ]
        cosines.append(torch.cosine_similarity(*means, dim=0).item())
    assert potstill.predict(folder, PAIRS, Task.SENTENCE_SIMILARITY) == pytest.approx(
        cosines, abs=1e-5
    )
    with pytest.raises(ValueError, match="sentence_similarity takes two texts"):
        potstill.predict(folder, TEXTS, Task.SENTENCE_SIMILARITY)


def test_a_word_has_the_tag_of_its_first_piece(tmp_path: Path) -> None:
    folder = tiny_teacher(tmp_path / "model", Task.TOKEN_CLASSIFICATION)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = tokenizer(" ".join(SENTENCE)).word_ids()
    assert words.count(0) > 1
    logits = logits_of(folder, AutoModelForTokenClassification, " ".join(SENTENCE))
    shares = torch.softmax(logits, -1)
    firsts = [words.index(number) for number in range(len(SENTENCE))]
    for text in (SENTENCE, " ".join(SENTENCE)):
        [one] = potstill.predict(folder, [text], Task.TOKEN_CLASSIFICATION)
        assert isinstance(one, Tagged)
        assert one.words == SENTENCE
        assert one.tags == tuple(TAGS[int(shares[n].argmax())] for n in firsts)
        assert one.probabilities == pytest.approx(shares[firsts].max(-1).values.tolist(), abs=1e-5)
    # words beyond the limit have no token
    [one] = potstill.predict(folder, ["oak " * 20], Task.TOKEN_CLASSIFICATION, max_length=8)
    assert isinstance(one, Tagged)
    assert one.tags[6:] == ("O",) * 14
    assert one.probabilities[6:] == (1.0,) * 14


def test_an_answer_is_the_likeliest_span_of_the_context(tmp_path: Path) -> None:
    folder = tiny_teacher(tmp_path / "model", Task.QUESTION_ANSWERING)
    question, context = "low ?", "the still boils copper and oak slowly"
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    [offsets] = encoded.pop("offset_mapping").tolist()
    with torch.no_grad():
        output = model(**encoded)
    places = [n for n, side in enumerate(encoded.sequence_ids(0)) if side == 1]
    start, end = output.start_logits[0].double(), output.end_logits[0].double()
    spans = [(a, b) for a in places for b in places if a <= b < a + 3]
    best = max(spans, key=lambda span: float(start[span[0]] + end[span[1]]))
    expected = context[offsets[best[0]][0] : offsets[best[1]][1]]
    allowed = [0, *places]
    p = torch.softmax(start[allowed], -1)[allowed.index(best[0])]
    p = p * torch.softmax(end[allowed], -1)[allowed.index(best[1])]
    [one] = potstill.predict(folder, [(question, context)], Task.QUESTION_ANSWERING, max_answer=3)
    assert isinstance(one, Given)
    assert one.text == expected
    assert one.probability == pytest.approx(float(p), abs=1e-5)


def test_what_is_too_long_is_told(tmp_path: Path) -> None:
    loaded = load_model(
        tiny_teacher(tmp_path / "model", Task.QUESTION_ANSWERING), Task.QUESTION_ANSWERING
    )
    with pytest.raises(
        ValueError, match=r"^the question leaves its context no room in 16 tokens. Shorten it.$"
    ):
        ask(loaded, [("oak " * 30, "the still")], cutting(max_length=16))
    loaded = load_model(tiny_teacher(tmp_path / "other", Task.CLASSIFICATION), Task.CLASSIFICATION)
    assert ask(loaded, [("oak " * 30,), ("oak",)], cutting(max_length=16)).cut == 1
    # the model itself reads 64 tokens, whatever is asked for
    assert ask(loaded, [("oak " * 100,)], cutting(max_length=500)).examples.lengths.tolist() == [64]


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, "regression"])
def test_special_tokens_in_a_text_are_its_characters(tmp_path: Path, task: Task) -> None:
    loaded = load_model(tiny_teacher(tmp_path / "model", task), task)
    asked = ask(loaded, [("oak [SEP] [MASK] <b>",)], cutting())
    special = {loaded.tokenizer.sep_token_id, loaded.tokenizer.mask_token_id}
    assert not special & set(asked.examples.ids[1:-1].tolist())
