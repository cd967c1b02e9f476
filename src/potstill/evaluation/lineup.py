"""Name who is compared, and compare them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill.evaluation import retention as bootstrap
from potstill.evaluation.retention import Runs
from potstill.tasks.results import Evaluation


@dataclass(frozen=True)
class Lineup:
    """Hold the models that are compared, and the role of each.

    Attributes:
        models: Name -> folders, one per training.
        baseline: The model that the others are compared with, one of `models`.
        seed: Seeds the bootstrap, and references that learn.
        student: The model whose answers are shown next to the baseline's; None: the last of
            `models` that is not the baseline.
        twin: The same student trained without distillation; None: there is no such model.
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
        """Return the names, the baseline's first."""
        return [self.baseline, *(name for name in self.models if name != self.baseline)]

    @property
    def shown(self) -> str:
        """Return the student, which `softened`, `examples` and `findings` are about."""
        return self.order[-1] if self.student is None else self.student

    @property
    def compared(self) -> list[str]:
        """Return the student, and its baseline without distillation where that is another model."""
        return [self.shown] if self.twin in (None, self.shown) else [self.shown, str(self.twin)]

    @property
    def folders(self) -> dict[str, Path]:
        """Return the first training of each model, in `order`."""
        return {name: self.models[name][0] for name in self.order}

    def compare(
        self,
        runs: Mapping[str, Runs],
        references: Mapping[str, Runs],
        chance: Mapping[str, float],
        score: str | None,
        said: Mapping[str, str],
    ) -> Evaluation:
        """Compare all models with the baseline, and the student with what it should beat.

        Args:
            runs, chance: As in `retention.retentions`.
            references: Trivial baseline -> its scores of the same items.
            score: Names the score of `differences`; None: there are none.
            said: Names the references in a sentence.
        """
        retained, intervals = bootstrap.retentions(runs, self.baseline, chance, self.seed)
        others = {**{name: runs[name] for name in self.compared}, **references}
        found = bootstrap.differences(score, others, self.shown, self.seed) if score else {}
        return {
            "retention": retained,
            "intervals": intervals,
            "twin": self.twin,
            "differences": found,
            "findings": bootstrap.not_beaten(found, self.shown, said),
        }


def counted(work: int, progress: Callable[[float], None]) -> Callable[[int], None]:
    """Return a function that receives a number of finished texts and reports the fraction."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done / work)

    return advance
