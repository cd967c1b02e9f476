"""Formats of a training step: what each computes, and how one is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from potstill.models import devices
from potstill.training import precision
from potstill.training.precision import FORMATS, candidates, choice, measured

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", list(FORMATS))
def test_each_format_gives_products_and_attention_in_its_own_dtype(name: str) -> None:
    """And what computes exactly does so in all of them."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 8, 16, generator=generator)
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    with FORMATS[name].applied(CPU):
        product = query[0, 0] @ key[0, 0].T
        attended = F.scaled_dot_product_attention(query, key, value)
        assert torch.get_float32_matmul_precision() == (
            "medium" if name == "bf16 products" else "highest"
        )
        with devices.exactly(CPU):
            assert torch.get_float32_matmul_precision() == "highest"
            assert (query[0, 0] @ key[0, 0].T).dtype == torch.float32
    assert torch.get_float32_matmul_precision() == "highest"
    narrow = name in ("bf16", "bf16, attention fp32")
    assert product.dtype == (torch.bfloat16 if narrow else torch.float32)
    error = float((attended.double() - exact).abs().max())
    assert error < (0.02 if name == "bf16" else 1e-6)
    assert error > (1e-5 if name == "bf16" else 0.0)


def test_attention_in_float32_gives_back_what_it_was_given_and_the_gradient() -> None:
    """Queries in bfloat16 are widened, also in backward, and an additive mask with them."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 2, 8, 16, generator=generator).bfloat16().requires_grad_()
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bfloat16)
    mask[..., 5:] = -1e9
    with FORMATS["bf16, attention fp32"].applied(CPU):
        found = F.scaled_dot_product_attention(query, query, value=query, attn_mask=mask)
        found.float().square().sum().backward()
    assert found.dtype == torch.bfloat16
    wide = query.detach().double().requires_grad_()
    expected = F.scaled_dot_product_attention(wide, wide, wide, attn_mask=mask.double())
    expected.square().sum().backward()
    assert query.grad is not None
    assert wide.grad is not None
    torch.testing.assert_close(found.double(), expected, rtol=4e-3, atol=4e-3)
    torch.testing.assert_close(query.grad.double(), wide.grad, rtol=2e-2, atol=2e-2)


def test_which_formats_may_be_computed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(devices, "bf16_speedup", lambda: 4.0)
    assert candidates("fp32", CPU) == ["fp32"]
    assert candidates("auto", CPU) == list(FORMATS)
    assert candidates("bf16", CPU) == [name for name in FORMATS if name != "fp32"]
    monkeypatch.setattr(devices, "bf16_speedup", lambda: 0.9)
    assert candidates("auto", CPU) == ["fp32"]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert candidates("auto", GPU) == ["bf16"]


INF = math.inf


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"fp32": 0.0, "bf16": INF}, "fp32"),
        ({"fp32": 1.0, "bf16 products": 0.4, "bf16": 0.5}, "bf16 products"),
        ({"fp32": 1.0, "bf16 products": 0.5, "bf16": 0.49}, "bf16 products"),  # not worth it
        ({"fp32": 1.0, "bf16 products": 0.5, "bf16": 0.4}, "bf16"),
        ({"fp32": 1.0, "bf16 products": INF, "bf16": 0.4}, "bf16"),
        ({"fp32": 1.0, "bf16": 0.98}, "fp32"),
    ],
)
def test_the_fastest_is_chosen_and_among_equals_the_safer(
    seconds: dict[str, float], expected: str
) -> None:
    name, told = choice(seconds)
    assert name == expected
    if 0.0 in seconds.values():
        assert told == ""  # nothing was measured
    else:
        assert told.startswith(f"precision: {expected} (a pass of about 512 tokens takes fp32 ")


def test_a_format_that_gives_another_loss_or_gradient_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = {
        "fp32": (2.0, 3.0),
        "bf16 products": (2.01, 2.99),
        "bf16, attention fp32": (2.0, 3.2),
        "bf16": (math.nan, 3.0),
    }
    clock = iter(range(1000))
    monkeypatch.setattr(precision.time, "perf_counter", lambda: float(next(clock)))
    order: list[str] = []

    def trial() -> Callable[[], tuple[float, float]]:
        names = iter(list(FORMATS) * 3)

        def step() -> tuple[float, float]:
            order.append(next(names))
            return answers[order[-1]]

        return step

    found = measured(list(FORMATS), trial, CPU)
    assert found == {"fp32": 1.0, "bf16 products": 1.0}
    assert order == list(FORMATS) * 3  # in turn, so that a slow moment hits all


def test_a_loss_that_is_not_finite_leaves_the_first_format() -> None:
    """It is the loop that reports it, with what to do."""
    found = measured(list(FORMATS), lambda: lambda: (math.nan, math.nan), CPU)
    assert list(found) == ["fp32"]
    assert choice(found)[0] == "fp32"


def test_one_format_alone_is_not_measured() -> None:
    def trial() -> Callable[[], tuple[float, float]]:
        raise AssertionError("measured")

    assert measured(["fp32"], trial, CPU) == {"fp32": 0.0}
