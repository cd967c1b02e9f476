"""The objectives of a distillation, as a recipe has them."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from potstill.recipe.config import Config
from potstill.recipe.tasks import Task

__all__ = ["GoldMse", "HardTargets", "LogitObjective", "LogitsMse", "SoftTargets"]
__all__ += ["HiddenCosine", "HiddenObjective", "LayerPairs", "RelationPair", "VectorMse"]
__all__ += ["AttentionMse", "HiddenMse", "InnerObjective", "PatientHidden", "Relations"]
__all__ += ["Objective", "gold_objective"]

Weight = Annotated[float, Field(ge=0)]
Temperature = Annotated[float, Field(gt=0)]
Layer = Annotated[int, Field(ge=0)]  # counted from 0
# Which teacher layer a student layer is compared with: `uniform` takes the last of each of equal
# blocks, `last` the last ones; or their numbers.
LayerPairs = Literal["uniform", "last"] | list[Layer]
RelationPair = Literal["qq", "kk", "vv", "qk"]

Reads = Literal["logits", "vectors", "tokens", "layers"]
Counted = Literal["distributions", "masked", "gold", "tokens", "texts"]


class ObjectiveConfig(Config):
    """Hold the facts about an objective for which others would have to know its class.

    Attributes:
        reads: logits, one vector per text, last hidden states token by token, or what is inside
            the layers, which must be listened to.
        rows: what its sum is over: all distributions, those of masked tokens, those with a target,
            tokens or texts.
        wants: what a task must predict; None: a distribution or a value.
        same_width: whether it compares hidden states as they are, so that widths must be equal.
        projections: names of the maps that it learns where widths differ.
        uses_gold: whether its targets are the data's, so that no teacher is asked.
        logged: what it has at this step of a training, for the log.
    """

    wants: ClassVar[Literal["distribution", "value"] | None] = None
    same_width: ClassVar[bool] = False

    kind: str
    weight: Weight = 1.0

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if cls.__abstractmethods__:
            missing = " and ".join(sorted(cls.__abstractmethods__))
            raise TypeError(f"the objective {cls.__name__} does not define its {missing}")

    @property
    @abstractmethod
    def reads(self) -> Reads: ...

    @property
    @abstractmethod
    def rows(self) -> Counted: ...

    @property
    def projections(self) -> tuple[str, ...]:
        return ()

    @property
    def uses_gold(self) -> bool:
        return False

    @property
    def logged(self) -> dict[str, float]:
        return {}

    def at(self, step: int, steps: int) -> Self:
        """Return the objective as it is at a step, counted from 0; from `steps` on, at the end."""
        return self

    def unfit(self, task: Task) -> str | None:
        """Explain why the objective has nothing to compare in a task; None if it has."""
        where = f"objectives.{self.kind}"
        predicts = "distribution" if task.has_distribution else "value"
        if self.wants not in (None, predicts):
            instead = "hard_targets" if predicts == "distribution" else "logits_mse or gold_mse"
            return f"{where}: {task} predicts a {predicts}, not a {self.wants}. Use {instead}."
        if self.reads == "vectors" and not task.has_text_vector:
            return (
                f"{where}: {task} has no vector of a whole text. Use hidden_mse, or hidden_cosine "
                "with of: tokens."
            )
        if self.rows == "masked" and task != Task.MASKED_LM:
            return f"{where}: {task} masks no token. Set positions: all."
        if self.rows == "gold" and self.uses_gold and task == Task.SENTENCE_EMBEDDING:
            return f"{where}: text without labels has no gold target. Set target: teacher."
        return None


class SoftTargets(ObjectiveConfig):
    """Follow the teacher's distributions at a temperature."""

    reads: ClassVar[Literal["logits"]] = "logits"
    wants: ClassVar[Literal["distribution"]] = "distribution"

    kind: Literal["soft_targets"] = "soft_targets"
    temperature: Temperature = 2.0
    # From `temperature` at the first step to `final_temperature` at the last, in a line or half a
    # cosine.
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_temperature: Temperature | None = None
    divergence: Literal["kl", "cross_entropy"] = "kl"
    # Masked LM: all real tokens, or the masked ones alone.
    positions: Literal["all", "masked"] = "all"

    @model_validator(mode="after")
    def _ends(self) -> SoftTargets:
        if self.schedule != "constant" and self.final_temperature is None:
            raise ValueError(f"schedule: {self.schedule} has no end. Set final_temperature.")
        if self.schedule == "constant" and self.final_temperature is not None:
            raise ValueError(
                "final_temperature: it is never reached. Set schedule to linear or cosine, or omit "
                "it."
            )
        return self

    @property
    def rows(self) -> Counted:
        return "distributions" if self.positions == "all" else "masked"

    @property
    def logged(self) -> dict[str, float]:
        return {"temperature": self.temperature}

    def at(self, step: int, steps: int) -> SoftTargets:
        return self.model_copy(update={"temperature": self.temperature_at(step, steps)})

    def temperature_at(self, step: int, steps: int) -> float:
        """Return the temperature of a step, counted from 0, of a training of `steps` steps."""
        start, end = self.temperature, self.final_temperature
        if end is None:
            return start
        done = min(step / max(steps - 1, 1), 1.0)
        left = (1 + math.cos(math.pi * done)) / 2 if self.schedule == "cosine" else 1 - done
        return end + (start - end) * left


class HardTargets(ObjectiveConfig):
    """Follow one class: the data's, or the teacher's most likely one."""

    reads: ClassVar[Literal["logits"]] = "logits"
    rows: ClassVar[Literal["gold"]] = "gold"
    wants: ClassVar[Literal["distribution"]] = "distribution"

    kind: Literal["hard_targets"] = "hard_targets"
    target: Literal["gold", "teacher"] = "gold"

    @property
    def uses_gold(self) -> bool:
        return self.target == "gold"


class LogitsMse(ObjectiveConfig):
    """Follow the teacher's logits."""

    reads: ClassVar[Literal["logits"]] = "logits"

    kind: Literal["logits_mse"] = "logits_mse"
    positions: Literal["all", "masked"] = "all"

    @property
    def rows(self) -> Counted:
        return "distributions" if self.positions == "all" else "masked"


class GoldMse(ObjectiveConfig):
    """Follow the data's value: the squared difference from it."""

    reads: ClassVar[Literal["logits"]] = "logits"
    rows: ClassVar[Literal["gold"]] = "gold"
    wants: ClassVar[Literal["value"]] = "value"
    uses_gold: ClassVar[bool] = True

    kind: Literal["gold_mse"] = "gold_mse"


class HiddenCosine(ObjectiveConfig):
    """Follow the direction of the last hidden states, or of one vector per text."""

    same_width: ClassVar[bool] = True

    kind: Literal["hidden_cosine"] = "hidden_cosine"
    # Last hidden states, token by token; or one vector per text: its embedding, or what the
    # classifier reads, which a cached teacher has.
    of: Literal["tokens", "pooled"] = "tokens"

    @property
    def reads(self) -> Literal["tokens", "vectors"]:
        return "tokens" if self.of == "tokens" else "vectors"

    @property
    def rows(self) -> Counted:
        return "tokens" if self.of == "tokens" else "texts"


class VectorMse(ObjectiveConfig):
    """Follow sentence embeddings; for classification, what the classifier reads."""

    reads: ClassVar[Literal["vectors"]] = "vectors"
    rows: ClassVar[Literal["texts"]] = "texts"
    projections: ClassVar[tuple[str, ...]] = ("vector_mse",)

    kind: Literal["vector_mse"] = "vector_mse"


class PatientHidden(ObjectiveConfig):
    """Follow the normalized hidden states of inner layers."""

    reads: ClassVar[Literal["layers"]] = "layers"
    same_width: ClassVar[bool] = True

    kind: Literal["patient_hidden"] = "patient_hidden"
    tokens: Literal["first", "all"] = "first"
    # One for each student layer but the last.
    layers: LayerPairs = "uniform"

    @property
    def rows(self) -> Counted:
        return "tokens" if self.tokens == "all" else "texts"


class HiddenMse(ObjectiveConfig):
    """Follow the hidden states of all layers."""

    reads: ClassVar[Literal["layers"]] = "layers"
    rows: ClassVar[Literal["tokens"]] = "tokens"

    kind: Literal["hidden_mse"] = "hidden_mse"
    layers: LayerPairs = "uniform"  # one for each student layer
    embeddings: bool = True  # compare what enters the first layer, too

    @property
    def projections(self) -> tuple[str, ...]:
        """Name TinyBERT's W_h, of the layers, and its W_e, of the embeddings."""
        return (self.kind, f"{self.kind}_embeddings") if self.embeddings else (self.kind,)


class AttentionMse(ObjectiveConfig):
    """Follow the attention scores of all layers."""

    reads: ClassVar[Literal["layers"]] = "layers"
    rows: ClassVar[Literal["tokens"]] = "tokens"

    kind: Literal["attention_mse"] = "attention_mse"
    layers: LayerPairs = "uniform"


class Relations(ObjectiveConfig):
    """Follow the relations of queries, keys and values of one layer."""

    reads: ClassVar[Literal["layers"]] = "layers"
    rows: ClassVar[Literal["tokens"]] = "tokens"

    kind: Literal["relations"] = "relations"
    # Of queries, keys and values; MiniLM's are qk and vv.
    pairs: Annotated[list[RelationPair], Field(min_length=1)] = ["qq", "kk", "vv"]
    heads: Annotated[int, Field(ge=1)] | None = None  # of relations; null: the student's heads
    teacher_layer: Layer | None = None  # null: the last
    student_layer: Layer | None = None

    @model_validator(mode="after")
    def _once(self) -> Relations:
        if len(set(self.pairs)) < len(self.pairs):
            raise ValueError(f"pairs: {', '.join(self.pairs)} names one twice. Name each once.")
        return self


# By what they read, so that a `match` over some of them is known to be complete.
LogitObjective = SoftTargets | HardTargets | LogitsMse | GoldMse
InnerObjective = PatientHidden | HiddenMse | AttentionMse | Relations
HiddenObjective = HiddenCosine | VectorMse | InnerObjective
Objective = Annotated[LogitObjective | HiddenObjective, Field(discriminator="kind")]


def gold_objective(task: Task) -> Objective:
    """Return the loss that a model learns the data's own labels or values by."""
    return HardTargets(target="gold") if task.has_distribution else GoldMse()
