"""Teachers that are asked once for each example: their answers are cached on disk.

Logits, and one vector per text where an objective reads it, in the order of the examples: train,
unlabeled, dev. In float16, whose rounding no softmax notices; values of regression, which may be
years or prices, in float32. The cache key is all that decides the content: the teacher's files, the
task, and the examples as the teacher reads them (token ids, types and gold), which include
tokenizer and max_length. So an outdated cache is never found; a damaged one is rebuilt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.data import Batch, Examples, collate
from potstill.models import LoadedModel
from potstill.recipe import Distill, Objective, Task
from potstill.storage.caches import Damaged, kept, key_of, read_meta, write_meta
from potstill.storage.manifest import blake2b, manifest_digest, model_manifest
from potstill.tasks.heads import labelled_signals, row_counts

_VERSION = 2  # of the cache's format
_COUNTED = 1000  # examples whose rows are counted at a time
_BATCH = 64  # examples that the teacher is asked about at a time


@dataclass(frozen=True, eq=False)
class Answers:
    """Hold a teacher's answers to N examples, memory-mapped.

    Attributes:
        logits_RC: R rows of distributions over C classes, example by example.
        starts: int64 [N + 1]: the rows of example i are starts[i] to starts[i + 1].
        vectors_ND: float16, what the head's last linear map reads; for a pair of texts that are
            encoded apart both embeddings, one after the other; None where nobody asked.
    """

    logits_RC: np.ndarray
    starts: np.ndarray
    vectors_ND: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows(self, numbers: np.ndarray) -> Tensor:
        """Return the logits of some examples, in their order: float32 [K x C]."""
        first, last = self.starts[numbers], self.starts[numbers + 1]
        if (last - first == 1).all():  # a sentence without a token has none
            return as_floats(self.logits_RC[first])
        spans = [np.arange(a, b) for a, b in zip(first, last, strict=True)]
        return as_floats(self.logits_RC[np.concatenate(spans)])


@dataclass(frozen=True)
class Asking:
    """Define what teachers are asked, in one place.

    Attributes:
        examples: by their numbers, one part after the other.
        vectors: whether what the head's last linear map reads is kept, too.
        say, progress: receive a line of the log, and the share that is done.
    """

    examples: Sequence[Examples]
    vectors: bool
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
    if stage.live is not None:
        return f"{stage.live} reads the hidden states of tokens"
    if stage.cache == "auto" and epochs <= 1:
        return "no example is read twice"
    return None


def reads_vectors(objectives: Sequence[Objective]) -> bool:
    """Return whether an objective reads one vector per text."""
    return any(o.reads == "vectors" for o in objectives if o.weight > 0)


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


def _fingerprint(examples: Examples) -> str:
    """Hash all that the teacher's answers depend on, whatever files it came from."""
    parts: list[bytes | memoryview] = []
    second_at = getattr(examples, "second_at", None)
    for values in (examples.ids, examples.offsets, examples.types, examples.gold, second_at):
        parts.append(b"none" if values is None else f"{values.dtype.str}{values.shape}".encode())
        if values is not None:
            parts.append(np.ascontiguousarray(values).data)
    return blake2b(*parts).hex()


# --- asking ---------------------------------------------------------------------------------------


def _build(loaded: LoadedModel, asked: Asking, folder: Path) -> None:
    """Ask a teacher about all examples and write its answers into an empty folder."""
    exact = not loaded.task.has_distribution
    logits = _Matrix(folder / "logits.npy", np.float32 if exact else np.float16, loaded.name)
    vectors = _Matrix(folder / "vectors.npy", np.float16, loaded.name)
    counts = (_counts(loaded.task, part) for part in asked.examples)
    starts = np.concatenate([[0], *counts]).cumsum()
    np.save(folder / "starts.npy", starts.astype(np.int64))
    total, first = len(starts) - 1, 0
    for part in asked.examples:
        # of like length together, so that little is padded; written where they belong
        order = np.argsort(part.lengths, kind="stable")
        for begin in range(0, len(order), _BATCH):
            rows = order[begin : begin + _BATCH]
            batch = collate(part, rows, _pad_id(loaded))
            logits_KC, vectors_BD = _answers(loaded, batch)
            places = [np.arange(starts[first + i], starts[first + i + 1]) for i in rows]
            logits.write(logits_KC, np.concatenate(places), int(starts[-1]))
            if asked.vectors:
                assert vectors_BD is not None
                vectors.write(vectors_BD, first + rows, total)
            asked.progress((first + begin + len(rows)) / total)
        first += len(part)
    for matrix in (logits, vectors):
        if matrix.values is not None:
            matrix.values.flush()


def _counts(task: Task, examples: Examples) -> np.ndarray:
    """Count the rows of each example."""
    found = []
    for start in range(0, len(examples), _COUNTED):
        numbers = np.arange(start, min(start + _COUNTED, len(examples)))
        found.append(row_counts(task, collate(examples, numbers, 0)).numpy())
    return np.concatenate(found)


def _answers(loaded: LoadedModel, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Return logits [K x C] and vectors [B x D] in eval mode, on the model's own device."""
    loaded.model.eval()
    device = loaded.model.device
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        signals = labelled_signals(loaded, batch.to(device))
        vectors_BD = signals.vectors_BD
        if vectors_BD is not None and loaded.task == Task.SENTENCE_SIMILARITY:
            vectors_BD = torch.cat(vectors_BD.chunk(2), dim=1)
        return signals.logits(), vectors_BD


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
    vectors = np.load(folder / "vectors.npy", mmap_mode="r") if parts["vectors"] else None
    logits = np.load(folder / "logits.npy", mmap_mode="r")
    return Answers(logits, np.load(folder / "starts.npy"), vectors)
