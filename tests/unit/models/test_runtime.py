"""A saved model's answers, against plain transformers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from conftest import sentences
from potstill.models import Runtime, load_model
from potstill.tasks import predict

TEXTS = [*sentences(9, seed=3), "heart", "the copper still", " ".join(sentences(8, seed=4))]


@pytest.fixture(scope="module")
def encoder(sentence_teacher: Path) -> Runtime:
    return Runtime.open(sentence_teacher, "sentence_embedding")


@pytest.fixture(scope="module")
def filler(masked_lm_teacher: Path) -> Runtime:
    return Runtime.open(masked_lm_teacher, "masked_lm")


def plain_embeddings(folder: Path, limit: int = 64) -> np.ndarray:
    """transformers' token vectors of one text at a time, their mean, at length 1."""
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    vectors = []
    for text in TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
        with torch.no_grad():
            mean = model(**inputs).last_hidden_state[0].mean(0)
        vectors.append((mean / mean.norm()).numpy())
    return np.stack(vectors)


# --- sentence embeddings --------------------------------------------------------------------------


def test_embed_is_mean_pooling_and_normalisation(encoder: Runtime, sentence_teacher: Path) -> None:
    found = encoder.embed(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plain_embeddings(sentence_teacher), atol=1e-5)
    # the texts are told apart, so the comparison means something
    assert np.abs(found @ found.T - np.eye(len(TEXTS))).max() < 0.999


def test_batches_and_order_change_nothing(encoder: Runtime) -> None:
    expected = encoder.embed(TEXTS, batch_size=len(TEXTS))
    for batch_size in (1, 2, 5):
        np.testing.assert_allclose(encoder.embed(TEXTS, batch_size=batch_size), expected, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    shuffled = encoder.embed([TEXTS[i] for i in order], batch_size=3)
    np.testing.assert_allclose(shuffled, expected[order], atol=1e-5)


def test_max_length_cuts_texts(encoder: Runtime, sentence_teacher: Path) -> None:
    found = encoder.embed(TEXTS, max_length=8)
    np.testing.assert_allclose(found, plain_embeddings(sentence_teacher, 8), atol=1e-5)
    assert np.abs(found[0] - encoder.embed(TEXTS[:1])[0]).max() > 1e-2
    # a limit beyond the model's own is the model's own
    np.testing.assert_array_equal(encoder.embed(TEXTS, max_length=1000), encoder.embed(TEXTS))
    assert encoder.tokenize(TEXTS, 1000)["input_ids"].shape == (len(TEXTS), 64)


def test_pooling_and_normalisation_are_the_folders(
    encoder: Runtime, sentence_teacher: Path
) -> None:
    model = AutoModel.from_pretrained(sentence_teacher)
    tokenizer = AutoTokenizer.from_pretrained(sentence_teacher)
    assert encoder.loaded.sentence is not None
    for pooling in ("cls", "max"):
        sentence = replace(encoder.loaded.sentence, pooling=pooling, normalize=False)
        found = Runtime(replace(encoder.loaded, sentence=sentence)).embed(TEXTS, batch_size=4)
        for vector, text in zip(found, TEXTS, strict=True):
            inputs = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
            with torch.no_grad():
                hidden = model(**inputs).last_hidden_state[0]
            expected = hidden[0] if pooling == "cls" else hidden.max(0).values
            np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)


def test_progress_counts_every_text(encoder: Runtime) -> None:
    done: list[int] = []
    encoder.embed(TEXTS, batch_size=5, progress=done.append)
    assert done == [5, 5, 2]


def test_no_texts_have_no_embeddings(encoder: Runtime) -> None:
    assert encoder.embed([]).shape == (0, 32)


def test_hidden_states_come_with_their_texts(encoder: Runtime, sentence_teacher: Path) -> None:
    model = AutoModel.from_pretrained(sentence_teacher)
    seen: list[int] = []
    for indices, hidden, mask in encoder.hidden(TEXTS, batch_size=5):
        seen += indices.tolist()
        for index, states, real in zip(indices, hidden, mask.bool(), strict=True):
            inputs = encoder.tokenize([TEXTS[index]], None)
            with torch.no_grad():
                expected = model(**inputs).last_hidden_state[0]
            torch.testing.assert_close(states[real], expected)
    assert sorted(seen) == list(range(len(TEXTS)))
    assert [len(TEXTS[i]) for i in seen] == sorted(map(len, TEXTS), reverse=True)


# --- masked LM ------------------------------------------------------------------------------------


def test_fill_mask_is_the_softmax_of_the_logits(filler: Runtime, masked_lm_teacher: Path) -> None:
    texts = ["the [MASK] runs and the [MASK] boils", "[MASK]", "copper pot [MASK] slowly"]
    model = AutoModelForMaskedLM.from_pretrained(masked_lm_teacher)
    tokenizer = AutoTokenizer.from_pretrained(masked_lm_teacher)
    answers = filler.fill_mask(texts, top=4)
    assert [len(masks) for masks in answers] == [2, 1, 1]
    for text, masks in zip(texts, answers, strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        places = [i for i, t in enumerate(inputs["input_ids"][0].tolist()) if t == 4]
        for place, filled in zip(places, masks, strict=True):
            exponentials = logits[place].double().exp()
            probabilities = (exponentials / exponentials.sum()).tolist()
            best = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])[:4]
            assert filled.tokens == tuple(tokenizer.convert_ids_to_tokens(best))
            assert filled.probabilities == pytest.approx([probabilities[i] for i in best])
    assert answers[0][0] != answers[0][1]


def test_a_text_without_a_mask_is_refused(filler: Runtime) -> None:
    message = "'the copper still' has no [MASK] to fill. Put one where a word is missing."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        filler.fill_mask(["a [MASK]", "the copper still"])


def test_the_model_does_not_drop_out(masked_lm_teacher: Path) -> None:
    loaded = load_model(masked_lm_teacher, "masked_lm")
    loaded.model.train()
    runtime = Runtime(loaded)
    first, second = (runtime.fill_mask(["the [MASK] runs"]) for _ in range(2))
    assert first == second


# --- predict --------------------------------------------------------------------------------------


def test_predict_does_either(
    encoder: Runtime, filler: Runtime, sentence_teacher: Path, masked_lm_teacher: Path
) -> None:
    found = predict(sentence_teacher, TEXTS, "sentence_embedding", max_length=9, batch_size=32)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, encoder.embed(TEXTS, max_length=9))
    texts = ["a [MASK] of malt"]
    assert predict(str(masked_lm_teacher), texts, "masked_lm", top=2) == filler.fill_mask(texts, 2)


def test_a_mask_beyond_the_limit_is_told_as_that(filler: Runtime) -> None:
    message = "the [MASK] lies beyond the 64 tokens that the model reads"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        filler.mask_logits("oak " * 80 + "[MASK]")
