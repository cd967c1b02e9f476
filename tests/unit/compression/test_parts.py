"""Cutting one linear map."""

from __future__ import annotations

import torch

from potstill.compression.parts import cut


def test_cut_leaves_what_is_kept_alone() -> None:
    linear = torch.nn.Linear(4, 6)
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    kept = torch.tensor([1, 4])
    cut(linear, 0, kept)
    assert torch.equal(linear.weight, weight[kept])
    assert torch.equal(linear.bias, bias[kept])
