"""Corpora as token sequences: tokenised once, kept on disk, memory-mapped.

What grows in memory with the corpus is 8 bytes a sequence (its offset) and 8 bytes a text (a hash
that finds duplicates); with `drop_duplicates` the hashes are also a set, of some 70 bytes a text.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from potstill.data.sequences import TokenizedCorpus, Tokens
from potstill.data.sources import Record, heldout_side, read_records, sources_fingerprint
from potstill.data.tokenize import encode_whole
from potstill.recipe import Corpus
from potstill.recipe.config import digested
from potstill.storage.caches import Damaged, kept, key_of, read_meta, write_meta

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_VERSION = 3  # of the cache's format and of how text becomes sequences
_TEXTS = 500  # tokenised at a time, or
_CHARACTERS = 1 << 20  # so many of them: an encoding takes some 100 bytes a token
_COUNTED = 1 << 20  # ids that are counted at a time
FEW = 100  # different training sequences; below that, a corpus warns
_COUNTS = (
    *("records", "sequences_train", "sequences_heldout", "tokens_train", "tokens_heldout"),
    *("split", "dropped_short", "dropped_unknown", "duplicates", "leaked", "different_train"),
)


def tokenize_corpus(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    cache: Path,
    seed: int,
    progress: Callable[[int], None] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> TokenizedCorpus:
    """Token sequences of both sides, from the cache or by reading the corpus.

    Texts over `max_length` are split into nearly equal pieces, of half of it at least; `min_length`
    is asked of whole texts. The
    cache is keyed by what the sources hold, the tokenizer, the corpus settings and the seed; one
    that is damaged or half written is built again. Several processes may do this at once: the
    first to finish wins.

    Args:
        progress: called with the number of records read so far.
        say: called with a sentence where the cache is damaged.

    Raises:
        ValueError: bad input (see `read_records`), no training sequence left, lengths that exclude
            each other, a tokenizer that isn't a fast one, or a cache that can't be written.
    """
    cutter = _Cutter(corpus, tokenizer)
    key = _key(corpus, cutter, seed)

    def build(folder: Path) -> None:
        _build(corpus, cutter, folder, seed, progress)

    return kept(cache / key, build, _open, "token cache", say)


def cut_texts(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> list[np.ndarray]:
    """The sequences that texts become in a tokenised corpus: each uint16 or int32 [L].

    Raises:
        ValueError: as `tokenize_corpus`, of the tokenizer and the lengths.
    """
    cutter = _Cutter(corpus, tokenizer)
    counts: Counter[str] = Counter()
    return [piece for ids in cutter.encode(texts) for piece in cutter.cut(ids, counts)]


class _Cutter:
    """Texts to token sequences."""

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> None:
        if not tokenizer.is_fast:
            raise ValueError("the tokenizer has no tokenizer.json: a fast tokenizer is needed")
        self.tokenizer = tokenizer
        self.settings = corpus
        self.prefix, self.suffix = self._wrapping()
        self.limit = corpus.max_length - len(self.prefix) - len(self.suffix)
        if self.limit < 1:
            raise ValueError(f"corpus.max_length {corpus.max_length} leaves no room for text")
        self.vocabulary_size = max(tokenizer.get_vocab().values()) + 1
        self.dtype = np.uint16 if self.vocabulary_size <= 65536 else np.int32

    def encode(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """Ids of whole texts."""
        ids: list[list[int]] = encode_whole(self.tokenizer, texts, special=special)["input_ids"]
        return ids

    def _wrapping(self) -> tuple[list[int], list[int]]:
        """Special tokens before and after a text, as the tokenizer itself puts them."""
        special = self.encode([""], special=True)[0]
        probe = next((p for p in ("a", "the", "A", "1", ".") if self.encode([p])[0]), "")
        content, whole = self.encode([probe])[0], self.encode([probe], special=True)[0]
        for cut in range(len(special) + 1):
            if content and whole == special[:cut] + content + special[cut:]:
                return special[:cut], special[cut:]
        raise ValueError(
            "the special tokens that the tokenizer puts before and after a text can't be told, so "
            "long texts can't be split for it: take another teacher"
        )

    def cut(self, ids: list[int], counts: Counter[str]) -> list[np.ndarray]:
        """The sequences of one text: at most `max_length` tokens each, special tokens included."""
        wrapped = len(ids) + len(self.prefix) + len(self.suffix)
        if not ids or wrapped < self.settings.min_length:
            counts["dropped_short"] += 1
            return []
        number = math.ceil(len(ids) / self.limit)
        counts["split"] += number > 1
        pieces = np.array_split(np.array(ids, dtype=self.dtype), number)
        known = [piece for piece in pieces if not self._unknown(piece)]
        counts["dropped_unknown"] += number - len(known)
        prefix, suffix = (np.array(part, dtype=self.dtype) for part in (self.prefix, self.suffix))
        return [np.concatenate([prefix, piece, suffix]) for piece in known]

    def _unknown(self, piece: np.ndarray) -> bool:
        unknown = self.tokenizer.unk_token_id
        return unknown is not None and bool(np.mean(piece == unknown) > self.settings.max_unknown)


def _key(corpus: Corpus, cutter: _Cutter, seed: int) -> str:
    # Without truncation and padding: the cutter has switched both off.
    backend = json.loads(cutter.tokenizer.backend_tokenizer.to_str())
    # The sources count by what they hold, wherever they are.
    sources = ("sources", "heldout_sources")
    settings = {key: value for key, value in digested(corpus).items() if key not in sources}
    parts = [
        *(_VERSION, seed, sources_fingerprint(corpus.sources)),
        None if corpus.heldout_sources is None else sources_fingerprint(corpus.heldout_sources),
        settings,
        *(backend, cutter.prefix, cutter.suffix, cutter.tokenizer.unk_token_id),
    ]
    return key_of(parts)


class _Side:
    """Writes one side."""

    def __init__(self, folder: Path, cutter: _Cutter) -> None:
        folder.mkdir()
        self.folder = folder
        self.stream = (folder / "tokens.bin").open("wb")
        self.offsets = array("q", [0])
        self.hashes = array("Q")
        self.token_counts_V = np.zeros(cutter.vocabulary_size, dtype=np.int64)

    def add(self, sequences: Sequence[np.ndarray]) -> None:
        for ids in sequences:
            self.stream.write(ids.tobytes())
            self.offsets.append(self.offsets[-1] + len(ids))
            np.add.at(self.token_counts_V, ids, 1)

    def close(self) -> None:
        self.stream.close()

    def finish(self) -> None:
        self.stream.flush()
        os.fsync(self.stream.fileno())  # so that what the disk refuses shows now
        np.save(self.folder / "offsets.npy", np.frombuffer(self.offsets, dtype=np.int64))
        np.save(self.folder / "token_counts.npy", self.token_counts_V)


def _build(
    corpus: Corpus,
    cutter: _Cutter,
    folder: Path,
    seed: int,
    progress: Callable[[int], None] | None,
) -> None:
    """Read, tokenise and write both sides and meta.json into an empty folder."""
    counts: Counter[str] = Counter(dict.fromkeys(_COUNTS, 0))
    seen: set[int] | None = set() if corpus.drop_duplicates else None
    with (
        closing(_Side(folder / "train", cutter)) as train,
        closing(_Side(folder / "heldout", cutter)) as heldout,
    ):
        for batch in _batches(_texts(corpus, seed, counts)):
            _add(batch, cutter, train, heldout, seen, counts)
            if progress is not None:
                progress(counts["records"])
        for name, side in (("train", train), ("heldout", heldout)):
            side.finish()
            counts[f"sequences_{name}"] = len(side.offsets) - 1
            counts[f"tokens_{name}"] = side.offsets[-1]
    _count_repeats(train.hashes, heldout.hashes, counts)
    if counts["sequences_train"] == 0:
        raise ValueError(_nothing_left(corpus, counts))
    write_meta(folder, {"counts": dict(counts), "warnings": _warnings(corpus, counts)})


def _add(
    batch: list[tuple[str, bool]],
    cutter: _Cutter,
    train: _Side,
    heldout: _Side,
    seen: set[int] | None,
    counts: Counter[str],
) -> None:
    """Tokenise a batch of texts, each to its side; `seen`: hashes of the earlier ones."""
    encoded = cutter.encode([text for text, _ in batch])
    for (text, held), ids in zip(batch, encoded, strict=True):
        sequences = cutter.cut(ids, counts)
        if not sequences:
            continue
        code = _text_hash(text)
        if seen is not None:
            if code in seen:
                counts["duplicates"] += 1
                continue
            seen.add(code)
        side = heldout if held else train
        side.hashes.append(code)
        side.add(sequences)


def _texts(corpus: Corpus, seed: int, counts: Counter[str]) -> Iterator[tuple[str, bool]]:
    """Every text of every record, and whether it is held out."""

    def texts(record: Record) -> Iterator[str]:
        counts["records"] += 1
        return (record.columns[name] for name in corpus.columns if name in record.columns)

    own = corpus.heldout_sources is not None
    for record in read_records(corpus.sources, corpus.columns):
        held = not own and heldout_side(
            record, corpus.columns, corpus.group_by, corpus.heldout, seed
        )
        yield from ((text, held) for text in texts(record))
    if corpus.heldout_sources is not None:
        for record in read_records(corpus.heldout_sources, corpus.columns):
            yield from ((text, True) for text in texts(record))


def _batches(texts: Iterator[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    batch: list[tuple[str, bool]] = []
    characters = 0
    for item in texts:
        batch.append(item)
        characters += len(item[0])
        if len(batch) == _TEXTS or characters >= _CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _text_hash(text: str) -> int:
    content = " ".join(text.split()).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _count_repeats(train: array[int], heldout: array[int], counts: Counter[str]) -> None:
    sides = [np.frombuffer(hashes, dtype=np.uint64) for hashes in (train, heldout)]
    for hashes in sides:
        counts["duplicates"] += len(hashes) - len(np.unique(hashes))
    counts["leaked"] = int(np.isin(sides[1], sides[0]).sum())
    # a text may be many sequences
    share = len(np.unique(sides[0])) / max(len(sides[0]), 1)
    counts["different_train"] = round(share * counts["sequences_train"])


def _nothing_left(corpus: Corpus, counts: Counter[str]) -> str:
    return (
        f"the corpus leaves nothing to train on: of {counts['records']} records, "
        f"{counts['dropped_short']} texts are shorter than min_length {corpus.min_length}, "
        f"{counts['dropped_unknown']} sequences are mostly unknown tokens and "
        f"{counts['sequences_heldout']} are held out: give more text or lower corpus.min_length"
    )


def _warnings(corpus: Corpus, counts: Counter[str]) -> list[str]:
    found = []
    if counts["different_train"] < FEW:
        found.append(
            f"training sees {counts['different_train']} different sequences, again and again: a "
            f"student learns fewer than {FEW} by heart and little else"
        )
    kept = counts["sequences_train"] + counts["sequences_heldout"]
    if counts["duplicates"]:
        what = "left out" if corpus.drop_duplicates else "left in (drop_duplicates leaves them out)"
        found.append(f"{_are(counts['duplicates'], 'text')} the same as an earlier one, and {what}")
    if counts["leaked"]:
        found.append(
            f"{_are(counts['leaked'], 'held-out text')} also in the training text, so held-out "
            "scores are too good: drop_duplicates removes them"
        )
    for name, why in (
        ("dropped_short", ("text", f"shorter than min_length {corpus.min_length}")),
        ("dropped_unknown", ("sequence", "mostly tokens that the tokenizer doesn't know")),
    ):
        if counts[name] > 0.2 * (kept + counts[name]):
            left = _are(kept, "sequence")
            found.append(f"{_are(counts[name], why[0])} {why[1]}, and left out; {left} left")
    if counts["sequences_heldout"] == 0 and (corpus.heldout or corpus.heldout_sources):
        found.append("no held-out text is left: give more of it, or a larger corpus.heldout")
    return found


def _are(count: int, noun: str) -> str:
    return f"{count} {noun} is" if count == 1 else f"{count} {noun}s are"


# --- the cache ------------------------------------------------------------------------------------


def _open(folder: Path) -> TokenizedCorpus:
    """What a cache folder holds.

    Raises:
        Damaged: it isn't there or not as it was written.
    """
    meta = read_meta(folder)
    sides = {name: _open_side(folder, name) for name in ("train", "heldout")}
    for name, side in sides.items():
        _, checksum = meta["files"][f"{name}/tokens.bin"]
        if checksum is None:  # earlier versions took none; the file of counts has one
            _check_counts(side, name)
    return TokenizedCorpus(**sides, counts=meta["counts"], warnings=meta["warnings"])


def _open_side(folder: Path, name: str) -> Tokens:
    offsets = np.load(folder / name / "offsets.npy", mmap_mode="r")
    token_counts = np.load(folder / name / "token_counts.npy")
    dtype = np.uint16 if len(token_counts) <= 65536 else np.int32
    ids: np.ndarray = np.zeros(0, dtype=dtype)
    if len(offsets) > 1:  # an empty file can't be mapped
        ids = np.memmap(folder / name / "tokens.bin", dtype=dtype, mode="r")
    lengths = np.diff(offsets).astype(np.int32)
    return Tokens(ids, offsets, lengths, token_counts, fingerprint=f"{folder.name}-{name}")


def _check_counts(tokens: Tokens, name: str) -> None:
    """Compare a side's ids with how often each is said to occur."""
    known = len(tokens.token_counts)
    counts_V = np.zeros(known, dtype=np.int64)
    for start in range(0, len(tokens.ids), _COUNTED):
        ids = tokens.ids[start : start + _COUNTED]
        if ids.min() < 0 or ids.max() >= known:
            break
        counts_V += np.bincount(ids, minlength=known)
    if not np.array_equal(counts_V, tokens.token_counts):
        raise Damaged(f"{name}/tokens.bin has changed")
