"""Add up the weighted losses over objectives and teachers.

Those on logits are in logits.py and chunks.py, those on hidden states and attention in hidden.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from potstill.models import Signals
from potstill.objectives.chunks import Rows, logit_sums
from potstill.objectives.hidden import Taught, hidden_sum
from potstill.recipe import LogitObjective, Objective


def objective_sums(
    objectives: Sequence[tuple[Objective, float]],
    student: Signals,
    teachers: Sequence[Taught],
    rows: Rows,
    chunk_size: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted total of the objectives, and each one's plain sum over its rows.

    With several teachers, an objective on logits follows their mean; one on hidden states is the
    mean of its losses against each.

    Args:
        objectives: each with the factor of its sum in the total (weight / count over the whole
            batch).
        student: the student's signals of one micro-batch.
        teachers: theirs, with what is compared.
        rows: which rows each objective is over.
        chunk_size: rows of logits that exist at a time.

    Returns:
        total: scalar with a gradient; sums: kind -> scalar without one.

    Raises:
        ValueError: hidden states of different widths.
    """
    total = student.hidden_BLD.new_zeros(())
    sums: dict[str, Tensor] = {}
    on_logits: list[tuple[LogitObjective, float]] = []
    for objective, scale in objectives:
        if objective.reads == "logits":
            on_logits.append((objective, scale))
            continue
        assert teachers
        value = total.new_zeros(())
        for taught in teachers:
            one = hidden_sum(objective, student, taught, rows.tokens_BL, rows.hidden_BL)
            value = value + taught.share * one
        sums[objective.kind] = value.detach()
        total = total + scale * value
    if on_logits:
        logit_total, found = logit_sums(on_logits, student, teachers, rows, chunk_size)
        total, sums = total + logit_total, sums | found
    return total, sums
