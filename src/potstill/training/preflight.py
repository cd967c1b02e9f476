"""What can be known of a distillation before it starts: a teacher that would teach nonsense.

A few hundred held-out examples are enough: what is refused is beyond chance, what is only likely is
told. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from potstill.data import Examples, collate
from potstill.data.sequences import Pairs, Questions
from potstill.models import LoadedModel, Signals
from potstill.recipe import Task
from potstill.tasks.heads import labelled_signals
from potstill.tasks.predictions import head_outputs
from potstill.tasks.spans.scores import answer_scores, best_answers, trivial_answers

EXAMPLES = 500  # held-out ones that a teacher is asked about
TEXTS = 50  # of which tokens and hidden states are compared
FEW = 30  # examples below which a teacher's score says nothing
_SHUFFLES = 300  # of the answers, to see what chance gives
_SURE = 4.0  # standard errors
_ALIKE = 0.05  # cosine of centred hidden states; of unrelated models it is 0
_COMMON = 0.8  # share of the commonest label above which accuracy says little


@dataclass
class Findings:
    """What was found: sentences for people, and numbers for result.json."""

    warnings: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def __or__(self, other: Findings) -> Findings:
        return Findings(
            [*self.warnings, *(w for w in other.warnings if w not in self.warnings)],
            self.numbers | other.numbers,
        )


def check_tokens(loaded: LoadedModel, examples: Examples, max_length: int) -> None:
    """Refuse a model whose own tokenizer cuts texts otherwise than the run's examples are cut.

    Raises:
        ValueError: naming the first text that differs.
    """
    for number in _spread(len(examples), TEXTS):
        texts = examples.texts[number]
        together = [(text,) for text in texts] if isinstance(examples, Pairs) else [texts]
        own: list[int] = []
        for each in together:
            own += loaded.tokenizer(
                *each, truncation=True, max_length=max_length, split_special_tokens=True
            )["input_ids"]
        if own != examples[number].tolist():
            raise ValueError(
                f"{loaded.name}: its tokenizer cuts the text of {examples.origins[number]} into "
                "other tokens than the run's first teacher's: distillation needs the same "
                "tokenizer for both"
            )


def check_teacher(
    teacher: LoadedModel, name: str, dev: Examples, labels: Sequence[str]
) -> Findings:
    """A teacher's own answers to held-out examples, against the data's labels.

    Args:
        name: what the recipe calls it.
        labels: in the order of its outputs.

    Raises:
        ValueError: its labels are in another order than the data's, or its values run the other
            way, beyond doubt.
    """
    task = teacher.task
    if dev.items < FEW:
        return Findings()
    if isinstance(dev, Questions):
        return _check_answers(teacher, name, dev.first(EXAMPLES))
    sample = dev.chosen(_spread(len(dev), EXAMPLES))
    outputs = head_outputs(teacher, sample)
    gold, what = sample.gold, "examples"
    if task.head == "tokens":
        tagged = gold >= 0  # neither a piece without a tag, nor a word without one
        outputs, gold, what = outputs[tagged], gold[tagged], "words"
    if not teacher.task.has_distribution:
        return _check_values(name, outputs[:, 0].astype(float), sample.gold.astype(float))
    if teacher.task == Task.MULTI_LABEL:
        answers, gold = np.where(outputs > 0, 1.0, -1.0), np.where(gold == 1, 1.0, -1.0)
        found = Findings()
    else:
        each = np.eye(len(labels))
        answers, gold = each[outputs.argmax(axis=1)], each[gold]
        found = _against_majority(name, answers, gold, labels, what)
    _check_order(name, answers, gold, labels, what)
    if not _knows(answers, gold):
        found.warnings.append(
            f"{name} knows nothing of the labels: on {len(gold)} held-out {what} its answers "
            "are no better than shuffled ones, so there is nothing to learn from it; fine-tune it "
            "first, or take another teacher"
        )
    return found


def check_balance(train: Examples, labels: Sequence[str], metric: str) -> Findings:
    """Whether one label is so common that accuracy says little (classification)."""
    counts = np.bincount(train.gold, minlength=len(labels))
    most = int(counts.argmax())
    share = float(counts[most] / counts.sum())
    if share <= _COMMON or metric != "accuracy":
        return Findings()
    return Findings(
        [
            f"{share:.0%} of the training examples are '{labels[most]}', so accuracy says little: "
            "data.metric=macro_f1 or matthews says more"
        ]
    )


def check_start(student: LoadedModel, teacher: LoadedModel, name: str, dev: Examples) -> Findings:
    """How like its teacher a student is before it is trained.

    Hidden states are compared less their mean over tokens, which even unrelated models share.

    Returns:
        numbers: `agreement` of the likeliest classes, `cosine` of hidden states; None where there
            is none (regression, answers; other widths).
    """
    rows = _spread(len(dev), TEXTS)
    batch = collate(dev, rows, int(teacher.tokenizer.pad_token_id or 0), None, 0, 0)
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
    cosine = None
    if states[0].shape == states[1].shape:
        own_KD, other_KD = (state - state.mean(0) for state in states)
        cosine = float(F.cosine_similarity(own_KD, other_KD, dim=-1).mean())
    agreement = None
    if teacher.task.has_labels:
        tops = [_tops(one) for one in signals]
        agreement = float((tops[0] == tops[1]).float().mean())
    found = Findings(numbers={"agreement": agreement, "cosine": cosine})
    if cosine is not None and cosine < _ALIKE:
        found.warnings.append(
            f"{student.name} starts unlike {name}: their hidden states have nothing in common "
            f"(cosine {cosine:.2f}), as after a random start; unless that is meant, start it from "
            "the teacher's layers with make_student"
        )
    return found


def sentence_of(name: str, numbers: Mapping[str, float | None]) -> str:
    """What `check_start` measured, for people."""
    told = {"agreement": "same answer {:.0%}", "cosine": "cosine of hidden states {:.2f}"}
    parts = [form.format(numbers[key]) for key, form in told.items() if numbers[key] is not None]
    return f"before training, student and {name}: {', '.join(parts)}" if parts else ""


# --- labels ---------------------------------------------------------------------------------------


def _against_majority(
    name: str, answers_NC: np.ndarray, gold_NC: np.ndarray, labels: Sequence[str], what: str
) -> Findings:
    """Whether the share of right answers is above that of the commonest label."""
    right = float((answers_NC * gold_NC).sum(axis=1).mean())
    shares = gold_NC.mean(axis=0)
    majority, count = float(shares.max()), len(gold_NC)
    found = Findings(
        numbers={"accuracy": right, "majority": majority, "chance": 1 / len(labels), "of": count}
    )
    if right <= majority + 2 * float(np.sqrt(majority * (1 - majority) / count)):
        found.warnings.append(
            f"{name} is right in {right:.0%} of {count} held-out {what}, and always saying "
            f"'{labels[int(shares.argmax())]}' is in {majority:.0%}: a student can't learn more "
            "than that from it"
        )
    return found


def _check_order(
    name: str, answers_NC: np.ndarray, gold_NC: np.ndarray, labels: Sequence[str], what: str
) -> None:
    """Refuse labels that in another order fit beyond doubt better.

    Two things must hold: the best order fits better than it fits shuffled examples, each with its
    own best order (so that answers without relation to the labels never suggest one), and by
    example it gains `_SURE` standard errors on the order that there is.
    """
    order, fit = _best_order(answers_NC, gold_NC)
    if (order == np.arange(len(order))).all():
        return
    gains_N = (answers_NC * (gold_NC[:, order] - gold_NC)).sum(axis=1)
    error = float(gains_N.std(ddof=1)) / len(gains_N) ** 0.5
    if gains_N.mean() <= _SURE * error or gains_N.mean() <= 0:
        return
    rng = np.random.default_rng(0)
    shuffled = (
        _best_order(answers_NC, gold_NC[rng.permutation(len(gold_NC))])[1] for _ in range(_SHUFFLES)
    )
    if fit <= max(shuffled) + 1e-9:
        return
    gained_C = (answers_NC * (gold_NC[:, order] - gold_NC)).sum(axis=0)
    moved = np.argsort(-gained_C, kind="stable")
    told = [f"'{labels[n]}' means '{labels[order[n]]}'" for n in moved[:4] if gained_C[n] > 0]
    raise ValueError(
        f"{name}: its labels are in another order than the data's: on {len(gold_NC)} held-out "
        f"{what} its {', '.join(told)}; correct id2label in its config.json, or give "
        "data.labels: in the order of the data's numbers, or, of a model without names, of its "
        "outputs"
    )


def _best_order(answers_NC: np.ndarray, gold_NC: np.ndarray) -> tuple[np.ndarray, float]:
    """The data's label for each of the teacher's that fits most examples, and that fit."""
    fit_CC = answers_NC.T @ gold_NC
    rows, order = linear_sum_assignment(-fit_CC)
    return order, float(fit_CC[rows, order].sum())


def _knows(answers_NC: np.ndarray, gold_NC: np.ndarray) -> bool:
    """Whether the answers fit their examples better than shuffled ones."""
    rng = np.random.default_rng(0)
    fit = float((answers_NC * gold_NC).sum())
    others = [
        float((answers_NC * gold_NC[rng.permutation(len(gold_NC))]).sum()) for _ in range(_SHUFFLES)
    ]
    return fit > max(others) + 1e-9


# --- answers --------------------------------------------------------------------------------------


def _check_answers(teacher: LoadedModel, name: str, sample: Questions) -> Findings:
    """Whether its answers to questions are above those that take no model."""
    answers = [one.text for one in best_answers(head_outputs(teacher, sample), sample)]
    own = answer_scores(answers, sample)["f1"].value
    trivial = {
        kind: answer_scores(each, sample)["f1"].value
        for kind, each in trivial_answers(sample).items()
    }
    found = Findings(numbers={"f1": own, **trivial, "of": len(answers)})
    best = max(trivial, key=lambda kind: trivial[kind])
    if own <= trivial[best]:
        what = {
            "majority": "never giving an answer",
            "sentence": "the sentence that shares most words with the question",
        }[best]
        found.warnings.append(
            f"{name} scores {own:.2f} (F1) on {len(answers)} held-out questions, and {what} "
            f"{trivial[best]:.2f}: a student can't learn more than that from it; fine-tune it "
            "first, or take another teacher"
        )
    return found


# --- values ---------------------------------------------------------------------------------------


def _check_values(name: str, values_N: np.ndarray, gold_N: np.ndarray) -> Findings:
    count = len(gold_N)
    spread = float(gold_N.std())
    if spread == 0 or values_N.std() == 0:
        what = "the data's values" if spread == 0 else f"{name}'s answers"
        return Findings([f"{what} are all the same on {count} held-out examples"])
    pearson = float(np.corrcoef(values_N, gold_N)[0, 1])
    found = Findings(numbers={"pearson": pearson, "of": count})
    sure = _SURE / count**0.5
    if pearson < -sure:
        raise ValueError(
            f"{name}: its values fall where the data's rise (Pearson {pearson:.2f} on {count} "
            "held-out examples): the scale is the other way round; turn the data's values around, "
            "or take another teacher"
        )
    if pearson < sure:
        found.warnings.append(
            f"{name} knows nothing of the values: Pearson's correlation with the data's is "
            f"{pearson:.2f} on {count} held-out examples; fine-tune it first, or take another "
            "teacher"
        )
    elif abs(float(values_N.mean() - gold_N.mean())) > 2 * spread:
        found.warnings.append(
            f"{name}'s values are on another scale than the data's: {values_N.mean():.3g} on "
            f"average, where the data say {gold_N.mean():.3g}; leave gold_mse out, or bring both "
            "to one scale"
        )
    return found


# --- details --------------------------------------------------------------------------------------


def _spread(count: int, most: int) -> np.ndarray:
    """Numbers of some examples, over all of them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _tops(signals: Signals) -> torch.Tensor:
    """The likeliest class of each distribution: [K]."""
    assert signals.features_KD is not None
    assert signals.readout is not None
    everything = slice(0, len(signals.features_KD))
    with torch.inference_mode():
        return signals.readout.logits(signals.features_KD, everything).argmax(-1).cpu()
