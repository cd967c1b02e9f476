"""Write metrics.json, report.html and the model card."""

from __future__ import annotations

import os
from pathlib import Path

from potstill.pipeline.context import Context, Done
from potstill.pipeline.outlook import Outline, Outlook
from potstill.recipe import Report
from potstill.reporting import write_card, write_report
from potstill.reporting.figures import require_matplotlib

VERSION = 1


def check(stage: Report, outlook: Outlook) -> Outline:
    require_matplotlib()
    return Outline(stage)


def run(stage: Report, folder: Path, context: Context, fingerprint: str) -> Done:
    return {"report": os.path.relpath(write_results(context.run, stage), context.run)}, {}


def has_results(run: Path) -> bool:
    """Return whether all that `write_results` writes is there."""
    wanted = [run / "metrics.json", run / "report.html"]
    wanted += [run / "model" / "README.md"] if (run / "model").is_dir() else []
    return all(path.is_file() for path in wanted)


def write_results(run: Path, settings: Report) -> Path:
    """Write metrics.json, report.html and the published model's card; return report.html."""
    path = write_report(run, settings)
    if (run / "model").is_dir():
        write_card(run, run / "model", settings)
    return path
