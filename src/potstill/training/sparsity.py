"""Unstructured pruning, for study: single weights of a model's layers become zeros in training.

Matrices keep their shapes: dense hardware computes as much as before, and files are as large.

W' = W * M is what the model computes with; M keeps of each matrix the entries that score highest.
Magnitude: the score is |W| (Zhu and Gupta 2017, arXiv 1710.01878). Movement: it is learnt, S, and
straight through the mask its gradient is dL/dS = dL/dW' * W: it falls where a weight is being
pushed towards zero (Sanh et al. 2020, arXiv 2005.07683, section 4). W gets dL/dW' * M.

A mask is a function of weights, scores and the step alone, so a checkpoint need not hold it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from potstill.models.families import layer_prefix, layers_of
from potstill.recipe import Sparsity


def share_at(settings: Sparsity, step: int, steps: int) -> float:
    """The share of zeros after `step` of `steps` optimizer steps.

    0 until `start`, `final` from `end` on, between them cubic: fast at first, while there is much
    to spare (Zhu and Gupta 2017, equation 1, from a sparsity of 0).
    """
    begin, finish = settings.start * steps, settings.end * steps
    if step >= finish:
        return settings.final
    done = max((step - begin) / (finish - begin), 0.0)
    return settings.final * (1 - (1 - done) ** 3)


def highest(scores: Tensor, share: float) -> Tensor:
    """Which entries stay where the lowest `share` of them leave: bool, shaped as the scores.

    Exactly so many leave (rounded), of equal ones those that stand last.
    """
    flat = scores.detach().flatten()
    stay = len(flat) - round(share * len(flat))
    if stay == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    least = flat.kthvalue(len(flat) - stay + 1).values
    above, equal = flat > least, flat == least
    room = stay - above.sum()
    return (above | (equal & (equal.cumsum(0) <= room))).view_as(scores)


class Sparsifier(nn.Module):
    """Masks on the trained linear maps within a model's layers.

    Scores that movement learns are its own parameters and never the model's.
    """

    def __init__(self, model: PreTrainedModel, settings: Sparsity) -> None:
        super().__init__()
        self.settings = settings
        self.share = 0.0
        self.scores = nn.ParameterDict()
        named = trained_linears(model)
        self._linears = [linear for _, linear in named]
        self._masks = []
        for name, linear in named:
            scores = None
            if settings.method == "movement":
                key = name.replace(".", "/")  # a parameter's name has no dots
                scores = self.scores[key] = nn.Parameter(torch.zeros_like(linear.weight))
            mask = _Mask(scores)
            parametrize.register_parametrization(linear, "weight", mask, unsafe=True)
            self._masks.append(mask)

    @torch.no_grad()
    def set_step(self, step: int, steps: int) -> None:
        """Draw the masks anew, as they are after `step` of `steps`."""
        self.share = share_at(self.settings, step, steps)
        for linear, mask in zip(self._linears, self._masks, strict=True):
            whole: Any = linear.parametrizations
            mask.draw(whole["weight"].original, self.share)

    @property
    def finished(self) -> bool:
        """Whether the final share is reached."""
        return self.share >= self.settings.final

    def remove(self) -> None:
        """Leave the model as it was found, but for zeros where the masks are 0."""
        for linear in self._linears:
            parametrize.remove_parametrizations(linear, "weight", leave_parametrized=True)


class _Mask(nn.Module):
    def __init__(self, scores: nn.Parameter | None) -> None:
        super().__init__()
        self._scores = [] if scores is None else [scores]  # in a list: no parameter of the model
        self._mask: list[Tensor] = []  # nor a buffer, which would be saved and broadcast

    def draw(self, weight: Tensor, share: float) -> None:
        self._mask = [highest(self._scores[0] if self._scores else weight.abs(), share)]

    def forward(self, weight: Tensor) -> Tensor:
        masked = weight * self._mask[0] if self._mask else weight
        for scores in self._scores:
            # adds nothing, but for the gradient that goes straight through the mask
            masked = masked + (scores - scores.detach()) * weight.detach()
        return masked


def trained_linears(model: PreTrainedModel) -> list[tuple[str, nn.Linear]]:
    """The linear maps within a model's layers whose weights are trained, with their names."""
    prefix = layer_prefix(model)
    return [
        (name, module)
        for name, module in model.named_modules()
        if name.startswith(prefix) and isinstance(module, nn.Linear)
        if module.weight.requires_grad
    ]


def zeros_by_layer(model: PreTrainedModel) -> list[float]:
    """Of each layer the share of exact zeros among the weights of its linear maps."""
    found = []
    for layer in layers_of(model):
        weights = [m.weight for m in layer.modules() if isinstance(m, nn.Linear)]
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        found.append(zeros / sum(weight.numel() for weight in weights))
    return found
