"""Masks against binomial expectations, direct computation and the words of real tokenizers."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from potstill.data import Masker, make_masker, masking
from potstill.data.sequences import IGNORED
from potstill.recipe import Masking

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def wordpiece(words: list[str], mask_token: str | None = "[MASK]") -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *words])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token=mask_token,
    )


def masker(words: list[str], counts: np.ndarray | None = None, **settings: object) -> Masker:
    tokenizer = wordpiece(words)
    if counts is None:
        counts = np.ones(len(tokenizer), dtype=np.int64)
    return make_masker(Masking.model_validate(settings), tokenizer, counts)


def within(observed: int, n: int, p: float) -> bool:
    """Within 4 standard deviations of Binomial(n, p)."""
    return abs(observed - n * p) < 4 * math.sqrt(n * p * (1 - p))


WORDS = [f"w{i}" for i in range(100)]
# [CLS] 100 different words [SEP]
IDS = np.array([2, *range(5, 105), 3], dtype=np.int32)


def test_shares_are_those_asked_for() -> None:
    mask = masker(WORDS)
    results = [mask(IDS, 1, 0, i) for i in range(400)]
    masked, gold = np.stack([m for m, _ in results]), np.stack([g for _, g in results])
    chosen = gold != IGNORED
    assert (chosen.sum(1) == 15).all()
    assert (gold[chosen] == np.broadcast_to(IDS, gold.shape)[chosen]).all()
    assert (masked[~chosen] == np.broadcast_to(IDS, gold.shape)[~chosen]).all()
    n = int(chosen.sum())
    kept = masked[chosen] == gold[chosen]
    hidden = masked[chosen] == 4
    # A random word is the original one in 1 of 100 draws.
    assert within(int(hidden.sum()), n, 0.8)
    assert within(int(kept.sum()), n, 0.1 + 0.1 / 100)
    assert within(int((~kept & ~hidden).sum()), n, 0.1 * 99 / 100)
    # Each position alike, special tokens never, and none is ever drawn as a random token.
    assert not chosen[:, [0, -1]].any()
    assert all(within(int(count), 400, 0.15) for count in chosen[:, 1:-1].sum(0))
    assert set(masked[chosen][~hidden].tolist()) <= set(range(5, 105))
    assert len(set(masked[chosen][~kept & ~hidden].tolist())) > 90


def test_a_mask_depends_on_seed_epoch_and_index_alone() -> None:
    mask = masker(WORDS)
    first = mask(IDS, 1, 0, 7)
    for other in ((2, 0, 7), (1, 1, 7), (1, 0, 8)):
        assert (first[1] != mask(IDS, *other)[1]).any()
    again = mask(IDS, 1, 0, 7)
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()
    assert IDS[1:-1].tolist() == list(range(5, 105))  # and the input stays as it was


@pytest.mark.parametrize(("tokens", "expected"), [(1, 1), (3, 1), (10, 2), (16, 2), (17, 3)])
def test_the_number_chosen_is_rounded_and_at_least_one(tokens: int, expected: int) -> None:
    # 0.15 x 10 = 1.5 -> 2, 0.15 x 16 = 2.4 -> 2, 0.15 x 17 = 2.55 -> 3
    ids = np.array([2, *range(5, 5 + tokens), 3], dtype=np.int32)
    assert (masker(WORDS)(ids, 1, 0, 0)[1] != IGNORED).sum() == expected


def test_special_tokens_alone_are_left_alone() -> None:
    ids = np.array([2, 1, 4, 3], dtype=np.int32)
    masked, gold = masker(WORDS)(ids, 1, 0, 0)
    assert masked.tolist() == ids.tolist()
    assert (gold == IGNORED).all()


def test_an_added_special_token_is_never_chosen_nor_drawn() -> None:
    tokenizer = wordpiece(["a", "b"])
    tokenizer.add_tokens([AddedToken("<ent>", special=True)], special_tokens=True)
    ent = tokenizer.convert_tokens_to_ids("<ent>")
    mask = make_masker(Masking(random=0.2), tokenizer, np.ones(len(tokenizer), dtype=np.int64))
    ids = np.array([2, 5, ent, 6, 3], dtype=np.int32)
    results = [mask(ids, 1, 0, i) for i in range(200)]
    assert all(gold[2] == IGNORED and masked[2] == ent for masked, gold in results)
    assert {int(masked[1]) for masked, _ in results} == {4, 5, 6}


def test_smoothing_draws_in_proportion_to_count_to_the_minus_exponent() -> None:
    counts = np.array([0] * 5 + [0, 3, 10, 500])
    mask = masker(["a", "b", "c", "d"], counts, smoothing=0.7, probability=0.15)
    ids = np.array([2, 5, 6, 7, 8, 3], dtype=np.int32)
    drawn = Counter(int(np.flatnonzero(mask(ids, 1, 0, i)[1] >= 0)[0]) for i in range(4000))
    weights = [1.0, 3**-0.7, 10**-0.7, 500**-0.7]  # a count of 0 is taken for 1
    for position, weight in enumerate(weights, start=1):
        assert within(drawn[position], 4000, weight / sum(weights))


def test_smoothing_draws_without_replacement() -> None:
    counts = np.array([0] * 5 + [1, 4, 9, 100])
    mask = masker(["a", "b", "c", "d"], counts, smoothing=0.5, probability=0.5)
    ids = np.array([2, 5, 6, 7, 8, 3], dtype=np.int32)
    gold = np.stack([mask(ids, 1, 0, i)[1] for i in range(4000)])
    assert ((gold != IGNORED).sum(1) == 2).all()
    p = np.array([1, 1 / 2, 1 / 3, 1 / 10])
    p /= p.sum()
    for i in range(4):
        # drawn first, or second after any other
        either = p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i)
        assert within(int((gold[:, i + 1] != IGNORED).sum()), 4000, either)


def test_whole_words() -> None:
    mask = masker(["un", "##believ", "##able", "is", "it"], whole_word=True, probability=0.3)
    # ##able | un ##believ ##able | is | it | ...: the first token begins a word, whatever it is
    ids = np.array([2, 7, 5, 6, 7, 8, 9, 8, 9, 8, 9, 3], dtype=np.int32)
    words = [[1], [2, 3, 4], [5], [6], [7], [8], [9], [10]]
    seen = Counter[tuple[int, ...]]()
    for index in range(300):
        chosen = set(np.flatnonzero(mask(ids, 1, 0, index)[1] != IGNORED).tolist())
        taken = [word for word in words if chosen & set(word)]
        assert chosen == {position for word in taken for position in word}
        # 0.3 x 10 = 3 tokens are wanted: no word is taken once there are so many
        assert len(chosen) >= 3
        assert min(len(chosen) - len(word) for word in taken) < 3
        seen.update(tuple(word) for word in taken)
    assert set(seen) == {tuple(word) for word in words}


def test_a_long_word_is_as_likely_as_a_short_one() -> None:
    mask = masker(["a", "##b", "c"], whole_word=True, probability=0.1)
    ids = np.array([2, 5, 6, 6, 7, 3], dtype=np.int32)  # a ##b ##b | c
    long = sum(int(mask(ids, 1, 0, index)[1][1] != IGNORED) for index in range(2000))
    assert within(long, 2000, 0.5)


def test_a_special_token_ends_a_word() -> None:
    mask = masker(["a", "##b"], whole_word=True, probability=0.1)
    ids = np.array([2, 5, 6, 1, 6, 6, 3], dtype=np.int32)  # a ##b [UNK] ##b ##b
    groups = {
        tuple(np.flatnonzero(mask(ids, 1, 0, index)[1] != IGNORED).tolist()) for index in range(50)
    }
    assert groups == {(1, 2), (4, 5)}


def byte_level() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<mask>", *alphabet, "Ġa"])}
    backend = Tokenizer(models.BPE(vocabulary, [("Ġ", "a")]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", mask_token="<mask>"
    )


def unigram() -> PreTrainedTokenizerFast:
    pieces = [("<unk>", 0.0), ("▁a", -1.0), ("b", -2.0), ("▁", -3.0), ("a", -3.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", mask_token="<mask>")


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (byte_level(), [["b", "b"], ["Ġa", "b"], ["Ġa"]]),
        (unigram(), [["▁", "b", "b"], ["▁a", "b"], ["▁a"]]),
    ],
)
def test_words_of_other_tokenizers(
    tokenizer: PreTrainedTokenizerFast, expected: list[list[str]]
) -> None:
    counts = np.ones(len(tokenizer), dtype=np.int64)
    mask = make_masker(Masking(whole_word=True, probability=0.01), tokenizer, counts)
    ids = np.array(tokenizer("bb ab a", add_special_tokens=False)["input_ids"], dtype=np.int32)
    groups = {
        tuple(np.flatnonzero(mask(ids, 1, 0, index)[1] != IGNORED).tolist()) for index in range(60)
    }
    tokens = tokenizer.convert_ids_to_tokens(ids.tolist())
    assert [[tokens[i] for i in group] for group in sorted(groups)] == expected


@pytest.mark.parametrize(
    ("text", "longest"),
    [
        ("こんにちは世界今日はとても良い天気です", 3),  # a character of three bytes is a word
        ("dog\n\nThe", 3),
        ("malt,oak;peat", 4),
        ("naïve", 6),  # ï has two bytes
        ("한국어", 9),  # Hangul is written with spaces
    ],
)
def test_words_end_where_there_is_no_space(text: str, longest: int) -> None:
    tokenizer = byte_level()
    counts = np.ones(len(tokenizer), dtype=np.int64)
    mask = make_masker(Masking(whole_word=True, probability=0.01), tokenizer, counts)
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
    chosen = [int((mask(ids, 1, 0, index)[1] != IGNORED).sum()) for index in range(60)]
    assert max(chosen) == longest


@pytest.mark.parametrize(
    ("character", "expected"),
    [
        ("b", True),
        ("é", True),
        ("7", True),
        ("한", True),
        (",", False),
        ("世", False),
        ("ก", False),
    ],
)
def test_which_characters_go_on_with_a_word(character: str, expected: bool) -> None:
    assert masking._character_goes_on(character) is expected


def test_no_whole_words_where_they_can_not_be_told() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "[MASK]": 1}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]")
    counts = np.ones(2, dtype=np.int64)
    assert make_masker(Masking(), tokenizer, counts).words is None
    with pytest.raises(ValueError, match=r"^masking\.whole_word: not available .*WordLevel"):
        make_masker(Masking(whole_word=True), tokenizer, counts)


def test_a_tokenizer_without_mask_token() -> None:
    with pytest.raises(ValueError, match="the tokenizer has no mask token"):
        make_masker(Masking(), wordpiece(["a"], mask_token=None), np.ones(6, dtype=np.int64))
