"""A tiny teacher of each family."""

from __future__ import annotations

from pathlib import Path

from tiny_families import family_model
from tiny_tokenizers import family_tokenizer


def save_teacher(name: str, head: str, folder: Path) -> str:
    """The teacher, its tokenizer and the class's name."""
    tokenizer = family_tokenizer(name)
    # the largest id counts: some classes leave gaps
    size = max(tokenizer.get_vocab().values()) + 1
    special = {
        f"{key}_token_id": getattr(tokenizer, f"{key}_token_id")
        for key in ("pad", "bos", "eos", "cls", "sep", "mask")
    }
    model = family_model(name, head, layers=4, vocab_size=size, **special)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return type(model).__name__
