"""The stage that writes metrics.json, report.html and the model card."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from potstill.pipeline.context import Context, Outline, Outlook
from potstill.recipe import Report
from potstill.reporting import write_card, write_report
from potstill.reporting.figures import require_matplotlib

VERSION = 1


def check(stage: Report, outlook: Outlook) -> Outline:
    require_matplotlib()
    return Outline(stage)


def run(
    stage: Report, folder: Path, context: Context, fingerprint: str
) -> tuple[dict[str, Any], dict[str, str]]:
    return {"report": os.path.relpath(write_results(context.run, stage), context.run)}, {}


def has_results(run: Path) -> bool:
    """Whether all is there that `write_results` writes."""
    published = run / "model"
    wanted = [run / "metrics.json", run / "report.html"]
    wanted += [published / "README.md"] if published.is_dir() else []
    return all(path.is_file() for path in wanted)


def write_results(run: Path, settings: Report) -> Path:
    """metrics.json, report.html and the published model's card; returns the report's path."""
    path = write_report(run, settings)
    published = run / "model"
    if published.is_dir():
        write_card(run, published, settings)
    return path
