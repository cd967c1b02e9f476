"""Teachers that are asked once for each example: their answers are cached on disk.

Logits, and one vector per text where an objective reads it, in the order of the examples: train,
unlabeled, dev. Of a sentence encoder's corpus its unit vectors and, where an objective reads them,
the last hidden states of all tokens. In float16, whose rounding no softmax notices; values of
regression, which may be years or prices, in float32. The cache key is all that decides the content:
the teacher's files, the task, and the examples as the teacher reads them (token ids, types and
gold), which include tokenizer and max_length. So an outdated cache is never found; a damaged one is
rebuilt.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from potstill.data import Batch, Examples, Tokens, collate
from potstill.models import LoadedModel, Signals
from potstill.recipe import Distill, Objective, Task
from potstill.storage.caches import Damaged, kept, key_of, read_meta, write_meta
from potstill.storage.manifest import blake2b, manifest_digest, model_manifest
from potstill.tasks.heads import embedded, labelled_signals, row_counts

_VERSION = 3  # of the cache's format
_COUNTED = 1000  # examples whose rows are counted at a time
_WORTH = 1.5  # epochs of a corpus from which asking about all of it, held-out text too, pays
_BATCH = 64  # examples that the teacher is asked about at a time


@dataclass(frozen=True, eq=False)
class Answers:
    """Hold a teacher's answers to N examples, memory-mapped.

    Attributes:
        starts: int64 [N + 1]: the rows of example i are starts[i] to starts[i + 1].
        logits_RC: R rows of distributions over C classes, example by example; None for a corpus.
        vectors_ND: float16, what the head's last linear map reads; for a pair of texts that are
            encoded apart both embeddings, one after the other; None where nobody asked.
        hidden_RD: float16, the last hidden states, a row for each token; None where nobody asked.
    """

    starts: np.ndarray
    logits_RC: np.ndarray | None = None
    vectors_ND: np.ndarray | None = None
    hidden_RD: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows(
        self, numbers: np.ndarray, name: Literal["logits_RC", "hidden_RD"] = "logits_RC"
    ) -> Tensor:
        """Return the rows of some examples, in their order: float32 [K x C]."""
        values_RC = getattr(self, name)
        first, last = self.starts[numbers], self.starts[numbers + 1]
        if (last - first == 1).all():  # a sentence without a token has none
            return as_floats(values_RC[first])
        return as_floats(np.concatenate([values_RC[a:b] for a, b in zip(first, last, strict=True)]))


@dataclass(frozen=True)
class Asking:
    """Define what teachers are asked, in one place.

    Attributes:
        examples: by their numbers, one part after the other.
        vectors: whether what the head's last linear map reads is kept, too.
        hidden: whether the hidden states of a corpus's tokens are kept.
        say, progress: receive a line of the log, and the share that is done.
    """

    examples: Sequence[Examples | Tokens]
    vectors: bool
    hidden: bool = False
    say: Callable[[str], None] = lambda _: None
    progress: Callable[[float], None] = lambda _: None


def why_live(stage: Distill, task: Task, epochs: float) -> str | None:
    """Return why a stage's teachers are asked again for every batch; None: they are cached.

    Args:
        epochs: how often the examples are read, over all repeats.
    """
    if not task.cacheable:
        return f"outputs for {task} are not cached"
    if stage.cache is False:
        return "cache is false"
    if (kind := stage.live(task)) is not None:
        return f"{kind} reads the hidden states of tokens"
    if stage.cache == "auto" and epochs <= 1:
        return "no example is read twice"
    if stage.cache == "auto" and task == Task.SENTENCE_EMBEDDING and epochs < _WORTH:
        return "few texts are read twice"
    return None


def why_too_large(size: int, cache: Path) -> str | None:
    """Return why answers of some bytes are not cached: they would fill half of what is free."""
    folder = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if size <= free / 2:
        return None
    return f"its hidden states would take {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"


def reads_vectors(objectives: Sequence[Objective]) -> bool:
    """Return whether an objective reads one vector per text."""
    return any(o.reads == "vectors" for o in objectives if o.weight > 0)


def reads_hidden(objectives: Sequence[Objective]) -> bool:
    """Return whether an objective reads the last hidden states of tokens."""
    return any(o.reads == "tokens" for o in objectives if o.weight > 0)


def teacher_answers(loaded: LoadedModel, folder: Path, asked: Asking, cache: Path) -> Answers:
    """Return a teacher's answers, from the cache or by asking it, in eval mode and float32.

    Args:
        loaded: the teacher, with its weights.
        folder: where it was loaded from; its files are part of the cache key.
        asked: the examples, and what is kept of the answers.
        cache: the folder that caches are in.

    Raises:
        ValueError: Answers are not finite or too large, or the cache can't be written.
    """
    parts = {
        "version": _VERSION,
        "task": loaded.task,
        "teacher": manifest_digest(model_manifest(folder)),
        "examples": [_fingerprint(part) for part in asked.examples],
        "pad_id": _pad_id(loaded),
        "vectors": asked.vectors,
        "hidden": asked.hidden,
    }

    def build(target: Path) -> None:
        count = sum(map(len, asked.examples))
        asked.say(f"asking {loaded.name} about {count} examples, once for all epochs")
        _build(loaded, asked, target)
        write_meta(target, {"parts": parts})

    what = f"cache of {loaded.name}'s outputs"
    return kept(cache / key_of(parts), build, lambda path: _opened(path, parts), what, asked.say)


def _pad_id(loaded: LoadedModel) -> int:
    return int(loaded.tokenizer.pad_token_id or 0)


def as_floats(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _fingerprint(examples: Examples | Tokens) -> str:
    """Hash all that the teacher's answers depend on, whatever files it came from."""
    if isinstance(examples, Tokens):
        return examples.fingerprint
    parts: list[bytes | memoryview] = []
    second_at = getattr(examples, "second_at", None)
    for values in (examples.ids, examples.offsets, examples.types, examples.gold, second_at):
        parts.append(b"none" if values is None else f"{values.dtype.str}{values.shape}".encode())
        if values is not None:
            parts.append(np.ascontiguousarray(values).data)
    return blake2b(*parts).hex()


# --- asking ---------------------------------------------------------------------------------------


@torch.no_grad()
def _build(loaded: LoadedModel, asked: Asking, folder: Path) -> None:
    """Ask a teacher about all examples and write its answers into an empty folder."""
    small = np.float16 if loaded.task.has_distribution else np.float32
    logits = _Matrix(folder / "logits.npy", small, loaded.name)
    vectors = _Matrix(folder / "vectors.npy", np.float16, loaded.name)
    hidden = _Matrix(folder / "hidden.npy", np.float16, loaded.name)
    counts = (_counts(loaded.task, part) for part in asked.examples)
    starts = np.concatenate([[0], *counts]).cumsum()
    np.save(folder / "starts.npy", starts.astype(np.int64))
    total, first = len(starts) - 1, 0
    for part in asked.examples:
        # of like length together, so that little is padded; written where they belong
        order = np.argsort(part.lengths, kind="stable")
        for begin in range(0, len(order), _BATCH):
            rows = order[begin : begin + _BATCH]
            signals = _answers(loaded, collate(part, rows, _pad_id(loaded)))
            found = [np.arange(starts[first + i], starts[first + i + 1]) for i in rows]
            places, end = np.concatenate(found), int(starts[-1])
            if not isinstance(part, Tokens):
                logits.write(signals.logits(), places, end)
            if asked.hidden:
                hidden.write(signals.hidden_BLD, places, end)
            if asked.vectors:
                assert signals.vectors_BD is not None
                vectors.write(signals.vectors_BD, first + rows, total)
            asked.progress((first + begin + len(rows)) / total)
        first += len(part)
    for matrix in (logits, vectors, hidden):
        if matrix.values is not None:
            matrix.values.flush()


def _counts(task: Task, examples: Examples | Tokens) -> np.ndarray:
    """Count the rows of each example."""
    if isinstance(examples, Tokens):
        return examples.lengths
    found = []
    for start in range(0, len(examples), _COUNTED):
        numbers = np.arange(start, min(start + _COUNTED, len(examples)))
        found.append(row_counts(task, collate(examples, numbers, 0)).numpy())
    return np.concatenate(found)


def _answers(loaded: LoadedModel, batch: Batch) -> Signals:
    """Return a model's signals in eval mode, on its own device; of a corpus a row per real token.

    A pair of texts that are encoded apart has both vectors in one row.
    """
    loaded.model.eval()
    batch = batch.to(loaded.model.device)
    if loaded.task == Task.SENTENCE_EMBEDDING:
        hidden_BLD, unit_BD = embedded(loaded, batch)
        return Signals(hidden_BLD[batch.attention_mask_BL.bool()], vectors_BD=unit_BD)
    signals = labelled_signals(loaded, batch)
    if signals.vectors_BD is not None and loaded.task == Task.SENTENCE_SIMILARITY:
        both_PD = torch.cat(signals.vectors_BD.chunk(2), dim=1)
        return replace(signals, vectors_BD=both_PD)
    return signals


class _Matrix:
    """Write a matrix to disk, which is made when its width is known."""

    def __init__(self, path: Path, dtype: type[np.floating[Any]], name: str) -> None:
        self.path, self.dtype, self.name = path, dtype, name
        self.values: Any = None

    def write(self, values: Tensor, places: np.ndarray, total: int) -> None:
        found = values.float().cpu().numpy()
        largest = float(np.finfo(self.dtype).max)
        if not np.abs(found).max(initial=0) <= largest:  # NaN is not, either
            raise ValueError(
                f"{self.name}: its outputs are not finite, or beyond {largest:g}. Set cache: false "
                "in the distill stage, or use another teacher."
            )
        if self.values is None:
            shape = total, found.shape[1]
            self.values = np.lib.format.open_memmap(self.path, "w+", self.dtype, shape)
        self.values[places] = found


def _opened(folder: Path, parts: Mapping[str, Any]) -> Answers:
    """Open a cache folder.

    Raises:
        Damaged: It isn't there, not as it was written, or of something else.
    """
    if read_meta(folder).get("parts") != parts:
        raise Damaged("it holds other outputs")
    found = {
        path.stem: np.load(path, mmap_mode="r")
        for path in folder.iterdir()
        if path.suffix == ".npy"
    }
    return Answers(found["starts"], *(found.get(k) for k in ("logits", "vectors", "hidden")))
