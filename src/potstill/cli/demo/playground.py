"""The playground: a finished run's models, side by side, on what is typed. The page is served by
server.py; here is what it asks for and what it is told.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

import torch

from potstill.benchmarking.statistics import judge_noise
from potstill.cli.demo.answers import Answer, Answerer
from potstill.cli.demo.distributions import TEMPERATURES, soften
from potstill.models import Runtime
from potstill.models.config import is_unnamed, label_names
from potstill.pipeline.run_models import RunModel, RunModels
from potstill.recipe import Distill, Recipe, Task

PASSES = 5  # timed, of each model, after one that is not
MOST_OTHERS = 32  # texts that one is compared with
MOST_CHARACTERS = 100_000
MOST_DISTRIBUTIONS = 200  # words of a sentence whose distributions are shown
ALIKE = 5e-4  # two values that read the same


@dataclass(frozen=True)
class Field:
    """A field of the page's form.

    Attributes:
        several: a text a line.
    """

    name: str
    hint: str
    example: str
    rows: int = 3
    several: bool = False


@dataclass(frozen=True)
class Served:
    """A model of the run that answers."""

    model: RunModel
    answerer: Answerer


class Playground:
    """What the page's server asks; one question at a time, whoever asks.

    Attributes:
        absent: name of a model of the run -> why it does not answer.
        fields: what is typed.
        temperatures: those of the slider, the run's own among them.
    """

    def __init__(
        self,
        recipe: Recipe,
        served: Sequence[Served],
        absent: Mapping[str, str],
        fields: list[Field],
    ) -> None:
        self.recipe, self.served, self.absent, self.fields = recipe, served, absent, fields
        self.trained_at = _trained_at(recipe)
        self.temperatures = tuple(sorted({*TEMPERATURES, *self.trained_at}))
        self._lock = threading.Lock()

    @property
    def mask(self) -> str | None:
        """The token that is to be filled in, of masked LM."""
        tokenizer = self.served[0].answerer.runtime.loaded.tokenizer
        return str(tokenizer.mask_token) if self.recipe.task == Task.MASKED_LM else None

    def answer(self, typed: Sequence[str]) -> dict[str, Any]:
        """Every model's answer and the softened distributions, as JSON has it.

        Raises:
            ValueError: what is typed can't be answered, in a sentence for who typed it.
        """
        texts = self._texts(typed)
        with self._lock:
            answers = {
                one.model.name: one.answerer.answer(texts, one.answerer.ask(texts))
                for one in self.served
            }
        first_name, first = next(iter(answers.items()))
        common = [note for note in first.notes if all(note in a.notes for a in answers.values())]
        count = min(MOST_DISTRIBUTIONS, *(len(a.distributions) for a in answers.values()))
        return {
            "models": [
                {
                    "name": name,
                    "headline": answer.headline,
                    "beside": None if answer is first else compare(answer, first, first_name),
                    "groups": [
                        {"title": title, "rows": [[r.name, r.told, r.share] for r in rows]}
                        for title, rows in answer.groups
                    ],
                    "words": [list(word) for word in answer.words],
                    "notes": [note for note in answer.notes if note not in common],
                }
                for name, answer in answers.items()
            ],
            "notes": common,
            "distributions": [
                soften(
                    {name: answer.distributions[n] for name, answer in answers.items()},
                    self.temperatures,
                )
                for n in range(count)
            ],
            "foremost": first.foremost if first.foremost < count else 0,
        }

    def times(self, typed: Sequence[str]) -> dict[str, Any]:
        """Each model's median of a few warm passes in milliseconds, from text to logits, on one
        thread; the passes are interleaved, so that what else the machine does meets all alike, and
        `noise` says so where that was much.

        Raises:
            ValueError: as `answer`.
        """
        texts = self._texts(typed)
        taken: dict[str, list[float]] = {one.model.name: [] for one in self.served}
        wall_s = cpu_s = 0.0
        with self._lock:
            for _ in range(PASSES + 1):
                for one in self.served:
                    cpu, start = time.thread_time(), time.perf_counter()
                    one.answerer.ask(texts)
                    seconds = time.perf_counter() - start
                    cpu_s, wall_s = cpu_s + time.thread_time() - cpu, wall_s + seconds
                    taken[one.model.name].append(1000 * seconds)
        medians = {name: statistics.median(each[1:]) for name, each in taken.items()}
        noise = judge_noise(wall_s, cpu_s, threads=1, ratios={})
        return {"milliseconds": medians, "noise": noise["message"]}

    def _texts(self, typed: Sequence[str]) -> list[str]:
        """What the models are asked, from what stands in the fields."""
        assert len(typed) == len(self.fields)
        texts: list[str] = []
        for field, text in zip(self.fields, typed, strict=True):
            if not text.strip():
                raise ValueError(f"“{field.name}” is empty: type something into it")
            if len(text) > MOST_CHARACTERS:
                raise ValueError(
                    f"“{field.name}” has {len(text):,} characters, more than {MOST_CHARACTERS:,}: "
                    "no model reads so far, so paste less"
                )
            texts += _lines(field, text) if field.several else [text.strip()]
        return texts


def _lines(field: Field, text: str) -> list[str]:
    found = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if len(found) > MOST_OTHERS:
        raise ValueError(
            f"“{field.name}” holds {len(found)} texts, more than {MOST_OTHERS}: leave some out"
        )
    return found


def compare(answer: Answer, first: Answer, name: str) -> dict[str, Any] | None:
    """Whether a model answers as the first one does: `alike`, and in words `told`."""
    if answer.value is not None and first.value is not None:
        difference = answer.value - first.value
        if abs(difference) < ALIKE:
            return {"alike": True, "told": f"as {name}"}
        side = "above" if difference > 0 else "below"
        return {"alike": False, "told": f"{abs(difference):.3f} {side} {name}"}
    if answer.decided == first.decided:
        return {"alike": True, "told": f"agrees with {name}"}
    pairs = list(zip(answer.decided, first.decided, strict=False))
    told = f"differs from {name}"
    if answer.words:
        told += f" at {sum(a != b for a, b in pairs)} of {len(pairs)} words"
    return {"alike": False, "told": told}


def open_playground(
    found: RunModels, evaluation: Mapping[str, Any], say: Callable[[str], None]
) -> Playground:
    """Load the models of a run, each on one thread of the CPU.

    Args:
        evaluation: the result of the run's evaluate stage, which examples are taken from.
        say: told of each model that can't answer.

    Raises:
        ValueError: none can.
    """
    torch.set_num_threads(1)
    recipe = found.recipe
    served, absent = [], dict(found.absent)
    for model in found.models:
        try:
            runtime = Runtime.open(model.path, recipe.task)
        except ValueError as error:
            absent[model.name] = str(error)
        else:
            served.append(Served(model, Answerer(runtime, recipe.data, (), _scale(recipe))))
    for name, why in absent.items():
        say(f"note: {name} does not answer: {why}")
    if not served:
        raise ValueError(f"none of the models of {recipe.name} can answer: see the notes above")
    _share_labels(served)
    mask = str(served[0].answerer.runtime.loaded.tokenizer.mask_token)
    return Playground(recipe, served, absent, form_of(recipe, mask, evaluation))


def _share_labels(served: Sequence[Served]) -> None:
    """Names of the labels, for models whose config has none, from one that has."""
    configs = [one.answerer.runtime.loaded.model.config for one in served]
    named = next((label_names(config) for config in configs if not is_unnamed(config)), [])
    for one, config in zip(served, configs, strict=True):
        if is_unnamed(config):
            one.answerer.labels = named


def _trained_at(recipe: Recipe) -> list[float]:
    """The temperatures that the run distilled at."""
    objectives = [o for s in recipe.stages if isinstance(s, Distill) for o in s.objectives]
    return sorted({o.logged["temperature"] for o in objectives if "temperature" in o.logged})


def _scale(recipe: Recipe) -> float:
    """What in-batch distributions multiply cosines by: as the last distillation did."""
    scales = [stage.in_batch.scale for stage in recipe.stages if isinstance(stage, Distill)]
    return scales[-1] if scales else 20.0


# --- the form -------------------------------------------------------------------------------------


def form_of(recipe: Recipe, mask: str, evaluation: Mapping[str, Any]) -> list[Field]:
    """The fields of a task, filled with an example: of the run's own, where it has kept one."""
    examples = evaluation.get("examples") or []
    told = [str(one["query"]) for one in examples if one.get("query")]
    match recipe.task:
        case Task.MASKED_LM:
            text = f"The distillery stands on the bank of a {mask}."
            return [Field("Text", f"{mask} stands for the word to fill in.", text)]
        case Task.SENTENCE_EMBEDDING | Task.SENTENCE_SIMILARITY:
            query = told[0] if told else "A small model answers sooner."
            others = [one for example in examples[:6] for one in _answers_of(example)]
            distinct = list(dict.fromkeys(text for text in others if text != query))[:6]
            return [
                Field("Text", "", query, 2),
                Field(
                    "Texts it is compared with",
                    "One a line.",
                    "\n".join(distinct or _OTHERS),
                    7,
                    several=True,
                ),
            ]
        case Task.TOKEN_CLASSIFICATION:
            hint = "Words are what stands between spaces: put one before a full stop, too."
            return [Field("Sentence", hint, "Ada Lovelace met Charles Babbage in London .")]
        case Task.QUESTION_ANSWERING:
            shown = _parts(told, 2) or [_QUESTION, _CONTEXT]
            return [Field("Question", "", shown[0], 2), Field("Context", "", shown[1], 7)]
        case Task.CLASSIFICATION | Task.MULTI_LABEL | Task.REGRESSION:
            assert recipe.data is not None
            names = ["Text"] if len(recipe.data.text) == 1 else ["First text", "Second text"]
            shown = _parts(told, len(names)) or [_QUESTION, _CONTEXT][: len(names)]
            return [Field(n, "", text) for n, text in zip(names, shown, strict=True)]
        case _ as never:
            assert_never(never)


_QUESTION = "What does a pot still separate?"
_CONTEXT = (
    "A pot still separates alcohol from water: the wash boils in a copper pot, and the spirit is "
    "condensed from its vapour."
)
_OTHERS = [
    "Small networks are quick to reply.",
    "The spirit runs slowly from the still.",
    "Latency falls when a network has fewer layers.",
    "The match ended without a goal.",
]


def _parts(told: Sequence[str], count: int) -> list[str] | None:
    """The texts of the first example that has as many."""
    split = ([text] if count == 1 else text.split(" | ") for text in told)
    return next((parts for parts in split if len(parts) == count), None)


def _answers_of(example: Mapping[str, Any]) -> list[str]:
    answers = [value.get("top") for value in example.values() if isinstance(value, Mapping)]
    return [str(text) for text in (example.get("expected"), *answers) if text]


def describe(playground: Playground) -> dict[str, Any]:
    """What the page says before anything is asked."""
    task = playground.recipe.task
    models = [
        {
            "name": one.model.name,
            "what": f"{one.model.made}, {one.model.runs_in}, {one.model.bytes / 1e6:,.1f} MB",
        }
        for one in playground.served
    ]
    return {
        "name": playground.recipe.name,
        "task": _TASKS.get(task, task.replace("_", " ")),
        "fields": playground.fields,
        "mask": playground.mask,
        "models": models,
        "absent": playground.absent,
        "scale": f"{_scale(playground.recipe):g}" if task == Task.SENTENCE_EMBEDDING else None,
        "temperatures": [f"{t:g}" for t in playground.temperatures],
        "start": playground.temperatures.index(1.0),
        "trained_at": [f"{t:g}" for t in playground.trained_at],
        "passes": PASSES,
    }


_TASKS = {
    "masked_lm": "masked language modelling",
    "multi_label": "multi-label classification",
    "sentence_embedding": "sentence embeddings",
}
