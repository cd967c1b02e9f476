from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from potstill.models.finite import check_stored, not_finite


def test_tensors_that_hold_nan_or_infinity() -> None:
    tensors = {
        "whole": torch.ones(3),
        "nan": torch.tensor([1.0, torch.nan]),
        "inf": torch.tensor([torch.inf]),
        "minus": torch.tensor([-torch.inf, 1.0]),
        "ids": torch.ones(3, dtype=torch.int64),
        "half": torch.tensor([torch.inf], dtype=torch.float16),
        "empty": torch.ones(0),
    }
    assert not_finite(tensors) == ["nan", "inf", "minus", "half"]


def test_stored_weights(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").mkdir()
    (tmp_path / "c.safetensors").symlink_to("nowhere.safetensors")
    (tmp_path / "d.safetensors").write_bytes(b"damaged")
    check_stored(tmp_path)
    save_file({"w": torch.tensor([1.0, torch.nan])}, tmp_path / "e.safetensors")
    with pytest.raises(
        ValueError, match=r"w holds NaN or infinity\. Use a model whose weights are finite\."
    ):
        check_stored(tmp_path)


def test_a_stored_mask_is_no_weight(tmp_path: Path) -> None:
    """Older versions of transformers stored buffers, which a model computes anew."""
    mask = torch.triu(torch.full((4, 4), -torch.inf), 1)
    save_file({"mask": mask}, tmp_path / "model.safetensors")
    check_stored(tmp_path)
    mask[2, 1] = torch.nan
    save_file({"mask": mask}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="mask holds NaN"):
        check_stored(tmp_path)
