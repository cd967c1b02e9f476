"""Teachers that are asked once for each example: their answers are kept on disk.

Logits, and one vector a text where an objective reads it, in the order of the examples: train,
unlabelled, dev. In float16, whose rounding no softmax notices; values of regression, which may be
years or prices, in float32. A cache is named by what decides its content: the teacher's files, the
task, and the examples as the teacher reads them (token ids, types and gold), of which tokenizer and
max_length are part. So an outdated one is never found; a damaged one is told of and made anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.data import Batch, Examples, collate
from potstill.models import LoadedModel
from potstill.recipe import Distill, HiddenCosine, Objective, Task, VectorMse
from potstill.storage.caches import Damaged, kept, key_of, read_meta, write_meta
from potstill.storage.manifest import manifest_digest, model_manifest
from potstill.tasks.heads import labelled_signals, row_counts

_VERSION = 2  # of the cache's format
_COUNTED = 1000  # examples whose rows are counted at a time
_BATCH = 64  # examples that the teacher is asked about at a time


@dataclass(frozen=True, eq=False)
class Answers:
    """A teacher's answers to N examples, memory-mapped.

    Attributes:
        logits_RC: R rows of distributions over C classes, example by example.
        starts: int64 [N + 1]: the rows of example i are starts[i] to starts[i + 1].
        vectors_ND: float16, what the head's last linear map reads; of a pair of texts that are
            encoded apart both embeddings, one after the other; None where nobody asked.
    """

    logits_RC: np.ndarray
    starts: np.ndarray
    vectors_ND: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows(self, numbers: np.ndarray) -> Tensor:
        """Logits of some examples, in their order: float32 [K x C]."""
        first, last = self.starts[numbers], self.starts[numbers + 1]
        if (last - first == 1).all():  # of tags, a sentence without a token has none
            return as_floats(self.logits_RC[first])
        spans = [np.arange(a, b) for a, b in zip(first, last, strict=True)]
        return as_floats(self.logits_RC[np.concatenate(spans)])


def why_live(stage: Distill, task: Task, epochs: float) -> str | None:
    """Why a stage's teachers are asked anew for every batch; None: their answers are kept.

    Args:
        epochs: how often the examples are read, over all repeats.
    """
    if not task.cacheable:
        return f"answers of {task} are not kept"
    if stage.cache is False:
        return "cache is false"
    if stage.live is not None:
        return f"{stage.live} reads the hidden states of tokens"
    if stage.cache == "auto" and epochs <= 1:
        return "no example is read twice"
    return None


def reads_vectors(objectives: Sequence[Objective]) -> bool:
    """Whether an objective reads one vector a text."""
    return any(
        isinstance(o, VectorMse) or (isinstance(o, HiddenCosine) and o.of == "pooled")
        for o in objectives
        if o.weight > 0
    )


def teacher_answers(
    loaded: LoadedModel,
    folder: Path,
    examples: Sequence[Examples],
    cache: Path,
    *,
    vectors: bool,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[float], None] = lambda _: None,
) -> Answers:
    """A teacher's answers to examples, from the cache or by asking it, in eval mode and float32.

    Args:
        loaded: the teacher, with its weights.
        folder: where it was loaded from; its files are part of the cache's name.
        examples: by their numbers, one part after the other.
        cache: the folder that caches are in.
        vectors: keep what the head's last linear map reads, too.

    Raises:
        ValueError: answers that are not finite or too large, or a cache that can't be written.
    """
    pad_id = int(loaded.tokenizer.pad_token_id or 0)
    parts = {
        "version": _VERSION,
        "task": loaded.task,
        "teacher": manifest_digest(model_manifest(folder)),
        "examples": [_fingerprint(part) for part in examples],
        "pad_id": pad_id,
        "vectors": vectors,
    }

    def build(target: Path) -> None:
        say(f"asking {loaded.name} about {sum(map(len, examples))} examples, once for all epochs")
        _build(loaded, examples, pad_id, vectors, target, progress)
        write_meta(target, {"parts": parts})

    what = f"cache of {loaded.name}'s outputs"
    return kept(cache / key_of(parts), build, lambda path: _opened(path, parts), what, say)


def as_floats(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _fingerprint(examples: Examples) -> str:
    """Of all that the teacher's answers depend on, whatever files it came from."""
    digest = hashlib.blake2b(digest_size=16)
    for values in (
        examples.ids,
        examples.offsets,
        examples.types,
        examples.gold,
        getattr(examples, "second_at", None),
    ):
        told = "none" if values is None else f"{values.dtype.str}{values.shape}"
        digest.update(told.encode())
        if values is not None:
            digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


# --- asking ---------------------------------------------------------------------------------------


def _build(
    loaded: LoadedModel,
    examples: Sequence[Examples],
    pad_id: int,
    vectors: bool,
    folder: Path,
    progress: Callable[[float], None],
) -> None:
    """Ask a teacher about all examples and write its answers into an empty folder."""
    exact = not loaded.task.has_distribution
    logits = _Matrix(folder / "logits.npy", np.float32 if exact else np.float16)
    vector = _Matrix(folder / "vectors.npy", np.float16)
    starts = np.concatenate([[0], *(_counts(loaded.task, part) for part in examples)]).cumsum()
    np.save(folder / "starts.npy", starts.astype(np.int64))
    total, first = len(starts) - 1, 0
    for part in examples:
        # of like length together, so that little is padded; written where they belong
        order = np.argsort(part.lengths, kind="stable")
        for begin in range(0, len(order), _BATCH):
            rows = order[begin : begin + _BATCH]
            batch = collate(part, rows, pad_id, None, 0, 0)
            logits_KC, vectors_BD = _asked(loaded, batch)
            places = [np.arange(starts[first + i], starts[first + i + 1]) for i in rows]
            logits.write(logits_KC, np.concatenate(places), int(starts[-1]), loaded.name)
            if vectors:
                assert vectors_BD is not None
                vector.write(vectors_BD, first + rows, total, loaded.name)
            progress((first + begin + len(rows)) / total)
        first += len(part)
    logits.close()
    vector.close()


def _counts(task: Task, examples: Examples) -> np.ndarray:
    """Rows of each example."""
    found = []
    for start in range(0, len(examples), _COUNTED):
        numbers = np.arange(start, min(start + _COUNTED, len(examples)))
        found.append(row_counts(task, collate(examples, numbers, 0, None, 0, 0)).numpy())
    return np.concatenate(found)


def _asked(loaded: LoadedModel, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Logits [K x C] and vectors [B x D] in eval mode, on the model's own device."""
    loaded.model.eval()
    device = loaded.model.device
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        signals = labelled_signals(loaded, batch.to(device))
        assert signals.features_KD is not None
        assert signals.readout is not None
        everything = slice(0, len(signals.features_KD))
        vectors_BD = signals.vectors_BD
        if vectors_BD is not None and loaded.task == Task.SENTENCE_SIMILARITY:
            vectors_BD = torch.cat(vectors_BD.chunk(2), dim=1)
        return signals.readout.logits(signals.features_KD, everything), vectors_BD


class _Matrix:
    """A matrix on disk, made when its width is known."""

    def __init__(self, path: Path, dtype: type[np.floating[Any]]) -> None:
        self.path, self.dtype = path, dtype
        self.values: Any = None

    def write(self, values: Tensor, places: np.ndarray, total: int, name: str) -> None:
        found = values.float().cpu().numpy()
        largest = float(np.finfo(self.dtype).max)
        if not np.abs(found).max(initial=0) <= largest:  # not a number is not, either
            raise ValueError(
                f"{name}: its answers are not finite, or beyond {largest:g}: set cache: false in "
                "the distill stage, or take another teacher"
            )
        if self.values is None:
            shape = total, found.shape[1]
            self.values = np.lib.format.open_memmap(
                self.path, mode="w+", dtype=self.dtype, shape=shape
            )
        self.values[places] = found

    def close(self) -> None:
        if self.values is not None:
            self.values.flush()
            self.values = None


def _opened(folder: Path, parts: Mapping[str, Any]) -> Answers:
    """What a cache folder holds.

    Raises:
        Damaged: it isn't there, not as it was written, or of something else.
    """
    if read_meta(folder).get("parts") != parts:
        raise Damaged("it holds other outputs")
    vectors = np.load(folder / "vectors.npy", mmap_mode="r") if parts["vectors"] else None
    return Answers(
        np.load(folder / "logits.npy", mmap_mode="r"), np.load(folder / "starts.npy"), vectors
    )
