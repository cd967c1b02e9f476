"""Check a distillation before it starts: a teacher that would teach nonsense is refused.

A few hundred held-out examples are enough: what is beyond chance is refused, what is only likely
is a warning. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from potstill.data import Examples, collate
from potstill.data.sequences import Questions
from potstill.models import LoadedModel, Signals
from potstill.recipe import Task
from potstill.tasks.heads import labelled_signals
from potstill.tasks.kinds import kind_of
from potstill.tasks.predictions import head_outputs
from potstill.tasks.spans.scores import answer_scores, best_answers, trivial_answers

EXAMPLES = 500  # held-out ones that a teacher is asked about
TEXTS = 50  # of which tokens and hidden states are compared
FEW = 30  # examples below which a teacher's score says nothing
_SHUFFLES = 300  # of the answers, to see what chance gives
_SURE = 4.0  # standard errors
_ALIKE = 0.05  # cosine of centred hidden states; of unrelated models it is 0
_COMMON = 0.8  # share of the majority label above which accuracy means little
_INSTEAD = "Fine-tune it first, or use another teacher."


@dataclass
class Findings:
    """Hold what was found: warnings for people, and numbers for result.json."""

    warnings: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def __or__(self, other: Findings) -> Findings:
        warnings = list(dict.fromkeys([*self.warnings, *other.warnings]))
        return Findings(warnings, self.numbers | other.numbers)


def check_tokens(loaded: LoadedModel, examples: Examples, max_length: int) -> None:
    """Refuse a model whose own tokenizer gives other tokens than the run's examples have.

    Raises:
        ValueError: The tokens of a text differ; the message names the first such text.
    """
    for number in _spread(len(examples), TEXTS):
        own: list[int] = []
        for each in kind_of(loaded.task).sequences(examples.texts[number]):
            own += loaded.tokenizer(
                *each, truncation=True, max_length=max_length, split_special_tokens=True
            )["input_ids"]
        if own != examples[number].tolist():
            raise ValueError(
                f"{loaded.name}: its tokenizer gives other tokens for the text of "
                f"{examples.origins[number]} than the run's first teacher does. Distillation needs "
                "one tokenizer: use a model that shares the teacher's."
            )


def check_teacher(
    teacher: LoadedModel, name: str, dev: Examples, labels: Sequence[str]
) -> Findings:
    """Compare a teacher's own answers to held-out examples with the data's labels.

    Args:
        name: what the recipe calls it.
        labels: in the order of its outputs.

    Raises:
        ValueError: Its labels are in another order than the data's, or its values run the other
            way; both are beyond chance.
    """
    task = teacher.task
    if dev.items < FEW:
        return Findings()
    if isinstance(dev, Questions):
        return _check_answers(teacher, name, dev.first(EXAMPLES))
    sample = dev.chosen(_spread(len(dev), EXAMPLES))
    outputs, gold = head_outputs(teacher, sample), sample.gold
    if not task.has_distribution:
        return _check_values(name, outputs[:, 0].astype(float), gold.astype(float))
    if task.head == "tokens":
        tagged = gold >= 0  # neither a subword without a tag, nor a word without one
        outputs, gold = outputs[tagged], gold[tagged]
    if task == Task.MULTI_LABEL:
        answers, gold = np.where(outputs > 0, 1.0, -1.0), np.where(gold == 1, 1.0, -1.0)
    else:
        each = np.eye(len(labels))
        answers, gold = each[outputs.argmax(axis=1)], each[gold]
    what = "words" if task.head == "tokens" else "examples"
    labeled = _Labeled(name, answers, gold, labels, f"{len(gold)} held-out {what}")
    found = Findings() if task == Task.MULTI_LABEL else labeled.against_majority()
    labeled.check_order()
    if not labeled.fits_better_than_shuffled():
        found.warnings.append(
            f"{name}: on {labeled.sample} its answers fit the labels no better than shuffled "
            f"answers do, so a student learns nothing from it. {_INSTEAD}"
        )
    return found


def check_balance(train: Examples, labels: Sequence[str], metric: str) -> Findings:
    """Warn where one label is so frequent that accuracy means little (classification)."""
    counts = np.bincount(train.gold, minlength=len(labels))
    most = int(counts.argmax())
    share = float(counts[most] / counts.sum())
    if share <= _COMMON or metric != "accuracy":
        return Findings()
    return Findings(
        [
            f"data.metric: {share:.0%} of the training examples are '{labels[most]}', so accuracy "
            "means little. Set data.metric=macro_f1 or data.metric=matthews."
        ]
    )


def check_start(student: LoadedModel, teacher: LoadedModel, name: str, dev: Examples) -> Findings:
    """Measure how similar a student is to its teacher before it is trained.

    Hidden states are compared less their mean over tokens, which even unrelated models share.

    Returns:
        numbers: `agreement` of the most likely classes, `cosine` of hidden states; None where
            there is none (regression, answers; other widths).
    """
    rows = _spread(len(dev), TEXTS)
    batch = collate(dev, rows, int(teacher.tokenizer.pad_token_id or 0))
    signals: list[Signals] = []
    for loaded in (student, teacher):
        training = loaded.model.training
        with torch.inference_mode():
            own = batch.to(loaded.model.device)
            loaded.model.eval()
            signals.append(labelled_signals(loaded, own))
        loaded.model.train(training)
    real_BL = batch.attention_mask_BL.bool()
    states = [one.hidden_BLD.float().cpu()[real_BL] for one in signals]
    cosine = agreement = None
    if states[0].shape == states[1].shape:
        own_KD, other_KD = (state - state.mean(0) for state in states)
        cosine = float(F.cosine_similarity(own_KD, other_KD, dim=-1).mean())
    if teacher.task.has_labels:
        with torch.inference_mode():
            tops = [one.logits().argmax(-1).cpu() for one in signals]
        agreement = float((tops[0] == tops[1]).float().mean())
    found = Findings(numbers={"agreement": agreement, "cosine": cosine})
    if cosine is not None and cosine < _ALIKE:
        found.warnings.append(
            f"{student.name}: its hidden states are unrelated to those of {name} (cosine "
            f"{cosine:.2f}), as after a random start. Unless you want that, make the student from "
            "the teacher's layers with make_student."
        )
    return found


def sentence_of(name: str, numbers: Mapping[str, float | None]) -> str:
    """Return what `check_start` measured as a line of the log; "" where it measured nothing."""
    forms = {"agreement": "same answer {:.0%}", "cosine": "cosine of hidden states {:.2f}"}
    parts = [form.format(numbers[key]) for key, form in forms.items() if numbers[key] is not None]
    return f"before training, student and {name}: {', '.join(parts)}" if parts else ""


# --- labels ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Labeled:
    """Hold a teacher's answers and the data's gold, one row per example: [N x labels].

    Attributes:
        sample: how many of what they are, for messages.
    """

    name: str
    answers_NC: np.ndarray
    gold_NC: np.ndarray
    labels: Sequence[str]
    sample: str

    def against_majority(self) -> Findings:
        """Warn where the accuracy is not above that of the majority label."""
        right = float((self.answers_NC * self.gold_NC).sum(axis=1).mean())
        shares, count = self.gold_NC.mean(axis=0), len(self.gold_NC)
        majority, chance = float(shares.max()), 1 / len(self.labels)
        found = Findings(
            numbers={"accuracy": right, "majority": majority, "chance": chance, "of": count}
        )
        if right <= majority + 2 * float(np.sqrt(majority * (1 - majority) / count)):
            found.warnings.append(
                f"{self.name}: its accuracy on {self.sample} is {right:.0%}, and that of the "
                f"majority label '{self.labels[int(shares.argmax())]}' is {majority:.0%}. A "
                f"student can't learn more than that from it. {_INSTEAD}"
            )
        return found

    def check_order(self) -> None:
        """Refuse labels that fit better in another order, beyond chance.

        Two things must hold: the best order fits better than it fits shuffled examples, each with
        its own best order (so that answers unrelated to the labels never suggest one), and by
        example it gains `_SURE` standard errors over the given order.
        """
        answers_NC, gold_NC = self.answers_NC, self.gold_NC
        order, fit = _best_order(answers_NC, gold_NC)
        if (order == np.arange(len(order))).all():
            return
        gains_NC = answers_NC * (gold_NC[:, order] - gold_NC)
        gains_N = gains_NC.sum(axis=1)
        error = float(gains_N.std(ddof=1)) / len(gains_N) ** 0.5
        if gains_N.mean() <= _SURE * error or gains_N.mean() <= 0:
            return
        if fit <= max(_best_order(answers_NC, other)[1] for other in self._shuffled()) + 1e-9:
            return
        gained_C = gains_NC.sum(axis=0)
        moved = [n for n in np.argsort(-gained_C, kind="stable")[:4] if gained_C[n] > 0]
        found = [f"'{self.labels[n]}' means '{self.labels[order[n]]}'" for n in moved]
        raise ValueError(
            f"{self.name}: its labels are in another order than the data's: on {self.sample} its "
            f"{', '.join(found)}. Correct id2label in its config.json, or set data.labels to the "
            "order of the data's numbers or, for a model without label names, of its outputs."
        )

    def fits_better_than_shuffled(self) -> bool:
        """Return whether the answers fit their examples better than shuffled ones."""
        others = [float((self.answers_NC * other).sum()) for other in self._shuffled()]
        return float((self.answers_NC * self.gold_NC).sum()) > max(others) + 1e-9

    def _shuffled(self) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(0)
        return (self.gold_NC[rng.permutation(len(self.gold_NC))] for _ in range(_SHUFFLES))


def _best_order(answers_NC: np.ndarray, gold_NC: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the data's label for each of the teacher's that fits most examples, and that fit."""
    fit_CC = answers_NC.T @ gold_NC
    rows, order = linear_sum_assignment(-fit_CC)
    return order, float(fit_CC[rows, order].sum())


# --- answers and values ---------------------------------------------------------------------------


def _check_answers(teacher: LoadedModel, name: str, sample: Questions) -> Findings:
    """Warn where its answers to questions are not above those of a trivial baseline."""
    answers = [one.text for one in best_answers(head_outputs(teacher, sample), sample)]
    own = answer_scores(answers, sample)["f1"].value
    trivial = {
        kind: answer_scores(each, sample)["f1"].value
        for kind, each in trivial_answers(sample).items()
    }
    found = Findings(numbers={"f1": own, **trivial, "of": len(answers)})
    best = max(trivial, key=lambda kind: trivial[kind])
    if own <= trivial[best]:
        baseline = {
            "majority": "never answering",
            "sentence": "the sentence that shares most words with the question",
        }[best]
        found.warnings.append(
            f"{name}: its F1 on {len(answers)} held-out questions is {own:.2f}, and that of "
            f"{baseline} is {trivial[best]:.2f}. A student can't learn more than that from it. "
            f"{_INSTEAD}"
        )
    return found


def _check_values(name: str, values_N: np.ndarray, gold_N: np.ndarray) -> Findings:
    """Warn where its values are unrelated to the data's or on another scale; refuse opposite ones.

    Raises:
        ValueError: Its values fall where the data's rise.
    """
    count = len(gold_N)
    spread = float(gold_N.std())
    if spread == 0 or values_N.std() == 0:
        what = "the data's values" if spread == 0 else f"the values of {name}"
        return Findings([f"{what} are all the same on {count} held-out examples. Check the data."])
    pearson = float(np.corrcoef(values_N, gold_N)[0, 1])
    found = Findings(numbers={"pearson": pearson, "of": count})
    sure = _SURE / count**0.5
    measured = f"(Pearson's correlation {pearson:.2f} on {count} held-out examples)"
    if pearson < -sure:
        raise ValueError(
            f"{name}: its values fall where the data's rise {measured}. Reverse the scale of the "
            "data's values, or use another teacher."
        )
    if pearson < sure:
        found.warnings.append(
            f"{name}: its values are unrelated to the data's {measured}. {_INSTEAD}"
        )
    elif abs(float(values_N.mean() - gold_N.mean())) > 2 * spread:
        found.warnings.append(
            f"{name}: its values are on another scale than the data's: {values_N.mean():.3g} on "
            f"average, the data's {gold_N.mean():.3g}. Omit gold_mse, or bring both to one scale."
        )
    return found


def _spread(count: int, most: int) -> np.ndarray:
    """Return the numbers of some examples, spread over all."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
