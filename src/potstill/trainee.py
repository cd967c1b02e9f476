"""What accelerate trains: a student with its objectives."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from potstill.models import LoadedModel
from potstill.objectives import objective_sums
from potstill.teachers import LiveTeacher, Reading


class Trainee(nn.Module):
    """Student and objectives in one forward, so that data-parallel gradients are the right ones.

    The teacher is not a submodule: it is neither trained, nor saved, nor broadcast.
    """

    def __init__(
        self, student: LoadedModel, teacher: LiveTeacher | None, reading: Reading, chunk_size: int
    ) -> None:
        super().__init__()
        self.model = student.model
        self._student = [student]
        self._teacher = [teacher]
        self.reading = reading
        self.chunk_size = chunk_size

    @property
    def teacher(self) -> LiveTeacher | None:
        return self._teacher[0]

    def forward(
        self,
        input_ids_BL: Tensor,
        attention_mask_BL: Tensor,
        gold_BL: Tensor,
        scales: Mapping[str, float],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted total (with gradient) and plain sums of the objectives over one micro-batch."""
        inputs = (input_ids_BL, attention_mask_BL, gold_BL)
        teacher = self.teacher.signals(*inputs) if self.teacher else None
        student = self.reading.signals(self._student[0], *inputs)
        return objective_sums(
            self.reading.objectives,
            student,
            teacher,
            self.reading.rows(attention_mask_BL, gold_BL),
            attention_mask_BL.bool(),
            scales,
            self.chunk_size,
        )
