"""Choose the number formats that a training step computes in, by measuring the step itself.

bfloat16 is several formats: matrix products may be given bfloat16 while all between them stays
float32, and attention may be in either, whose backward pass in bfloat16 is slow on CPUs. Which of
them is fastest depends on the CPU, the model and the lengths, so it is measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from potstill.models.devices import autocast_dtype, exactly, products_in
from potstill.recipe import Training
from potstill.training.distributed import sum_of_all


@dataclass(frozen=True)
class Format:
    """Define what a step computes in.

    Attributes:
        autocast: bfloat16 for matrix products and what follows them.
        attention: bfloat16 for scaled dot-product attention; only with autocast.
        products: bfloat16 inside matrix products alone, whose results are float32 (CPUs with AMX).
    """

    autocast: bool = False
    attention: bool = False
    products: bool = False

    @contextmanager
    def applied(self, device: torch.device) -> Iterator[None]:
        """Compute in this format; backward passes belong inside, for layers recomputed there."""
        with ExitStack() as stack:
            if self.autocast:
                stack.enter_context(torch.autocast(device.type, torch.bfloat16))
                if not self.attention:
                    stack.enter_context(_WideAttention())
            if self.products:
                stack.enter_context(products_in("medium"))
            yield


# By the names that logs and checkpoints have for them, the safest first.
FORMATS: Mapping[str, Format] = {
    "fp32": Format(),
    "bf16 products": Format(products=True),
    "bf16, attention fp32": Format(autocast=True),
    "bf16": Format(autocast=True, attention=True),
}
TRIAL_TOKENS = 512  # of the micro-batch that formats are measured on
_REPEATS = 2  # timed passes of each format, after one that warms up
_TOLERANCE = 0.02  # relative: of loss and gradient norm, beside the first format's
_WORTH = 1.03  # how much faster a format must be than a safer one


def candidates(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> list[str]:
    """Return the names of the formats that a step may compute in, the safest first.

    Raises:
        ValueError: bf16 was set on a GPU that has none.
    """
    if autocast_dtype(precision, device) is None:
        return ["fp32"]
    if device.type != "cpu":
        return ["bf16"]
    return [name for name in FORMATS if name != "fp32" or precision == "auto"]


def measured(
    names: Sequence[str],
    trial: Callable[[], Callable[[], tuple[float, float]]],
    device: torch.device,
) -> dict[str, float]:
    """Return the seconds that a small pass takes in some formats, measured in turn.

    One format alone is not measured: it has 0. One whose loss or gradient norm is not that of the
    first, as far as bfloat16 goes, is left out.

    Args:
        names: of FORMATS.
        trial: makes a forward and backward pass, which returns loss and gradient norm.
    """
    if len(names) == 1:
        return {names[0]: 0.0}
    step, seconds, found = trial(), dict.fromkeys(names, math.inf), {}
    for number in range(1 + _REPEATS):
        for name in names:
            with FORMATS[name].applied(device):
                begin = time.perf_counter()
                found[name] = step()
                if number:
                    seconds[name] = min(seconds[name], time.perf_counter() - begin)
    first = names[0]  # stays whatever it gives: a loss that is not finite is the loop's to report
    return {n: seconds[n] for n in names if n == first or _agree(found[n], found[first])}


def choice(seconds: Mapping[str, float]) -> tuple[str, str]:
    """Return the format to compute in, and a line for the log ("" where nothing was measured).

    Args:
        seconds: of each format, the safest first; infinite where it is none to choose.
    """
    chosen, *others = [name for name, value in seconds.items() if value < math.inf]
    for name in others:
        if seconds[name] * _WORTH < seconds[chosen]:
            chosen = name
    times = ", ".join(f"{n} {1000 * v:.0f} ms" for n, v in seconds.items() if 0 < v < math.inf)
    if not times:
        return chosen, ""
    return chosen, f"precision: {chosen} (a pass of about {TRIAL_TOKENS} tokens takes {times})"


def agreed_format(
    accelerator: Accelerator,
    settings: Training,
    trial: Callable[[], Callable[[], tuple[float, float]]],
    say: Callable[[str], None],
) -> str:
    """Return the name of the format that all processes compute in; what was measured is logged."""
    names = candidates(settings.precision, accelerator.device)
    if settings.compile:  # each format would be compiled for its trial
        names = names[-1:]
    found = measured(names, trial, accelerator.device)
    seconds = sum_of_all(accelerator, [found.get(name, math.inf) for name in FORMATS])
    chosen, told = choice(dict(zip(FORMATS, seconds, strict=True)))
    if told:
        say(told)
    return chosen


def _agree(own: tuple[float, float], reference: tuple[float, float]) -> bool:
    return all(
        math.isfinite(value) and abs(value - other) <= _TOLERANCE * max(abs(other), 1e-6)
        for value, other in zip(own, reference, strict=True)
    )


class _WideAttention(TorchFunctionMode):
    """Compute scaled dot-product attention in float32, and give back the dtype that was given."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is not F.scaled_dot_product_attention:
            return function(*args, **kwargs)
        query = args[0] if args else kwargs["query"]
        with exactly(query.device):
            args = [_wide(value) for value in args]
            kwargs = {key: _wide(value) for key, value in kwargs.items()}
            return function(*args, **kwargs).to(query.dtype)


def _wide(value: Any) -> Any:
    narrow = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if narrow else value
