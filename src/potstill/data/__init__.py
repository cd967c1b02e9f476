"""Text to token sequences to batches.

Files, dataset folders and hub data are read as one stream of records (`files.py`, `sources.py`),
tokenized once (`tokenize.py`, `corpus.py`), masked anew for each epoch (`masking.py`) and brought
into batches whose order is a pure function of seed and epoch (`batches.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill._lazy import lazily

if TYPE_CHECKING:
    from potstill.data.batches import Batch, collate
    from potstill.data.corpus import tokenize_corpus
    from potstill.data.masking import Masker, make_masker
    from potstill.data.sequences import Examples, Tokens
    from potstill.data.sources import read_records

__all__ = ["Batch", "Examples", "Masker", "Tokens"]
__all__ += ["collate", "make_masker", "read_records", "tokenize_corpus"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "batches": ["Batch", "collate"],
        "corpus": ["tokenize_corpus"],
        "masking": ["Masker", "make_masker"],
        "sequences": ["Examples", "Tokens"],
        "sources": ["read_records"],
    },
)
