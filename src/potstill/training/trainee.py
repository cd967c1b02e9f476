"""The module that accelerate trains: a student with its objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from potstill.data import Batch
from potstill.models import LoadedModel
from potstill.models.captures import NOTHING, Wanted
from potstill.models.families import is_task_head
from potstill.objectives import objective_sums
from potstill.objectives.hidden import Pairing, Taught
from potstill.objectives.pairing import pair_up, projection_shapes, wanted_of
from potstill.recipe import Distill, Finetune, Task, Training
from potstill.storage.manifest import blake2b
from potstill.tasks.heads import Reading, blank_gold
from potstill.training.teachers import CachedTeacher, LiveTeacher

Teacher = LiveTeacher | CachedTeacher


@dataclass(frozen=True)
class _Guide:
    """Hold a teacher with what is compared with it."""

    teacher: Teacher
    share: float
    pairings: Mapping[str, Pairing]
    wanted: Wanted
    projections: Mapping[str, str]  # name -> parameter of the trainee


class Trainee(nn.Module):
    """Run student and objectives in one forward, so that data-parallel gradients are right.

    Teachers are no submodules: they are neither trained, nor saved, nor broadcast. Projections that
    a loss learns are parameters here, beside the student's and never among them.

    Args:
        student: the model that is trained.
        teachers: those that it follows; their weights are divided by their sum.
        reading: what distributions are over, and the objectives.
        chunk_size: rows of logits that exist at a time.
        seed: decides the first weights of projections.
    """

    def __init__(
        self,
        student: LoadedModel,
        teachers: Sequence[Teacher],
        reading: Reading,
        chunk_size: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model, self._student = student.model, [student]
        self.reading, self.chunk_size = reading, chunk_size
        self.projections = nn.ParameterDict()
        self._wanted = NOTHING
        self.set_step(1, 1)
        self.teachers = list(teachers)
        total = sum(teacher.weight for teacher in teachers)
        self._guides = [
            self._guide(number, teacher, teacher.weight / total, seed)
            for number, teacher in enumerate(teachers)
        ]

    def _guide(self, number: int, teacher: Teacher, share: float, seed: int) -> _Guide:
        student, objectives = self._student[0], self.reading.objectives
        pairings = pair_up(student, teacher.loaded, objectives)
        self._wanted |= wanted_of(pairings, side=0)
        names = {}
        for name, shape in projection_shapes(student, teacher.loaded, objectives).items():
            names[name] = f"{number}_{name}"
            self.projections[names[name]] = _projection(shape, f"{seed}/{names[name]}")
        return _Guide(teacher, share, pairings, wanted_of(pairings, side=1), names)

    def set_step(self, step: int, steps: int) -> None:
        """Set all that depends on the step, counted from 0.

        From `steps` on, and before the first call, all is as at the end, where losses of one
        training are comparable.
        """
        self._objectives = [o.at(step, steps) for o in self.reading.objectives]

    def begin_step(self, settings: Training) -> None:
        """Drop the gradients, and set the modes that a step is trained in."""
        self.zero_grad(set_to_none=True)
        self.model.train(settings.dropout)
        if settings.gradient_checkpointing:
            # A layer is recomputed only if it is in training mode, its dropout is not.
            for module in self.model.modules():
                module.training |= bool(getattr(module, "gradient_checkpointing", False))

    @property
    def logged(self) -> dict[str, float]:
        """Return what the step has set, for the log."""
        return {key: value for o in self._objectives for key, value in o.logged.items()}

    def forward(
        self, batch: Batch, scales: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted total (with gradient) and each objective's sum over a micro-batch."""
        taught = [
            Taught(
                guide.teacher.signals(batch, guide.wanted),
                guide.share,
                guide.pairings,
                {name: self.projections[key] for name, key in guide.projections.items()},
            )
            for guide in self._guides
        ]
        student = self.reading.signals(self._student[0], batch, self._wanted)
        objectives = [(objective, scales[objective.kind]) for objective in self._objectives]
        return objective_sums(
            objectives, student, taught, self.reading.rows(batch), self.chunk_size
        )

    def freeze_unreached(self) -> None:
        """Freeze the student's parameters that no objective reaches.

        Those above an objective inside the layers would only be decayed, and stall data-parallel
        training. A small backward pass finds them.
        """
        ids_BL = torch.arange(16, device=self.model.device).reshape(4, 4)
        gold = blank_gold(self.reading.task, ids_BL, self.model.config)
        batch = Batch(ids_BL, torch.ones_like(ids_BL), gold)
        kinds = [objective.kind for objective in self.reading.objectives]
        total, _ = self(batch, dict.fromkeys(kinds, 1.0))
        torch.autograd.backward(total)
        for parameter in self.model.parameters():
            parameter.requires_grad_(parameter.grad is not None)
        self.zero_grad(set_to_none=True)


def _projection(shape: tuple[int, int], seed: str) -> nn.Parameter:
    """Draw normal weights that keep the size of what they map, the same in every process."""
    generator = torch.Generator().manual_seed(int.from_bytes(blake2b(seed.encode(), size=7)))
    return nn.Parameter(torch.randn(shape, generator=generator) / shape[1] ** 0.5)


def is_trained(stage: Finetune | Distill, loaded: LoadedModel, parameter: str) -> bool:
    """Return whether a stage trains a parameter of its model."""
    if loaded.task.is_encoder:
        return True
    if loaded.task != Task.MASKED_LM:
        return stage.trains_body or is_task_head(parameter, loaded.model)
    in_head = parameter in loaded.family.lm_head_parameters(loaded.model)
    return stage.trains_lm_head if in_head else stage.trains_body


def freeze(stage: Finetune | Distill, loaded: LoadedModel) -> None:
    for name, parameter in loaded.model.named_parameters():
        parameter.requires_grad_(is_trained(stage, loaded, name))
