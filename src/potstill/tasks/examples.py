"""Turn labeled examples into token sequences, with warnings."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from potstill.data import Examples
from potstill.tasks.checks import class_warnings, seen_warnings
from potstill.tasks.kinds import kind_of
from potstill.tasks.reading import TaskRows
from potstill.tasks.rows import Cutting


@dataclass(frozen=True, eq=False)
class TaskExamples:
    """Hold a task's data, tokenized by one tokenizer.

    Attributes:
        labels: names, in the order of the head's outputs; for regression the value's name alone.
        unlabeled: more text, for the teacher to label; None without.
        counts: rows read and left out, by reason and side.
        warnings: in sentences, what of it matters.
    """

    labels: list[str]
    train: Examples
    dev: Examples
    test: Examples
    unlabeled: Examples | None
    counts: dict[str, int]
    warnings: list[str]


def tokenize_task(rows: TaskRows, tokenizer: PreTrainedTokenizerFast) -> TaskExamples:
    """Tokenize a task's data, cut at `data.max_length`, which may not cut every text of a side."""
    warnings = class_warnings(rows.task, rows.labels, rows.sides["train"])
    counts, sides = Counter(rows.counts), {}
    for side in rows.sides:
        sides[side], told = _tokenized(rows, side, tokenizer, counts)
        warnings += told
    warnings += seen_warnings(rows.sides)
    left = {key: value for key, value in counts.items() if not key.endswith(".rows")}
    warnings += [f"{count} rows are skipped ({key})." for key, count in sorted(left.items())]
    return TaskExamples(
        labels=rows.labels,
        train=sides["train"],
        dev=sides["dev"],
        test=sides.get("test", sides["dev"]),
        unlabeled=sides.get("unlabeled"),
        counts={**counts, **{f"{k}.examples": len(v) for k, v in sides.items()}},
        warnings=warnings,
    )


def tokenize_test(rows: TaskRows, tokenizer: PreTrainedTokenizerFast) -> tuple[Examples, list[str]]:
    """Return the scored examples as a tokenizer cuts them, and warnings."""
    side = "test" if "test" in rows.sides else "dev"
    return _tokenized(rows, side, tokenizer, Counter())


def _tokenized(
    rows: TaskRows, side: str, tokenizer: PreTrainedTokenizerFast, counts: Counter[str]
) -> tuple[Examples, list[str]]:
    """Return the examples of a side, and warnings."""
    found, data = rows.sides[side], rows.data
    lack = any(example.gold == [] for example in rows.sides["train"])
    cutting = Cutting(data, tokenizer, side, may_lack=lack, counts=counts)
    made = kind_of(rows.task).tokenize(found, cutting)
    if made.cut == len(found) and not data.beginnings:
        raise ValueError(
            f"data.max_length: {data.max_length} tokens cut every text of data.{side}. Raise "
            "it, or set data.beginnings=true to read only the beginnings."
        )
    warnings = list(made.warnings)
    if made.cut > 0.01 * len(found):
        warnings.append(
            f"{made.cut} of {len(found)} texts of {side} are longer than data.max_length "
            f"({data.max_length} tokens), and cut there."
        )
    if made.lost:
        words = sum(len(example.texts) for example in found)
        warnings.append(
            f"{made.lost} of {words} words of {side} have no token, most of them beyond "
            f"data.max_length ({data.max_length} tokens). They count as O."
        )
    return made.examples, warnings
