"""Who is compared, and what every comparison finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill.evaluation import retention as bootstrap
from potstill.evaluation.retention import Runs
from potstill.tasks.results import Evaluation, Shares, Spans


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

    def retentions(
        self, runs: Mapping[str, Runs], chance: Mapping[str, float]
    ) -> tuple[Shares, Spans]:
        """Compute retention and its intervals; see `retention.retentions`."""
        return bootstrap.retentions(runs, self.baseline, chance, self.seed)

    def compare(
        self,
        runs: Mapping[str, Runs],
        references: Mapping[str, Runs],
        chance: Mapping[str, float],
        score: str | None,
        said: Mapping[str, str],
    ) -> Evaluation:
        """Compare the models with the baseline, and the student with its twin and references.

        Args:
            runs, chance: As in `retention.retentions`.
            references: What takes no network -> its scores, of the same items.
            score: The one that differences are of; None: there are none.
            said: What references are called in a sentence.

        Returns:
            `retention`, `intervals`, `twin`, `differences` and `findings`.
        """
        retained, intervals = self.retentions(runs, chance)
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
    """Return what is called with each number of texts done and reports the share of all."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done / work)

    return advance
