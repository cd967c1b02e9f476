"""Models measured from Python: what is refused, and what is told of the text."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertForSequenceClassification

from conftest import tiny_config, tiny_tokenizer
from potstill.evaluation import evaluate
from potstill.storage import cache_folder


def test_an_encoder_is_not_scored_against_a_masked_lm_model(
    sentence_teacher: Path, masked_lm_teacher: Path, text_file: Path
) -> None:
    expected = (
        f"^models: {sentence_teacher} has no masked-LM head, and the baseline {masked_lm_teacher} "
        "has one"
    )
    with pytest.raises(ValueError, match=expected):
        evaluate([sentence_teacher], masked_lm_teacher, str(text_file))


def test_a_damaged_token_cache_is_said(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path))
    before = evaluate([masked_lm_teacher], masked_lm_teacher, str(text_file))
    (path,) = cache_folder().glob("tokens/*/train/tokens.bin")
    content = path.read_bytes()
    path.unlink()  # not in place: the file may be mapped
    path.write_bytes(bytes(byte ^ 1 if i % 2 == 0 else byte for i, byte in enumerate(content)))
    said: list[str] = []
    again = evaluate([masked_lm_teacher], masked_lm_teacher, str(text_file), say=said.append)
    assert again["models"] == before["models"]
    assert [line.split(" (")[0] for line in said] == [
        f"{path.parent.parent}: the token cache is damaged"
    ]


def test_texts_that_are_cut_are_told(tmp_path: Path) -> None:
    config = tiny_config(layers=1)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    assert config.max_position_embeddings < 200
    long = " ".join(["copper"] * 200)
    lines = ["text\tlabel", *(f"oak {n}\t0" for n in range(30)), f"{long}\t1"]
    (tmp_path / "x.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = evaluate([tmp_path / "model"], tmp_path / "model", str(tmp_path / "x.tsv"))
    assert found["warnings"] == [
        f"1 of 31 texts are longer than the models take ({config.max_position_embeddings} tokens), "
        "and cut there."
    ]


def test_models_of_two_tasks(sentence_teacher: Path, tmp_path: Path) -> None:
    config = tiny_config(layers=1)
    for name, labels in (("two", 2), ("one", 1)):
        config.update({"num_labels": labels})
        BertForSequenceClassification(config).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    with pytest.raises(
        ValueError, match=r"one is regression, and that of the baseline .*two is class"
    ):
        evaluate([tmp_path / "one"], tmp_path / "two", "x.tsv")
