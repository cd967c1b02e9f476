"""Who is compared, and what every comparison's result has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.evaluation import retention as bootstrap
from potstill.tasks.metrics import Array


@dataclass(frozen=True)
class Lineup:
    """The models that are compared, and the part that each of them plays.

    Attributes:
        models: Name -> folders, one for each training.
        baseline: The model that the others are compared with, one of `models`.
        seed: Of the bootstrap, and of references that learn.
        student: The model whose answers stand beside the baseline's; None: the last of `models`
            that is not the baseline.
        twin: The same student trained without a teacher; None: there is no such model.
    """

    models: Mapping[str, Sequence[Path]]
    baseline: str
    seed: int
    student: str | None = None
    twin: str | None = None

    def __post_init__(self) -> None:
        for name in (self.baseline, self.student, self.twin):
            assert name is None or name in self.models, f"no model {name}"

    @property
    def order(self) -> list[str]:
        """The names, the baseline's first."""
        return [self.baseline, *(name for name in self.models if name != self.baseline)]

    @property
    def shown(self) -> str:
        """The student, which `softened` and `examples` show and findings speak of."""
        return self.order[-1] if self.student is None else self.student

    @property
    def compared(self) -> list[str]:
        """The student, and its twin where that is another model."""
        return [self.shown] if self.twin in (None, self.shown) else [self.shown, str(self.twin)]

    @property
    def folders(self) -> dict[str, Path]:
        """The first training of each model, in `order`."""
        return {name: self.models[name][0] for name in self.order}

    # --- what all comparisons share ---------------------------------------------------------------

    def rank_retentions(
        self, items: Mapping[str, Mapping[str, Array]], chance: Mapping[str, float]
    ) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, list[float]]]]:
        """Compute retention and its intervals; see `retention.rank_retentions`."""
        return bootstrap.rank_retentions(items, self.baseline, self.seed, chance)

    def differences(
        self, score: str, items: Mapping[str, Array], references: Mapping[str, Array]
    ) -> dict[str, dict[str, Any]]:
        """Compare the student with its twin and with references; see `retention.differences`.

        Args:
            items: Model -> one value for each item.
            references: Reference -> one value for each item.
        """
        values = {name: items[name] for name in self.compared}
        return bootstrap.differences(score, {**values, **references}, self.shown, self.seed)

    def result(self, found: Compared) -> dict[str, Any]:
        """Write what was found as result.json has it."""
        return {
            "task": found.task,
            "records": found.records,
            "baseline": self.baseline,
            "models": found.models,
            "references": found.references,
            "retention": found.retention,
            "intervals": found.intervals,
            "twin": self.twin,
            "differences": found.differences,
            "findings": bootstrap.not_beaten(
                found.differences, self.shown, found.said, -1 if found.is_loss else 1
            ),
            "softened": found.softened,
            "examples": found.examples,
        }


@dataclass(frozen=True)
class Compared:
    """What a comparison found, whatever the task.

    Attributes:
        records: How many items were scored.
        models, references: Name -> part -> score -> value.
        retention, intervals: As `retention.rank_retentions` gives them.
        differences: As `retention.differences` gives them.
        said: What references are called in a sentence.
        is_loss: Whether the score of `differences` is the better the lower it is.
        softened: One example's distribution at several temperatures; None: there is none.
        examples: What baseline and student answer differently.
    """

    task: str
    records: int
    models: Mapping[str, Any]
    references: Mapping[str, Any]
    retention: Mapping[str, Any]
    intervals: Mapping[str, Any]
    differences: Mapping[str, Mapping[str, Any]]
    said: Mapping[str, str]
    softened: Mapping[str, Any] | None
    examples: Sequence[Mapping[str, Any]]
    is_loss: bool = False
