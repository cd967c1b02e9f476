"""Read questions, contexts and answers, and cut long contexts into overlapping windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from potstill.data.sequences import UNLABELED, Questions
from potstill.data.tokenize import TOKENIZING, Sequences
from potstill.recipe import TaskData
from potstill.tasks.rows import (
    BadRow,
    Cut,
    Cutting,
    Labelled,
    Row,
    Texts,
    column_of,
    text_of,
    usable,
)

LABELS = ["start", "end"]
_BATCH = 500  # questions that are tokenized at a time
_SHOWN = 40  # characters of an answer that a message shows

Answer = tuple[int, str]  # its first character in the context, its text


# --- rows -----------------------------------------------------------------------------------------


def read_question(row: Row, data: TaskData, labelled: bool) -> tuple[Texts, list[Answer] | None]:
    """Read a row's question and context, and its answers; None: not asked for."""
    texts = tuple(text_of(row, name) for name in data.text)
    if not labelled:
        return texts, None
    column = data.label[0]
    return texts, _answers(column_of(row, column, "label"), column, texts[1])


def _answers(value: Any, column: str, context: str) -> list[Answer]:
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        pairs = (
            list(zip(starts, texts, strict=True))
            if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)
            else None
        )
    elif isinstance(value, list) and all(isinstance(each, Mapping) for each in value):
        pairs = [(each.get("answer_start"), each.get("text")) for each in value]
    else:
        pairs = [] if value is None else None
    if pairs is None or not all(_is_answer(*pair) for pair in pairs):
        raise BadRow(
            "bad_answer",
            f"label column '{column}' holds no answers. Write as many text as answer_start, "
            "or none for a question without an answer.",
        )
    for start, text in pairs:
        _check_span(start, text, context)
    return pairs


def _is_answer(start: object, text: object) -> bool:
    number = isinstance(start, int) and not isinstance(start, bool)
    return number and isinstance(text, str) and bool(text.strip())


def _check_span(start: int, text: str, context: str) -> None:
    if start >= 0 and context[start : start + len(text)] == text:
        return
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    at = context.find(text)
    hint = "nor anywhere else in it" if at < 0 else f"but at {at}"
    raise BadRow(
        "span_not_in_context",
        f"the answer '{shown}' is not at character {start} of the context, {hint}. "
        "Correct answer_start or the text.",
    )


# --- windows --------------------------------------------------------------------------------------


@dataclass
class _Windows(Sequences):
    """Hold the windows of a side, one entry per window."""

    places: list[np.ndarray] = field(default_factory=list)
    of: list[int] = field(default_factory=list)


def tokenize_questions(found: Sequence[Labelled], cutting: Cutting) -> Cut[Questions]:
    """Cut questions into token sequences, each with a window of its context.

    A window's gold is the first answer where all of it is in the window, and the first token twice
    where it is not or there is none (Devlin et al. 2019, section 4.3).
    """
    data, side = cutting.data, cutting.side or "text"
    stride = data.max_length // 3 if data.stride is None else data.stride
    kept = _with_room(found, cutting, stride)
    windows = _Windows()
    for start in range(0, len(kept), _BATCH):
        part = kept[start : start + _BATCH]
        encoded = cutting.tokenizer(
            [example.texts[0] for example in part],
            [example.texts[1] for example in part],
            truncation="only_second",
            max_length=data.max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            **TOKENIZING,
        )
        windows.add(encoded)
        for number, offsets in enumerate(encoded["offset_mapping"]):
            of_context_L = np.array([one == 1 for one in encoded.sequence_ids(number)])
            spans_L2 = np.array(offsets, dtype=np.int32).reshape(-1, 2)
            windows.places.append(np.where(of_context_L[:, None], spans_L2, -1))
            windows.of.append(start + int(encoded["overflow_to_sample_mapping"][number]))
    gold, warnings = _golds(kept, windows, data, side)
    examples = windows.examples(
        Questions,
        gold=gold,
        texts=[kept[number].texts for number in windows.of],
        origins=[kept[number].origin for number in windows.of],
        spans=np.concatenate(windows.places),
        of=np.array(windows.of, dtype=np.int64),
        questions=[example.texts for example in kept],
        answers=[[text for _, text in example.gold or []] for example in kept],
        longest=data.max_answer,
        may_lack=cutting.may_lack,
    )
    return Cut(examples, warnings=warnings)


def _with_room(found: Sequence[Labelled], cutting: Cutting, stride: int) -> list[Labelled]:
    """Return those whose question leaves a window more room than two windows share."""
    data, side, tokenizer = cutting.data, cutting.side or "text", cutting.tokenizer
    texts = [example.texts[0] for example in found]
    questions = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    rest = data.max_length - tokenizer.num_special_tokens_to_add(pair=True)

    def checked(example: Labelled, length: int) -> Labelled:
        if rest - length <= stride:
            raise BadRow(
                "long_question",
                f"the question's {length} tokens leave {max(rest - length, 0)} of data.max_length "
                f"({data.max_length}) for its context, no more than data.stride ({stride}). "
                "Shorten it, raise data.max_length or lower data.stride.",
            )
        return example

    kept = [
        example
        for example, ids in zip(found, questions, strict=True)
        if usable(data, cutting.counts, side, example.origin, partial(checked, example, len(ids)))
    ]
    if not kept:
        raise ValueError(
            f"data.{side}: no question leaves room for its context. Raise data.max_length."
        )
    return kept


def _golds(
    kept: Sequence[Labelled], windows: _Windows, data: TaskData, side: str
) -> tuple[np.ndarray, list[str]]:
    """Return first and last token of the answer in each window: int64 [windows x 2]."""
    gold = np.zeros((len(windows.of), 2), dtype=np.int64)
    held: set[int] = set()
    long: set[int] = set()
    last = len(windows.of) - 1
    for number, item in enumerate(windows.of):
        answers = kept[item].gold
        if answers is None:
            gold[number] = UNLABELED
        if not answers:
            continue
        is_first = number == 0 or windows.of[number - 1] != item
        is_last = number == last or windows.of[number + 1] != item
        span = answer_tokens(windows.places[number], answers[0], is_first, is_last)
        if span is not None:
            gold[number] = span
            held.add(item)
            if span[1] - span[0] >= data.max_answer:
                long.add(item)
    answered = sum(bool(example.gold) for example in kept)
    warnings = []
    if len(held) < answered:
        warnings.append(
            f"{answered - len(held)} of {answered} answers of {side} are in no window as a whole, "
            "and count as no answer. Raise data.stride or data.max_length."
        )
    if long:
        warnings.append(
            f"{len(long)} of {answered} answers of {side} have more tokens than data.max_answer "
            f"({data.max_answer}), so the model cannot give them. Raise data.max_answer."
        )
    return gold, warnings


def answer_tokens(
    places_L2: np.ndarray, answer: Answer, is_first: bool, is_last: bool
) -> tuple[int, int] | None:
    """Return the first and last token of an answer in a window; None where it is not whole.

    Args:
        places_L2: characters of the context that each token covers; -1 where it is no part of it.
        is_first, is_last: of the windows of the context.
    """
    start, text = answer
    end = start + len(text.rstrip())
    start += len(text) - len(text.lstrip())
    context = np.flatnonzero(places_L2[:, 0] >= 0)
    if len(context) == 0:
        return None
    starts, ends = places_L2[context, 0], places_L2[context, 1]
    if (start < starts[0] and not is_first) or (end > ends[-1] and not is_last):
        return None
    overlapping = np.flatnonzero((ends > start) & (starts < end) & (ends > starts))
    if len(overlapping) == 0:  # of characters that the tokenizer leaves out
        return None
    return int(context[overlapping[0]]), int(context[overlapping[-1]])
