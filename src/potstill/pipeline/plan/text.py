"""A sample of a run's text, from whose lengths the cost is estimated."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from potstill.data.corpus import cut_texts
from potstill.data.sources import Part, Record, source_parts
from potstill.models import LoadedModel
from potstill.recipe import Corpus
from potstill.tasks import TaskExamples

SAMPLE = 500  # records


@dataclass(frozen=True)
class Text:
    """Describe the training side of a run's text, from a sample of it."""

    records: int  # sampled
    sequences: list[np.ndarray]  # of the sample, each int [L], special tokens included
    per_epoch: float | None  # sequences of the training side; None: a source has no known size
    whole: bool  # the sample is all of the text
    seconds: float  # to tokenize the sample
    share: float | None  # of all the text, held-out text included, that the sample is
    unsized: list[str]  # sources without a known size
    labeled: float | None = None  # per_epoch without text that a teacher labels; None: the same

    @property
    def mean(self) -> float:
        """Tokens per sequence."""
        return sum(len(ids) for ids in self.sequences) / len(self.sequences)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(len(ids) for ids in self.sequences)


def sample_text(corpus: Corpus, loaded: LoadedModel) -> Text:
    """Read and tokenize about `SAMPLE` records spread over all sources, and scale by their sizes.

    Files are scaled by bytes, Parquet files and data set folders by records; duplicates are not
    searched for.

    Raises:
        ValueError: A source can't be read, or the sample has nothing to train on.
    """
    parts = [part for source in corpus.sources for part in source_parts(source)]
    chosen = [parts[i] for i in np.unique(np.linspace(0, len(parts) - 1, SAMPLE).astype(int))]
    start = time.perf_counter()
    pieces = [_take(part, corpus, math.ceil(SAMPLE / len(chosen))) for part in chosen]
    sequences: list[np.ndarray] = []
    total: float | None = 0.0
    for unit in ("bytes", "records"):
        own = [piece for piece in pieces if piece.part.unit == unit]
        texts = [text for piece in own for text in piece.texts]
        found = cut_texts(corpus, loaded.tokenizer, texts) if texts else []
        sequences += found
        factor = _factor([part for part in parts if part.unit == unit], own)
        total = None if total is None or factor is None else total + factor * len(found)
    seconds = time.perf_counter() - start
    records = sum(piece.records for piece in pieces)
    if not sequences:
        raise ValueError(
            f"corpus: none of {records} sampled records can be trained on with min_length "
            f"{corpus.min_length}. Lower corpus.min_length, or give longer texts."
        )
    trained = 1 - (corpus.heldout if corpus.heldout_sources is None else 0)
    return Text(
        records=records,
        sequences=sequences,
        per_epoch=None if total is None else total * trained,
        whole=len(chosen) == len(parts) and all(piece.whole for piece in pieces),
        seconds=seconds,
        share=None if total is None else len(sequences) / total,
        unsized=[part.name for part in parts if part.size is None],
    )


def text_of_examples(examples: TaskExamples, taught: bool) -> Text:
    """Describe a task's examples, all of which have been read.

    Args:
        examples: The examples of all sides.
        taught: Whether a teacher labels the unlabeled ones.
    """
    side = examples.train
    if taught and examples.unlabeled is not None:
        side = side + examples.unlabeled
    chosen = np.unique(np.linspace(0, len(side) - 1, SAMPLE).astype(int))
    return Text(
        records=len(side),
        sequences=[side[i] for i in chosen],
        per_epoch=float(len(side)),
        whole=True,
        seconds=0.0,
        share=None,
        unsized=[],
        labeled=float(len(examples.train)),
    )


@dataclass(frozen=True)
class _Piece:
    """Hold the first records of a part."""

    part: Part
    records: int
    texts: list[str]
    covered: float  # of the part's size
    whole: bool


def _take(part: Part, corpus: Corpus, quota: int) -> _Piece:
    stream = part.records(corpus.columns)
    records = list(islice(stream, quota))
    following = next(stream, None)
    covered = float(part.size or 0) if following is None else _before(part, following, len(records))
    texts = [text for record in records for text in record.texts(corpus.columns)]
    return _Piece(part, len(records), texts, covered, whole=following is None)


def _before(part: Part, record: Record, number: int) -> float:
    """Measure how much of the part is before a record, which has this number."""
    if part.path is None:
        return float(number)
    line = int(record.origin.rsplit(":", 1)[1])
    with part.path.open("rb") as stream:
        return float(sum(len(content) for content in islice(stream, line - 1)))


def _factor(parts: Sequence[Part], pieces: Sequence[_Piece]) -> float | None:
    """Divide the size of the parts by that of their sample; None where a part has no known size."""
    covered = sum(piece.covered for piece in pieces)
    if any(part.size is None for part in parts):
        return None
    return sum(part.size or 0 for part in parts) / covered if covered else 0.0
