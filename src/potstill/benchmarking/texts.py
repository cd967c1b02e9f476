"""Read real text for a timed pass, and tokenize it with each model's own tokenizer."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from potstill.data import read_records
from potstill.models import load_config
from potstill.models.hub import one_sentence, quiet
from potstill.models.loading import check_vocabulary
from potstill.recipe import TextPass
from potstill.storage.onnx_files import folder_of, is_onnx

LONGEST = 128  # tokens, where neither the settings nor a model asks for fewer
Texts = list[tuple[str, ...]]  # one string per text, two per pair


@dataclass(frozen=True)
class CutTexts:
    """Hold texts as one model's tokenizer tokenizes them.

    Attributes:
        lengths: Tokens of each text, special tokens included.
        cut: Texts that were longer and lost their ends.
        seconds: Time that tokenizing took, one text at a time.
        file: Where the tokens are.
    """

    lengths: list[int]
    cut: int
    seconds: float
    file: Path


def read_texts(settings: TextPass) -> Texts:
    """Read the texts in their order.

    Raises:
        ValueError: A source cannot be read, a column is missing, or half of a pair is.
    """
    columns, found = settings.columns, Texts()
    records = read_records(settings.sources, columns)
    for record in islice(records, settings.max_texts):
        missing = next((name for name in columns if name not in record.columns), None)
        if missing is not None:
            raise ValueError(
                f"{record.origin}: column '{missing}' is empty. Fill it in, or remove the row: a "
                "pair needs both texts."
            )
        found.append(tuple(record.columns[name] for name in columns))
    return found


def text_length(settings: TextPass, positions: int | None) -> int:
    """Return the tokens at which texts are cut: the setting, else 128 or the models' maximum.

    Args:
        positions: Maximum sequence length of all models; None: unknown.

    Raises:
        ValueError: The setting is above the maximum.
    """
    wanted = settings.max_length
    if wanted is None:
        return LONGEST if positions is None else min(LONGEST, positions)
    if positions is not None and wanted > positions:
        raise ValueError(
            f"benchmark.pass_over.max_length: {wanted} is above a model's maximum sequence length. "
            f"Set at most {positions}."
        )
    return wanted


def write_tokens(texts: Texts, model: Path, length: int, target: Path) -> CutTexts:
    """Write texts as a model reads them: an .npz of ids, types and lengths.

    Args:
        texts: Texts or pairs of texts.
        model: The model folder, or an .onnx file in one, with its tokenizer.
        length: Tokens at which texts are cut, special tokens included.
        target: The .npz file.

    Raises:
        ValueError: The folder holds no tokenizer, or another model's.
    """
    folder = folder_of(model) if is_onnx(model) else model
    name = str(folder)
    with quiet(), one_sentence(name):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    check_vocabulary(name, tokenizer, int(load_config(folder).vocab_size))
    given = {"truncation": True, "max_length": length, "return_token_type_ids": True}
    tokenizer(*texts[0], **given)  # what the first call sets up is not timed
    start = time.perf_counter()
    encoded = [tokenizer(*text, **given) for text in texts]
    seconds = time.perf_counter() - start
    lengths = [len(one["input_ids"]) for one in encoded]
    np.savez(
        target,
        ids=np.concatenate([one["input_ids"] for one in encoded]),
        types=np.concatenate([one["token_type_ids"] for one in encoded]),
        lengths=np.array(lengths),
    )
    cut = sum(len(tokenizer(*text)["input_ids"]) > length for text in texts)
    return CutTexts(lengths, cut, seconds, target)
