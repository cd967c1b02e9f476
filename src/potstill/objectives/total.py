"""The weighted sum of the losses over objectives and teachers.

Those on logits are in logits.py and chunks.py, those on hidden states and attention in hidden.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from potstill.models import Signals
from potstill.objectives.chunks import Rows, logit_sums
from potstill.objectives.hidden import Taught, hidden_sum
from potstill.recipe import LogitObjective, Objective


def objective_sums(
    objectives: Sequence[Objective],
    student: Signals,
    teachers: Sequence[Taught],
    rows: Rows,
    tokens_BL: Tensor,
    scales: Mapping[str, float],
    chunk_size: int,
    hidden_BL: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted total of the objectives, and each one's plain sum over its rows.

    Of several teachers, an objective on logits follows their mean; one on hidden states is the
    mean of its losses against each.

    Args:
        tokens_BL: real tokens (bool).
        hidden_BL: those that are the rows of objectives on hidden states; None: all of them.
        scales: kind -> factor of its sum in the total (weight / count over the whole batch).
        chunk_size: rows of logits that exist at a time.

    Returns:
        total: scalar with a gradient; sums: kind -> scalar without one.

    Raises:
        ValueError: hidden states of different widths.
    """
    total = student.hidden_BLD.new_zeros(())
    sums: dict[str, Tensor] = {}
    on_logits: list[LogitObjective] = []
    for objective in objectives:
        if isinstance(objective, LogitObjective):
            on_logits.append(objective)
            continue
        assert teachers
        value = total.new_zeros(())
        for taught in teachers:
            value = value + taught.share * hidden_sum(
                objective, student, taught, tokens_BL, hidden_BL
            )
        sums[objective.kind] = value.detach()
        total = total + scales[objective.kind] * value
    if on_logits:
        signals = [(taught.share, taught.signals) for taught in teachers]
        logit_total, found = logit_sums(on_logits, student, signals, rows, scales, chunk_size)
        total, sums = total + logit_total, sums | found
    return total, sums
