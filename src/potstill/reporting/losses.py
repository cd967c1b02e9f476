"""Read loss curves from the log of a training."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from potstill.reporting.results import StageResult, text_of


@dataclass(frozen=True)
class LossCurve:
    """Hold one component of a training's loss: (step, loss) in training and on held-out text."""

    key: str
    train: list[tuple[float, float]]
    evaluated: list[tuple[float, float]]


def loss_curves(stage: StageResult) -> list[LossCurve]:
    """Read the weighted sum and each component from a stage's log.jsonl; [] if it logged nothing.

    A resumed run logs some steps twice: the later line counts. A half-written last line is skipped.
    """
    found: dict[str, dict[str, dict[int, float]]] = {}
    for line in text_of(stage.folder / "log.jsonl").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("event") not in ("train", "evaluate") or "step" not in event:
            continue
        for key, value in {"loss": event.get("loss"), **event.get("components", {})}.items():
            kinds = found.setdefault(key, {"train": {}, "evaluate": {}})
            kinds[event["event"]][event["step"]] = math.nan if value is None else float(value)
    if len(found) == 2:  # one component: the sum says the same
        del found["loss"]
    return [
        LossCurve(key, sorted(kinds["train"].items()), sorted(kinds["evaluate"].items()))
        for key, kinds in found.items()
    ]
