"""Examples and models of tasks, tiny and random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertForSequenceClassification, BertForTokenClassification, BertModel

from conftest import tiny_config, tiny_tokenizer
from potstill.data import Examples
from potstill.data.sequences import IGNORED, UNLABELED, Pairs, Sentences
from potstill.recipe import Task

LABELS = 3


def bare(kind: type[Any], **given: Any) -> Any:
    """Examples of a class that say nothing but what is given; no sequences."""
    nothing = np.zeros(0, dtype=np.int64)
    more = {"word_at": nothing} if kind is Sentences else {"spans": nothing, "of": nothing}
    return kind(
        **{"ids": nothing, "offsets": nothing, "lengths": nothing, "types": None},
        **{"gold": nothing, "texts": [], "origins": []},
        **more,
        **given,
    )


def examples(task: Task, count: int, seed: int = 0) -> Examples:
    """Random token ids between [CLS] and [SEP], of 4 to 12 tokens, labelled but for every third."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 13, count).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    ids = rng.integers(5, 35, offsets[-1]).astype(np.int32)
    ids[offsets[:-1]], ids[offsets[1:] - 1] = 2, 3
    gold: Any = rng.integers(0, LABELS, count)
    gold[::3] = UNLABELED
    if task == "multi_label":
        gold = rng.integers(0, 2, (count, LABELS))
        gold[::3] = UNLABELED
    if not Task(task).has_distribution:
        gold = rng.normal(size=count).astype(np.float32)
        gold[::3] = np.nan
    if task == "token_classification":
        gold = rng.integers(0, LABELS, len(ids))
        gold[rng.random(len(ids)) < 0.4] = IGNORED
    names = [str(i) for i in range(count)]
    parts = ids, offsets, lengths, None, gold, [(n,) for n in names], names
    if task == "sentence_similarity":  # each of two tokens at least
        return Pairs(*parts, second_at=rng.integers(2, lengths - 1).astype(np.int32))
    if task == "token_classification":
        nothing = [()] * count
        return Sentences(*parts, word_at=np.full(len(ids), -1), words=nothing, tags=nothing)
    return Examples(*parts)


def write_model(task: Task, folder: Path, seed: int = 0, layers: int = 2) -> Path:
    torch.manual_seed(seed)
    tiny_tokenizer().save_pretrained(folder)
    if task == "sentence_similarity":
        BertModel(tiny_config(layers, initializer_range=0.3)).save_pretrained(folder)
        return folder
    labels = 1 if task == "regression" else LABELS
    config = tiny_config(layers, initializer_range=0.3, num_labels=labels)
    tokens = task == "token_classification"
    model = (BertForTokenClassification if tokens else BertForSequenceClassification)(config)
    model.save_pretrained(folder)
    return folder
