"""Trim a vocabulary to the tokens that a text uses, and measure what that costs the text."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from potstill.compression.pieces import Pieces
from potstill.compression.vocabulary import (
    choose_pieces,
    count_pieces,
    coverage_of,
    kept_anyway,
    trimmed,
)
from potstill.data import read_records
from potstill.data.sources import describe, heldout_side
from potstill.models import LoadedModel, save_model
from potstill.pipeline.context import Context, Done
from potstill.pipeline.outlook import Outline, Outlook
from potstill.pipeline.stages.evaluate import FIRST_RECORDS
from potstill.recipe import Corpus, Source, TaskData, TrimVocabulary
from potstill.reporting.phrases import vocabulary_note
from potstill.storage.manifest import blake2b
from potstill.tasks import TaskRows

VERSION = 1
HELDOUT = 0.05  # of sources that the stage has of its own
TEXTS = 5_000  # held-out ones of a source that the coverage is measured on, chosen by a hash
_POOR = 0.95  # share of kept held-out tokens below which a warning is due

Texts = Callable[[], Iterator[str]]


@dataclass(frozen=True)
class Part:
    """Hold one source of the text: what tokens are kept for, and what coverage is measured on."""

    name: str
    counted: Texts | None
    heldout: Texts | None


def check(stage: TrimVocabulary, outlook: Outlook) -> Outline:
    """Check with the first texts: which tokens are kept is not known before all are read."""
    loaded = outlook.model(stage.model)
    parts = text_parts(stage, outlook.recipe.text, outlook.rows, outlook.recipe.seed)
    cut = TrimmedVocabulary.of(stage, loaded, parts, most=FIRST_RECORDS)
    before = len(cut.pieces.names)
    most = before if stage.size is None else min(stage.size, before)
    why = f"the subword tokens that its text uses, at most {most:,} of {before:,}"
    return Outline(stage, cut.model, (loaded,), why)


def run(stage: TrimVocabulary, folder: Path, context: Context, fingerprint: str) -> Done:
    loaded = context.open(stage.model)
    [name] = stage.written
    rows = context.rows if stage.sources is None and context.labeled else None
    parts = text_parts(stage, context.text_settings, rows, context.seed)
    context.reporter.say("counting the subword tokens of the text")
    cut = TrimmedVocabulary.of(stage, loaded, parts)
    result = {"from": stage.model, "to": name, **cut.result(loaded, parts)}
    save_model(cut.model, folder / "model")
    context.reporter.say(f"{name}: {vocabulary_note(result)}")
    context.note(*result["warnings"])
    return result, {name: "model"}


@dataclass(frozen=True)
class TrimmedVocabulary:
    """Hold a trimmed model, and how it came about.

    Attributes:
        counts_SV: How often each token occurs in each source of the text.
        anyway: Former ids of the tokens that are kept in any case.
        kept: Former ids of all tokens that are kept.
    """

    model: LoadedModel
    pieces: Pieces
    counts_SV: np.ndarray
    anyway: set[int]
    kept: set[int]

    @staticmethod
    def of(
        stage: TrimVocabulary, loaded: LoadedModel, parts: Sequence[Part], most: int | None = None
    ) -> TrimmedVocabulary:
        """Trim a model's vocabulary to what a text uses.

        Args:
            stage: What the user asks for.
            loaded: The model.
            parts: The sources of the text.
            most: How many texts of each source are read; None means all.

        Raises:
            ValueError: See `Pieces.of` and compression.vocabulary.
        """
        # Read before any text is tokenized, which would change its truncation and padding.
        pieces = Pieces.of(loaded.tokenizer.backend_tokenizer, loaded.name)
        anyway = kept_anyway(loaded, pieces, stage.keep)
        counts = [
            count_pieces(loaded.tokenizer, pieces, islice(part.counted(), most), part.name)
            for part in parts
            if part.counted is not None
        ]
        counts_SV = np.stack(counts)
        kept = choose_pieces(pieces, counts_SV, anyway, stage.min_count, stage.size)
        model = trimmed(loaded, pieces, kept, *stage.written)
        return TrimmedVocabulary(model, pieces, counts_SV, anyway, kept)

    def result(self, loaded: LoadedModel, parts: Sequence[Part]) -> dict[str, Any]:
        """Measure the coverage of held-out text, and return all that trimming did."""
        coverage = {}
        for part in parts:
            if part.heldout is not None:
                texts = heapq.nsmallest(TEXTS, part.heldout(), key=_hash)
                found = coverage_of(loaded.tokenizer, self.model.tokenizer, self.kept, texts)
                if found is not None:
                    coverage[part.name] = asdict(found)
        models = {"before": loaded.model, "after": self.model.model}
        result = {
            "tokenizer": self.pieces.kind,
            "pieces": {
                "before": len(self.pieces.names),
                "after": len(self.kept),
                "kept_anyway": len(self.anyway),
                "used": int((self.counts_SV.sum(0) > 0).sum()),
            },
            "parameters": {key: model.num_parameters() for key, model in models.items()},
            "counted_tokens": int(self.counts_SV.sum()),
            "coverage": coverage,
        }
        return {**result, "warnings": _warnings(result)}


def _warnings(result: dict[str, Any]) -> list[str]:
    found = []
    if result["pieces"]["after"] == result["pieces"]["before"]:
        found.append("the text uses the whole vocabulary: nothing was trimmed")
    if not result["coverage"]:
        found.append("no text is held out: how much of new text the vocabulary covers is not known")
    for name, shares in result["coverage"].items():
        if shares["tokens_kept"] < _POOR:
            found.append(
                f"{1 - shares['tokens_kept']:.1%} of the held-out tokens of {name} were trimmed, "
                "and are split into smaller ones: count more text, or keep more tokens"
            )
    return found


# --- texts ----------------------------------------------------------------------------------------


def text_parts(
    stage: TrimVocabulary, settings: Corpus | TaskData, rows: TaskRows | None, seed: int
) -> list[Part]:
    """Return the sources of the text that a vocabulary is trimmed to.

    Args:
        stage: The stage, whose own sources come first.
        settings: The recipe's text, for a stage without sources.
        rows: The same text as it was read, for a task with labels.
        seed: The run's seed, which decides what is held out.
    """
    if stage.sources is not None:
        share = HELDOUT if stage.heldout is None else stage.heldout
        columns = stage.columns or ["text"]
        return [_part(source, columns, None, share, seed) for source in stage.sources]
    if isinstance(settings, Corpus):
        own = settings.heldout_sources is None
        share, group = (settings.heldout, settings.group_by) if own else (0.0, None)
        parts = [_part(s, settings.columns, group, share, seed) for s in settings.sources]
        heldout = [_part(s, settings.columns, None, 0, 0) for s in settings.heldout_sources or []]
        return [*parts, *(Part(part.name, None, part.counted) for part in heldout)]
    assert rows is not None
    sides = {side: [" ".join(one.texts) for one in found] for side, found in rows.sides.items()}
    counted = [*sides["train"], *sides.get("unlabeled", [])]
    return [Part("data", lambda: iter(counted), lambda: iter(sides.get("test", sides["dev"])))]


def _part(
    source: Source, columns: Sequence[str], group_by: str | None, share: float, seed: int
) -> Part:
    def texts(held: bool) -> Iterator[str]:
        for record in read_records([source], columns):
            if heldout_side(record, columns, group_by, share, seed) == held:
                yield from record.texts(columns)

    heldout = (lambda: texts(True)) if share > 0 else None
    return Part(describe(source), lambda: texts(False), heldout)


def _hash(text: str) -> bytes:
    return blake2b(text.encode(), size=8)
