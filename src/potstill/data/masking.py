"""Dynamic masking: which tokens of a sequence a masked LM predicts, and what it sees there.

Devlin et al. 2019 (arXiv 1810.04805): 15% of the tokens, of which 80% become the mask token, 10% a
random token and 10% stay. Liu et al. 2019 (arXiv 1907.11692): a new mask every epoch. Choosing rare
tokens more often, with weight count ** -0.7, comes from DistilBERT's reference implementation.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from potstill.data.sequences import IGNORED, Mask
from potstill.recipe import Masking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Masks of evaluation are those of an epoch that training never reaches.
EVALUATION_EPOCH = 2**31 - 1


@dataclass(frozen=True, eq=False)
class _Words:
    """Hold how tokens make words."""

    continues_V: np.ndarray  # bool: continues the word before it
    closes_V: np.ndarray  # bool: what follows is another word


@dataclass(frozen=True, eq=False)
class Masker:
    """Mask one sequence at a time; made by `make_masker`.

    A mask is a pure function of (seed, epoch, example index): neither the batch, nor the process,
    nor what was masked before affects it.
    """

    settings: Masking
    mask_id: int
    special_V: np.ndarray  # bool: never chosen
    ordinary_R: np.ndarray  # the ids that a random token is drawn from
    weights_V: np.ndarray  # float64: how readily a token is chosen, relative to the others
    words: _Words | None  # None: tokens one by one

    def __call__(
        self, ids: np.ndarray, seed: int, epoch: int, index: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what the model sees of `ids` [L] and what it has to predict, both int64 [L].

        The latter is the original id at the chosen positions and IGNORED elsewhere.
        round(probability * tokens) positions are chosen, at least one; with whole words, at least
        as many. A sequence of special tokens alone has none.
        """
        masked_ids = ids.astype(np.int64)
        gold = np.full(len(ids), IGNORED, dtype=np.int64)
        maskable = np.flatnonzero(~self.special_V[ids])
        if len(maskable) == 0:
            return masked_ids, gold
        rng = np.random.default_rng([seed, epoch, index])
        wanted = max(1, int(self.settings.probability * len(maskable) + 0.5))
        if self.words is None:
            order = _weighted_order(rng, self.weights_V[ids[maskable]])
            chosen = np.sort(maskable[order[:wanted]])
        else:
            chosen = maskable[self._in_chosen_words(rng, ids, maskable, wanted)]
        gold[chosen] = masked_ids[chosen]
        fate = rng.random(len(chosen))
        strangers = rng.choice(self.ordinary_R, size=len(chosen))
        hidden = fate < self.settings.mask
        replaced = ~hidden & (fate < self.settings.mask + self.settings.random)
        masked_ids[chosen[hidden]] = self.mask_id
        masked_ids[chosen[replaced]] = strangers[replaced]
        return masked_ids, gold

    def of_epoch(self, seed: int, epoch: int) -> Mask:
        """Return what masks a sequence in an epoch, for `collate`."""
        return lambda ids, index: self(ids, seed, epoch, index)

    def _in_chosen_words(
        self, rng: np.random.Generator, ids: np.ndarray, maskable: np.ndarray, wanted: int
    ) -> np.ndarray:
        """Return bool over the maskable positions: in a chosen word, weighed by its mean."""
        assert self.words is not None
        # A special token ends a word, and so does the beginning of a piece of a split text.
        after_gap = np.diff(maskable, prepend=-1) > 1
        starts = ~self.words.continues_V[ids[maskable]] | after_gap
        starts[1:] |= self.words.closes_V[ids[maskable[:-1]]]
        starts[0] = True
        word_of = np.cumsum(starts) - 1
        sizes = np.bincount(word_of)
        weights = np.bincount(word_of, weights=self.weights_V[ids[maskable]]) / sizes
        order = _weighted_order(rng, weights)
        enough = int(np.searchsorted(np.cumsum(sizes[order]), wanted)) + 1
        taken = np.zeros(len(sizes), dtype=bool)
        taken[order[:enough]] = True
        return np.asarray(taken[word_of])


def make_masker(
    masking: Masking, tokenizer: PreTrainedTokenizerFast, token_counts: np.ndarray
) -> Masker:
    """Make a tokenizer's masker; `token_counts` [V] (of the training text) serves smoothing."""
    if tokenizer.mask_token_id is None:
        raise ValueError(
            "the tokenizer has no mask token, so its model cannot be trained on masked LM. Use the "
            "tokenizer of a masked-LM encoder, or set task: sentence_embedding."
        )
    known = np.array(sorted(tokenizer.get_vocab().values()))
    size = len(token_counts)
    assert known[-1] < size, "token counts of another tokenizer"
    special_V = np.zeros(size, dtype=bool)
    special_V[tokenizer.all_special_ids] = True
    special_V[[i for i, token in tokenizer.added_tokens_decoder.items() if token.special]] = True
    return Masker(
        settings=masking,
        mask_id=int(tokenizer.mask_token_id),
        special_V=special_V,
        ordinary_R=known[~special_V[known]],
        weights_V=np.maximum(token_counts, 1).astype(np.float64) ** -masking.smoothing,
        words=_words(tokenizer, size) if masking.whole_word else None,
    )


def _weighted_order(rng: np.random.Generator, weights: np.ndarray) -> np.ndarray:
    """Draw an order without replacement, each draw in proportion to the weights left.

    The first of exponential clocks to ring (Efraimidis and Spirakis 2006, in logarithms).
    """
    return np.argsort(rng.exponential(size=len(weights)) / weights)


def _words(tokenizer: PreTrainedTokenizerFast, size: int) -> _Words:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model = backend["model"]
    kinds = _kinds(backend["pre_tokenizer"])
    prefix = model.get("continuing_subword_prefix")
    continues, closes = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    if model["type"] == "WordPiece" and prefix:
        for token, i in tokenizer.get_vocab().items():
            continues[i] |= token.startswith(prefix)
    elif "ByteLevel" in kinds or "Metaspace" in kinds:
        by_bytes = "ByteLevel" in kinds
        space = "Ġ" if by_bytes else kinds["Metaspace"]["replacement"]
        goes_on = _byte_goes_on if by_bytes else _character_goes_on
        for token, i in tokenizer.get_vocab().items():
            continues[i] |= not token.startswith(space) and goes_on(token[:1])
            last = token[-1:]
            inside = by_bytes and _BYTES.get(last, 0) >= 0x80  # of a longer character
            closes[i] = last != space and not inside and not goes_on(last)
    else:
        raise ValueError(
            f"masking.whole_word: not available for this tokenizer ({model['type']}, neither "
            "WordPiece with a continuation prefix, byte-level nor Metaspace). Set it to false."
        )
    return _Words(continues, closes)


def _character_goes_on(character: str) -> bool:
    """Return whether a token that starts so continues a word written without a space.

    Punctuation and line ends are words of their own, and so is each token of the scripts that
    write no spaces (BERT's Chinese characters; kana, Thai, Lao, Khmer and Burmese beside them).
    """
    if not (character.isalnum() or unicodedata.category(character or " ").startswith("M")):
        return False
    return not any(first <= character <= last for first, last in _WITHOUT_SPACES)


def _byte_goes_on(character: str) -> bool:
    """Return the same for a byte-level token, whose characters stand for bytes of UTF-8.

    The first byte of a longer character decides: E2 begins punctuation and symbols, E3 to E9 and
    EE on the scripts without spaces of East Asia and what is beyond. A byte within a character
    continues it.
    """
    byte = _BYTES.get(character, 0)
    if byte < 0x80:
        return _character_goes_on(chr(byte))
    return byte < 0xE2 or 0xEA <= byte <= 0xED


_WITHOUT_SPACES = [
    ("\u0e00", "\u0eff"),  # Thai, Lao
    ("\u1000", "\u109f"),  # Burmese
    ("\u1780", "\u17ff"),  # Khmer
    ("\u3040", "\u30ff"),  # kana
    ("\u3400", "\u4dbf"),
    ("\u4e00", "\u9fff"),
    ("\uf900", "\ufaff"),
    ("\U00020000", "\U0003ffff"),
]
# What byte-level tokenizers write for a byte: itself where it is printable Latin-1, else a letter
# from U+0100 on (as in GPT-2's vocabulary).
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES: dict[str, int] = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + number): byte
    for number, byte in enumerate(byte for byte in range(0x100) if byte not in _PRINTABLE)
}


def _kinds(pre_tokenizer: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """Return the parts of a pre-tokenizer by type, sequences unfolded."""
    if pre_tokenizer is None:
        return {}
    found = {str(pre_tokenizer["type"]): pre_tokenizer}
    for part in pre_tokenizer.get("pretokenizers", []):
        found |= _kinds(part)
    return found
