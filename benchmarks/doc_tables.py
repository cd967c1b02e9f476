"""What all tables of the docs are made with: results that are read, Markdown that is written."""

from __future__ import annotations

import json
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


def interval(ratio: dict[str, Any]) -> str:
    """A ratio with its 95% interval."""
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def kept_share(comparison: dict[str, Any], key: str) -> str:
    """What a model keeps of a score in metrics.json, with its 95% interval."""
    low, high = comparison["retention_intervals"][key]
    return f"{comparison['retention_by_score'][key]:.1%} ({low:.1%} to {high:.1%})"
