"""Small tokenizers and random text for tests."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from potstill.recipe import Corpus

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


def random_lines(number: int, longest: int = 40, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [" ".join(rng.choices(letters, k=rng.randint(4, longest))) for _ in range(number)]


def write_corpus(folder: Path, lines: list[str], **settings: Any) -> Corpus:
    """Writes lines to a new file; a corpus of it, nothing held out and hardly anything dropped."""
    path = folder / f"{len(list(folder.iterdir()))}.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    basic = {"max_length": 8, "min_length": 1, "heldout": 0.0}
    return Corpus.model_validate({"sources": str(path), **basic, **settings})
