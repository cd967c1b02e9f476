"""Smaller models out of larger ones, PyTorch in and out.

Students are made of their teacher's layers (`students.py`, `shapes.py`, `layer_maps.py`,
`narrowing.py`); what matters least, by `scores.py` and the loss in `importance.py`, leaves a
trained model (`pruning.py`, `parts.py`); a vocabulary is cut to what a text uses (`vocabulary.py`,
`pieces.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill._lazy import lazily

if TYPE_CHECKING:
    from potstill.compression.students import make_student

__all__ = ["make_student"]

__getattr__, __dir__ = lazily(__name__, {"students": ("make_student",)})
