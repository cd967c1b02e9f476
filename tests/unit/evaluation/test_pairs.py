"""Labelled pairs against cosines of plain transformers and scipy's correlations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModel, AutoTokenizer

from conftest import sentences, student_of
from potstill.evaluation.lineup import Lineup
from potstill.evaluation.pairs import read_pairs, score_pairs
from potstill.recipe import ScoredPairs

FIRST, SECOND = sentences(30), sentences(30, seed=4)


def file(folder: Path, scores: list[object]) -> ScoredPairs:
    path = folder / "pairs.tsv"
    lines = ["a\tb\tlike", *(f"{a}\t{b}\t{s}" for a, b, s in zip(FIRST, SECOND, scores))]  # noqa: B905
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ScoredPairs.model_validate({"sources": str(path), "text": ["a", "b"], "label": "like"})


def cosines(folder: Path) -> list[float]:
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def vector(text: str) -> torch.Tensor:
        with torch.no_grad():
            inputs = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
            return model(**inputs).last_hidden_state[0].double().mean(0)

    both = [(vector(a), vector(b)) for a, b in zip(FIRST, SECOND, strict=True)]
    return [float(a @ b / (a.norm() * b.norm())) for a, b in both]


def test_correlations_retention_and_intervals(sentence_teacher: Path, tmp_path: Path) -> None:
    student = student_of(sentence_teacher, "sentence_embedding", tmp_path / "student")
    own, other = cosines(sentence_teacher), cosines(student)
    noise = np.random.default_rng(0).normal(size=30)
    gold = [round(float(v), 4) for v in stats.zscore(own) + 0.3 * noise]
    lineup = Lineup({"teacher": [sentence_teacher], "student": [student]}, "teacher", 1)
    found = score_pairs(lineup, read_pairs(file(tmp_path, gold)))
    for name, values in (("teacher", own), ("student", other)):
        scores = found["models"][name]["sts"]
        assert scores["spearman"] == pytest.approx(stats.spearmanr(gold, values)[0], abs=1e-6)
        assert scores["pearson"] == pytest.approx(stats.pearsonr(gold, values)[0], abs=1e-6)
    kept = found["retention"]["student"]["sts.spearman"]
    ratio = stats.spearmanr(gold, other)[0] / stats.spearmanr(gold, own)[0]
    assert kept == pytest.approx(ratio, abs=1e-6)
    low, high = found["intervals"]["student"]["sts.spearman"]
    assert low < kept < high
    assert set(found["references"]["tfidf"]["sts"]) == {"spearman", "pearson"}


def test_no_retention_of_a_baseline_that_guesses(sentence_teacher: Path, tmp_path: Path) -> None:
    gold = list(np.random.default_rng(3).permutation(30))
    lineup = Lineup({"teacher": [sentence_teacher], "student": [sentence_teacher]}, "teacher", 1)
    found = score_pairs(lineup, read_pairs(file(tmp_path, gold)))
    assert found["retention"] == {"student": {}}


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1, 2, "none"], r"pairs\.tsv:4: label column 'like' holds 'none'. Write a number"),
        ([1, 2, 3], r"3 pairs with 3 different scores\. Name files with at least 10 pairs"),
        ([1] * 20, "20 pairs with 1 different scores"),
    ],
)
def test_pairs_that_say_nothing(scores: list[object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_pairs(file(tmp_path, scores))


def test_rows_that_are_left_out_are_told(tmp_path: Path) -> None:
    pairs = file(tmp_path, [1, "none", *range(18)])
    with pytest.raises(ValueError, match=r"Or skip such rows with evaluate\.pairs\.on_bad_row="):
        read_pairs(pairs)
    found = read_pairs(pairs.model_copy(update={"on_bad_row": "skip"}))
    assert len(found.first) == 19
    assert found.left_out == "1 of 20 rows of evaluate.pairs are skipped (1 bad_label)"
    assert read_pairs(file(tmp_path, list(range(20)))).left_out == ""
    other = pairs.model_copy(update={"label": "score"})
    with pytest.raises(ValueError, match=r"no column 'score' \(evaluate\.pairs\.label\)"):
        read_pairs(other)
