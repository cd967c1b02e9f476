"""The gate of exported models: an ONNX graph must answer as its source does."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from potstill.data import Examples, Tokens, collate
from potstill.errors import ParityFailed
from potstill.graphs.graph import answers, input_names, is_by_token
from potstill.models import LoadedModel
from potstill.models.loading import open_graph
from potstill.recipe import Task
from potstill.tasks.heads import model_inputs

TEXTS = 64  # real ones, spread over the lengths that there are
BATCH = 8
SEVERAL = 4  # texts of a corner with more than one
LONGEST = 4096  # tokens: attention over more of them takes gigabytes

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Gate:
    """Describe what is compared, and what is accepted."""

    tolerance: float | None = None  # largest difference, relative to the largest output; None: any
    agreement: float | None = None  # lowest, over all real texts; None: any
    texts: int = TEXTS  # real ones at most, spread over the lengths that there are
    corners: bool = True  # False: real text alone


_ANY = Gate()


@dataclass(frozen=True)
class Compared:
    """Hold one corner's outputs, the graph's beside the source's."""

    corner: str
    texts: int
    tokens: int  # of the longest text
    # Output -> the largest difference, over real tokens, relative to the source's largest value.
    difference: dict[str, float]
    # The fraction of texts or tokens with the same label, token or end of an answer; for sentence
    # vectors the mean cosine; for regression the fraction of the variance of the source's values
    # that the graph's explain (R²: below 0 where the mean would be nearer). None: all are equal.
    agreement: float | None

    @property
    def largest(self) -> float:
        """Return the largest difference; NaN counts as infinitely far."""
        return max(float("inf") if np.isnan(value) else value for value in self.difference.values())


def check_parity(
    source: LoadedModel, graph: Path, text: Tokens | Examples, gate: Gate = _ANY
) -> list[Compared]:
    """Compare a graph with its source on real text and on the corners; refuse one that differs.

    The corners: one text and several, one token and the maximum, padded and not, a sentence pair.

    Args:
        source: The model in PyTorch, on the CPU, or the graph that another was made of.
        graph: An .onnx file in a folder of the source's model folder, or of a copy.
        text: Real texts, as tokens.
        gate: Describes what is compared and accepted.

    Returns:
        Each corner's figures, real text first.

    Raises:
        ParityFailed: a difference above the tolerance, outputs that hold NaN or infinity, or too
            little agreement.
        ValueError: a graph that can't be read, or no text.
    """
    if isinstance(text, Examples):
        text = text.alone()
    other = open_graph(os.fspath(graph), source.task)
    compared = islice(_corners(source, text, gate.texts), None if gate.corners else 1)
    found = [_compared(name, source, other, batches) for name, batches in compared]
    worst = max(found, key=lambda one: one.largest)
    alike, failed = found[0].agreement, f"{graph.name} of {source.name} failed the parity gate: its"
    if gate.tolerance is not None and not worst.largest <= gate.tolerance:
        raise ParityFailed(
            f"{failed} outputs differ by {worst.largest:.2g} of the largest ({worst.corner}), and "
            f"{gate.tolerance:g} is accepted. Set a larger tolerance if that is enough."
        )
    if worst.largest == float("inf"):
        raise ParityFailed(f"{failed} outputs are missing, NaN or infinity ({worst.corner}).")
    if gate.agreement is not None and alike is not None and not alike >= gate.agreement:
        raise ParityFailed(
            f"{failed} answers agree in {100 * alike:.4g}% on real text, and the lowest accepted "
            f"agreement is {100 * gate.agreement:.6g}%. Set a lower agreement if that is enough."
        )
    return found


def likeness(source: LoadedModel, real: Compared) -> str:
    """Describe how far a graph's answers on real text are those of its source."""
    if real.agreement is None:
        return f"their answers differ by {max(real.difference.values()):.2g} of the largest"
    if source.sentence is not None:
        return f"the mean cosine of their vectors is {real.agreement:.3f}"
    if not source.task.has_distribution:
        return f"it explains {real.agreement:.1%} of the variance of the values of {source.name}"
    return f"{real.agreement:.1%} of their answers are the same"


# --- what is compared -----------------------------------------------------------------------------


def _corners(
    source: LoadedModel, text: Tokens | Examples, texts: int = TEXTS
) -> Iterator[tuple[str, Iterator[Inputs]]]:
    if len(text) == 0:
        raise ValueError(
            f"{source.name}: there is no held-out text to compare the exported model on. Add text."
        )
    order = np.argsort(text.lengths, kind="stable")
    spread = order[np.linspace(0, len(order) - 1, min(texts, len(order))).round().astype(int)]
    # so that short and long ones are padded together
    spread = np.random.default_rng(0).permutation(spread)
    yield "real text", _real(source, text, spread)
    sequences = [[int(token) for token in text[int(i)]] for i in spread]
    maximum = min(source.max_length, LONGEST)
    whole = _of_length(sequences, maximum)
    middle = whole[: max(len(whole) // 2, 1)]
    few = [sequences[i % len(sequences)] for i in range(SEVERAL)]
    shapes = {
        "one text": [few[0]],
        "one text of one token": [whole[:1]],
        f"one text of {maximum} tokens": [whole],
        f"{SEVERAL} texts of one token": [[row[0]] for row in few],
        f"{SEVERAL} texts, none padded": [middle] * SEVERAL,
        f"{SEVERAL} texts, padded": [row[: 1 + i * len(row)] for i, row in enumerate(few)],
        f"2 texts, padded to {maximum} tokens": [few[0][:1], whole],
    }
    for name, rows in shapes.items():
        yield name, iter([_padded(source, rows)])
    tokenizer: Any = source.tokenizer
    pair = [tokenizer.decode(one, skip_special_tokens=True) for one in (sequences * 2)[:2]]
    made = tokenizer(*pair, truncation=True, max_length=maximum, return_tensors="pt")
    yield "a sentence pair", iter([_complete(source, dict(made))])


def _real(source: LoadedModel, text: Tokens | Examples, chosen: np.ndarray) -> Iterator[Inputs]:
    pad = int(source.tokenizer.pad_token_id or 0)
    for start in range(0, len(chosen), BATCH):
        batch = collate(text, chosen[start : start + BATCH], pad)
        yield _complete(source, model_inputs(source, batch))


def _of_length(sequences: Sequence[list[int]], length: int) -> list[int]:
    """Join real tokens, between the special ones that a text begins and ends with."""
    body = [token for row in sequences for token in row[1:-1]] or [sequences[0][0]]
    inner = max(length - 2, 0)
    body = (body * (inner // len(body) + 1))[:inner]
    return [sequences[0][0], *body, sequences[0][-1]][:length]


def _padded(source: LoadedModel, rows: Sequence[list[int]]) -> Inputs:
    longest = max(len(row) for row in rows)
    pad = int(source.tokenizer.pad_token_id or 0)
    ids = [[*row, *[pad] * (longest - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return _complete(source, {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)})


def _complete(source: LoadedModel, inputs: Inputs) -> Inputs:
    """Return the inputs that the model takes, token types 0 where nothing else is given."""
    given = {"token_type_ids": torch.zeros_like(inputs["input_ids"]), **inputs}
    return {name: given[name] for name in input_names(source)}


# --- how it is compared ---------------------------------------------------------------------------


def _compared(
    name: str, source: LoadedModel, other: LoadedModel, batches: Iterator[Inputs]
) -> Compared:
    apart: dict[str, float] = {}
    scale: dict[str, float] = {}
    alike: list[Tensor] = []
    values: list[tuple[Tensor, Tensor]] = []
    texts = tokens = 0
    for inputs in batches:
        real_BL = inputs["attention_mask"].bool()
        texts, tokens = texts + len(real_BL), max(tokens, int(real_BL.sum(1).max()))
        with torch.inference_mode():
            expected = answers(source, inputs)
            given = _given(name, other, inputs)
        for output, one in expected.items():
            two = getattr(given, output)
            if two is None or one.shape != two.shape:
                apart[output] = float("inf")
                continue
            alike += _alike(source.task, output, (one, two), real_BL)
            if output == "logits" and not source.task.has_distribution:
                values.append((one, two))
            if is_by_token(source.task, output):
                one, two = one[real_BL], two[real_BL]
            # a maximum of tensors keeps what is not a number, which Python's would lose
            largest = torch.tensor([apart.get(output, 0.0), float((one - two).abs().max())])
            apart[output] = float(largest.max())
            scale[output] = max(scale.get(output, 0.0), float(one.abs().max()))
    difference = {output: value / (scale.get(output) or 1) for output, value in apart.items()}
    agreement = float(torch.cat(alike).float().mean()) if alike else _explained(values)
    return Compared(name, texts, tokens, difference, agreement)


def _explained(values: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """Compute the fraction of the first ones' variance that the second ones explain.

    1 - the sum of squared differences over that of the first ones' from their mean; None where the
    latter is nothing.
    """
    if not values:
        return None
    one, two = (torch.cat(side).double() for side in zip(*values, strict=True))
    spread = ((one - one.mean()) ** 2).sum()
    return float(1 - ((one - two) ** 2).sum() / spread) if spread > 0 else None


def _given(name: str, other: LoadedModel, inputs: Inputs) -> Any:
    try:
        return other.model(**inputs)
    except Exception as error:  # onnxruntime's own classes share no base but this one
        first = str(error).strip().splitlines()[0]
        raise ParityFailed(
            f"{other.name} failed the parity gate: it can't run {name}: {first}"
        ) from None


def _alike(
    task: Task, output: str, pair: tuple[Tensor, Tensor], real_BL: Tensor
) -> Sequence[Tensor]:
    """Compare what a user would take from two outputs: [K], bool or a cosine."""
    one, two = pair
    if task.is_encoder:
        vectors = output == "sentence_embedding"
        return [F.cosine_similarity(one, two, dim=-1).clamp(max=1.0)] if vectors else []
    if not task.has_distribution:
        return []
    if task == Task.MULTI_LABEL:
        return [((one > 0) == (two > 0)).flatten()]
    if task.head == "spans":  # an answer neither begins nor ends in padding
        one, two = (values.masked_fill(~real_BL, float("-inf")) for values in pair)
        return [one.argmax(-1) == two.argmax(-1)]
    same = one.argmax(-1) == two.argmax(-1)
    return [same[real_BL] if is_by_token(task, output) else same]
