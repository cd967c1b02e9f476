"""Vocabularies cut to what a text uses: tokenizer and embeddings shrink together.

Why the text is tokenized as before: pieces.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from potstill.compression.pieces import Pieces
from potstill.data.tokenize import encode_whole, text_batches
from potstill.models import LoadedModel
from potstill.models.families import lm_readout
from potstill.models.hub import quiet
from potstill.recipe import Task
from potstill.storage.files import write_text

# Fraction of tokens without meaning above which a text is in another script; Unigram writes an
# unknown word as two tokens, of which one marks the beginning of a word.
FOREIGN = 0.4
# What a tokenizer's folder holds besides a list of tokens, which would be the former one's.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def count_pieces(
    tokenizer: PreTrainedTokenizerFast, pieces: Pieces, texts: Iterable[str], name: str
) -> np.ndarray:
    """Count how often each token occurs in some texts: int64 [V], without special tokens.

    Raises:
        ValueError: most of the text, whose source has this name, is unknown to the tokenizer.
    """
    counts_V = np.zeros(max(pieces.names) + 1, dtype=np.int64)
    for batch in text_batches(texts):
        ids = [one for encoding in encode_whole(tokenizer, batch)["input_ids"] for one in encoding]
        counts_V += np.bincount(np.array(ids, dtype=np.int64), minlength=len(counts_V))
    foreign = int(counts_V[list(pieces.foreign)].sum())
    if foreign > FOREIGN * counts_V.sum():
        kind = "unknown" if pieces.unknown in pieces.foreign else "single bytes"
        raise ValueError(
            f"{name}: {foreign / counts_V.sum():.0%} of its tokens are {kind} to the tokenizer, "
            "whose vocabulary has hardly a token of this script. Use text in a language that the "
            "model knows."
        )
    return counts_V


def kept_anyway(loaded: LoadedModel, pieces: Pieces, keep: Sequence[str]) -> set[int]:
    """Return the ids that any text keeps: special and added tokens, bytes, those asked for.

    Args:
        keep: Tokens, or words whose tokens are kept.

    Raises:
        ValueError: one of them is unknown to the tokenizer.
    """
    found = set(pieces.always) | {*loaded.tokenizer.all_special_ids}
    for ids in _token_ids(loaded.model.config).values():
        found |= {*np.ravel(ids).tolist()} & pieces.names.keys()
    for entry in keep:
        asked = [pieces.all_ids[entry]] if entry in pieces.all_ids else []
        asked = asked or encode_whole(loaded.tokenizer, [entry])["input_ids"][0]
        if not asked or pieces.unknown in asked:
            raise ValueError(
                f"keep: '{entry}' is unknown to the tokenizer of {loaded.name}. Remove it."
            )
        found = found.union(*map(pieces.needed, asked))
    return found


def choose_pieces(
    pieces: Pieces,
    counts_SV: np.ndarray,
    anyway: Collection[int],
    min_count: int = 1,
    size: int | None = None,
) -> set[int]:
    """Choose the ids to keep: those that occur often enough in the text, with what they need.

    Args:
        counts_SV: Counts each token in each source of the text. With `size`, tokens are taken in
            the order of their fraction of the source that uses them most, so that a small source
            (a language) isn't outvoted by a large one.
        anyway: See `kept_anyway`.

    Raises:
        ValueError: `size` is below what must be kept, or no token occurs often enough.
    """
    if size is not None and size <= len(anyway):
        raise ValueError(
            f"size: {size} leaves no token for the text, since {len(anyway)} are always kept "
            f"(special and added tokens, bytes, keep). Set more than {len(anyway)}."
        )
    share_V = (counts_SV / np.maximum(counts_SV.sum(1, keepdims=True), 1)).max(0)
    counts_V = counts_SV.sum(0)
    used = np.flatnonzero(counts_V >= min_count)
    if not len(used):
        raise ValueError(
            f"min_count: no token occurs {min_count} times in the text. The most frequent one "
            f"occurs {counts_V.max()} times: set at most that."
        )
    kept = set(anyway)
    for number in used[np.argsort(-share_V[used], kind="stable")].tolist():
        more = pieces.needed(number)
        if size is None or len(kept | more) <= size:
            kept |= more
    return kept


def trimmed(loaded: LoadedModel, pieces: Pieces, kept: Collection[int], name: str) -> LoadedModel:
    """Copy a model with some of its tokens alone, and a tokenizer that knows no others.

    Its outputs are the same for texts whose tokens are all kept; a masked-LM head predicts the kept
    ones alone.

    Raises:
        ValueError: a model that counts positions from its padding token, which can't keep its id;
            or a tokenizer class that doesn't take the new tokens.
    """
    config, tokenizer = loaded.model.config, loaded.tokenizer
    pad = config.pad_token_id if config.pad_token_id in pieces.names else tokenizer.pad_token_id
    order = pieces.order(kept, pad)
    new = {old: number for number, old in enumerate(order)}
    if loaded.family.counts_from_pad and new.get(config.pad_token_id) != config.pad_token_id:
        raise ValueError(
            f"{loaded.name}: its positions are counted from pad_token_id {config.pad_token_id}, "
            f"which a vocabulary size of {len(order)} does not have. Keep more tokens."
        )
    own = _trimmed_tokenizer(loaded, pieces, order, new)
    model = _trimmed_model(loaded, order)
    model.config.vocab_size = len(order)
    for key, ids in _token_ids(config).items():  # an id that is no token's names none
        several = isinstance(ids, list)
        setattr(model.config, key, [new[i] for i in ids if i in new] if several else new.get(ids))
    return replace(loaded, model=model, tokenizer=own, name=name)


def _trimmed_tokenizer(
    loaded: LoadedModel, pieces: Pieces, order: Sequence[int], new: Mapping[int, int]
) -> PreTrainedTokenizerFast:
    tokenizer: Any = loaded.tokenizer
    with tempfile.TemporaryDirectory() as place, quiet():
        folder = Path(place)
        tokenizer.save_pretrained(folder)
        for path in folder.iterdir():
            if path.name not in _TOKENIZER_FILES:
                path.unlink()
        tree = pieces.cut(order)
        write_text(folder / "tokenizer.json", json.dumps(tree, ensure_ascii=False))
        settings = folder / "tokenizer_config.json"
        keys = json.loads(settings.read_text("utf-8"))
        keys.pop("added_tokens_decoder", None)  # tokenizer.json has them, with their new ids
        for key, value in keys.items():
            if key.endswith("_id") and isinstance(value, int):
                keys[key] = new.get(value, value)
        write_text(settings, json.dumps(keys, indent=2, ensure_ascii=False))
        found: Any = AutoTokenizer.from_pretrained(
            folder, model_input_names=list(tokenizer.model_input_names)
        )
    own: PreTrainedTokenizerFast = found
    if own.get_vocab() != {pieces.names[old]: number for old, number in new.items()}:
        raise ValueError(
            f"{loaded.name}: transformers' {type(tokenizer).__name__} changes the tokens that it "
            "is given, so its vocabulary can't be trimmed. Omit trim_vocabulary."
        )
    return own


@torch.no_grad()
def _trimmed_model(loaded: LoadedModel, order: Sequence[int]) -> PreTrainedModel:
    """Copy a model with the rows of these tokens alone."""
    embeddings: Any = loaded.model.get_input_embeddings()
    tables: list[Tensor | None] = [embeddings.weight]
    if loaded.task == Task.MASKED_LM:
        readout = lm_readout(loaded.model)
        tables += [readout.weight_VD, readout.bias]
    rows = {
        id(table): nn.Parameter(table[torch.tensor(order, device=table.device)])
        for table in tables
        if table is not None
    }
    # Wherever a table is, the copy has its rows instead: what was tied stays tied.
    result = copy.deepcopy(loaded.model, memo=dict(rows))
    for module in result.modules():
        if isinstance(module, nn.Embedding):
            module.num_embeddings = len(module.weight)
        elif isinstance(module, nn.Linear):
            module.out_features = len(module.weight)
    return result


def _token_ids(config: PretrainedConfig) -> dict[str, Any]:
    """Return the ids of tokens, one or several per key, that a config names."""
    return {
        key: ids
        for key, ids in config.to_dict().items()
        if key.endswith("_token_id") and ids is not None
    }


@dataclass(frozen=True)
class Coverage:
    """Hold how much of a text a trimmed vocabulary still has whole tokens for."""

    texts: int
    tokens: int  # of the former tokenizer, without special ones
    words: int  # distinct ones: runs of letters and digits
    tokens_kept: float  # fraction
    words_kept: float  # fraction of the words whose tokens are all kept
    longer: float  # tokens now, as a multiple of those before
    unknown_before: float  # fraction of the tokens that are unknown characters
    unknown_after: float


def coverage_of(
    before: PreTrainedTokenizerFast,
    after: PreTrainedTokenizerFast,
    kept: Collection[int],
    texts: Iterable[str],
) -> Coverage | None:
    """Compare a tokenizer with its trimmed one, which kept some ids, on texts; None without any."""
    count, words = Counter[str](), dict[str, bool]()
    is_kept_V = np.zeros(max(before.get_vocab().values()) + 1, dtype=bool)
    is_kept_V[list(kept)] = True
    for batch in text_batches(texts):
        encoded = encode_whole(before, batch, offsets=True)
        shorter = encode_whole(after, batch)["input_ids"]
        both = zip(batch, encoded["input_ids"], encoded["offset_mapping"], shorter, strict=True)
        for text, ids, spans, new_ids in both:
            lost = np.zeros(len(text) + 1, dtype=bool)
            for number in np.flatnonzero(~is_kept_V[ids]).tolist():
                lost[slice(*spans[number])] = True
            for word in re.finditer(r"\w+", text):
                whole = not lost[word.start() : word.end()].any()
                words[word[0]] = words.get(word[0], True) and whole
            count["texts"] += 1
            count["before"] += len(ids)
            count["after"] += len(new_ids)
            count["kept"] += int(is_kept_V[ids].sum())
            count["unknown before"] += ids.count(before.unk_token_id)
            count["unknown after"] += new_ids.count(after.unk_token_id)
    if not count["before"]:
        return None
    return Coverage(
        texts=count["texts"],
        tokens=count["before"],
        words=len(words),
        tokens_kept=count["kept"] / count["before"],
        words_kept=sum(words.values()) / max(len(words), 1),
        longer=count["after"] / count["before"],
        unknown_before=count["unknown before"] / count["before"],
        unknown_after=count["unknown after"] / max(count["after"], 1),
    )
