"""Questions whose answers stand in a context, as a kind of head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from potstill.data import Batch, Examples
from potstill.models import LoadedModel
from potstill.recipe import Task, TaskData
from potstill.tasks.heads import model_inputs
from potstill.tasks.metrics import Case, Scored
from potstill.tasks.rows import Cut, Cutting, Labelled, RawExample
from potstill.tasks.spans.examples import LABELS, read_question, tokenize_questions
from potstill.tasks.spans.scores import (
    Given,
    answer_agreement,
    answer_examples,
    answer_scores,
    best_answers,
    trivial_answers,
)


class SpansKind:
    """Questions, contexts and answers; methods as `kinds.Kind` has them."""

    by_token: bool = True
    own_id: str | None = "id"
    blank: Any = None
    said: Mapping[str, str] = {
        "majority": "never giving an answer",
        "sentence": "the sentence that shares most words with the question",
    }

    def check_columns(self, data: TaskData) -> None:
        if len(data.text) != 2:
            raise ValueError(
                "data.text: question_answering reads two columns, the question's and its "
                "context's: text: [question, context]"
            )

    def read(
        self,
        row: Mapping[str, object],
        origin: str,
        data: TaskData,
        task: Task,
        labelled: bool,
    ) -> tuple[tuple[str, ...], Any]:
        return read_question(row, data, labelled)

    def columns(self, texts: tuple[str, ...], data: TaskData) -> dict[str, str]:
        return dict(zip(data.text, texts, strict=False))

    def group(self, data: TaskData) -> str | None:
        return data.text[1]  # all questions of a context are on one side

    def scaled(
        self, sides: dict[str, list[RawExample]], data: TaskData
    ) -> dict[str, list[RawExample]]:
        return sides

    def labels(
        self,
        task: Task,
        read: Sequence[Any],
        data: TaskData,
        teacher: Sequence[str] | None,
        unnamed: bool,
    ) -> list[str]:
        return LABELS

    def gold(
        self,
        task: Task,
        example: RawExample,
        labels: Sequence[str],
        given: Sequence[str] | None,
    ) -> Any:
        return example.label

    def class_counts(
        self, task: Task, labels: Sequence[str], train: Sequence[Labelled]
    ) -> list[tuple[str, int]]:
        return []

    def tokenize(
        self, found: Sequence[Labelled], tokenizer: PreTrainedTokenizerFast, cutting: Cutting
    ) -> Cut:
        data, side = cutting.data, cutting.side or "text"
        try:
            examples, warnings = tokenize_questions(
                found, tokenizer, data, side, cutting.counts, may_lack=cutting.may_lack
            )
        except ValueError:
            if cutting.side is not None:
                raise
            # its words speak of the rows of a file
            raise ValueError(
                f"the question leaves its context no room in {data.max_length} tokens: shorten it"
            ) from None
        return Cut(examples, warnings=warnings)

    def outputs(self, loaded: LoadedModel, batch: Batch) -> Tensor:
        output = loaded.model(**model_inputs(loaded.model, batch))
        return torch.stack([output.start_logits, output.end_logits], dim=-1)

    def decide(self, outputs: np.ndarray, examples: Examples, loaded: LoadedModel) -> list[Given]:
        return best_answers(outputs, examples)

    def given(self, outputs: np.ndarray, examples: Examples, case: Case) -> Any:
        return best_answers(outputs, examples)

    def scores(self, given: Any, case: Case) -> dict[str, Scored]:
        assert case.test.items is not None
        return answer_scores([answer.text for answer in given], case.test.items)

    def constant(self, case: Case) -> dict[str, float]:
        assert case.test.items is not None
        none = answer_scores([""] * len(case.test.items), case.test.items)
        return {name: scored.value for name, scored in none.items()}

    def references(self, case: Case, seed: int) -> dict[str, dict[str, Scored]]:
        test = case.test.items
        assert test is not None
        return {name: answer_scores(found, test) for name, found in trivial_answers(test).items()}

    def agreement(self, given: Any, base: Any, case: Case) -> dict[str, float]:
        return answer_agreement(given, base)

    def show(self, base: Any, other: Any, case: Case, most: int) -> list[Mapping[str, Any]]:
        assert case.test.items is not None
        return answer_examples(base, other, case.test.items, most)
