"""The optimizer: AdamW's groups, and its state as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from potstill.recipe import Training
from potstill.training.trainee import Trainee


def pack_optimizer(
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return an optimizer's state as tensors, named "<parameter number>.<key>", and JSON values.

    The tensors are the optimizer's own, not copies: save them before the next step.
    """
    packed = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for index, entries in packed["state"].items():
        found = {key: value for key, value in entries.items() if isinstance(value, torch.Tensor)}
        tensors |= {f"{index}.{key}": value for key, value in found.items()}
        values[str(index)] = {k: value for k, value in entries.items() if k not in found}
    groups = [
        {key: list(value) if isinstance(value, tuple) else value for key, value in group.items()}
        for group in packed["param_groups"]
    ]
    return tensors, {"values": values, "param_groups": groups}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
) -> None:
    """Put what `pack_optimizer` gave back, exactly; the optimizer then owns the tensors.

    Raises:
        ValueError: (from torch) The optimizer has other parameter groups.
    """
    entries = {int(index): dict(values) for index, values in state["values"].items()}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        entries[int(index)][key] = tensor
    current = optimizer.state_dict()["param_groups"]
    groups = [
        # JSON has no tuples; what the optimizer holds as one (AdamW's betas) becomes one again
        {key: tuple(v) if isinstance(own.get(key), tuple) else v for key, v in group.items()}
        for own, group in zip(current, state["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


def make_optimizer(trainee: Trainee, settings: Training) -> torch.optim.Optimizer:
    """Make AdamW; weight decay leaves out biases and layer norms, as usual."""
    trained = [p for p in trainee.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=True
    )


def clip(trainee: Trainee, limit: float) -> float:
    """Scale the gradients down to a norm, and return what it was."""
    parameters = [p for p in trainee.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    found = float(norm)
    if not found <= limit:  # else every gradient would be multiplied by 1
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return found
