"""What a model says about one typed input, against plain transformers and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from potstill.cli.demo.answers import Answer, Answerer
from potstill.models import Runtime
from potstill.recipe import Task
from potstill.tasks.predictions import Asked, cutting
from tiny_runs import LABELS, TAGS, tiny_teacher


def answerer(folder: Path, task: Task, **settings: object) -> Answerer:
    tiny_teacher(folder, task)
    return Answerer(Runtime.open(folder, task), cutting(max_length=24), **settings)  # type: ignore[arg-type]


def answered(one: Answerer, *texts: str) -> Answer:
    return one.answer(texts, one.ask(texts))


def with_logits(one: Answerer, texts: tuple[str, ...], logits: np.ndarray) -> Answer:
    """The answer if the model had given these."""
    asked = one.ask(texts)
    assert asked.outputs.shape == logits.shape
    return one.answer(texts, Asked(asked.examples, logits, asked.cut))


def test_masks_are_filled_each_by_itself(tmp_path: Path) -> None:
    one = answerer(tmp_path, "masked_lm")
    text = "the [MASK] runs and [MASK] boils"
    found = answered(one, text)
    model, tokenizer = (
        AutoModelForMaskedLM.from_pretrained(tmp_path).eval(),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0][inputs["input_ids"][0] == tokenizer.mask_token_id]
    shares = torch.softmax(logits.double(), -1)
    tokens = [tokenizer.convert_ids_to_tokens(int(row.argmax())) for row in shares]
    assert found.decided == tuple(tokens)
    assert [title for title, _ in found.groups] == ["mask 1", "mask 2"]
    for row, (_, rows), spread in zip(shares, found.groups, found.distributions, strict=True):
        assert [r.share for r in rows] == pytest.approx(row.topk(5).values.tolist(), abs=1e-6)
        np.testing.assert_allclose(np.exp(spread.log_shares(1.0)), row.numpy(), atol=1e-6)
        assert spread.keys[int(row.argmax())] in tokens


def test_padding_rows_of_a_vocabulary_have_names_of_their_own(tmp_path: Path) -> None:
    one = answerer(tmp_path, "masked_lm")
    logits_KV = one.ask(["[MASK]"])
    wider = torch.cat([logits_KV, torch.full((1, 3), 50.0)], dim=1)
    found = one.answer(["[MASK]"], wider)
    size = logits_KV.shape[1]
    assert {row.name for row in found.groups[0][1][:3]} == {f"({size + n})" for n in range(3)}


def test_texts_are_ranked_by_cosine_and_their_distribution_is_the_in_batch_one(
    tmp_path: Path,
) -> None:
    one = answerer(tmp_path, "sentence_embedding", scale=5.0)
    texts = ["copper still", "the pot boils", "oak cask", "malt"]
    found = answered(one, *texts)
    vectors = one.runtime.embed(texts).astype(np.float64)
    cosines = vectors[1:] @ vectors[0]
    order = np.argsort(-cosines)
    [(_, rows)] = found.groups
    assert [row.name for row in rows] == [texts[1:][n] for n in order]
    assert [row.told for row in rows] == [f"{cosines[n]:.3f}" for n in order]
    [spread] = found.distributions
    powers = np.exp(5.0 * cosines / 2.0)
    np.testing.assert_allclose(np.exp(spread.log_shares(2.0)), powers / powers.sum(), rtol=1e-5)


def test_two_texts_have_a_similarity_and_no_distribution(tmp_path: Path) -> None:
    one = answerer(tmp_path, "sentence_embedding")
    found = answered(one, "copper still", "oak cask")
    a, b = one.runtime.embed(["copper still", "oak cask"])
    assert found.value == pytest.approx(float(a @ b), abs=1e-6)
    assert found.distributions == ()
    # a similarity is trained as a value: there is nothing to soften
    pair = answerer(tmp_path / "pair", "sentence_similarity")
    assert answered(pair, "copper still", "oak cask", "malt").distributions == []


def test_a_label(tmp_path: Path) -> None:
    one = answerer(tmp_path, "classification")
    found = with_logits(one, ("oak",), np.array([[0.0, np.log(3.0), 0.0]], dtype=np.float32))
    assert found.headline == "late"
    [(_, rows)] = found.groups
    assert [(row.name, row.told) for row in rows] == [
        ("late", "60.0%"),
        ("early", "20.0%"),
        ("<b>never</b>", "20.0%"),
    ]
    assert found.notes == []


def test_labels_of_a_run_take_the_place_of_stopgaps(tmp_path: Path) -> None:
    one = answerer(tmp_path, "classification", labels=("x", "y", "z"))
    logits = np.array([[0.0, 1.0, 2.0]], dtype=np.float32)
    assert with_logits(one, ("oak",), logits).headline == "z"


def test_several_labels_or_none(tmp_path: Path) -> None:
    one = answerer(tmp_path, "multi_label")
    found = with_logits(one, ("oak",), np.array([[0.1, -1.0, np.log(4.0)]], dtype=np.float32))
    assert found.headline == "early, <b>never</b>"
    assert [row.told for row in found.groups[0][1]] == ["80.0%", "52.5%", "26.9%"]
    assert found.distributions[0].apart
    found = with_logits(one, ("oak",), np.full((1, 3), -1.0, dtype=np.float32))
    assert found.headline == "(no label)"
    assert found.decided


def test_a_value_and_a_text_that_is_cut(tmp_path: Path) -> None:
    one = answerer(tmp_path, "regression")
    found = with_logits(one, ("oak " * 40,), np.array([[-1.25]], dtype=np.float32))
    assert (found.headline, found.value) == ("-1.250", -1.25)
    [note] = found.notes
    assert note == "The text is longer than the maximum of 24 tokens. The rest of it was cut."
    # of masked LM and embeddings the model's own limit counts
    filler = answerer(tmp_path / "mlm", "masked_lm")
    [note] = answered(filler, "[MASK] " + "oak " * 100).notes
    assert note == "The text is longer than the maximum of 64 tokens. The rest of it was cut."
    assert answered(filler, "[MASK] oak").notes == []


def test_tags_make_entities_and_each_word_has_a_distribution(tmp_path: Path) -> None:
    one = answerer(tmp_path, "token_classification")
    text = "low copper wash oak"  # [CLS], four words of one piece, [SEP]
    logits = np.zeros((6, len(TAGS)), dtype=np.float32)
    for token, tag in enumerate([0, 0, 1, 2, 3, 0]):
        logits[token, tag] = 3.0
    found = with_logits(one, (text,), logits)
    assert found.headline == "copper wash (still), oak (cask)"
    assert found.decided == ("O", "B-still", "I-still", "B-cask")
    sure = np.exp(3) / (np.exp(3) + 3)
    assert [word for word, _, _ in found.words] == text.split()
    assert [p for _, _, p in found.words] == pytest.approx([sure] * 4)
    assert [spread.title for spread in found.distributions][1] == "copper (word 2)"
    np.testing.assert_allclose(found.distributions[1].logits_C, [0, 3, 0, 0])


def test_an_answer_and_where_it_starts_and_ends(tmp_path: Path) -> None:
    one = answerer(tmp_path, "question_answering")
    texts = ("low", "still copper oak")  # [CLS] low [SEP] still copper oak [SEP]
    logits = np.zeros((7, 2), dtype=np.float32)
    logits[4, 0], logits[5, 1] = 6.0, 6.0
    found = with_logits(one, texts, logits)
    assert found.headline == "copper oak"
    start, end = found.distributions
    # no answer, and the context's three words; nothing of the question
    assert list(start.shown.values()) == [
        "(no answer)",
        "still (at 1)",
        "copper (at 7)",
        "oak (at 14)",
    ]
    np.testing.assert_allclose(start.logits_C, [0, 0, 6, 0])
    np.testing.assert_allclose(end.logits_C, [0, 0, 0, 6])
    share = np.exp(6) / (np.exp(6) + 3)
    assert found.groups[0][1][0].share == pytest.approx(share**2)
    # the first token is likelier than any span: no answer, and the span is told beside it
    logits[0] = 7.0
    found = with_logits(one, texts, logits)
    assert found.headline == "(no answer)"
    assert [row.name for row in found.groups[0][1]] == [
        "(no answer)",
        "if there is one: copper oak",
    ]


def test_an_answer_of_a_long_context_is_softened_in_its_own_window(tmp_path: Path) -> None:
    one = answerer(tmp_path, "question_answering")
    context = " ".join(["malt"] * 30 + ["copper"] + ["malt"] * 9)
    asked = one.ask(("low", context))
    assert len(asked.examples) > 1
    logits = np.zeros_like(asked.outputs)
    at = asked.examples.spans[:, 0] == context.index("copper")
    logits[np.flatnonzero(at)[-1]] = 5.0
    found = one.answer(("low", context), Asked(asked.examples, logits, 0))
    assert found.headline == "copper"
    assert len(found.distributions) == 2 * len(asked.examples)
    for spread in found.distributions[found.foremost : found.foremost + 2]:
        best = spread.keys[int(spread.logits_C.argmax())]
        assert spread.shown[best] == f"copper (at {context.index('copper') + 1})"
    start = found.distributions[found.foremost]
    assert start.title.startswith("where the answer starts (part ")


def test_labels_are_the_models_own(tmp_path: Path) -> None:
    assert answerer(tmp_path, "classification").names == list(LABELS.values())
