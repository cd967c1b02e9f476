"""Write the log of a training, log.jsonl, and the trackers that accelerate writes to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from potstill.storage.files import write_text


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose package is not installed: accelerate would skip them silently.

    Args:
        names: as in training.trackers; each is also the name of the package.

    Raises:
        ValueError: One is not installed; the message says how to install it.
    """
    # accelerate's own answer: TensorBoard, for one, may be tensorboard or tensorboardX
    available = {str(tracker) for tracker in get_available_trackers()}
    missing = [name for name in dict.fromkeys(names) if name not in available]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ValueError(
            f"training.trackers: {' and '.join(missing)} {verb} not installed. Install with `pip "
            f"install {' '.join(missing)}`."
        )


class TrainingLog:
    """Record the events of one training; the first process of several writes them."""

    def __init__(self, accelerator: Accelerator, path: Path, trackers: bool) -> None:
        self.accelerator, self.path, self.trackers = accelerator, path, trackers

    def begin(self, resumed_from: int | None) -> None:
        """Drop the lines of steps that will be done again: the log is of one training."""
        if not self.accelerator.is_main_process or not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if resumed_from is not None and _is_past(line, resumed_from)]
        write_text(self.path, "".join(kept))

    def write(self, event: str, **values: Any) -> None:
        """Append one line of JSON."""
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, **values}) + "\n")

    def begin_tracking(self, settings: Mapping[str, Any]) -> None:
        """Start the trackers, if there are any, with what the training is made of."""
        if self.trackers:
            self.accelerator.init_trackers("potstill", config=_flat(settings))

    def track(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each named curve."""
        if self.trackers:
            self.accelerator.log(_flat(values), step=step)

    def end_tracking(self) -> None:
        if self.trackers:
            self.accelerator.end_training()


def _is_past(line: str, step: int) -> bool:
    try:
        event = json.loads(line)
    except ValueError:  # cut off when the process was killed
        return False
    if event["event"] == "end":  # a training that goes on ends later
        return False
    return event["event"] in ("start", "resume") or event.get("step", 0) <= step


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, (int, float, bool)) else str(v) for k, v in values.items()}
