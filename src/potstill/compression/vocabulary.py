"""Vocabularies cut to what a text uses: tokenizer and embeddings shrink together.

Which pieces need each other, and why the text is cut as before: tokenizer_pieces.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from potstill.compression.pieces import Pieces
from potstill.data.tokenize import encode_whole
from potstill.models import LoadedModel
from potstill.models.families import family_of, lm_readout
from potstill.models.hub import quiet
from potstill.recipe import Task

# Share of tokens without meaning above which a text is in another script; Unigram writes an unknown
# word as two tokens, of which one says that a word begins.
FOREIGN = 0.4
_TEXTS = 500  # tokenised at a time, or
_CHARACTERS = 1 << 20
# What a tokenizer's folder holds beside a list of pieces, which would be the former one's.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


# --- which pieces ---------------------------------------------------------------------------------


def count_pieces(
    tokenizer: PreTrainedTokenizerFast, pieces: Pieces, texts: Iterable[str], name: str
) -> np.ndarray:
    """How often each piece stands in some texts: int64 [V], special tokens not counted.

    Args:
        name: of the texts' source, for messages.

    Raises:
        ValueError: most of the text is unknown to the tokenizer.
    """
    counts_V = np.zeros(max(pieces.names) + 1, dtype=np.int64)
    for batch in _batches(texts):
        ids = [one for encoding in encode_whole(tokenizer, batch)["input_ids"] for one in encoding]
        counts_V += np.bincount(np.array(ids, dtype=np.int64), minlength=len(counts_V))
    foreign = int(counts_V[list(pieces.foreign)].sum())
    if foreign > FOREIGN * counts_V.sum():
        kind = "unknown" if pieces.unknown in pieces.foreign else "single bytes"
        raise ValueError(
            f"{name}: {foreign / counts_V.sum():.0%} of its tokens are {kind} to the tokenizer, so "
            "hardly a piece of the vocabulary is of its script: give text in a language that the "
            "model knows"
        )
    return counts_V


def kept_anyway(loaded: LoadedModel, pieces: Pieces, keep: Sequence[str]) -> set[int]:
    """Ids that are kept whatever the text says: special and added tokens, bytes, those asked for.

    Args:
        keep: tokens, or words whose pieces are kept.

    Raises:
        ValueError: one of them is unknown to the tokenizer.
    """
    found = set(pieces.always) | {*loaded.tokenizer.all_special_ids}
    found |= {one for one in _config_ids(loaded.model.config) if one in pieces.names}
    for entry in keep:
        asked = [pieces.all_ids[entry]] if entry in pieces.all_ids else []
        asked = asked or encode_whole(loaded.tokenizer, [entry])["input_ids"][0]
        if not asked or pieces.unknown in asked:
            raise ValueError(
                f"keep: '{entry}' is unknown to the tokenizer of {loaded.name}: leave it out"
            )
        for number in asked:
            found |= pieces.needed(number)
    return found


def choose_pieces(
    pieces: Pieces,
    counts_SV: np.ndarray,
    anyway: Collection[int],
    min_count: int = 1,
    size: int | None = None,
) -> set[int]:
    """The ids to keep: those that stand often enough in the text, with what they need.

    Args:
        counts_SV: how often each piece stands in each source of the text. With `size`, pieces are
            taken in the order of their share of the source that uses them most, so that a small
            source (a language) isn't outvoted by a large one.
        anyway: see `kept_anyway`.

    Raises:
        ValueError: `size` is below what must be kept, or no piece stands often enough.
    """
    if size is not None and size <= len(anyway):
        raise ValueError(
            f"size: {size} leaves no piece for the text, since {len(anyway)} are kept in any case "
            f"(special and added tokens, bytes, keep): ask for more than {len(anyway)}"
        )
    totals_S1 = counts_SV.sum(1, keepdims=True)
    share_V = (counts_SV / np.maximum(totals_S1, 1)).max(0)
    counts_V = counts_SV.sum(0)
    used = np.flatnonzero(counts_V >= min_count)
    if not len(used):
        raise ValueError(
            f"min_count: no piece stands {min_count} times in the text; the most frequent one "
            f"stands there {counts_V.max()} times: ask for less"
        )
    kept = set(anyway)
    for number in used[np.argsort(-share_V[used], kind="stable")].tolist():
        more = pieces.needed(number)
        if size is None or len(kept | more) <= size:
            kept |= more
    return kept


# --- the cut --------------------------------------------------------------------------------------


def trimmed(loaded: LoadedModel, pieces: Pieces, kept: Collection[int], name: str) -> LoadedModel:
    """A model with some of its pieces alone, and a tokenizer that knows no others.

    Its outputs are the same for texts whose pieces are all kept; a masked-LM head predicts the kept
    ones alone. The model that is given stays as it is.

    Raises:
        ValueError: a model that counts positions from its padding token, which can't keep its id;
            or a tokenizer class that doesn't take the new pieces.
    """
    config, tokenizer = loaded.model.config, loaded.tokenizer
    pad = config.pad_token_id if config.pad_token_id in pieces.names else tokenizer.pad_token_id
    order = pieces.order(kept, pad)
    new = {old: number for number, old in enumerate(order)}
    counts = family_of(config, loaded.name).counts_from_pad
    if counts and new.get(config.pad_token_id) != config.pad_token_id:
        raise ValueError(
            f"{loaded.name}: its positions are counted from pad_token_id {config.pad_token_id}, "
            f"which it can't have among {len(order)} pieces: keep more of them"
        )
    own = _trimmed_tokenizer(loaded, pieces, order, new)
    model = _trimmed_model(loaded, order)
    _renumber(model.config, new)
    model.config.vocab_size = len(order)
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
        (folder / "tokenizer.json").write_text(json.dumps(tree, ensure_ascii=False), "utf-8")
        settings = folder / "tokenizer_config.json"
        told = json.loads(settings.read_text("utf-8"))
        told.pop("added_tokens_decoder", None)  # tokenizer.json has them, with their new ids
        for key, value in told.items():
            if key.endswith("_id") and isinstance(value, int):
                told[key] = new.get(value, value)
        settings.write_text(json.dumps(told, indent=2, ensure_ascii=False), "utf-8")
        found: Any = AutoTokenizer.from_pretrained(
            folder, model_input_names=list(tokenizer.model_input_names)
        )
    own: PreTrainedTokenizerFast = found
    if own.get_vocab() != {pieces.names[old]: number for old, number in new.items()}:
        raise ValueError(
            f"{loaded.name}: transformers' {type(tokenizer).__name__} changes the pieces that it "
            "is given, so its vocabulary can't be trimmed: leave trim_vocabulary out"
        )
    return own


@torch.no_grad()
def _trimmed_model(loaded: LoadedModel, order: Sequence[int]) -> PreTrainedModel:
    """A copy with the rows of these tokens alone."""
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


def _config_ids(config: PretrainedConfig) -> Iterator[int]:
    """The ids of tokens that a config names."""
    for key, value in config.to_dict().items():
        if key.endswith("_token_id") and value is not None:
            yield from (one for one in (value if isinstance(value, list) else [value]))


def _renumber(config: PretrainedConfig, new: Mapping[int, int]) -> None:
    """New ids of the tokens that a config names; an id that is no token's names none."""
    for key, value in config.to_dict().items():
        if key.endswith("_token_id") and value is not None:
            several = isinstance(value, list)
            setattr(config, key, [new[v] for v in value if v in new] if several else new.get(value))


# --- what is covered ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coverage:
    """How much of a text a trimmed vocabulary still says in whole pieces.

    Attributes:
        texts, tokens, words: what it was measured on: tokens of the former tokenizer, without
            special ones; distinct words, runs of letters and digits.
        tokens_kept: share of the tokens whose piece is kept.
        words_kept: share of the distinct words whose pieces are all kept.
        longer: tokens now, as a multiple of those before.
        unknown_before, unknown_after: share of the tokens that stand for unknown characters.
    """

    texts: int
    tokens: int
    words: int
    tokens_kept: float
    words_kept: float
    longer: float
    unknown_before: float
    unknown_after: float


def coverage_of(
    before: PreTrainedTokenizerFast,
    after: PreTrainedTokenizerFast,
    kept: Collection[int],
    texts: Iterable[str],
) -> Coverage | None:
    """Compare a tokenizer with its trimmed one on texts; None if there is no token in them.

    Args:
        kept: the former ids that were kept.
    """
    found = _Tally()
    is_kept_V = np.zeros(max(before.get_vocab().values()) + 1, dtype=bool)
    is_kept_V[list(kept)] = True
    for batch in _batches(texts):
        encoded = encode_whole(before, batch, offsets=True)
        shorter = encode_whole(after, batch)["input_ids"]
        both = zip(batch, encoded["input_ids"], encoded["offset_mapping"], shorter, strict=True)
        for text, ids, spans, new_ids in both:
            found.texts += 1
            found.after += len(new_ids)
            found.unknown_after += new_ids.count(after.unk_token_id)
            found.add(text, np.array(ids, dtype=np.int64), spans, is_kept_V, before.unk_token_id)
    return found.coverage() if found.before else None


@dataclass
class _Tally:
    texts: int = 0
    before: int = 0
    after: int = 0
    kept: int = 0
    unknown_before: int = 0
    unknown_after: int = 0

    def __post_init__(self) -> None:
        self.words: dict[str, bool] = {}

    def add(
        self,
        text: str,
        ids: np.ndarray,
        spans: Sequence[tuple[int, int]],
        is_kept_V: np.ndarray,
        unknown: int | None,
    ) -> None:
        kept = is_kept_V[ids]
        self.before += len(ids)
        self.kept += int(kept.sum())
        self.unknown_before += int((ids == (-1 if unknown is None else unknown)).sum())
        lost = np.zeros(len(text) + 1, dtype=bool)
        for number in np.flatnonzero(~kept).tolist():
            lost[slice(*spans[number])] = True
        for word in re.finditer(r"\w+", text):
            whole = not lost[word.start() : word.end()].any()
            self.words[word[0]] = self.words.get(word[0], True) and whole

    def coverage(self) -> Coverage:
        return Coverage(
            texts=self.texts,
            tokens=self.before,
            words=len(self.words),
            tokens_kept=self.kept / self.before,
            words_kept=sum(self.words.values()) / max(len(self.words), 1),
            longer=self.after / self.before,
            unknown_before=self.unknown_before / self.before,
            unknown_after=self.unknown_after / max(self.after, 1),
        )


# --- texts ----------------------------------------------------------------------------------------


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == _TEXTS or characters >= _CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
