"""The stage that trims a vocabulary: which text, what is kept, what it costs that text."""

from __future__ import annotations

import hashlib
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
from potstill.data.sources import Record, describe, heldout_side
from potstill.models import LoadedModel, save_model
from potstill.pipeline.context import Context, Outline, Outlook
from potstill.pipeline.stages.evaluate import FIRST_RECORDS
from potstill.recipe import Corpus, Source, TaskData, TrimVocabulary
from potstill.reporting.phrases import vocabulary_note
from potstill.tasks import TaskRows

VERSION = 1
HELDOUT = 0.05  # of sources that the stage has of its own
TEXTS = 5_000  # held-out ones of a source that the coverage is measured on, chosen by a hash
_POOR = 0.95  # share of kept held-out tokens below which a warning is due

Texts = Callable[[], Iterator[str]]


@dataclass(frozen=True)
class Part:
    """One source of the text: what pieces are kept for, and what the coverage is measured on."""

    name: str
    counted: Texts | None
    heldout: Texts | None


def check(stage: TrimVocabulary, outlook: Outlook) -> Outline:
    """The first texts stand for all: which pieces are kept isn't known before all are read."""
    loaded = outlook.model(stage.model)
    parts = text_parts(stage, outlook.recipe.text, outlook.rows, outlook.recipe.seed)
    name = stage.writes or stage.model
    cut = cut_to_text(stage, loaded, parts, name, most=FIRST_RECORDS)
    before = len(cut.pieces.names)
    most = before if stage.size is None else min(stage.size, before)
    why = f"the pieces that its text uses, {most:,} of {before:,} at most"
    return Outline(stage, cut.model, (loaded,), why)


def run(
    stage: TrimVocabulary, folder: Path, context: Context, fingerprint: str
) -> tuple[dict[str, Any], dict[str, str]]:
    loaded = context.open(stage.model)
    name = stage.writes or stage.model
    own = stage.sources is None and isinstance(context.text_settings, TaskData)
    rows = context.rows if own else None
    parts = text_parts(stage, context.text_settings, rows, context.seed)
    context.reporter.say("counting the word pieces of the text")
    cut = cut_to_text(stage, loaded, parts, name)
    result = told(stage, loaded, cut, parts)
    save_model(cut.model, folder / "model")
    context.reporter.say(f"{name}: {vocabulary_note(result)}")
    for warning in result["warnings"]:
        context.reporter.say(f"note: {warning}")
    return result, {name: "model"}


@dataclass(frozen=True)
class TrimmedVocabulary:
    """A trimmed model, and how it came about.

    Attributes:
        counts_SV: how often each piece stands in each source of the text.
        anyway, kept: former ids: those kept whatever the text says, and all that are kept.
    """

    model: LoadedModel
    pieces: Pieces
    counts_SV: np.ndarray
    anyway: set[int]
    kept: set[int]


def cut_to_text(
    stage: TrimVocabulary,
    loaded: LoadedModel,
    parts: Sequence[Part],
    name: str,
    most: int | None = None,
) -> TrimmedVocabulary:
    """Trim a model's vocabulary to what a text uses.

    Args:
        name: of the trimmed model.
        most: texts of a source that are read; None: all.

    Raises:
        ValueError: see `pieces.Pieces.of` and vocabulary.
    """
    # Read before any text is tokenised, which would change its truncation and padding.
    pieces = Pieces.of(loaded.tokenizer.backend_tokenizer, loaded.name)
    anyway = kept_anyway(loaded, pieces, stage.keep)
    counts_SV = np.stack(
        [
            count_pieces(loaded.tokenizer, pieces, islice(part.counted(), most), part.name)
            for part in parts
            if part.counted is not None
        ]
    )
    kept = choose_pieces(pieces, counts_SV, anyway, stage.min_count, stage.size)
    model = trimmed(loaded, pieces, kept, name)
    return TrimmedVocabulary(model, pieces, counts_SV, anyway, kept)


def told(
    stage: TrimVocabulary, loaded: LoadedModel, cut: TrimmedVocabulary, parts: Sequence[Part]
) -> Any:
    """What trimming did, as result.json."""
    coverage = {}
    for part in parts:
        if part.heldout is not None:
            texts = heapq.nsmallest(TEXTS, part.heldout(), key=_hash)
            found = coverage_of(loaded.tokenizer, cut.model.tokenizer, cut.kept, texts)
            if found is not None:
                coverage[part.name] = asdict(found)
    models = {"before": loaded.model, "after": cut.model.model}
    result = {
        "from": stage.model,
        "to": cut.model.name,
        "tokenizer": cut.pieces.kind,
        "pieces": {
            "before": len(cut.pieces.names),
            "after": len(cut.kept),
            "kept_anyway": len(cut.anyway),
            "used": int((cut.counts_SV.sum(0) > 0).sum()),
        },
        "parameters": {key: model.num_parameters() for key, model in models.items()},
        "counted_tokens": int(cut.counts_SV.sum()),
        "coverage": coverage,
    }
    return {**result, "warnings": _warnings(result)}


def _warnings(result: dict[str, Any]) -> list[str]:
    found = []
    if result["pieces"]["after"] == result["pieces"]["before"]:
        found.append("the text uses every piece of the vocabulary: nothing was trimmed")
    if not result["coverage"]:
        found.append(
            "no text is held out, so that nothing tells how much of new text the kept pieces cover"
        )
    for name, shares in result["coverage"].items():
        if shares["tokens_kept"] < _POOR:
            found.append(
                f"{1 - shares['tokens_kept']:.1%} of the held-out tokens of {name} are of pieces "
                "that went, and fall apart into smaller ones: count more text, or keep more pieces"
            )
    return found


# --- texts ----------------------------------------------------------------------------------------


def text_parts(
    stage: TrimVocabulary, settings: Corpus | TaskData, rows: TaskRows | None, seed: int
) -> list[Part]:
    """The sources of the text that a vocabulary is trimmed to.

    Args:
        settings: the recipe's own text, read where the stage has no sources.
        rows: the same as it was read, of a task with labels.
    """
    if stage.sources is not None:
        share = HELDOUT if stage.heldout is None else stage.heldout
        columns = stage.columns or ["text"]
        return [_part(source, columns, None, share, seed) for source in stage.sources]
    if isinstance(settings, Corpus):
        share = settings.heldout if settings.heldout_sources is None else 0.0
        group = settings.group_by if settings.heldout_sources is None else None
        parts = [_part(s, settings.columns, group, share, seed) for s in settings.sources]
        for source in settings.heldout_sources or []:
            parts.append(
                Part(describe(source), None, _part(source, settings.columns, None, 0, 0).counted)
            )
        return parts
    assert rows is not None
    sides = {side: [" ".join(one.texts) for one in rows.sides[side]] for side in rows.sides}
    counted = [text for side in ("train", "unlabelled") for text in sides.get(side, [])]
    heldout = sides.get("test", sides["dev"])
    return [Part("data", lambda: iter(counted), lambda: iter(heldout))]


def _part(
    source: Source, columns: Sequence[str], group_by: str | None, share: float, seed: int
) -> Part:
    def texts(held: bool) -> Iterator[str]:
        for record in read_records([source], columns):
            if heldout_side(record, columns, group_by, share, seed) == held:
                yield from _texts(record, columns)

    return Part(
        describe(source), lambda: texts(False), (lambda: texts(True)) if share > 0 else None
    )


def _texts(record: Record, columns: Sequence[str]) -> Iterator[str]:
    return (record.columns[name] for name in columns if name in record.columns)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
