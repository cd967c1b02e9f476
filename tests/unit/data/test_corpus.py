"""Token sequences from a corpus, and their cache."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_text import byte_level, random_lines, wordpiece, write_corpus
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from potstill.data import Tokens, tokenize_corpus
from potstill.data import corpus as corpora
from potstill.data.sequences import TokenizedCorpus
from potstill.recipe import Corpus
from potstill.storage import caches
from potstill.storage.caches import key_of, read_meta


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Corpus]:
    return partial(write_corpus, tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def sequences(tokens: Tokens) -> list[list[int]]:
    return [tokens[i].tolist() for i in range(len(tokens))]


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


@pytest.fixture
def without_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of other warnings have fewer sequences than a student should see."""
    monkeypatch.setattr(corpora, "FEW", 0)


@pytest.mark.usefixtures("without_few")
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
        "1 text is shorter than min_length 4, and dropped; 3 sequences are left.",
        "1 sequence is mostly tokens that the tokenizer doesn't know, and dropped; "
        "3 sequences are left.",
    ]


def test_special_tokens_are_no_part_of_a_text(corpus: Callable[..., Corpus], cache: Path) -> None:
    settings = corpus(["a [MASK] b [PAD] c"], max_length=40, max_unknown=1.0)
    tokens = tokenize_corpus(settings, wordpiece(), cache, seed=1)
    (ids,) = sequences(tokens.train)
    special = set(wordpiece().all_special_ids) - {wordpiece().unk_token_id}
    assert not special & set(ids[1:-1])


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


@pytest.mark.usefixtures("without_few")
def test_nothing_held_out(corpus: Callable[..., Corpus], cache: Path) -> None:
    result = tokenize_corpus(corpus(["a"]), wordpiece(), cache, seed=1)
    assert len(result.heldout) == 0
    assert result.heldout.lengths.shape == (0,)
    assert (result.counts["sequences_heldout"], result.counts["tokens_heldout"]) == (0, 0)
    assert result.warnings == []
    small = tokenize_corpus(corpus(["a"], heldout=1e-9), wordpiece(), cache, seed=1)
    assert small.warnings == ["no held-out text is left. Add text or raise corpus.heldout."]


@pytest.mark.usefixtures("without_few")
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
        "3 texts are the same as an earlier one, and kept (set drop_duplicates: true to "
        "drop them).",
        "1 held-out text is also in the training text, so held-out scores are too good. "
        "Set drop_duplicates: true.",
    ]
    dropping = both.model_copy(update={"drop_duplicates": True})
    result = tokenize_corpus(dropping, wordpiece(), cache, seed=1)
    assert sequences(result.train) == [[2, 5, 6, 3], [2, 9, 10, 3]]
    assert sequences(result.heldout) == [[2, 7, 8, 3]]
    assert (result.counts["duplicates"], result.counts["leaked"]) == (4, 0)
    assert result.warnings == ["4 texts are the same as an earlier one, and dropped."]


def test_few_different_sequences(corpus: Callable[..., Corpus], cache: Path) -> None:
    def warned(lines: list[str], **settings: Any) -> list[str]:
        found = tokenize_corpus(corpus(lines, **settings), wordpiece(), cache, seed=1).warnings
        return [warning for warning in found if "memorizes" in warning]

    different = list(dict.fromkeys(random_lines(300, 8)))[:101]
    assert warned(different[:100], max_length=40) == []
    assert warned([" ".join(different)], max_length=8) == []  # one text of many sequences
    (warning,) = warned(different[:99] * 3, max_length=40)
    assert warning.startswith("training sees only 99 different sequences, again and again. ")


# --- mistakes -------------------------------------------------------------------------------------


def test_nothing_left_to_train_on(corpus: Callable[..., Corpus], cache: Path) -> None:
    lines = ["a", "b", "1 2 3 4 5 6"]
    with pytest.raises(
        ValueError,
        match=r"^corpus: nothing is left to train on\. From 3 records, 2 texts are shorter than "
        r"min_length 6, 1 sequences are mostly unknown tokens and 0 are held out",
    ):
        tokenize_corpus(corpus(lines, min_length=6), wordpiece(), cache, seed=1)
    assert list(cache.iterdir()) == []  # and nothing half-written stays


def test_lengths_that_exclude_each_other(corpus: Callable[..., Corpus], cache: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"min_length: 9 is above max_length 8, so no text is left\. Lower min_length\.",
    ):
        tokenize_corpus(corpus(["a"], min_length=9), wordpiece(), cache, seed=1)


def test_no_room_for_text(corpus: Callable[..., Corpus], cache: Path) -> None:
    tokenizer = wordpiece()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] " * 7 + "$A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    with pytest.raises(
        ValueError, match=r"^corpus\.max_length: 8 leaves no room for text\. Raise it\.$"
    ):
        tokenize_corpus(corpus(["a"]), tokenizer, cache, seed=1)


def test_special_tokens_that_can_not_be_told(corpus: Callable[..., Corpus], cache: Path) -> None:
    backend = Tokenizer(models.BPE({"</s>": 0, "é": 1}, []))  # knows none of the words tried
    backend.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    with pytest.raises(ValueError, match="before and after a text are unclear, so long texts"):
        tokenize_corpus(corpus(["é"]), tokenizer, cache, seed=1)


def test_a_slow_tokenizer(corpus: Callable[..., Corpus], cache: Path) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(
        ValueError, match=r"no tokenizer\.json\. Use a model with a fast tokenizer\.$"
    ):
        tokenize_corpus(corpus(["a"]), Slow(), cache, seed=1)


def test_a_cache_that_can_not_be_written(corpus: Callable[..., Corpus], cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(ValueError, match=r"cache: the token cache cannot be written \(.*director"):
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
    monkeypatch.setattr(corpora, "_build", fail)
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
    monkeypatch.setattr(corpora, "_build", fail)
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


def flip_every_lowest_bit(path: Path) -> None:
    replace(path, (np.frombuffer(path.read_bytes(), np.uint16) ^ 1).tobytes())


def flip_a_high_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 0xFF  # of little-endian ids of two bytes: far beyond the vocabulary
    replace(path, content)


def change_a_count(path: Path) -> None:
    path.write_text(path.read_text().replace('"records": 60', '"records": 61'))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train/tokens.bin", truncate),
        ("heldout/tokens.bin", Path.unlink),
        ("train/tokens.bin", flip_every_lowest_bit),
        ("heldout/tokens.bin", flip_every_lowest_bit),
        ("train/tokens.bin", flip_a_high_byte),
        ("heldout/tokens.bin", flip),
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
    said: list[str] = []
    for _ in range(2):  # and said once
        again = tokenize_corpus(settings, wordpiece(), cache, seed=1, say=said.append)
        assert alike(again, fresh)
    assert {p: p.read_bytes() for p in only(cache).rglob("*") if p.is_file()} == before
    what = "is missing" if damage in (Path.unlink, shutil.rmtree) else "has changed"
    file = "train/offsets.npy" if name == "train" else name
    assert said == [
        f"{only(cache)}: the token cache is damaged ({file} {what}). It is built again."
    ]


def test_damage_in_a_later_shard(
    corpus: Callable[..., Corpus], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "_SHARD", 1000)
    settings = corpus(random_lines(60), heldout=0.2)
    fresh = tokenize_corpus(settings, wordpiece(), cache, seed=1)
    path = only(cache) / "train" / "tokens.bin"
    content = bytearray(path.read_bytes())
    content[1500] ^= 1
    replace(path, content)
    said: list[str] = []
    assert alike(tokenize_corpus(settings, wordpiece(), cache, seed=1, say=said.append), fresh)
    assert len(said) == 1


def test_a_cache_that_was_checked_is_not_read_again(
    corpus: Callable[..., Corpus], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = corpus(random_lines(60), heldout=0.2)
    fresh = tokenize_corpus(settings, wordpiece(), cache, seed=1)
    for path in only(cache).rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    names = []
    computed = caches._computed

    def counted(path: Path) -> Any:
        names.append(path.name)
        return computed(path)

    monkeypatch.setattr(caches, "_computed", counted)
    for _ in range(2):
        assert alike(tokenize_corpus(settings, wordpiece(), cache, seed=1), fresh)
    assert sorted(names) == sorted(2 * ["offsets.npy", "token_counts.npy", "tokens.bin"])
    flip(only(cache) / "train" / "tokens.bin")
    assert alike(tokenize_corpus(settings, wordpiece(), cache, seed=1), fresh)


def forget_checksums(folder: Path) -> None:
    """Make it a cache of an earlier version, which took none of token files."""
    path = folder / "meta.json"
    meta = json.loads(path.read_text())["meta"]
    for name in ("train/tokens.bin", "heldout/tokens.bin"):
        meta["files"][name][1] = None
    path.write_text(json.dumps({"meta": meta, "checksum": key_of(meta)}))


@pytest.mark.parametrize("heldout", [0.2, 0.0])
def test_a_cache_without_checksums_stays_valid(
    heldout: float, corpus: Callable[..., Corpus], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "_COUNTED", 100)
    settings = corpus(random_lines(60), heldout=heldout)
    fresh = tokenize_corpus(settings, wordpiece(), cache, seed=1)
    forget_checksums(only(cache))
    monkeypatch.setattr(corpora, "_build", fail)
    assert alike(tokenize_corpus(settings, wordpiece(), cache, seed=1), fresh)


def flip_a_sign(path: Path) -> None:
    replace(path, np.negative(np.frombuffer(path.read_bytes(), np.int32)).tobytes())


@pytest.mark.parametrize("side", ["train", "heldout"])
@pytest.mark.parametrize(
    ("damage", "extra"),
    [(flip, 0), (flip_every_lowest_bit, 0), (flip_a_high_byte, 0), (flip_a_sign, 65536)],
)
def test_damage_to_a_cache_without_checksums_is_found(
    damage: Callable[[Path], None],
    extra: int,
    side: str,
    corpus: Callable[..., Corpus],
    cache: Path,
) -> None:
    settings = corpus(random_lines(60), heldout=0.2)
    fresh = tokenize_corpus(settings, wordpiece(extra), cache, seed=1)
    forget_checksums(only(cache))
    damage(only(cache) / side / "tokens.bin")
    said: list[str] = []
    again = tokenize_corpus(settings, wordpiece(extra), cache, seed=1, say=said.append)
    assert alike(again, fresh)
    place = f"{only(cache)}: the token cache is damaged ({side}/tokens.bin has changed)"
    assert said == [f"{place}. It is built again."]
    assert None not in [c for _, c in read_meta(only(cache))["files"].values()]


@pytest.mark.parametrize("damaged", [False, True])
def test_another_process_may_be_quicker(
    damaged: bool, corpus: Callable[..., Corpus], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = corpus(random_lines(60), heldout=0.2)
    build = corpora._build
    others: list[TokenizedCorpus] = []
    theirs: list[int] = []

    def overtaken(*arguments: Any) -> None:
        build(*arguments)
        monkeypatch.setattr(corpora, "_build", build)
        others.append(tokenize_corpus(settings, wordpiece(), cache, seed=1))
        theirs.append(next(cache.glob("[!.]*")).stat().st_ino)
        if damaged:
            (next(cache.glob("[!.]*")) / "meta.json").unlink()

    monkeypatch.setattr(corpora, "_build", overtaken)
    mine = tokenize_corpus(settings, wordpiece(), cache, seed=1)
    assert alike(mine, others[0])
    assert (only(cache) / "meta.json").is_file()
    assert (only(cache).stat().st_ino == theirs[0]) != damaged  # a good one stays in place
