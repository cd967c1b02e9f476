"""Smaller models out of larger ones, PyTorch in and out.

Students are made of their teacher's layers (`students.py`, `layer_maps.py`, `narrowing.py`); what
matters least is cut out of a trained model (`pruning.py`, `width_pruning.py`, `graph_pruning.py`);
a vocabulary is cut to what a text uses (`vocabulary.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill._lazy import lazily

if TYPE_CHECKING:
    from potstill.compression.students import build_student, make_student

__all__ = [
    "build_student",
    "make_student",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "students": (
            "build_student",
            "make_student",
        ),
    },
)
