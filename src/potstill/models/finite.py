"""NaN and infinities, found among tensors and in the files of a model."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from torch import Tensor


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Name the tensors that hold NaN or infinity, the first of tied ones; meta ones do not."""
    names, seen = [], set()
    for name, tensor in tensors.items():
        place = tensor.data_ptr(), tensor.shape
        if place not in seen and not _is_finite(tensor):
            names.append(name)
        seen.add(place)
    return names


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.is_meta or tensor.numel() == 0:
        return True
    if "float4" in str(tensor.dtype):  # which has neither
        return True
    if tensor.element_size() == 1:  # float8, of which torch knows no smallest and largest
        tensor = tensor.float()
    # reads the numbers once, copies none, and hands a NaN on
    smallest, largest = tensor.detach().aminmax()
    return math.isfinite(smallest) and math.isfinite(largest)


def _is_mask(tensor: Tensor) -> bool:
    """Return whether it is a stored mask: a matrix of 0 and minus infinity that no model reads."""
    return tensor.ndim >= 2 and bool(((tensor == 0) | (tensor == -math.inf)).all())


def some_not_finite(names: Sequence[str]) -> str:
    """Begin a sentence about tensors that hold NaN or infinity."""
    if len(names) == 1:
        return f"{names[0]} holds NaN or infinity"
    more = len(names) - 1
    return f"{names[0]} and {more} more tensor{'s' if more > 1 else ''} hold NaN or infinity"


def refuse_not_finite(model: str, names: Sequence[str]) -> None:
    """Refuse a given model of which tensors hold NaN or infinity.

    Args:
        model: Names the model in messages.
        names: The tensors that do.

    Raises:
        ValueError: There are some; the message names the first.
    """
    if names:
        raise ValueError(
            f"{model}: {some_not_finite(names)}. Use a model whose weights are finite."
        )


def check_stored(folder: Path) -> None:
    """Refuse a model folder whose files hold NaN or infinity; one tensor at a time is in memory.

    Raises:
        ValueError: The files do; the message names the first tensor.
    """
    names = []
    for file in sorted(path for path in folder.glob("*.safetensors") if path.is_file()):
        # whoever loads the weights reports that a file is damaged
        with suppress(SafetensorError), safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - no mapping
                tensor = weights.get_tensor(name)
                names += [bad for bad in not_finite({name: tensor}) if not _is_mask(tensor)]
    refuse_not_finite(os.fspath(folder), names)
