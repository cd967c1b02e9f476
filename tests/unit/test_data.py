"""Token sequences from a corpus, their cache, and batches."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from potstill import data
from potstill.data import (
    TokenizedCorpus,
    Tokens,
    collate,
    epoch_batches,
    make_masker,
    plan_steps,
    tokenize_corpus,
)
from potstill.recipe import Corpus, Masking

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def wordpiece(extra: int = 0) -> PreTrainedTokenizerFast:
    """Letters as words and as continuations; like some published ones, it truncates and pads."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"##{letter}" for letter in letters), *(f"x{i}" for i in range(extra))]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *words])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.enable_truncation(8)
    backend.enable_padding(length=8)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=8,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def byte_level() -> PreTrainedTokenizerFast:
    """Bytes, and only an end token, as some byte-level encoders have it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Corpus]:
    """Writes lines to a file; a corpus of them, nothing held out and hardly anything dropped."""

    def make(lines: list[str], **settings: Any) -> Corpus:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.txt"
        path.write_text("\n".join(lines), encoding="utf-8")
        basic = {"max_length": 8, "min_length": 1, "heldout": 0.0}
        return Corpus.model_validate({"sources": str(path), **basic, **settings})

    return make


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def sequences(tokens: Tokens) -> list[list[int]]:
    return [tokens[i].tolist() for i in range(len(tokens))]


def random_lines(number: int, longest: int = 40, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [" ".join(rng.choices(letters, k=rng.randint(4, longest))) for _ in range(number)]


# --- tokenising -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", [wordpiece(), byte_level()], ids=["wordpiece", "byte-level"])
def test_no_text_is_lost_by_splitting(
    tokenizer: PreTrainedTokenizerFast,
    corpus: Callable[..., Corpus],
    cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = random_lines(30)
    with caplog.at_level(logging.WARNING):
        result = tokenize_corpus(corpus(lines), tokenizer, cache, seed=1)
    assert caplog.records == []  # nothing is "longer than the maximum"
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    whole = [backend.encode(line, add_special_tokens=False).ids for line in lines]
    special = backend.encode("", add_special_tokens=True).ids
    found = sequences(result.train)
    content = [ids[1:-1] if len(special) == 2 else ids[:-1] for ids in found]
    assert [i for ids in content for i in ids] == [i for ids in whole for i in ids]
    assert max(map(len, found)) == 8
    limit = 8 - len(special)
    assert len(found) == sum(-(-len(ids) // limit) for ids in whole)
    assert result.counts["split"] == sum(len(ids) > limit for ids in whole) > 0
    assert result.counts["tokens_train"] == sum(map(len, found))


def test_pieces_are_nearly_equal(corpus: Callable[..., Corpus], cache: Path) -> None:
    # 13 tokens, 6 of them fit: 5 + 4 + 4, and none of the pieces is too short
    result = tokenize_corpus(
        corpus(["a b c d e f g h i j k l m"], min_length=8), wordpiece(), cache, seed=1
    )
    assert sequences(result.train) == [
        [2, 5, 6, 7, 8, 9, 3],
        [2, 10, 11, 12, 13, 3],
        [2, 14, 15, 16, 17, 3],
    ]


def test_short_and_unknown_ones_are_dropped_and_counted(
    corpus: Callable[..., Corpus], cache: Path
) -> None:
    # With its special tokens: 3, 4, 5 tokens; two of three unknown; one of two unknown.
    lines = ["a", "a b", "a b c", "1 2 a", "1 a"]
    result = tokenize_corpus(corpus(lines, min_length=4), wordpiece(), cache, seed=1)
    assert sequences(result.train) == [[2, 5, 6, 3], [2, 5, 6, 7, 3], [2, 1, 5, 3]]
    counts = result.counts
    assert (counts["records"], counts["dropped_short"], counts["dropped_unknown"]) == (5, 1, 1)
    assert (counts["sequences_train"], counts["tokens_train"]) == (3, 13)
    assert result.warnings == [
        "1 texts are shorter than min_length 4 and were dropped; 3 sequences are left",
        "1 sequences are mostly tokens that the tokenizer doesn't know and were dropped; "
        "3 sequences are left",
    ]


def test_each_column_is_a_text_of_its_own(tmp_path: Path, cache: Path) -> None:
    rows = [{"title": "a", "body": "b c"}, {"title": None, "body": "d"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {"columns": ["title", "body"], "heldout": 0.0, "min_length": 1}
    both = Corpus.model_validate({"sources": str(tmp_path / "a.jsonl"), **settings})
    result = tokenize_corpus(both, wordpiece(), cache, seed=1)
    assert sequences(result.train) == [[2, 5, 3], [2, 6, 7, 3], [2, 8, 3]]
    assert result.counts["records"] == 2


def test_lengths_and_token_counts(corpus: Callable[..., Corpus], cache: Path) -> None:
    result = tokenize_corpus(corpus(["a a b", "b"]), wordpiece(), cache, seed=1)
    tokens = result.train
    assert tokens.lengths.tolist() == [5, 3]
    assert tokens.lengths.dtype == np.int32
    assert tokens[0].dtype == np.int32
    # [CLS], [SEP], a, b
    assert {i: n for i, n in enumerate(tokens.token_counts.tolist()) if n} == {
        2: 2,
        3: 2,
        5: 2,
        6: 2,
    }
    assert len(tokens.token_counts) == 5 + 2 * 26
    assert tokens.token_counts.dtype == np.int64


@pytest.mark.parametrize(("extra", "dtype"), [(0, np.uint16), (65536, np.int32)])
def test_tokens_are_memory_mapped_in_the_smallest_type(
    extra: int, dtype: type, corpus: Callable[..., Corpus], cache: Path
) -> None:
    result = tokenize_corpus(corpus(["a", "x65535" if extra else "b"]), wordpiece(extra), cache, 1)
    assert isinstance(result.train.ids, np.memmap)
    assert isinstance(result.train.offsets, np.memmap)
    assert result.train.ids.dtype == dtype
    assert sequences(result.train)[1] == [2, 57 + 65535 if extra else 6, 3]


def test_held_out_by_hash(corpus: Callable[..., Corpus], cache: Path) -> None:
    lines = random_lines(200, longest=6)
    settings = {"heldout": 0.3, "min_length": 4}
    result = tokenize_corpus(corpus(lines + lines, **settings), wordpiece(), cache, seed=1)
    train, heldout = sequences(result.train), sequences(result.heldout)
    assert len(train) + len(heldout) == 400
    assert 80 < len(heldout) < 160
    assert not {tuple(ids) for ids in train} & {tuple(ids) for ids in heldout}
    assert result.counts["leaked"] == 0
    assert result.counts["duplicates"] == 400 - len({*lines})
    other = tokenize_corpus(corpus(lines + lines, **settings), wordpiece(), cache, seed=2)
    assert sequences(other.heldout) != heldout


def test_nothing_held_out(corpus: Callable[..., Corpus], cache: Path) -> None:
    result = tokenize_corpus(corpus(["a"]), wordpiece(), cache, seed=1)
    assert len(result.heldout) == 0
    assert result.heldout.lengths.shape == (0,)
    assert (result.counts["sequences_heldout"], result.counts["tokens_heldout"]) == (0, 0)
    assert result.warnings == []
    small = tokenize_corpus(corpus(["a"], heldout=1e-9), wordpiece(), cache, seed=1)
    assert small.warnings == [
        "no held-out text is left: give more of it, or a larger corpus.heldout"
    ]


def test_leaks_and_duplicates(tmp_path: Path, corpus: Callable[..., Corpus], cache: Path) -> None:
    (tmp_path / "heldout").mkdir()
    heldout = tmp_path / "heldout/a.txt"
    heldout.write_text("a  b\nc d\nc d\n")
    lines = ["a b", "a b", "a b", "e f"]
    both = corpus(lines, heldout_sources=str(heldout))
    result = tokenize_corpus(both, wordpiece(), cache, seed=1)
    # "a b" twice again, "c d" once again; "a b" is on both sides
    assert (result.counts["duplicates"], result.counts["leaked"]) == (3, 1)
    assert (result.counts["records"], len(result.train), len(result.heldout)) == (7, 4, 3)
    assert result.warnings == [
        "3 texts are duplicates of earlier ones; they stay in (drop_duplicates drops them)",
        "1 held-out texts are also in the training text, so held-out scores are too good: "
        "drop_duplicates removes them",
    ]
    dropping = both.model_copy(update={"drop_duplicates": True})
    result = tokenize_corpus(dropping, wordpiece(), cache, seed=1)
    assert sequences(result.train) == [[2, 5, 6, 3], [2, 9, 10, 3]]
    assert sequences(result.heldout) == [[2, 7, 8, 3]]
    assert (result.counts["duplicates"], result.counts["leaked"]) == (4, 0)
    assert result.warnings == ["4 texts are duplicates of earlier ones; they were dropped"]


def test_progress_counts_records(corpus: Callable[..., Corpus], cache: Path) -> None:
    seen: list[int] = []
    tokenize_corpus(corpus(random_lines(1200, 4)), wordpiece(), cache, 1, progress=seen.append)
    assert seen == [500, 1000, 1200]


# --- mistakes -------------------------------------------------------------------------------------


def test_nothing_left_to_train_on(corpus: Callable[..., Corpus], cache: Path) -> None:
    lines = ["a", "b", "1 2 3 4 5 6"]
    with pytest.raises(
        ValueError,
        match=r"nothing to train on: of 3 records, 2 texts are shorter than min_length 6, "
        r"1 sequences are mostly unknown tokens and 0 are held out",
    ):
        tokenize_corpus(corpus(lines, min_length=6), wordpiece(), cache, seed=1)
    assert list(cache.iterdir()) == []  # and nothing half-written stays


def test_lengths_that_exclude_each_other(corpus: Callable[..., Corpus], cache: Path) -> None:
    with pytest.raises(ValueError, match="min_length 9 is above max_length 8: no text"):
        tokenize_corpus(corpus(["a"], min_length=9), wordpiece(), cache, seed=1)


def test_no_room_for_text(corpus: Callable[..., Corpus], cache: Path) -> None:
    tokenizer = wordpiece()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] " * 7 + "$A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    with pytest.raises(ValueError, match=r"^corpus.max_length 8 leaves no room for text$"):
        tokenize_corpus(corpus(["a"]), tokenizer, cache, seed=1)


def test_special_tokens_that_can_not_be_told(corpus: Callable[..., Corpus], cache: Path) -> None:
    backend = Tokenizer(models.BPE({"</s>": 0, "é": 1}, []))  # knows none of the words tried
    backend.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    with pytest.raises(ValueError, match="before and after a text can't be told, so long texts"):
        tokenize_corpus(corpus(["é"]), tokenizer, cache, seed=1)


def test_a_slow_tokenizer(corpus: Callable[..., Corpus], cache: Path) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match=r"no tokenizer\.json: a fast tokenizer is needed$"):
        tokenize_corpus(corpus(["a"]), Slow(), cache, seed=1)


def test_a_cache_that_can_not_be_written(corpus: Callable[..., Corpus], cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(ValueError, match=r"cache: the token cache can't be written \(.*director"):
        tokenize_corpus(corpus(["a"]), wordpiece(), cache, seed=1)


def test_mistakes_in_the_text_come_through(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{')
    with pytest.raises(ValueError, match=r"a\.jsonl:2: not valid JSON"):
        tokenize_corpus(Corpus(sources=[str(tmp_path / "a.jsonl")]), wordpiece(), cache, seed=1)


# --- the cache ------------------------------------------------------------------------------------


def alike(one: TokenizedCorpus, two: TokenizedCorpus) -> bool:
    return (one.counts, one.warnings) == (two.counts, two.warnings) and all(
        sequences(a) == sequences(b)
        and a.lengths.tolist() == b.lengths.tolist()
        and a.token_counts.tolist() == b.token_counts.tolist()
        and a.fingerprint == b.fingerprint
        for a, b in ((one.train, two.train), (one.heldout, two.heldout))
    )


def only(cache: Path) -> Path:
    """The one folder in the cache: nothing half-written lies beside it."""
    (folder,) = cache.iterdir()
    return folder


def fail(*_: object, **__: object) -> None:
    raise AssertionError("built again")


def test_the_cache_gives_what_was_built(
    corpus: Callable[..., Corpus], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = corpus([*random_lines(60), "a b", "a b"], heldout=0.2)
    tokenizer = wordpiece()
    fresh = tokenize_corpus(settings, tokenizer, cache, seed=1)
    assert fresh.warnings
    monkeypatch.setattr(data, "_build", fail)
    assert alike(tokenize_corpus(settings, tokenizer, cache, seed=1), fresh)
    # whatever truncation and padding other calls have set on it
    tokenizer(["a b"], truncation=True, padding="max_length", max_length=5)
    assert alike(tokenize_corpus(settings, tokenizer, cache, seed=1), fresh)
    assert fresh.train.fingerprint != fresh.heldout.fingerprint


def test_the_cache_is_keyed_by_all_that_matters(
    corpus: Callable[..., Corpus], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = corpus(["a b c", "d"], heldout=0.1)
    tokenize_corpus(settings, wordpiece(), cache, seed=1)
    monkeypatch.setattr(data, "_build", fail)
    for update in ({"max_length": 9}, {"min_length": 2}, {"drop_duplicates": True}):
        with pytest.raises(AssertionError, match="built again"):
            tokenize_corpus(settings.model_copy(update=update), wordpiece(), cache, seed=1)
    for others in ((settings, wordpiece(), cache, 2), (settings, wordpiece(1), cache, 1)):
        with pytest.raises(AssertionError, match="built again"):
            tokenize_corpus(*others)
    Path(settings.sources[0].paths[0]).write_text("a b c\ne")
    with pytest.raises(AssertionError, match="built again"):
        tokenize_corpus(settings, wordpiece(), cache, seed=1)


def replace(path: Path, content: bytes | bytearray) -> None:
    path.unlink()  # not in place: the file is mapped
    path.write_bytes(content)


def truncate(path: Path) -> None:
    replace(path, path.read_bytes()[:-2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    replace(path, content)


def change_a_count(path: Path) -> None:
    path.write_text(path.read_text().replace('"records": 60', '"records": 61'))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train/tokens.bin", truncate),
        ("heldout/tokens.bin", Path.unlink),
        ("train/offsets.npy", flip),
        ("heldout/token_counts.npy", flip),
        ("meta.json", truncate),
        ("meta.json", change_a_count),
        ("meta.json", Path.unlink),
        ("train", shutil.rmtree),
    ],
)
def test_a_damaged_cache_is_built_again(
    name: str, damage: Callable[[Path], None], corpus: Callable[..., Corpus], cache: Path
) -> None:
    settings = corpus(random_lines(60), heldout=0.2)
    fresh = tokenize_corpus(settings, wordpiece(), cache, seed=1)
    before = {p: p.read_bytes() for p in only(cache).rglob("*") if p.is_file()}
    damage(only(cache) / name)
    assert {p: p.read_bytes() for p in only(cache).rglob("*") if p.is_file()} != before
    assert alike(tokenize_corpus(settings, wordpiece(), cache, seed=1), fresh)
    assert {p: p.read_bytes() for p in only(cache).rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("damaged", [False, True])
def test_another_process_may_be_quicker(
    damaged: bool, corpus: Callable[..., Corpus], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = corpus(random_lines(60), heldout=0.2)
    build = data._build
    others: list[TokenizedCorpus] = []
    theirs: list[int] = []

    def overtaken(*arguments: Any) -> None:
        build(*arguments)
        monkeypatch.setattr(data, "_build", build)
        others.append(tokenize_corpus(settings, wordpiece(), cache, seed=1))
        theirs.append(next(cache.glob("[!.]*")).stat().st_ino)
        if damaged:
            (next(cache.glob("[!.]*")) / "meta.json").unlink()

    monkeypatch.setattr(data, "_build", overtaken)
    mine = tokenize_corpus(settings, wordpiece(), cache, seed=1)
    assert alike(mine, others[0])
    assert (only(cache) / "meta.json").is_file()
    assert (only(cache).stat().st_ino == theirs[0]) != damaged  # a good one stays in place


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "size"), [(1000, 8), (1003, 8), (5, 8), (8, 8), (1, 1)])
def test_an_epoch_is_a_permutation(number: int, size: int) -> None:
    lengths = np.random.default_rng(0).integers(3, 128, number).astype(np.int32)
    batches = epoch_batches(lengths, size, seed=1, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(number))
    assert {len(batch) for batch in batches[:-1]} <= {size}
    assert len(batches[-1]) == (number % size or size)
    assert len(batches) == -(-number // size)


def test_epochs_differ_and_repeat() -> None:
    lengths = np.random.default_rng(0).integers(3, 128, 1000).astype(np.int32)

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(epoch_batches(lengths, 8, seed, epoch)).tolist()

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(*key)) for key in ((1, 0), (1, 1), (2, 0), (2, 1))}) == 4


def test_batches_hold_sequences_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(3, 128, 50 * 8 + 3).astype(np.int32)
    *batches, rest = epoch_batches(lengths, 8, seed=1, epoch=0)
    sorted_batched = sorted(np.delete(lengths, rest).tolist())
    # One window: put in order, the batches' lengths are the sorted lengths.
    ordered = sorted(batches, key=lambda batch: (lengths[batch].min(), lengths[batch].max()))
    found = np.concatenate([np.sort(lengths[batch]) for batch in ordered])
    assert found.tolist() == sorted_batched
    assert [b.tolist() for b in ordered] != [b.tolist() for b in batches]  # but not in that order
    # Two windows: each is sorted on its own, so lengths overlap between them.
    twice = np.concatenate([lengths, lengths])
    two = sorted(epoch_batches(twice, 8, 1, 0), key=lambda batch: twice[batch].min())
    assert any(twice[a].max() > twice[b].min() for a, b in pairwise(two))


def walk(
    lengths: np.ndarray,
    size: int,
    epochs: float | None,
    max_steps: int | None,
    max_tokens: int | None,
) -> tuple[int, int]:
    """Step by step."""
    per_epoch, steps, tokens = -(-len(lengths) // size), 0, 0
    while True:
        epoch, within = divmod(steps, per_epoch)
        steps += 1
        tokens += int(lengths[epoch_batches(lengths, size, 1, epoch)[within]].sum())
        over = epochs is not None and steps >= epochs * per_epoch
        over |= max_steps is not None and steps >= max_steps
        if over or (max_tokens is not None and tokens >= max_tokens):
            return steps, tokens


LIMITS = product((None, 0.001, 0.5, 1.0, 2.3, 3.0), (None, 1, 6, 14, 100), (None, 1, 400, 10_000))


@pytest.mark.parametrize(
    ("epochs", "max_steps", "max_tokens"), [limits for limits in LIMITS if any(limits)]
)
def test_plan_steps(epochs: float | None, max_steps: int | None, max_tokens: int | None) -> None:
    lengths = np.random.default_rng(0).integers(3, 20, 50).astype(np.int32)  # 7 steps an epoch
    planned = plan_steps(lengths, 8, 1, epochs=epochs, max_steps=max_steps, max_tokens=max_tokens)
    assert planned == walk(lengths, 8, epochs, max_steps, max_tokens)


def test_plan_steps_at_the_end_of_an_epoch() -> None:
    lengths = np.full(16, 5, dtype=np.int32)
    for most, expected in ((80, (2, 80)), (81, (3, 120)), (79, (2, 80)), (40, (1, 40))):
        assert plan_steps(lengths, 8, 1, max_tokens=most) == expected
    # 0.07 x 100 is a little more than 7 in floating point
    assert plan_steps(np.full(800, 5, dtype=np.int32), 8, 1, epochs=0.07) == (7, 280)


def test_collate(corpus: Callable[..., Corpus], cache: Path) -> None:
    tokens = tokenize_corpus(corpus(["a b c", "d", "e f"]), wordpiece(), cache, seed=1).train
    batch = collate(tokens, np.array([1, 2]), pad_id=0, masker=None, seed=1, epoch=0)
    assert batch.input_ids_BL.tolist() == [[2, 8, 3, 0], [2, 9, 10, 3]]
    assert batch.attention_mask_BL.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.real_BL.tolist() == [[True, True, True, False], [True] * 4]
    assert batch.gold_BL.tolist() == [[-100] * 4] * 2
    assert batch.index_B.tolist() == [1, 2]
    assert batch.counts() == {"tokens": 7, "masked": 0, "texts": 2}
    types = [batch.input_ids_BL, batch.attention_mask_BL, batch.gold_BL, batch.index_B]
    assert {tensor.dtype for tensor in types} == {torch.int64}
    moved = batch.to("meta")
    assert moved.real_BL.device.type == moved.index_B.device.type == "meta"


def test_a_mask_is_the_same_in_every_batch(corpus: Callable[..., Corpus], cache: Path) -> None:
    tokenizer = wordpiece()
    tokens = tokenize_corpus(corpus(random_lines(50), max_length=40), tokenizer, cache, 1).train
    mask = make_masker(Masking(), tokenizer, tokens.token_counts)
    everything = collate(tokens, np.arange(50), 0, mask, seed=1, epoch=3)
    for indices in ([7], [30, 7], [7, 1, 49]):
        batch = collate(tokens, np.array(indices), 0, mask, seed=1, epoch=3)
        row, length = indices.index(7), int(tokens.lengths[7])
        for name in ("input_ids_BL", "gold_BL"):
            mine, other = getattr(batch, name)[row], getattr(everything, name)[7]
            assert mine[:length].tolist() == other[:length].tolist()
        assert (batch.gold_BL[~batch.real_BL] == -100).all()
        assert (batch.input_ids_BL[~batch.real_BL] == 0).all()
    chosen = everything.gold_BL != -100
    assert everything.counts()["masked"] == int(chosen.sum()) >= 50
    original = collate(tokens, np.arange(50), 0, None, seed=1, epoch=3).input_ids_BL
    assert (everything.gold_BL[chosen] == original[chosen]).all()
    assert (everything.input_ids_BL[~chosen] == original[~chosen]).all()
    later = collate(tokens, np.arange(50), 0, mask, seed=1, epoch=4)
    assert ((later.gold_BL != everything.gold_BL).any(1)).sum() > 40
