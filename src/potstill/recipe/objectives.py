"""The objectives of a distillation, as a recipe has them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from potstill.recipe.config import Config

Weight = Annotated[float, Field(ge=0)]
Temperature = Annotated[float, Field(gt=0)]
Layer = Annotated[int, Field(ge=0)]  # counted from 0
# Which teacher layer a student layer is compared with: `uniform` takes the last of each of equal
# blocks, `last` the last ones; or their numbers.
LayerPairs = Literal["uniform", "last"] | list[Layer]
RelationPair = Literal["qq", "kk", "vv", "qk"]


# --- on logits ------------------------------------------------------------------------------------


class SoftTargets(Config):
    kind: Literal["soft_targets"] = "soft_targets"
    weight: Weight = 1.0
    temperature: Temperature = 2.0
    # From `temperature` at the first step to `final_temperature` at the last.
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_temperature: Temperature | None = None
    divergence: Literal["kl", "cross_entropy"] = "kl"
    # Masked LM: all real tokens, or the masked ones alone.
    positions: Literal["all", "masked"] = "all"

    @model_validator(mode="after")
    def _ends(self) -> SoftTargets:
        if self.schedule != "constant" and self.final_temperature is None:
            raise ValueError(f"schedule {self.schedule} has no end: set final_temperature")
        if self.schedule == "constant" and self.final_temperature is not None:
            raise ValueError(
                "final_temperature is never reached: set schedule to linear or cosine, or leave it "
                "out"
            )
        return self


class HardTargets(Config):
    kind: Literal["hard_targets"] = "hard_targets"
    weight: Weight = 1.0
    target: Literal["gold", "teacher"] = "gold"


class LogitsMse(Config):
    kind: Literal["logits_mse"] = "logits_mse"
    weight: Weight = 1.0
    positions: Literal["all", "masked"] = "all"


class GoldMse(Config):
    """Regression: the squared difference from the value that the data say."""

    kind: Literal["gold_mse"] = "gold_mse"
    weight: Weight = 1.0


# --- on vectors -----------------------------------------------------------------------------------


class HiddenCosine(Config):
    kind: Literal["hidden_cosine"] = "hidden_cosine"
    weight: Weight = 1.0
    # Last hidden states, token by token; or one vector a text: its embedding, or what the
    # classifier reads, which a cached teacher has.
    of: Literal["tokens", "pooled"] = "tokens"


class VectorMse(Config):
    """Of sentence embeddings; of classification, of what the classifier reads."""

    kind: Literal["vector_mse"] = "vector_mse"
    weight: Weight = 1.0


# --- inside the layers ----------------------------------------------------------------------------


class PatientHidden(Config):
    kind: Literal["patient_hidden"] = "patient_hidden"
    weight: Weight = 1.0
    tokens: Literal["first", "all"] = "first"
    # One for each student layer but the last.
    layers: LayerPairs = "uniform"


class HiddenMse(Config):
    kind: Literal["hidden_mse"] = "hidden_mse"
    weight: Weight = 1.0
    layers: LayerPairs = "uniform"  # one for each student layer
    embeddings: bool = True  # compare what enters the first layer, too


class AttentionMse(Config):
    kind: Literal["attention_mse"] = "attention_mse"
    weight: Weight = 1.0
    layers: LayerPairs = "uniform"


class Relations(Config):
    kind: Literal["relations"] = "relations"
    weight: Weight = 1.0
    # Of queries, keys and values; MiniLM's are qk and vv.
    pairs: Annotated[list[RelationPair], Field(min_length=1)] = ["qq", "kk", "vv"]
    heads: Annotated[int, Field(ge=1)] | None = None  # of relations; null: the student's heads
    teacher_layer: Layer | None = None  # null: the last
    student_layer: Layer | None = None

    @model_validator(mode="after")
    def _once(self) -> Relations:
        if len(set(self.pairs)) < len(self.pairs):
            raise ValueError(f"pairs: {', '.join(self.pairs)} names one twice")
        return self


LogitObjective = SoftTargets | HardTargets | LogitsMse | GoldMse
# What reads inside the layers, and so needs to listen to them.
InnerObjective = PatientHidden | HiddenMse | AttentionMse | Relations
HiddenObjective = HiddenCosine | VectorMse | InnerObjective
Objective = Annotated[LogitObjective | HiddenObjective, Field(discriminator="kind")]
