"""What all tables of the docs are made with: results that are read, Markdown that is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def stage_result(result: dict[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = [s["result"] for s in result["stages"] if s["kind"] == kind][-1]
    return found


def machine(result: dict[str, Any]) -> str:
    cpu = result["environment"]["cpu"]
    flags = ", ".join(flag.upper().replace("_", " ") for flag in cpu["flags"])
    return f"{cpu['model']}, {cpu['logical_cores']} cores, {flags}"


def markdown(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    return "\n".join(lines) + "\n"


def spread(value: float, low: float, high: float, form: str = ".3f") -> str:
    """Write a value with the ends of its interval or range."""
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def interval(ratio: dict[str, Any]) -> str:
    """Write a ratio with its 95% interval."""
    return spread(ratio["median"], ratio["low"], ratio["high"], ".2f")


def over_seeds(value: float, seeds: Sequence[float], form: str = ".3f") -> str:
    """Write a value with its range over seeds, where there are several."""
    several = len(seeds) > 1
    return spread(value, min(seeds), max(seeds), form) if several else f"{value:{form}}"


def difference(value: float, low: float, high: float) -> str:
    """Write a difference with its 95% interval, in bold where the interval holds no 0."""
    shown = spread(value, low, high, "+.3f")
    return f"**{shown}**" if low > 0 or high < 0 else shown


def kept_share(comparison: dict[str, Any], key: str) -> str:
    """Write the share of a score in metrics.json that a model keeps, with its 95% interval."""
    ends = comparison["retention_intervals"][key]
    return spread(comparison["retention_by_score"][key], *ends, ".1%")
