"""Corpora as token sequences: tokenized once, kept on disk, memory-mapped.

Memory grows by 8 bytes per sequence (its offset) and 8 bytes per text (a hash that finds
duplicates); with `drop_duplicates` the hashes are also a set, of some 70 bytes per text.
"""

from __future__ import annotations

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
from potstill.data.sources import heldout_side, read_records, sources_fingerprint
from potstill.data.tokenize import encode_whole, text_batches
from potstill.recipe import Corpus
from potstill.recipe.config import digested
from potstill.storage.caches import Damaged, kept, key_of, read_meta, write_meta
from potstill.storage.manifest import blake2b

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_VERSION = 3  # of the cache's format and of how text becomes sequences
_COUNTED = 1 << 20  # ids that are counted at a time
FEW = 100  # different training sequences; below that, a corpus warns
_SIDES = ("train", "heldout")
_COUNTS = (
    *("records", "sequences_train", "sequences_heldout", "tokens_train", "tokens_heldout"),
    *("split", "dropped_short", "dropped_unknown", "duplicates", "leaked", "different_train"),
)


def tokenize_corpus(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    cache: Path,
    seed: int,
    say: Callable[[str], None] = lambda _: None,
) -> TokenizedCorpus:
    """Tokenize both sides of a corpus, or read their token sequences from the cache.

    Texts over `max_length` are split into nearly equal parts, of at least half of it; `min_length`
    is compared with whole texts. The cache is keyed by what the sources hold, the tokenizer, the
    corpus settings and the seed; one that is damaged or half written is built again. Several
    processes may do this at once: the first to finish wins.

    Args:
        cache: The folder of all caches.
        seed: Seed of the run, which decides what is held out.
        say: Receives a sentence where the cache is damaged.

    Raises:
        ValueError: Bad input (see `read_records`), no training sequence is left, the tokenizer is
            not a fast one or leaves no room for text, or the cache cannot be written.
    """
    cutter = _Cutter(corpus, tokenizer)
    folder = cache / _key(corpus, cutter, seed)
    return kept(folder, lambda new: _build(corpus, cutter, new, seed), _open, "token cache", say)


def cut_texts(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> list[np.ndarray]:
    """Cut texts into the sequences of a tokenized corpus: each uint16 or int32 [L]."""
    cutter = _Cutter(corpus, tokenizer)
    counts: Counter[str] = Counter()
    return [part for ids in cutter.encode(texts) for part in cutter.cut(ids, counts)]


class _Cutter:
    """Turn texts into token sequences."""

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> None:
        if not tokenizer.is_fast:
            raise ValueError(
                "the tokenizer has no tokenizer.json. Use a model with a fast tokenizer."
            )
        self.tokenizer = tokenizer
        self.settings = corpus
        self.prefix, self.suffix = self._wrapping()
        self.limit = corpus.max_length - len(self.prefix) - len(self.suffix)
        if self.limit < 1:
            raise ValueError(
                f"corpus.max_length: {corpus.max_length} leaves no room for text. Raise it."
            )
        self.vocabulary_size = max(tokenizer.get_vocab().values()) + 1
        self.dtype = np.uint16 if self.vocabulary_size <= 65536 else np.int32

    def encode(self, texts: Sequence[str], special: bool = False) -> list[list[int]]:
        """Return the ids of whole texts."""
        return list(encode_whole(self.tokenizer, texts, special=special)["input_ids"])

    def _wrapping(self) -> tuple[list[int], list[int]]:
        """Return the special tokens that the tokenizer puts before and after a text."""
        special = self.encode([""], special=True)[0]
        probe = next((p for p in ("a", "the", "A", "1", ".") if self.encode([p])[0]), "")
        content, whole = self.encode([probe])[0], self.encode([probe], special=True)[0]
        for cut in range(len(special) + 1):
            if content and whole == special[:cut] + content + special[cut:]:
                return special[:cut], special[cut:]
        raise ValueError(
            "the special tokens that the tokenizer puts before and after a text are unclear, so "
            "long texts cannot be split. Use another teacher."
        )

    def cut(self, ids: list[int], counts: Counter[str]) -> list[np.ndarray]:
        """Cut one text into sequences of at most `max_length` tokens, special tokens included."""
        wrapped = len(ids) + len(self.prefix) + len(self.suffix)
        if not ids or wrapped < self.settings.min_length:
            counts["dropped_short"] += 1
            return []
        number = math.ceil(len(ids) / self.limit)
        counts["split"] += number > 1
        parts = np.array_split(np.array(ids, dtype=self.dtype), number)
        unknown = self.tokenizer.unk_token_id
        if unknown is not None:
            limit = self.settings.max_unknown
            parts = [part for part in parts if np.mean(part == unknown) <= limit]
        counts["dropped_unknown"] += number - len(parts)
        prefix, suffix = (np.array(part, dtype=self.dtype) for part in (self.prefix, self.suffix))
        return [np.concatenate([prefix, part, suffix]) for part in parts]


def _key(corpus: Corpus, cutter: _Cutter, seed: int) -> str:
    # Without truncation and padding: the cutter has switched both off.
    backend = json.loads(cutter.tokenizer.backend_tokenizer.to_str())
    # The sources count by what they hold, wherever they are.
    settings = digested(corpus)
    del settings["sources"], settings["heldout_sources"]
    parts = [
        *(_VERSION, seed, sources_fingerprint(corpus.sources)),
        None if corpus.heldout_sources is None else sources_fingerprint(corpus.heldout_sources),
        settings,
        *(backend, cutter.prefix, cutter.suffix, cutter.tokenizer.unk_token_id),
    ]
    return key_of(parts)


class _Side:
    """Write one side."""

    def __init__(self, folder: Path, cutter: _Cutter) -> None:
        folder.mkdir()
        self.folder = folder
        self.stream = (folder / "tokens.bin").open("wb")
        self.offsets = array("q", [0])
        self.hashes = array("Q")
        self.token_counts_V = np.zeros(cutter.vocabulary_size, dtype=np.int64)

    def add(self, code: int, sequences: Sequence[np.ndarray]) -> None:
        """Add the sequences of a text with its hash."""
        self.hashes.append(code)
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


def _build(corpus: Corpus, cutter: _Cutter, folder: Path, seed: int) -> None:
    """Read, tokenize and write both sides and meta.json into an empty folder."""
    counts: Counter[str] = Counter(dict.fromkeys(_COUNTS, 0))
    seen: set[int] = set()
    with (
        closing(_Side(folder / "train", cutter)) as train,
        closing(_Side(folder / "heldout", cutter)) as heldout,
    ):
        for batch in text_batches(_texts(corpus, seed, counts), lambda item: item[0]):
            encoded = cutter.encode([text for text, _ in batch])
            for (text, held), ids in zip(batch, encoded, strict=True):
                sequences = cutter.cut(ids, counts)
                if not sequences:
                    continue
                code = int.from_bytes(blake2b(" ".join(text.split()).encode(), size=8), "little")
                if code in seen:
                    counts["duplicates"] += 1
                    continue
                if corpus.drop_duplicates:
                    seen.add(code)
                (heldout if held else train).add(code, sequences)
        for name, side in zip(_SIDES, (train, heldout), strict=True):
            side.finish()
            counts[f"sequences_{name}"] = len(side.offsets) - 1
            counts[f"tokens_{name}"] = side.offsets[-1]
    _count_repeats(train.hashes, heldout.hashes, counts)
    if counts["sequences_train"] == 0:
        raise ValueError(
            f"corpus: nothing is left to train on. From {counts['records']} records, "
            f"{counts['dropped_short']} texts are shorter than min_length {corpus.min_length}, "
            f"{counts['dropped_unknown']} sequences are mostly unknown tokens and "
            f"{counts['sequences_heldout']} are held out. Add text or lower corpus.min_length."
        )
    write_meta(folder, {"counts": dict(counts), "warnings": _warnings(corpus, counts)})


def _texts(corpus: Corpus, seed: int, counts: Counter[str]) -> Iterator[tuple[str, bool]]:
    """Yield every text of every record, and whether it is held out."""
    own = corpus.heldout_sources
    for sources, held in ((corpus.sources, False), (own, True)):
        for record in read_records(sources, corpus.columns) if sources else ():
            counts["records"] += 1
            side = held or (
                own is None
                and heldout_side(record, corpus.columns, corpus.group_by, corpus.heldout, seed)
            )
            yield from ((text, side) for text in record.texts(corpus.columns))


def _count_repeats(train: array[int], heldout: array[int], counts: Counter[str]) -> None:
    sides = [np.frombuffer(hashes, dtype=np.uint64) for hashes in (train, heldout)]
    for hashes in sides:
        counts["duplicates"] += len(hashes) - len(np.unique(hashes))
    counts["leaked"] = int(np.isin(sides[1], sides[0]).sum())
    # one text may become several sequences
    share = len(np.unique(sides[0])) / max(len(sides[0]), 1)
    counts["different_train"] = round(share * counts["sequences_train"])


def _warnings(corpus: Corpus, counts: Counter[str]) -> list[str]:
    found = []
    if counts["different_train"] < FEW:
        found.append(
            f"training sees only {counts['different_train']} different sequences, again and again. "
            f"A student memorizes fewer than {FEW}. Add text."
        )
    if count := counts["duplicates"]:
        kept = "kept (set drop_duplicates: true to drop them)"
        what = "dropped" if corpus.drop_duplicates else kept
        found.append(f"{_are(count, 'text')} the same as an earlier one, and {what}.")
    if counts["leaked"]:
        found.append(
            f"{_are(counts['leaked'], 'held-out text')} also in the training text, so held-out "
            "scores are too good. Set drop_duplicates: true."
        )
    left = counts["sequences_train"] + counts["sequences_heldout"]
    for name, noun, why in (
        ("dropped_short", "text", f"shorter than min_length {corpus.min_length}"),
        ("dropped_unknown", "sequence", "mostly tokens that the tokenizer doesn't know"),
    ):
        if (count := counts[name]) > 0.2 * (left + count):
            found.append(f"{_are(count, noun)} {why}, and dropped; {_are(left, 'sequence')} left.")
    if counts["sequences_heldout"] == 0 and (corpus.heldout or corpus.heldout_sources):
        found.append("no held-out text is left. Add text or raise corpus.heldout.")
    return found


def _are(count: int, noun: str) -> str:
    return f"{count} {noun} is" if count == 1 else f"{count} {noun}s are"


def _open(folder: Path) -> TokenizedCorpus:
    """Open a cache folder; raise Damaged if it is missing or not as it was written."""
    meta = read_meta(folder)
    sides = {name: _open_side(folder, name) for name in _SIDES}
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
    """Compare a side's ids with how often each occurs according to its file of counts."""
    known = len(tokens.token_counts)
    counts_V = np.zeros(known, dtype=np.int64)
    for start in range(0, len(tokens.ids), _COUNTED):
        ids = tokens.ids[start : start + _COUNTED]
        if ids.min() < 0 or ids.max() >= known:
            break
        counts_V += np.bincount(ids, minlength=known)
    if not np.array_equal(counts_V, tokens.token_counts):
        raise Damaged(f"{name}/tokens.bin has changed")
