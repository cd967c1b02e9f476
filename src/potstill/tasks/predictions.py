"""What a model with a task's head gives for some texts: its logits, and what they stand for."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
import torch
from scipy.special import expit, softmax

from potstill.data import Batch, Examples, collate
from potstill.data.sequences import UNLABELLED
from potstill.models import LoadedModel, Runtime, load_model
from potstill.models.config import label_names
from potstill.models.runtime import Filled
from potstill.recipe import Task, TaskData, TaskRow, row_of
from potstill.tasks.heads import model_inputs, similarity_signals
from potstill.tasks.rows import Labelled
from potstill.tasks.sequence.examples import tokenize_apart, tokenize_texts
from potstill.tasks.spans.examples import tokenize_questions
from potstill.tasks.spans.scores import Given, best_answers
from potstill.tasks.tokens.examples import tokenize_sentences

BATCH = 32
Texts = tuple[str, ...]


Text = str | Sequence[str]


@dataclass(frozen=True)
class Chosen:
    """A text's labels, most likely first, with their probabilities (T = 1).

    Of multi-label each is the label's own, whatever the others are.
    """

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Tagged:
    """A sentence's words, each with its most likely tag and that one's probability (T = 1).

    A word without a token of its own (one of odd characters, or beyond the limit) is O, surely.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Asked:
    """What a model was asked and what it gave.

    Attributes:
        outputs: as `head_outputs`.
        cut: how many texts are longer than was read of them.
    """

    examples: Examples
    outputs: np.ndarray
    cut: int


def head_outputs(
    loaded: LoadedModel,
    examples: Examples,
    progress: Callable[[int], None] = lambda _: None,
) -> np.ndarray:
    """A head's logits, float32, in the examples' order; T = 1.

    Returns:
        [N x C] of a sequence head, [N x 1] of cosines; [T x C] of one for tokens, a row each of
        `examples.ids`; [T x 2] of answers, their start and end.
    """
    model, device = loaded.model, loaded.model.device
    training = model.training
    model.eval()
    order = np.argsort(examples.lengths, kind="stable")
    found: list[np.ndarray] = [np.zeros(0)] * len(order)
    row = _row_of(loaded)
    pad_id = int(loaded.tokenizer.pad_token_id or 0)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        batch = collate(examples, rows, pad_id, None, 0, 0).to(device)
        values = _asked(loaded, row, batch)
        for number, one in zip(rows.tolist(), values.float().cpu().numpy(), strict=True):
            length = examples.lengths[number]
            found[number] = one[:length] if row.head in ("tokens", "spans") else one[None]
        progress(len(rows))
    model.train(training)
    return np.concatenate(found)


@torch.inference_mode()
def _asked(loaded: LoadedModel, row: TaskRow, batch: Batch) -> torch.Tensor:
    if row.head == "cosine":
        cosine_P1 = similarity_signals(loaded, batch).features_KD
        assert cosine_P1 is not None
        return cosine_P1
    output = loaded.model(**model_inputs(loaded.model, batch))
    if row.head == "spans":
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    logits: torch.Tensor = output.logits
    return logits


# --- asking ---------------------------------------------------------------------------------------


def ask(
    loaded: LoadedModel, texts: Sequence[Texts], data: TaskData, *, may_lack: bool = False
) -> Asked:
    """A model's outputs for texts that are cut as a task's data is.

    Args:
        texts: for each example its text or two; its words, of token classification; a question and
            its context, of question answering.
        data: how texts are cut; its sources are not read.
        may_lack: a question may have no answer.

    Raises:
        ValueError: a question that leaves no room for its context.
    """
    head, tokenizer = _row_of(loaded).head, loaded.tokenizer
    most = min(data.max_length, loaded.max_length)
    gold = {"sequence": UNLABELLED, "cosine": math.nan, "tokens": None, "spans": None}[head]
    found = [Labelled(one, gold, "the text") for one in texts]
    cut = 0
    match head:
        case "sequence":
            examples, cut = tokenize_texts(found, tokenizer, most, np.int64)
        case "cosine":
            examples, cut = tokenize_apart(found, tokenizer, most)
        case "tokens":
            examples, cut, _ = tokenize_sentences(found, tokenizer, most)
        case "spans":
            limited = data.model_copy(update={"max_length": most, "on_bad_row": "error"})
            examples = _windows(found, loaded, limited, may_lack)
        case _:
            assert_never(head)
    return Asked(examples, head_outputs(loaded, examples), cut)


def cutting(max_length: int = 128, stride: int | None = None, max_answer: int = 30) -> TaskData:
    """How texts are cut, for `ask`, where no recipe says it; the keys are explained there."""
    return TaskData.model_validate(
        {
            "train": ["no file: these settings are read for how texts are cut"],
            **{"max_length": max_length, "stride": stride, "max_answer": max_answer},
        }
    )


def _windows(
    found: Sequence[Labelled], loaded: LoadedModel, data: TaskData, may_lack: bool
) -> Examples:
    try:
        examples, _ = tokenize_questions(
            found, loaded.tokenizer, data, "text", Counter(), may_lack=may_lack
        )
    except ValueError:  # its words speak of the rows of a file
        raise ValueError(
            f"the question leaves its context no room in {data.max_length} tokens: shorten it"
        ) from None
    return examples


# --- deciding -------------------------------------------------------------------------------------


def chosen_labels(asked: Asked, loaded: LoadedModel) -> list[Chosen]:
    """Each text's labels: softmax of the logits; of multi-label the sigmoid of each."""
    names = label_names(loaded.model.config)
    logits_NC = asked.outputs.astype(np.float64)
    shares_NC = expit(logits_NC) if loaded.task == "multi_label" else softmax(logits_NC, axis=1)
    found = []
    for shares_C in shares_NC:
        order = np.argsort(-shares_C, kind="stable")
        ordered = tuple(names[number] for number in order)
        found.append(Chosen(ordered, tuple(shares_C[order].tolist())))
    return found


def tagged_words(asked: Asked, loaded: LoadedModel) -> list[Tagged]:
    """Each sentence's words with their tags."""
    examples, names = asked.examples, label_names(loaded.model.config)
    assert examples.items is not None
    assert examples.places is not None
    shares_TC = softmax(asked.outputs.astype(np.float64), axis=1)
    found = []
    for item, words in enumerate(examples.items.texts):
        tags, sure = ["O"] * len(words), [1.0] * len(words)
        for token in range(examples.offsets[item], examples.offsets[item + 1]):
            word = int(examples.places[token])
            if word >= 0:
                best = int(shares_TC[token].argmax())
                tags[word], sure[word] = names[best], float(shares_TC[token, best])
        found.append(Tagged(words, tuple(tags), tuple(sure)))
    return found


Prediction = list[Chosen] | list[Tagged] | list[Given] | list[float]


def decide(asked: Asked, loaded: LoadedModel) -> Prediction:
    """What a model's outputs stand for, in the examples' order."""
    match _row_of(loaded).head:
        case "sequence" if loaded.task != "regression":
            return chosen_labels(asked, loaded)
        case "sequence" | "cosine":
            return [float(value) for value in asked.outputs[:, 0]]
        case "tokens":
            return tagged_words(asked, loaded)
        case "spans":
            return best_answers(asked.outputs, asked.examples)
        case _ as never:
            assert_never(never)


def _row_of(loaded: LoadedModel) -> TaskRow:
    row = row_of(loaded.task)
    assert row is not None
    return row


def predict(
    model: str | os.PathLike[str], texts: Sequence[Text], task: Task, **options: Any
) -> np.ndarray | list[list[Filled]] | Prediction:
    """What a saved model says of texts, through PyTorch or onnxruntime; at T = 1.

    | task | a text is | what is given |
    |---|---|---|
    | sentence_embedding | a text | embeddings [N x D] |
    | masked_lm | a text with masks | the tokens at each mask (`Filled`) |
    | classification, multi_label | a text, or two | its labels (`Chosen`) |
    | regression, sentence_similarity | a text, or two; two | its value |
    | token_classification | a text, or its words | its words' tags (`Tagged`) |
    | question_answering | a question and its context | the answer (`Given`) |

    Args:
        model: a model folder, or FOLDER/onnx/NAME.onnx.
        options: of `Runtime.embed` or `Runtime.fill_mask`; of tasks with a head those of
            `head_predictions.cutting`, and `may_lack`: a question may have no answer.

    Raises:
        ValueError: as `models.load_model`, `Runtime.fill_mask` and `head_predictions.ask`.
    """
    if task == "sentence_embedding" or task == "masked_lm":
        runtime, plain = Runtime.open(model, task), [str(text) for text in texts]
        if task == "masked_lm":
            return runtime.fill_mask(plain, **options)
        return runtime.embed(plain, **options)
    loaded = load_model(model, task)
    may_lack = bool(options.pop("may_lack", False))
    given = [_as_texts(text, task) for text in texts]
    return decide(ask(loaded, given, cutting(**options), may_lack=may_lack), loaded)


def _as_texts(text: Text, task: Task) -> Texts:
    """What an example is made of: a sentence's words, a question and its context, a text or two."""
    if task == "token_classification":
        return tuple(text.split() if isinstance(text, str) else text)
    found = (text,) if isinstance(text, str) else tuple(text)
    if task in ("question_answering", "sentence_similarity") and len(found) != 2:
        raise ValueError(f"{task} takes two texts for each example, not {len(found)}: {found!r}")
    return found
