"""Turn one model's output for a typed input into an answer and distributions to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit, softmax
from torch import Tensor

from potstill.cli.demo.distributions import CANDIDATES, Distribution
from potstill.models import Runtime
from potstill.models.config import label_names
from potstill.recipe import Task, TaskData
from potstill.tasks.predictions import Asked, ask
from potstill.tasks.spans.scores import best_answers
from potstill.tasks.tokens.scores import entities, tagged_words

SHOWN = 5  # choices per answer
_SHOWN_LETTERS = 40  # per word
NO_ANSWER = "(no answer)"


class Bar(NamedTuple):
    """Hold a choice, the text beside it, and a share from 0 to 1 to draw; None: no bar."""

    name: str
    told: str
    share: float | None = None


@dataclass(frozen=True)
class Answer:
    """Hold one model's answer.

    Attributes:
        headline: The answer in a few words; empty where the first choice is the answer.
        decided: The decisions; another model with the same decisions gives the same answer.
        value: The value of a regression or a similarity.
        groups: (title, choices) below the headline.
        words: Token classification: (word, tag, the tag's probability).
        notes: Sentences that a reader must not miss.
        distributions: The distributions that a temperature softens.
        foremost: The number of the distribution that the answer was read from.
    """

    headline: str
    decided: tuple[str, ...] = ()
    value: float | None = None
    groups: Sequence[tuple[str, Sequence[Bar]]] = ()
    words: Sequence[tuple[str, str, float]] = ()
    notes: Sequence[str] = ()
    distributions: Sequence[Distribution] = ()
    foremost: int = 0


@dataclass
class Answerer:
    """Answer what is typed with one model.

    Args:
        runtime: The loaded model.
        data: Where a task's texts are cut; None for masked LM and sentence embeddings.
        labels: Names for a model whose config has none.
        scale: Scale of in-batch distributions: logits = scale * cosine similarity.
    """

    runtime: Runtime
    data: TaskData | None = None
    labels: Sequence[str] = ()
    scale: float = 20.0
    _vocabulary: list[str] = field(default_factory=list)

    def ask(self, texts: Sequence[str]) -> Any:
        """Compute what is timed: from texts to logits or embeddings.

        Args:
            texts: The page's fields; for sentence embeddings and similarities a text, then the
                texts that it is compared with.

        Raises:
            ValueError: The texts cannot be answered; the message is for the person who typed them.
        """
        loaded = self.runtime.loaded
        if loaded.task.is_encoder:
            return self.runtime.embed(texts)
        if loaded.task == Task.MASKED_LM:
            return self.runtime.mask_logits(texts[0])
        assert self.data is not None
        words = texts[0].split() if loaded.task == Task.TOKEN_CLASSIFICATION else texts
        return ask(loaded, [tuple(words)], self.data, may_lack=True)

    def answer(self, texts: Sequence[str], given: Any) -> Answer:
        """Turn `given`, which `ask` returned for these texts, into an answer."""
        match self.runtime.loaded.task:
            case Task.MASKED_LM:
                return self._filled(texts[0], given)
            case Task.SENTENCE_EMBEDDING | Task.SENTENCE_SIMILARITY:
                return self._similarities(texts, given)
            case Task.CLASSIFICATION:
                return self._label(given)
            case Task.MULTI_LABEL:
                return self._several(given)
            case Task.REGRESSION:
                value = float(given.outputs[0, 0])
                return Answer(f"{value:.3f}", value=value, notes=self._cut(given))
            case Task.TOKEN_CLASSIFICATION:
                return self._tags(given)
            case Task.QUESTION_ANSWERING:
                return _span(given, texts[1])
            case task:  # the page has no form for it
                raise ValueError(f"demo: there is no answer of the task {task} to show.")

    @cached_property
    def names(self) -> list[str]:
        """Return the labels in the order of the logits."""
        found = label_names(self.runtime.loaded.model.config)
        return list(self.labels) if len(self.labels) == len(found) else found

    # --- one task each ----------------------------------------------------------------------------

    def _filled(self, text: str, logits_KV: Tensor) -> Answer:
        tokenizer = self.runtime.loaded.tokenizer
        logits = logits_KV.double().cpu().numpy()
        if len(self._vocabulary) != logits.shape[1]:
            tokens = tokenizer.convert_ids_to_tokens(list(range(logits.shape[1])))
            # more logits than tokens: the rows that pad an embedding
            self._vocabulary = [t or f"({n})" for n, t in enumerate(tokens)]
        found = []
        for number, logits_V in enumerate(logits, start=1):
            title = "the mask" if len(logits) == 1 else f"mask {number}"
            likely = [self._vocabulary[n] for n in np.argsort(-logits_V)[:CANDIDATES]]
            shown = _readable(tokenizer, likely)
            found.append(Distribution(title, self._vocabulary, logits_V, shown))
        groups = [("" if len(found) == 1 else one.title, _likeliest(one)) for one in found]
        first = tuple(rows[0].name for _, rows in groups)
        notes = self._text_is_cut([text])
        return Answer(" · ".join(first), first, groups=groups, notes=notes, distributions=found)

    def _similarities(self, texts: Sequence[str], vectors_ND: np.ndarray) -> Answer:
        unit_ND = vectors_ND.astype(np.float64)
        unit_ND /= np.maximum(np.linalg.norm(unit_ND, axis=1, keepdims=True), 1e-12)
        cosines_P = unit_ND[1:] @ unit_ND[0]
        others, notes = texts[1:], self._text_is_cut(texts)
        if len(others) == 1:
            value = float(cosines_P[0])
            return Answer(f"{value:.3f}", value=value, notes=notes)
        found = Distribution("the text", list(others), self.scale * cosines_P)
        rows = [
            Bar(others[n], f"{cosines_P[n]:.3f}", max(0.0, float(cosines_P[n])))
            for n in np.argsort(-cosines_P, kind="stable")
        ]
        softened = [found] if self.runtime.loaded.task.has_distribution else []
        decided = (rows[0].name,)
        return Answer("", decided, groups=[("", rows)], notes=notes, distributions=softened)

    def _label(self, given: Asked) -> Answer:
        found = Distribution("the label", self.names, given.outputs[0].astype(np.float64))
        rows, notes = _likeliest(found), self._cut(given)
        first = rows[0].name
        return Answer(first, (first,), groups=[("", rows)], notes=notes, distributions=[found])

    def _several(self, given: Asked) -> Answer:
        logits_C = given.outputs[0].astype(np.float64)
        found = Distribution("the labels", self.names, logits_C, apart=True)
        chosen = tuple(n for n, z in zip(self.names, logits_C, strict=True) if z > 0)
        rows = [_share(self.names[n], float(expit(logits_C[n]))) for n in found.order]
        return Answer(
            ", ".join(chosen) or "(no label)",
            chosen or ("",),
            groups=[("", rows)],
            notes=self._cut(given),
            distributions=[found],
        )

    def _tags(self, given: Asked) -> Answer:
        examples, names = given.examples, self.names
        own = label_names(self.runtime.loaded.model.config)
        [tagged] = tagged_words(given.outputs, examples, own)
        renamed = dict(zip(own, names, strict=True))
        tags = tuple(renamed.get(tag, tag) for tag in tagged.tags)
        found = []
        for token, word in enumerate(examples.word_at.tolist()):
            if word >= 0:
                title = f"{tagged.words[word][:_SHOWN_LETTERS]} (word {word + 1})"
                logits_C = given.outputs[token].astype(np.float64)
                found.append(Distribution(title, names, logits_C))
        spans = sorted(entities(tags), key=lambda entity: entity[1])
        said = [f"{' '.join(tagged.words[a : b + 1])} ({kind})" for kind, a, b in spans]
        return Answer(
            ", ".join(said) or "(no entity)",
            tags,
            words=list(zip(tagged.words, tags, tagged.probabilities, strict=True)),
            notes=self._cut(given),
            distributions=found,
        )

    def _cut(self, given: Asked) -> list[str]:
        assert self.data is not None
        most = min(self.data.max_length, self.runtime.loaded.max_length)
        return [_cut_note(most)] if given.cut else []

    def _text_is_cut(self, texts: Sequence[str]) -> list[str]:
        loaded = self.runtime.loaded
        encoded = loaded.tokenizer(list(texts), truncation=True, max_length=loaded.max_length)
        cut = any(one.overflowing for one in encoded.encodings or [])
        return [_cut_note(loaded.max_length)] if cut else []


def _cut_note(most: int) -> str:
    return f"The text is longer than the maximum of {most} tokens. The rest of it was cut."


def _likeliest(found: Distribution) -> list[Bar]:
    shares_C, keys = softmax(found.logits_C), found.keys
    return [
        _share(found.shown.get(keys[n], str(keys[n])), float(shares_C[n]))
        for n in found.order[:SHOWN]
    ]


def _readable(tokenizer: Any, tokens: Sequence[str]) -> dict[Any, str]:
    """Return tokens as people read them: byte-level and sentencepiece tokens mark a space."""
    marked = [token for token in tokens if not token.startswith("##")]
    return {token: tokenizer.convert_tokens_to_string([token]).strip() or token for token in marked}


def _share(name: str, share: float) -> Bar:
    return Bar(name, f"{share:.1%}", share)


# --- answers to questions -------------------------------------------------------------------------


def _span(given: Asked, context: str) -> Answer:
    """Return the best span, or none where that is more likely, and where it starts and ends."""
    [decided] = best_answers(given.outputs, given.examples)
    rows = [_share(decided.text or NO_ANSWER, decided.probability)]
    if not decided.text:
        [best] = best_answers(given.outputs, replace(given.examples, may_lack=False))
        if best.text:
            rows.append(_share(f"if there is one: {best.text}", best.probability))
    distributions, foremost = _ends(given, context)
    return Answer(
        rows[0].name,
        (decided.text,),
        groups=[("", rows)],
        distributions=distributions,
        foremost=foremost,
    )


def _ends(given: Asked, context: str) -> tuple[list[Distribution], int]:
    """Return the start and end over the tokens of each window of the context.

    The number beside them is that of the start in the window with the likeliest start and end.
    """
    examples, count = given.examples, len(given.examples)
    found, tops = [], []
    for window in range(count):
        rows = np.arange(examples.offsets[window], examples.offsets[window + 1])
        inside = rows[examples.spans[rows, 0] >= 0]
        tops.append(given.outputs[inside].max(axis=0).sum() if len(inside) else -np.inf)
        allowed = np.concatenate([rows[:1], inside])  # the first token stands for no answer
        part = f" (part {window + 1} of {count})" if count > 1 else ""
        for side, title in ((0, "where the answer starts"), (1, "where it ends")):
            keys = [None, *(int(place) for place in examples.spans[inside, side])]
            shown: dict[Any, str] = {None: NO_ANSWER}
            for begin, end in examples.spans[inside].tolist():
                shown[(begin, end)[side]] = f"{context[begin:end]} (at {begin + 1})"
            logits = given.outputs[allowed, side].astype(np.float64)
            found.append(Distribution(f"{title}{part}", keys, logits, shown))
    return found, 2 * int(np.argmax(tops))
