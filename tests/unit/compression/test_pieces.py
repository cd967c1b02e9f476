"""Which pieces need each other, by hand, and tokenizers cut to some of them."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from conftest import WORDS, sentences
from potstill.compression.pieces import Pieces

BYTES = [f"<0x{value:02X}>" for value in range(256)]


def numbered(tokens: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def names(pieces: Pieces, ids: Any) -> set[str]:
    return {pieces.names[number] for number in ids}


def cut(pieces: Pieces, kept: set[int], pad: int | None = None) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(pieces.cut(pieces.order(kept, pad))))


def sentencepiece_bpe(fallback: bool) -> Tokenizer:
    """BPE as SentencePiece's are converted: every split of a piece into two pieces is a merge."""
    rng = random.Random(0)
    letters = sorted(set("".join(WORDS)))
    found = {f"▁{word}"[:end] for word in WORDS for end in range(2, len(word) + 2)}
    found |= {word[start:] for word in WORDS for start in range(len(word) - 1)}
    scored = sorted(piece for piece in found if len(piece) > 1)
    rng.shuffle(scored)
    whole = {*scored, *letters, "▁"}
    merges = [
        (piece[:at], piece[at:])
        for piece in scored
        for at in range(1, len(piece))
        if piece[:at] in whole and piece[at:] in whole
    ]
    listed = ["<unk>", "<s>", "</s>", *(BYTES if fallback else []), "▁", *letters, *scored]
    model = models.BPE(
        numbered(listed), merges, unk_token="<unk>", fuse_unk=True, byte_fallback=fallback
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


@pytest.mark.parametrize("fallback", [True, False])
def test_sentencepiece_bpe_cuts_kept_text_as_before(fallback: bool) -> None:
    tokenizer = sentencepiece_bpe(fallback)
    pieces = Pieces.of(tokenizer, "model")
    text = [one for one in sentences(60) if "peat" not in one and "copper" not in one]
    expected = [tokenizer.encode(one).tokens for one in text]
    kept = set(pieces.always)
    for token in {token for one in expected for token in one}:
        kept |= pieces.needed(pieces.ids[token])
    small = cut(pieces, kept)
    assert len(kept) < len(pieces.names)
    assert [small.encode(one).tokens for one in text] == expected
    # a character that no kept piece has: its bytes, or unknown
    snow = small.encode("pot ☃").tokens
    assert snow[-3:] == ["<0xE2>", "<0x98>", "<0x83>"] if fallback else snow[-1] == "<unk>"


def test_a_bpe_piece_needs_all_that_it_is_merged_from() -> None:
    merges = [("b", "c"), ("a", "bc"), ("a", "b"), ("abc", "d"), ("ab", "c")]
    tokens = ["<unk>", "a", "b", "c", "d", "bc", "abc", "ab", "abcd"]
    pieces = Pieces.of(Tokenizer(models.BPE(numbered(tokens), merges, unk_token="<unk>")), "m")
    # b c first, then a bc, then abc d; ab is never merged on the way
    needed = pieces.needed(pieces.ids["abcd"])
    assert names(pieces, needed) == {"a", "b", "c", "d", "bc", "abc", "abcd"}
    tree = pieces.cut(pieces.order(needed | pieces.always, None))
    assert tree["model"]["merges"] == [["b", "c"], ["a", "bc"], ["abc", "d"]]
    assert cut(pieces, needed | pieces.always).encode("abcd").tokens == ["abcd"]


def test_ids_of_words_that_ignore_merges_are_found_without_them() -> None:
    tokens = ["a", "b", "ab", "ba"]
    model = models.BPE(numbered(tokens), [("a", "b")], ignore_merges=True)
    pieces = Pieces.of(Tokenizer(model), "m")
    kept = pieces.needed(pieces.ids["ba"])  # no merge gives it
    assert names(pieces, kept) == {"a", "b", "ba"}
    assert cut(pieces, kept).encode("ba").tokens == ["ba"]


def test_the_lowest_unigram_score_stays_for_the_penalty_of_what_is_unknown() -> None:
    listed = [("<unk>", 0.0), ("▁", -2.0), ("a", -3.0), ("x", -40.0), ("ab", -45.0)]
    tokenizer = Tokenizer(models.Unigram(listed, 0))
    pieces = Pieces.of(tokenizer, "m")
    assert names(pieces, pieces.always) == {"<unk>", "ab"}
    # unknown b costs -45 - 10, with a -58; ab is likelier. Without ab's score it would be -12 - 3
    assert tokenizer.encode("ab").tokens == ["ab"]
    assert cut(pieces, {*pieces.always, pieces.ids["a"]}).encode("ab").tokens == ["ab"]


def test_the_padding_token_keeps_its_id_and_the_others_their_order() -> None:
    tokens = ["<s>", "a", "b", "<pad>", "c", "d", "[UNK]"]
    backend = Tokenizer(models.WordPiece(numbered(tokens), unk_token="[UNK]"))
    pieces = Pieces.of(backend, "m")

    def order(*kept: str) -> list[str]:
        ids = {pieces.ids[token] for token in kept}
        return [pieces.names[number] for number in pieces.order(ids, pieces.ids["<pad>"])]

    assert order("<s>", "b", "<pad>", "d", "[UNK]") == ["<s>", "b", "d", "<pad>", "[UNK]"]
    assert order("a", "<pad>") == ["a", "<pad>"]  # not so many are left


def test_added_tokens_stay_behind_the_models_own() -> None:
    backend = Tokenizer(models.WordPiece(numbered(["[UNK]", "a", "b", "c"]), unk_token="[UNK]"))
    backend.add_special_tokens(["[MASK]"])
    backend.add_tokens(["whole"])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces = Pieces.of(backend, "m")
    assert names(pieces, pieces.always) == {"[UNK]", "[MASK]", "whole"}
    small = cut(pieces, {*pieces.always, pieces.ids["c"]})
    assert small.get_vocab() == {"[UNK]": 0, "c": 1, "[MASK]": 2, "whole": 3}
    assert small.encode("c whole [MASK] a").tokens == ["c", "whole", "[MASK]", "[UNK]"]


def test_padding_and_postprocessor_are_numbered_anew() -> None:
    tokens = ["[PAD]", "[UNK]", "x", "y", "[CLS]", "[SEP]", "a"]
    backend = Tokenizer(models.WordPiece(numbered(tokens), unk_token="[UNK]"))
    backend.post_processor = processors.Sequence(
        [processors.BertProcessing(("[SEP]", 5), ("[CLS]", 4))]
    )
    backend.enable_padding(pad_id=5, pad_token="[SEP]", length=5)
    pieces = Pieces.of(backend, "m")
    assert names(pieces, pieces.always) == {"[UNK]", "[CLS]", "[SEP]"}
    small = cut(pieces, {*pieces.always, pieces.ids["a"]})
    encoding = small.encode("a")
    assert encoding.tokens == ["[CLS]", "a", "[SEP]", "[SEP]", "[SEP]"]
    assert encoding.ids == [1, 3, 2, 2, 2]


def test_bytes_are_kept_and_those_of_other_scripts_are_foreign() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(numbered(["</s>", *alphabet]), []))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    pieces = Pieces.of(backend, "m")
    assert names(pieces, pieces.always) == {*alphabet}
    every = {b for b in range(256) if len(names(pieces, backend.encode(chr(b)).ids)) == 1}
    assert every == set(range(128))  # of one byte in UTF-8
    plain = {number for b in range(128) for number in backend.encode(chr(b)).ids}
    assert not plain & pieces.foreign
    assert len(pieces.foreign) == 256 - len({*plain}) == 128


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            models.WordLevel({"a": 0, "?": 1}, unk_token="?"),
            r"^m: its tokenizer has the type WordLevel, not .* Omit trim_vocabulary\.$",
        ),
        (
            models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>"),
            r"^m: .* a BPE that marks continuations or ends of words",
        ),
    ],
)
def test_other_kinds_are_refused(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pieces.of(Tokenizer(model), "m")


def test_trained_byte_level_bpe_cuts_kept_text_as_before() -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(1)
    words = ["".join(rng.choices("aabcde", k=rng.randint(1, 9))) for _ in range(400)]
    backend.train_from_iterator([" ".join(words)], trainer)
    pieces = Pieces.of(backend, "m")
    text = " ".join(words[:60])
    expected = backend.encode(text).tokens
    kept = set(pieces.always)
    for token in expected:
        kept |= pieces.needed(pieces.ids[token])
    assert len(kept) < len(pieces.names)
    assert cut(pieces, kept).encode(text).tokens == expected
