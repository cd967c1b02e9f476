"""Write what a run found, for people.

A run's folder is read (`results.py`) and becomes metrics.json, the report with its figures, the
model card, and a comparison with other runs. `table.py` has the rows that page, card and terminal
show; `verdict.py` the one sentence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill._lazy import lazily

if TYPE_CHECKING:
    from potstill.reporting.model_card import write_card
    from potstill.reporting.report import write_report
    from potstill.reporting.run_comparison import compare_runs, write_comparison

__all__ = ["compare_runs", "write_card", "write_comparison", "write_report"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "model_card": ("write_card",),
        "report": ("write_report",),
        "run_comparison": ("compare_runs", "write_comparison"),
    },
)
