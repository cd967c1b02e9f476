"""Ask a model with a task's head about some texts: its logits, and their meaning."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from potstill.data import Examples, collate
from potstill.models import LoadedModel, Runtime, load_model
from potstill.models.config import label_names
from potstill.models.runtime import Filled
from potstill.recipe import Task, TaskData
from potstill.tasks.kinds import Prediction, kind_of
from potstill.tasks.rows import Cutting, Labelled, Texts

BATCH = 32

Text = str | Sequence[str]


@dataclass(frozen=True)
class Asked:
    """Hold the examples that a model was asked about, and its outputs.

    Attributes:
        outputs: as `head_outputs`.
        cut: how many texts are longer than was read of them.
    """

    examples: Any
    outputs: np.ndarray
    cut: int


def head_outputs(
    loaded: LoadedModel, examples: Examples, progress: Callable[[int], None] = lambda _: None
) -> np.ndarray:
    """Return a head's logits, float32, in the examples' order, at T = 1.

    They are [N x C] of a sequence head, [N x 1] of cosines; [T x C] of one for tokens, a row each
    of `examples.ids`; [T x 2] of answers, their start and end.
    """
    model, device = loaded.model, loaded.model.device
    training = model.training
    model.eval()
    order = np.argsort(examples.lengths, kind="stable")
    found: list[np.ndarray] = [np.zeros(0)] * len(order)
    kind, pad_id = kind_of(loaded.task), int(loaded.tokenizer.pad_token_id or 0)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        batch = collate(examples, rows, pad_id).to(device)
        with torch.inference_mode():
            values = kind.outputs(loaded, batch)
        for number, one in zip(rows.tolist(), values.float().cpu().numpy(), strict=True):
            length = examples.lengths[number]
            found[number] = one[:length] if kind.by_token else one[None]
        progress(len(rows))
    model.train(training)
    return np.concatenate(found)


def ask(
    loaded: LoadedModel, texts: Sequence[Texts], data: TaskData, *, may_lack: bool = False
) -> Asked:
    """Return a model's outputs for texts that are cut as a task's data is.

    Args:
        texts: for each example its text or two; its words, of token classification; a question and
            its context, of question answering.
        data: how texts are cut; its sources are not read.
        may_lack: a question may have no answer.
    """
    kind, most = kind_of(loaded.task), min(data.max_length, loaded.max_length)
    limited = data.model_copy(update={"max_length": most, "on_bad_row": "error"})
    found = [Labelled(one, kind.blank, "the text") for one in texts]
    made = kind.tokenize(found, Cutting(limited, loaded.tokenizer, may_lack=may_lack))
    return Asked(made.examples, head_outputs(loaded, made.examples), made.cut)


def cutting(max_length: int = 128, stride: int | None = None, max_answer: int = 30) -> TaskData:
    """Return how texts are cut where no recipe sets it; `TaskData` explains the keys."""
    return TaskData.model_validate(
        {
            "train": ["no file: these settings are read for how texts are cut"],
            "max_length": max_length,
            "stride": stride,
            "max_answer": max_answer,
        }
    )


def predict(
    model: str | os.PathLike[str], texts: Sequence[Text], task: Task | str, **options: Any
) -> np.ndarray | list[list[Filled]] | Prediction:
    """Predict with a saved model, through PyTorch or onnxruntime, at T = 1.

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
            `tasks.predictions.cutting`, and `may_lack`: a question may have no answer.

    Raises:
        ValueError: as `models.load_model`, `Runtime.fill_mask` and `tasks.predictions.ask`.
    """
    task = Task(task)
    if task == Task.SENTENCE_EMBEDDING or task == Task.MASKED_LM:
        runtime, plain = Runtime.open(model, task), [str(text) for text in texts]
        if task == Task.MASKED_LM:
            return runtime.fill_mask(plain, **options)
        return runtime.embed(plain, **options)
    loaded = load_model(model, task)
    may_lack = bool(options.pop("may_lack", False))
    given = [_as_texts(text, task) for text in texts]
    asked = ask(loaded, given, cutting(**options), may_lack=may_lack)
    names = label_names(loaded.model.config)
    found: Prediction = kind_of(task).decide(asked.outputs, asked.examples, names)
    return found


def _as_texts(text: Text, task: Task) -> Texts:
    """Split an example into a sentence's words, a question and its context, or one or two texts."""
    if task == Task.TOKEN_CLASSIFICATION:
        return tuple(text.split() if isinstance(text, str) else text)
    found = (text,) if isinstance(text, str) else tuple(text)
    if task in (Task.QUESTION_ANSWERING, Task.SENTENCE_SIMILARITY) and len(found) != 2:
        raise ValueError(
            f"{task} takes two texts per example, not {len(found)}: {found!r}. Give both."
        )
    return found
