"""Read, answer and score questions whose answers are in a context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from potstill.data import Batch
from potstill.data.sequences import Questions
from potstill.models import LoadedModel
from potstill.recipe import TaskData
from potstill.tasks.heads import model_inputs
from potstill.tasks.kind import Kind, Shown
from potstill.tasks.metrics import Case, Scored
from potstill.tasks.rows import Cut, Cutting, Labelled, Names, RawExample, Row, Texts
from potstill.tasks.spans.examples import LABELS, read_question, tokenize_questions
from potstill.tasks.spans.scores import (
    Given,
    answer_f1,
    answer_scores,
    best_answers,
    normalized,
    trivial_answers,
)

NO_ANSWER = "(no answer)"


class SpansKind(Kind[Questions]):
    """Read questions, contexts and answers."""

    by_token: ClassVar[bool] = True
    own_id: ClassVar[str | None] = "id"
    blank: ClassVar[Any] = None
    said: ClassVar[Mapping[str, str]] = {
        "majority": "never giving an answer",
        "sentence": "the sentence that shares most words with the question",
    }

    def check_columns(self, data: TaskData) -> None:
        if len(data.text) != 2:
            raise ValueError(
                "data.text: question_answering reads two columns. Set "
                "data.text=[question, context]."
            )

    def read(self, row: Row, origin: str, data: TaskData, labelled: bool) -> tuple[Texts, Any]:
        return read_question(row, data, labelled)

    def group(self, data: TaskData) -> str | None:
        return data.text[1]  # all questions of a context are on one side

    def labels(self, read: Sequence[Any], data: TaskData, teacher: Names | None) -> list[str]:
        return LABELS

    def gold(self, example: RawExample, labels: Names, given: Names | None) -> Any:
        return example.label

    def tokenize(self, found: Sequence[Labelled], cutting: Cutting) -> Cut[Questions]:
        try:
            return tokenize_questions(found, cutting)
        except ValueError:
            if cutting.side is not None:
                raise
            # its words speak of the rows of a file
            raise ValueError(
                "the question leaves its context no room in "
                f"{cutting.data.max_length} tokens. Shorten it."
            ) from None

    def outputs(self, loaded: LoadedModel, batch: Batch) -> Tensor:
        output = loaded.model(**model_inputs(loaded, batch))
        return torch.stack([output.start_logits, output.end_logits], dim=-1)

    def decide(self, outputs: np.ndarray, examples: Questions, names: Names) -> list[Given]:
        return best_answers(outputs, examples)

    def given(self, outputs: np.ndarray, examples: Questions, case: Case[Questions]) -> Any:
        return best_answers(outputs, examples)

    def scores(self, given: Any, case: Case[Questions]) -> dict[str, Scored]:
        return answer_scores([answer.text for answer in given], case.test)

    def constant(self, case: Case[Questions]) -> dict[str, float]:
        none = answer_scores([""] * case.test.items, case.test)
        return {name: scored.value for name, scored in none.items()}

    def references(self, case: Case[Questions], seed: int) -> dict[str, dict[str, Scored]]:
        answers = trivial_answers(case.test)
        return {name: answer_scores(given, case.test) for name, given in answers.items()}

    def agreement(self, given: Any, base: Any, case: Case[Questions]) -> dict[str, float]:
        pairs = [(one.text, two.text) for one, two in zip(given, base, strict=True)]
        return {
            "top1": float(np.mean([normalized(one) == normalized(two) for one, two in pairs])),
            "f1": float(np.mean([answer_f1(one, [two]) for one, two in pairs])),
        }

    def show(self, base: Any, other: Any, case: Case[Questions], most: int) -> Shown:
        questions, answers = case.test.questions, case.test.answers
        differing = [
            n
            for n, (one, two) in enumerate(zip(base, other, strict=True))
            if normalized(one.text) != normalized(two.text)
        ]
        differing.sort(key=lambda n: -min(base[n].probability, other[n].probability))
        return [
            {
                "query": " | ".join(questions[n]),
                "expected": " / ".join(dict.fromkeys(answers[n])) or NO_ANSWER,
                "teacher": {"top": base[n].text or NO_ANSWER, "p": base[n].probability},
                "student": {"top": other[n].text or NO_ANSWER, "p": other[n].probability},
            }
            for n in differing[:most]
        ]
