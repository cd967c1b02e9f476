"""Each task from a plain encoder to a distilled student, offline: the student learns."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from conftest import WORDS, Finished, sentences
from potstill.errors import Interrupted
from potstill.pipeline import run
from potstill.recipe import Recipe
from task_recipes import TRAINING, data, half, recipe


def scores(folder: Path, name: str) -> dict[str, Any]:
    metrics = json.loads((folder / "metrics.json").read_text())
    found: dict[str, Any] = metrics["models"][name]["scores"]
    return found


def test_classification_with_repeats(sentence_teacher: Path, tmp_path: Path) -> None:
    tree = recipe(sentence_teacher, "classification", data(tmp_path, half), repeats=2)
    folder = run(Recipe.model_validate(tree), output=tmp_path / "run")
    found = scores(folder, "student")["classification"]
    assert len(found["seeds"]) == 2
    assert found["accuracy"] == pytest.approx(sum(found["seeds"]) / 2)
    assert found["accuracy"] > 0.8  # chance is 0.5
    result = json.loads((folder / "stages/05-evaluate/result.json").read_text())
    assert result["twin"] == "plain"
    metrics = json.loads((folder / "metrics.json").read_text())
    *of_scores, unlike = metrics["findings"]
    assert of_scores == result["findings"]
    assert "plain for 4, so the difference between them is not the teacher's alone" in unlike
    assert result["labels"] == ["early", "late"]
    # plain transformers gives the published model's answers
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert model.config.id2label == {0: "early", 1: "late"}
    right = 0
    lines = (tmp_path / "test.tsv").read_text().splitlines()[1:]
    with torch.no_grad():
        for line in lines:
            text, label = line.split("\t")
            answer = int(model(**tokenizer(text, return_tensors="pt")).logits.argmax())
            right += model.config.id2label[answer] == label
    assert right / len(lines) == pytest.approx(found["seeds"][0])
    assert "text-classification" in (folder / "model" / "README.md").read_text()


def test_pairs(sentence_teacher: Path, tmp_path: Path) -> None:
    """Whether the second text is the first one's first word: no single text tells."""
    given = data(tmp_path, half, pair=True)
    tree = recipe(sentence_teacher, "classification", given)
    tree["stages"][0]["training"]["epochs"] = 12
    folder = run(Recipe.model_validate(tree), output=tmp_path / "run")
    assert scores(folder, "student")["classification"]["accuracy"] > 0.7


def test_many_labels(sentence_teacher: Path, tmp_path: Path) -> None:
    def label(word: str) -> str:
        number = WORDS.index(word)
        return ",".join(n for n, yes in (("low", number < 15), ("even", number % 2 == 0)) if yes)

    tree = recipe(sentence_teacher, "multi_label", data(tmp_path, label))
    folder = run(Recipe.model_validate(tree), output=tmp_path / "run")
    found = scores(folder, "student")["multi_label"]
    assert found["micro_f1"] > 0.75  # naming the commonest labels always gives about 0.6
    config = AutoModelForSequenceClassification.from_pretrained(folder / "model").config
    assert config.problem_type == "multi_label_classification"


def test_values(sentence_teacher: Path, tmp_path: Path) -> None:
    given = data(tmp_path, lambda word: WORDS.index(word) / 10)
    tree = recipe(sentence_teacher, "regression", given)
    folder = run(Recipe.model_validate(tree), output=tmp_path / "run")
    assert scores(folder, "student")["regression"]["spearman"] > 0.7  # chance is 0


def test_likeness_of_pairs(sentence_teacher: Path, tmp_path: Path) -> None:
    """Texts are alike whose first words are from the same half, which no common word tells."""
    rng, texts = random.Random(1), sentences(920)
    lines = ["a\tb\tscore"]
    for first in texts[:460]:
        second = rng.choice(texts[460:])
        alike = half(first.split()[0]) == half(second.split()[0])
        lines.append(f"{' '.join(first.split()[:3])}\t{' '.join(second.split()[:3])}\t{5 * alike}")
    for name, part in (("train", lines[1:401]), ("test", lines[401:])):
        (tmp_path / f"{name}.tsv").write_text("\n".join([lines[0], *part]) + "\n")
    given = {
        **{side: str(tmp_path / f"{side}.tsv") for side in ("train", "test")},
        **{"text": ["a", "b"], "label": "score", "max_length": 24},
    }
    tree = recipe(sentence_teacher, "sentence_similarity", given, repeats=2)
    tree["stages"][0]["training"]["epochs"] = 12
    tree["stages"].insert(-2, {"kind": "export"})
    folder = run(Recipe.model_validate(tree), output=tmp_path / "run")
    found = scores(folder, "student")["sentence_similarity"]
    assert found["spearman"] > 0.5  # chance is 0
    # sentence-transformers gives the published model's cosines
    model = SentenceTransformer(str(folder / "model"), device="cpu")
    rows = [line.split("\t") for line in lines[401:]]
    first, second = (
        model.encode([row[side] for row in rows], normalize_embeddings=True) for side in (0, 1)
    )
    spearman = spearmanr((first * second).sum(1), [float(row[2]) for row in rows]).statistic
    assert spearman == pytest.approx(found["seeds"][0], abs=1e-6)
    exported = scores(folder, "onnx")["sentence_similarity"]["spearman"]
    assert exported == pytest.approx(found["seeds"][0], abs=1e-3)
    assert (folder / "model" / "onnx" / "model.onnx").is_file()


def test_pairs_with_scores(sentence_teacher: Path, text_file: Path, tmp_path: Path) -> None:
    texts = sentences(40, seed=8)
    words = [set(text.split()) for text in texts]
    lines = ["a\tb\tscore"]
    for first in range(0, 40, 2):
        a, b = words[first], words[first + 1]
        lines.append(f"{texts[first]}\t{texts[first + 1]}\t{len(a & b) / len(a | b):.3f}")
    (tmp_path / "pairs.tsv").write_text("\n".join([*lines, "malt\toak\t-"]) + "\n")
    pairs = {"sources": str(tmp_path / "pairs.tsv"), "text": ["a", "b"], "on_bad_row": "skip"}
    tree = {
        "name": "tiny",
        "task": "sentence_embedding",
        "teacher": str(sentence_teacher),
        "corpus": {"sources": str(text_file), "max_length": 64, "min_length": 4},
        "stages": [
            {"kind": "make_student"},
            {"kind": "evaluate", "pairs": pairs},
            {"kind": "report"},
        ],
    }
    folder = run(Recipe.model_validate(tree), output=tmp_path / "run")
    assert -1 <= scores(folder, "student")["sts"]["spearman"] <= 1
    result = json.loads((folder / "stages/02-evaluate/result.json").read_text())
    # words in common are what TF-IDF sees
    assert result["references"]["tfidf"]["sts"]["spearman"] > 0.5
    report = (folder / "report.html").read_text()
    assert "Likeness of pairs, Spearman" in report
    assert "1 of 21 rows of evaluate.pairs are skipped (1 bad_label)" in report


def test_an_interrupted_repeat_goes_on(
    sentence_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = recipe(sentence_teacher, "classification", data(tmp_path, half), repeats=3)
    tree["stages"] = [tree["stages"][0], tree["stages"][1], tree["stages"][3]]
    tree["stages"][0]["training"] = {"max_steps": 2, **TRAINING}
    tree["stages"][2]["training"] = {"max_steps": 2, **TRAINING}
    whole = run(Recipe.model_validate(tree), output=tmp_path / "whole")
    from potstill.pipeline.stages import train as train_stage
    from potstill.training import loop

    real, calls = loop.train, []

    def second_stops(job: Any) -> Any:
        calls.append(job.seed)
        if len(calls) == 3:  # the teacher's, the first repeat's, the second's
            raise Interrupted(2, 1)
        return real(job)

    monkeypatch.setattr(train_stage, "train", second_stops)
    with pytest.raises(Interrupted):
        run(Recipe.model_validate(tree), output=tmp_path / "cut")
    cut = run(Recipe.model_validate(tree), output=tmp_path / "cut")
    assert calls == [1, 1, 2, 2, 3]
    for name in ("model", "repeat-2/model", "repeat-3/model"):
        first, second = (
            (folder / "stages" / "03-distill" / name / "model.safetensors").read_bytes()
            for folder in (whole, cut)
        )
        assert first == second
    weights = [
        (whole / "stages" / "03-distill" / name / "model.safetensors").read_bytes()
        for name in ("model", "repeat-2/model", "repeat-3/model")
    ]
    assert len(set(weights)) == 3


@pytest.mark.parametrize(("finished", "again"), [(True, [1, 2]), (False, [])])
def test_repeats_of_a_stage_that_runs_again(
    finished: bool,
    again: list[int],
    sentence_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a finished stage whose model came out otherwise, all; of one that was stopped after its
    last training, before its end, none.
    """
    from potstill.pipeline.stages import train as train_stage
    from potstill.training import loop

    tree = recipe(sentence_teacher, "classification", data(tmp_path, half), repeats=2)
    tree["stages"] = [tree["stages"][0], tree["stages"][1], tree["stages"][3]]
    for number in (0, 2):
        tree["stages"][number]["training"] = {"max_steps": 2, **TRAINING}
    folder = run(Recipe.model_validate(tree), output=tmp_path / "run")
    stage = folder / "stages" / "03-distill"
    names = ("model/model.safetensors", "repeat-2/model/model.safetensors")
    before = [(stage / name).read_bytes() for name in names]
    done = json.loads((stage / "DONE").read_text())
    if finished:
        (stage / "DONE").write_text(json.dumps({**done, "reads": {"untrained": "another"}}))
    else:
        (stage / "DONE").unlink()
    real, calls = loop.train, []
    monkeypatch.setattr(train_stage, "train", lambda job: [calls.append(job.seed), real(job)][1])
    run(Recipe.model_validate(tree), output=folder)
    assert calls == again
    assert [(stage / name).read_bytes() for name in names] == before
    result = json.loads((stage / "result.json").read_text())
    assert [each["seed"] for each in result["repeats"]] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "data: no value is set, and task classification reads it."),
        ({"corpus": {"sources": "x.txt"}}, "corpus: task classification does not read it."),
        ({"task": "masked_lm"}, "corpus: no value is set, and task masked_lm reads it."),
        ({"task": "regression"}, "soft_targets: regression predicts a value, not a distr"),
        (
            {"stages.3.objectives.0.kind": "gold_mse"},
            "gold_mse: classification predicts a distribution, not a",
        ),
        ({"stages.3.objectives.0.positions": "masked"}, "classification masks no token"),
        ({"data.metric": "bleu"}, "classification has no metric 'bleu'"),
        ({"data.label": "lable"}, "train.tsv:2: no column 'lable' (data.label)"),
        ({"data.max_length": 500}, "data.max_length: 500 tokens exceed the maximum sequence"),
        ({"data.train": "nowhere.tsv"}, "nowhere.tsv: the file was not found"),
    ],
)
def test_bad_input(
    changes: dict[str, Any],
    message: str,
    sentence_teacher: Path,
    tmp_path: Path,
    potstill: Callable[..., Finished],
) -> None:
    tree: Any = recipe(sentence_teacher, "classification", data(tmp_path, half))
    for key, value in changes.items():
        *path, last = key.split(".")
        place = tree
        for part in path:
            place = place[int(part)] if part.isdecimal() else place[part]
        place[last] = value
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
    finished = potstill("run", tmp_path / "recipe.yaml", "--output", tmp_path / "run")
    assert finished.code == 2, finished.err
    said = " ".join(finished.err.split())
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
