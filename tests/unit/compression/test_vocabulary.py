"""Trimmed vocabularies: on text whose pieces are all kept nothing changes, in any family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from conftest import WORDS, sentences
from potstill.compression.pieces import Pieces
from potstill.compression.vocabulary import (
    choose_pieces,
    count_pieces,
    coverage_of,
    kept_anyway,
    trimmed,
)
from potstill.models import LoadedModel, load_model, save_model
from potstill.recipe import Task
from tiny_families import HEADS, MISSING, NAMES, family_model
from tiny_tokenizers import family_tokenizer

TASKS: dict[str, Task] = {
    "headless": "sentence_embedding",
    "masked_lm": "masked_lm",
    "classification": "classification",
    "tokens": "token_classification",
    "answers": "question_answering",
}
USED = WORDS[:12]  # of the words of the text that pieces are kept for


def texts(count: int = 20) -> list[str]:
    """Sentences of the words that are used."""
    return [" ".join(w for w in one.split() if w in USED) or "still" for one in sentences(count)]


def family_folder(name: str, head: str, folder: Path) -> Path:
    tokenizer = family_tokenizer(name)
    named = ("pad", "bos", "eos", "cls", "sep", "mask")
    ids = {f"{key}_token_id": getattr(tokenizer, f"{key}_token_id") for key in named}
    known = {key: value for key, value in ids.items() if value is not None}
    size = max(tokenizer.get_vocab().values()) + 4  # rows that no token has, as of padded tables
    family_model(name, head, 2, vocab_size=size, **known).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def cut(loaded: LoadedModel, **wanted: Any) -> tuple[LoadedModel, Pieces, set[int]]:
    pieces = Pieces.of(loaded.tokenizer.backend_tokenizer, loaded.name)
    anyway = kept_anyway(loaded, pieces, [])
    counts_V = count_pieces(loaded.tokenizer, pieces, texts(), "text")
    kept = choose_pieces(pieces, counts_V[None], anyway, **wanted)
    return trimmed(loaded, pieces, kept, "small"), pieces, kept


def outputs(loaded: LoadedModel, batch: list[str]) -> tuple[list[list[str]], Any]:
    tokenizer: Any = loaded.tokenizer
    inputs = tokenizer(batch, padding=True, return_tensors="pt")
    with torch.inference_mode():
        found = loaded.model.eval()(**inputs)
    return [tokenizer.convert_ids_to_tokens(ids) for ids in inputs["input_ids"]], found


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", NAMES)
def test_on_text_whose_pieces_are_kept_nothing_changes(
    name: str, head: str, tmp_path: Path
) -> None:
    if (name, head) in MISSING:
        pytest.skip("transformers has no such class")
    loaded = load_model(family_folder(name, head, tmp_path / "before"), TASKS[head])
    small, pieces, kept = cut(loaded)
    assert len(kept) < len(pieces.names)
    save_model(small, tmp_path / "after")
    again = load_model(tmp_path / "after", TASKS[head])
    assert again.model.config.vocab_size == len(kept) == len(again.tokenizer.get_vocab())
    assert again.model.config.pad_token_id == loaded.model.config.pad_token_id
    strings, before = outputs(loaded, texts())
    for one in (small, again):
        own_strings, after = outputs(one, texts())
        assert own_strings == strings
        if head == "headless":
            pairs = [(before.last_hidden_state, after.last_hidden_state)]
        elif head == "answers":
            pairs = [(before[key], after[key]) for key in ("start_logits", "end_logits")]
        elif head == "masked_lm":
            order = pieces.order(kept, loaded.model.config.pad_token_id)
            pairs = [(before.logits[..., order], after.logits)]
        else:
            pairs = [(before.logits, after.logits)]
        for expected, found in pairs:
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_ids_of_special_tokens_are_those_of_their_names(name: str, tmp_path: Path) -> None:
    loaded = load_model(family_folder(name, "masked_lm", tmp_path / "before"), "masked_lm")
    small, _, _ = cut(loaded)
    save_model(small, tmp_path / "after")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "after")
    config = json.loads((tmp_path / "after" / "config.json").read_text())
    before = loaded.tokenizer
    for key in ("pad", "bos", "eos", "cls", "sep", "mask", "unk"):
        token = getattr(before, f"{key}_token")
        assert getattr(tokenizer, f"{key}_token") == token
        old = getattr(loaded.model.config, f"{key}_token_id", None)
        if old is not None:
            new = config[f"{key}_token_id"]
            names = tokenizer.convert_ids_to_tokens(new), before.convert_ids_to_tokens(old)
            assert names[0] == names[1]
    left = {path.name for path in (tmp_path / "after").iterdir()}
    assert left <= {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "special_tokens_map.json",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_tied_decoder_stays_tied_and_an_untied_one_apart(name: str, tmp_path: Path) -> None:
    loaded = load_model(family_folder(name, "masked_lm", tmp_path / "before"), "masked_lm")
    small, _, kept = cut(loaded)
    save_model(small, tmp_path / "after")
    for model in (small.model, AutoModelForMaskedLM.from_pretrained(tmp_path / "after")):
        decoder, was = model.get_output_embeddings(), loaded.model.get_output_embeddings()
        tied = was.weight is loaded.model.get_input_embeddings().weight
        assert (decoder.weight is model.get_input_embeddings().weight) == tied
        assert decoder.weight.shape[0] == decoder.out_features == len(kept)
        assert model.get_input_embeddings().num_embeddings == len(kept)


@pytest.mark.parametrize("name", ["bert", "xlm-roberta", "roberta"])
def test_a_word_whose_piece_goes_falls_apart_and_is_not_unknown(name: str, tmp_path: Path) -> None:
    loaded = load_model(family_folder(name, "headless", tmp_path / "a"), "sentence_embedding")
    small, _, _ = cut(loaded)
    word = "oak"  # none of the used words, of letters that they have
    assert word not in " ".join(texts())
    assert set(word) <= set(" ".join(texts()))
    tokens = small.tokenizer.tokenize(f"still {word}")
    assert small.tokenizer.unk_token not in tokens
    assert len(tokens) > len(loaded.tokenizer.tokenize(f"still {word}"))
    assert "".join(tokens).replace("##", "").translate({0x2581: "", 0x120: ""}) == "stilloak"


def test_coverage_by_hand(tmp_path: Path) -> None:
    loaded = load_model(family_folder("bert", "headless", tmp_path / "a"), "sentence_embedding")
    small, _, kept = cut(loaded)
    assert {"still", "pot", "oak"} & set(small.tokenizer.get_vocab()) == {"still", "pot"}
    # before: still pot oak / still ? ; after: still pot o ##a ##k / still ?
    found = coverage_of(loaded.tokenizer, small.tokenizer, kept, ["still pot oak", "still \u2603"])
    assert found is not None
    assert (found.texts, found.tokens, found.words) == (2, 5, 3)
    assert found.tokens_kept == 4 / 5
    assert found.words_kept == 2 / 3
    assert found.longer == 7 / 5
    assert (found.unknown_before, found.unknown_after) == (1 / 5, 1 / 7)
    assert coverage_of(loaded.tokenizer, small.tokenizer, kept, ["", " "]) is None


def test_counts_thresholds_and_sizes(tmp_path: Path) -> None:
    loaded = load_model(family_folder("bert", "headless", tmp_path / "a"), "sentence_embedding")
    tokenizer, pieces = loaded.tokenizer, Pieces.of(loaded.tokenizer.backend_tokenizer, "bert")
    anyway = kept_anyway(loaded, pieces, ["peat", "[MASK]"])
    assert {pieces.names[i] for i in anyway if i not in pieces.always} == {
        "peat", *"peat", *(f"##{letter}" for letter in "peat"),
    }  # fmt: skip
    counts_V = count_pieces(tokenizer, pieces, ["pot pot [MASK] still", "pot"], "text")
    expected = {"pot": 3, "still": 1, "m": 1, "##a": 1, "##s": 1, "##k": 1}
    named = {pieces.names[i]: int(counts_V[i]) for i in np.flatnonzero(counts_V)}
    assert {key: named[key] for key in expected} == expected  # [ and ] are unknown
    kept = choose_pieces(pieces, counts_V[None], pieces.always, min_count=2)
    own = {pieces.names[i] for i in kept - pieces.always}
    assert own == {"pot", *"pot", *(f"##{letter}" for letter in "pot")}


def test_a_small_source_is_not_outvoted(tmp_path: Path) -> None:
    loaded = load_model(family_folder("bert", "headless", tmp_path / "a"), "sentence_embedding")
    tokenizer, pieces = loaded.tokenizer, Pieces.of(loaded.tokenizer.backend_tokenizer, "bert")
    large, small = ["pot still cask oak"] * 50, ["peat smoke"]
    counts = [count_pieces(tokenizer, pieces, one, "text") for one in (large, small)]
    size = len(pieces.always) + 2 + 2 * len({*"peatsmoke"})
    kept = choose_pieces(pieces, np.stack(counts), pieces.always, size=size)
    assert len(kept) == size
    assert {"peat", "smoke"} <= {pieces.names[i] for i in kept}


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "deberta-v2", "eurobert"])
def test_text_in_another_script_is_refused(name: str, tmp_path: Path) -> None:
    loaded = load_model(family_folder(name, "headless", tmp_path / "a"), "sentence_embedding")
    pieces = Pieces.of(loaded.tokenizer.backend_tokenizer, name)
    text = "\u043f\u0435\u0440\u0435\u0433\u043e\u043d\u043a\u0430 " * 20
    with pytest.raises(ValueError, match=r"^russian.txt: .* of its tokens are (unknown|single)"):
        count_pieces(loaded.tokenizer, pieces, [text], "russian.txt")


def test_a_size_below_what_is_kept_anyway_is_refused(tmp_path: Path) -> None:
    loaded = load_model(family_folder("roberta", "headless", tmp_path / "a"), "sentence_embedding")
    with pytest.raises(ValueError, match=r"size: 200 .* 261 .* Set more than 261\.$"):
        cut(loaded, size=200)  # 256 bytes, 5 special tokens


def test_a_threshold_that_no_piece_reaches_is_refused(tmp_path: Path) -> None:
    loaded = load_model(family_folder("bert", "headless", tmp_path / "a"), "sentence_embedding")
    pieces = Pieces.of(loaded.tokenizer.backend_tokenizer, "bert")
    counts_V = count_pieces(loaded.tokenizer, pieces, ["pot still", "pot"], "text")
    with pytest.raises(ValueError, match=r"min_count: no token occurs 3 times .* occurs 2 times"):
        choose_pieces(pieces, counts_V[None], pieces.always, min_count=3)


def test_a_word_to_keep_that_is_unknown_is_refused(tmp_path: Path) -> None:
    loaded = load_model(family_folder("bert", "headless", tmp_path / "a"), "sentence_embedding")
    pieces = Pieces.of(loaded.tokenizer.backend_tokenizer, "bert")
    with pytest.raises(ValueError, match="keep: '\u2603' is unknown"):
        kept_anyway(loaded, pieces, ["still", "\u2603"])
