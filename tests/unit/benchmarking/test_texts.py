"""Text for a timed pass: read in order, cut by a model's own tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from potstill.benchmarking.texts import read_texts, text_length, write_tokens
from potstill.recipe import TextPass


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "pairs.csv"
    path.write_text("a,b,n\ncopper,oak,1\npeat,smoke,2\ncopper,oak,3\n")
    return str(path)


def test_texts_keep_their_order_and_twins(table: str) -> None:
    pairs = TextPass(sources=[table], columns=["a", "b"])
    assert read_texts(pairs) == [("copper", "oak"), ("peat", "smoke"), ("copper", "oak")]
    one = TextPass(sources=[table], columns="b", max_texts=2)
    assert read_texts(one) == [("oak",), ("smoke",)]


def test_what_can_t_be_read(table: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs\.csv:2: no column 'c'; there are: "):
        read_texts(TextPass(sources=[table], columns=["c"]))
    with pytest.raises(ValueError, match=r"none\.csv: the file was not found"):
        read_texts(TextPass(sources=[str(tmp_path / "none.csv")]))
    half = tmp_path / "half.jsonl"
    half.write_text('{"a": "copper", "b": null}\n')
    with pytest.raises(ValueError, match=r"half\.jsonl:1: column 'b' is empty\. Fill it in, "):
        read_texts(TextPass(sources=[str(half)], columns=["a", "b"]))


@pytest.mark.parametrize(
    ("asked", "positions", "length"),
    [(None, None, 128), (None, 512, 128), (None, 64, 64), (300, 512, 300), (64, 64, 64)],
)
def test_where_texts_are_cut(asked: int | None, positions: int | None, length: int) -> None:
    assert text_length(TextPass(sources=["t.txt"], max_length=asked), positions) == length


def test_a_cut_beyond_the_positions() -> None:
    with pytest.raises(ValueError, match=r"max_length: 65 is above .* Set at most 64\.$"):
        text_length(TextPass(sources=["t.txt"], max_length=65), 64)


def test_tokens_are_those_of_the_tokenizer(masked_lm_teacher: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens.npz"
    texts = [("still", "pot malt"), ("copper malt",)]
    cut = write_tokens(texts, masked_lm_teacher, 5, file)
    with np.load(file) as found:
        assert found["lengths"].tolist() == [5, 4] == cut.lengths
        # still is 5, pot 6, copper 7, malt 8; a pair loses the end of its longer side
        assert found["ids"].tolist() == [2, 5, 3, 6, 3, 2, 7, 8, 3]
        assert found["types"].tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0]
    assert cut.cut == 1
    assert cut.seconds > 0


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=f"{tmp_path}: there is no tokenizer"):
        write_tokens([("still",)], tmp_path, 8, tmp_path / "tokens.npz")
