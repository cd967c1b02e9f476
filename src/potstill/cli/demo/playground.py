"""Ask a finished run's models the same typed input, for the page that server.py serves."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from potstill.benchmarking.statistics import judge_noise
from potstill.cli.demo.answers import Answer, Answerer
from potstill.cli.demo.distributions import TEMPERATURES, soften
from potstill.models import Runtime
from potstill.models.config import is_unnamed, label_names
from potstill.pipeline.run_models import RunModel, RunModels
from potstill.recipe import Recipe, Task

PASSES = 5  # timed passes per model, after one that is not timed
MOST_OTHERS = 32  # texts that a text is compared with
MOST_CHARACTERS = 100_000
MOST_DISTRIBUTIONS = 200  # words of a sentence whose distributions are shown
ALIKE = 5e-4  # two values that read the same


@dataclass(frozen=True)
class Field:
    """Hold a field of the page's form.

    Attributes:
        several: Each line is a text.
    """

    name: str
    hint: str
    example: str
    rows: int = 3
    several: bool = False


class Playground:
    """Ask a run's models, one question at a time.

    Attributes:
        served: The models of the run that answer.
        absent: Name of a model of the run -> why it does not answer.
        fields: The fields of the page's form.
        trained_at: The temperatures that the run distilled at.
        temperatures: Those of the slider, the run's own among them.
    """

    def __init__(
        self,
        recipe: Recipe,
        served: Mapping[RunModel, Answerer],
        absent: Mapping[str, str],
        fields: list[Field],
    ) -> None:
        self.recipe, self.served, self.absent, self.fields = recipe, served, absent, fields
        distilled = [stage for stage in recipe.stages if stage.kind == "distill"]
        logged = [objective.logged for stage in distilled for objective in stage.objectives]
        self.trained_at = sorted({one["temperature"] for one in logged if "temperature" in one})
        self.temperatures = tuple(sorted({*TEMPERATURES, *self.trained_at}))
        self._lock = threading.Lock()

    @property
    def mask(self) -> str | None:
        """Return the token that masked LM fills in; None for other tasks."""
        if self.recipe.task != Task.MASKED_LM:
            return None
        return str(next(iter(self.served.values())).runtime.loaded.tokenizer.mask_token)

    def answer(self, typed: Sequence[str]) -> dict[str, Any]:
        """Return every model's answer and the softened distributions, as JSON.

        Raises:
            ValueError: The texts cannot be answered; the message is for the person who typed them.
        """
        texts, answers = self._texts(typed), dict[str, Answer]()
        with self._lock:
            for model, answerer in self.served.items():
                answers[model.name] = answerer.answer(texts, answerer.ask(texts))
        first_name, first = next(iter(answers.items()))
        common = [note for note in first.notes if all(note in a.notes for a in answers.values())]
        count = min(MOST_DISTRIBUTIONS, *(len(a.distributions) for a in answers.values()))
        return {
            "models": [
                {
                    "name": name,
                    "headline": answer.headline,
                    "beside": None if answer is first else compare(answer, first, first_name),
                    "groups": [{"title": title, "rows": rows} for title, rows in answer.groups],
                    "words": answer.words,
                    "notes": [note for note in answer.notes if note not in common],
                }
                for name, answer in answers.items()
            ],
            "notes": common,
            "distributions": [
                soften({m: a.distributions[n] for m, a in answers.items()}, self.temperatures)
                for n in range(count)
            ],
            "foremost": first.foremost if first.foremost < count else 0,
        }

    def times(self, typed: Sequence[str]) -> dict[str, Any]:
        """Return each model's median of a few warm passes in milliseconds, on one thread.

        The passes, from text to logits, are interleaved, so that other work meets all models alike;
        `noise` is a sentence where there was much of it.

        Raises:
            ValueError: As `answer`.
        """
        texts = self._texts(typed)
        taken = {model.name: list[float]() for model in self.served}
        wall_s = cpu_s = 0.0
        with self._lock:
            for _ in range(PASSES + 1):
                for model, answerer in self.served.items():
                    cpu, start = time.thread_time(), time.perf_counter()
                    answerer.ask(texts)
                    seconds = time.perf_counter() - start
                    cpu_s, wall_s = cpu_s + time.thread_time() - cpu, wall_s + seconds
                    taken[model.name].append(1000 * seconds)
        medians = {name: statistics.median(each[1:]) for name, each in taken.items()}
        noise = judge_noise(wall_s, cpu_s, threads=1, ratios={})
        return {"milliseconds": medians, "noise": noise["message"]}

    def _texts(self, typed: Sequence[str]) -> list[str]:
        """Return the texts that the models are asked, from those in the fields."""
        assert len(typed) == len(self.fields)
        texts: list[str] = []
        for field, text in zip(self.fields, typed, strict=True):
            if not text.strip():
                raise ValueError(f"“{field.name}” is empty. Type some text into it.")
            if len(text) > MOST_CHARACTERS:
                raise ValueError(
                    f"“{field.name}” has {len(text):,} characters. Paste at most "
                    f"{MOST_CHARACTERS:,}."
                )
            lines = text.splitlines() if field.several else [text]
            found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
            if len(found) > MOST_OTHERS:
                raise ValueError(
                    f"“{field.name}” holds {len(found)} texts. Give at most {MOST_OTHERS}."
                )
            texts += found
        return texts


def compare(answer: Answer, first: Answer, name: str) -> dict[str, Any]:
    """Return whether a model answers as the first one does: `alike`, and in words `told`."""
    if answer.value is not None and first.value is not None:
        difference = answer.value - first.value
        alike = abs(difference) < ALIKE
        apart = f"{abs(difference):.3f} {'above' if difference > 0 else 'below'} {name}"
        return {"alike": alike, "told": f"as {name}" if alike else apart}
    if answer.decided == first.decided:
        return {"alike": True, "told": f"agrees with {name}"}
    told = f"differs from {name}"
    if answer.words:
        pairs = list(zip(answer.decided, first.decided, strict=False))
        told += f" at {sum(a != b for a, b in pairs)} of {len(pairs)} words"
    return {"alike": False, "told": told}


def open_playground(
    found: RunModels, evaluation: Mapping[str, Any], say: Callable[[str], None]
) -> Playground:
    """Load the models of a run, each on one thread of the CPU.

    Args:
        found: The run's recipe and models.
        evaluation: The result of the run's evaluate stage, which examples are taken from.
        say: Receives a note for each model that cannot answer.

    Raises:
        ValueError: No model can answer.
    """
    torch.set_num_threads(1)
    recipe, served, absent = found.recipe, dict[RunModel, Answerer](), dict(found.absent)
    # in-batch distributions as in the last distillation
    scales = [stage.in_batch.scale for stage in recipe.stages if stage.kind == "distill"]
    for model in found.models:
        try:
            runtime = Runtime.open(model.path, recipe.task)
        except ValueError as error:
            absent[model.name] = str(error)
        else:
            served[model] = Answerer(runtime, recipe.data, (), [20.0, *scales][-1])
    for name, why in absent.items():
        say(f"note: {name} does not answer. {why}")
    if not served:
        raise ValueError(f"{recipe.name}: no model of the run can answer. See the notes above.")
    # labels for models whose config has none, from one that has
    own = [label_names(one.runtime.loaded.model.config) for one in served.values()]
    named = next((names for names in own if not is_unnamed(names)), [])
    for answerer, names in zip(served.values(), own, strict=True):
        if is_unnamed(names):
            answerer.labels = named
    mask = str(answerer.runtime.loaded.tokenizer.mask_token)
    return Playground(recipe, served, absent, form_of(recipe, mask, evaluation))


# --- the form -------------------------------------------------------------------------------------


def form_of(recipe: Recipe, mask: str, evaluation: Mapping[str, Any]) -> list[Field]:
    """Return the fields of a task, filled with an example of the run's own where it has one."""
    examples = evaluation.get("examples") or []
    told = [str(one["query"]) for one in examples if one.get("query")]
    match recipe.task:
        case Task.MASKED_LM:
            text = f"The distillery lies on the bank of a {mask}."
            return [Field("Text", f"{mask} stands for the word to fill in.", text)]
        case Task.SENTENCE_EMBEDDING | Task.SENTENCE_SIMILARITY:
            query = told[0] if told else "A small model answers sooner."
            texts = [one for example in examples[:6] for one in _answers_of(example)]
            distinct = list(dict.fromkeys(text for text in texts if text != query))[:6]
            shown = "\n".join(distinct or _OTHERS)
            others = Field("Texts to compare it with", "One text per line.", shown, 7, several=True)
            return [Field("Text", "", query, 2), others]
        case Task.TOKEN_CLASSIFICATION:
            hint = "Words are split at spaces: put a space before a full stop, too."
            return [Field("Sentence", hint, "Ada Lovelace met Charles Babbage in London .")]
        case Task.QUESTION_ANSWERING:
            question, context = _parts(told, 2)
            return [Field("Question", "", question, 2), Field("Context", "", context, 7)]
        case Task.CLASSIFICATION | Task.MULTI_LABEL | Task.REGRESSION:
            assert recipe.data is not None
            names = ["Text"] if len(recipe.data.text) == 1 else ["First text", "Second text"]
            parts = _parts(told, len(names))
            return [Field(name, "", text) for name, text in zip(names, parts, strict=True)]
        case _:
            raise ValueError(f"demo: {recipe.task} has no page yet. Use potstill.predict.")


_QUESTION = "What does a pot still separate?"
_CONTEXT = (
    "A pot still separates alcohol from water: the wash boils in a copper pot, and the spirit is "
    "condensed from its vapor."
)
_OTHERS = [
    "Small networks are quick to reply.",
    "The spirit runs slowly from the still.",
    "Latency falls when a network has fewer layers.",
    "The match ended without a goal.",
]


def _parts(told: Sequence[str], count: int) -> list[str]:
    """Return the texts of the run's first example that has this many, or made-up ones."""
    split = ([text] if count == 1 else text.split(" | ") for text in told)
    own = (parts for parts in split if len(parts) == count)
    return next(own, [_QUESTION, _CONTEXT][:count])


def _answers_of(example: Mapping[str, Any]) -> list[str]:
    answers = [value.get("top") for value in example.values() if isinstance(value, Mapping)]
    return [str(text) for text in (example.get("expected"), *answers) if text]


def describe(playground: Playground) -> dict[str, Any]:
    """Return what the page shows before anything is asked."""
    task, scale = playground.recipe.task, next(iter(playground.served.values())).scale
    models = [
        {"name": one.name, "what": f"{one.made}, {one.runs_in}, {one.bytes / 1e6:,.1f} MB"}
        for one in playground.served
    ]
    return {
        "name": playground.recipe.name,
        "task": _TASKS.get(task, task.replace("_", " ")),
        "fields": playground.fields,
        "mask": playground.mask,
        "models": models,
        "absent": playground.absent,
        "scale": f"{scale:g}" if task == Task.SENTENCE_EMBEDDING else None,
        "temperatures": [f"{t:g}" for t in playground.temperatures],
        "start": playground.temperatures.index(1.0),
        "trained_at": [f"{t:g}" for t in playground.trained_at],
        "passes": PASSES,
    }


_TASKS = {
    "masked_lm": "masked language modeling",
    "multi_label": "multi-label classification",
    "sentence_embedding": "sentence embeddings",
}
