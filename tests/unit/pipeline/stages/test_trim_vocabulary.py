"""trim_vocabulary through recipes and from Python, on tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_labels import write_model
from tiny_recipes import stage_result
from transformers import AutoModelForMaskedLM, AutoTokenizer

import potstill
from conftest import sentences
from potstill.compression.students import Surgery
from potstill.models import load_config, load_model
from potstill.pipeline import run
from potstill.pipeline.plan.plan import plan_run
from potstill.recipe import Recipe

LABELS = ("a", "b", "c")
GONE = ("copper", "peat")  # words that the text hasn't


def text_of(folder: Path, count: int = 120) -> Path:
    path = folder / "text.txt"
    lines = (" ".join(w for w in one.split() if w not in GONE) for one in sentences(count))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def recipe(task: str, teacher: Path, text: Path, *stages: dict[str, Any], **more: Any) -> Recipe:
    corpus = {"sources": str(text), "max_length": 40, "min_length": 4, "heldout": 0.2}
    tree = {"name": "tiny", "task": task, "teacher": str(teacher), "stages": list(stages)}
    return Recipe.model_validate({**tree, **({} if "data" in more else {"corpus": corpus}), **more})


def test_a_sentence_encoder_is_trimmed_and_scored_by_its_own_tokens(
    sentence_teacher: Path, tmp_path: Path
) -> None:
    stages = [
        {"kind": "trim_vocabulary", "model": "teacher", "writes": "student"},
        {"kind": "evaluate"},
        {"kind": "report"},
    ]
    made = run(
        recipe("sentence_embedding", sentence_teacher, text_of(tmp_path), *stages),
        output=tmp_path / "run",
    )
    told = stage_result(made, "01-trim_vocabulary")
    assert told["pieces"]["before"] == 86
    # two words are gone; all letters of the others are there, but for those that none has
    folder = made / "stages/01-trim_vocabulary/model"
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    assert told["pieces"]["after"] == len(vocabulary)
    assert not set(GONE) & set(vocabulary)
    rows = [load_config(f).vocab_size for f in (sentence_teacher, folder)]
    assert rows[1] == len(vocabulary)
    lost = told["parameters"]["before"] - told["parameters"]["after"]
    assert lost == 32 * (rows[0] - rows[1])
    (coverage,) = told["coverage"].values()
    assert coverage["tokens_kept"] == coverage["words_kept"] == coverage["longer"] == 1.0
    # all held-out pieces are kept, so the vectors are the teacher's own
    scores = stage_result(made, "02-evaluate")["models"]["student"]
    assert scores["similarity"]["pearson"] == pytest.approx(1.0, abs=1e-6)
    page = (made / "report.html").read_text(encoding="utf-8")
    assert f"student: {len(vocabulary)} of 86 word pieces kept" in page
    assert f'<th scope="row">{tmp_path / "text.txt"}</th><td>100.0%</td><td>100.0%</td>' in page
    texts = ["still pot malt", "the cask keeps"]
    own = SentenceTransformer(str(folder), device="cpu").encode(texts)
    expected = potstill.predict(sentence_teacher, texts, "sentence_embedding")
    np.testing.assert_allclose(own, expected, atol=1e-5)


def test_from_python_with_a_masked_lm_head(masked_lm_teacher: Path, tmp_path: Path) -> None:
    folder = potstill.trim_vocabulary(
        masked_lm_teacher, str(text_of(tmp_path)), tmp_path / "o", keep=["peat"]
    )
    assert folder == tmp_path / "o" / "model"
    models = [AutoModelForMaskedLM.from_pretrained(f) for f in (masked_lm_teacher, folder)]
    tokenizers = [AutoTokenizer.from_pretrained(f) for f in (masked_lm_teacher, folder)]
    assert "peat" in tokenizers[1].get_vocab()
    assert "copper" not in tokenizers[1].get_vocab()
    with torch.inference_mode():
        logits = [
            model.eval()(**tokenizer("still pot [MASK] peat", return_tensors="pt")).logits
            for model, tokenizer in zip(models, tokenizers, strict=True)
        ]
    kept = [tokenizers[0].get_vocab()[t] for t in tokenizers[1].convert_ids_to_tokens(range(
        len(tokenizers[1])))]  # fmt: skip
    torch.testing.assert_close(logits[0][..., kept], logits[1], rtol=0, atol=1e-6)
    before = (tmp_path / "o" / "DONE").stat().st_mtime_ns
    potstill.trim_vocabulary(
        masked_lm_teacher, str(tmp_path / "text.txt"), tmp_path / "o", keep=["peat"]
    )
    assert (tmp_path / "o" / "DONE").stat().st_mtime_ns == before  # found done


def labelled(folder: Path, name: str, count: int) -> Path:
    lines = ["text\tlabel"]
    for number, one in enumerate(sentences(count, seed=count)):
        text = " ".join(w for w in one.split() if w not in GONE)
        lines.append(f"{text}\t{LABELS[number % 3]}")
    path = folder / name
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_classifier_is_scored_on_its_own_tokens(tmp_path: Path) -> None:
    teacher = write_model("classification", tmp_path / "teacher")
    data = {
        "train": str(labelled(tmp_path, "train.tsv", 60)),
        "dev": str(labelled(tmp_path, "dev.tsv", 40)),
        "labels": list(LABELS),
    }
    stages = [
        {"kind": "trim_vocabulary", "model": "teacher", "writes": "student"},
        {"kind": "evaluate"},
    ]
    made = run(
        recipe("classification", teacher, tmp_path, *stages, data=data), output=tmp_path / "run"
    )
    assert list(stage_result(made, "01-trim_vocabulary")["coverage"]) == ["data"]
    models = stage_result(made, "02-evaluate")["models"]
    assert models["student"]["classification"] == models["teacher"]["classification"]
    assert models["student"]["agreement"]["top1"] == 1.0


TRIM = {"kind": "trim_vocabulary", "model": "teacher", "writes": "student"}
DISTILL = {
    "kind": "distill",
    "objectives": [{"kind": "soft_targets"}],
    "training": {"max_steps": 1},
}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([TRIM, DISTILL], "different vocabularies|predicts .* tokens and"),
        ([TRIM, {"kind": "evaluate"}], "different vocabularies.*before trim_vocabulary"),
        ([{**TRIM, "size": 5}], "size: 5 leaves no token"),
        ([{**TRIM, "keep": ["\u2603"]}], "keep: .* is unknown"),
        ([{**TRIM, "sources": "nowhere.txt"}], "nowhere.txt"),
    ],
)
def test_what_is_refused_before_anything_runs(
    stages: list[dict[str, Any]], message: str, masked_lm_teacher: Path, tmp_path: Path
) -> None:
    made = recipe("masked_lm", masked_lm_teacher, text_of(tmp_path), *stages)
    with pytest.raises(ValueError, match=message):
        run(made, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_models_trimmed_alike_are_trained_and_compared_in_their_own_tokens(
    masked_lm_teacher: Path, tmp_path: Path
) -> None:
    stages = [
        {"kind": "trim_vocabulary", "model": "teacher", "writes": "small"},
        {"kind": "finetune", "model": "small", "writes": "tuned", "training": {"max_steps": 2}},
        {"kind": "evaluate", "models": ["tuned"], "baseline": "small"},
    ]
    made = run(
        recipe("masked_lm", masked_lm_teacher, text_of(tmp_path), *stages), output=tmp_path / "run"
    )
    small = made / "stages/01-trim_vocabulary/model"
    found = stage_result(made, "03-evaluate")
    alone = potstill.evaluate(
        [small], small, str(tmp_path / "text.txt"),
    )  # fmt: skip
    # the same model on the text cut by the same tokenizer: losses of one order, not of chance ids
    loss = found["models"]["small"]["masked_lm"]["loss"]
    assert loss == pytest.approx(alone["models"][str(small)]["masked_lm"]["loss"], rel=0.15)


def test_sources_of_its_own_decide_and_their_content_is_fingerprinted(
    sentence_teacher: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.txt"
    own.write_text("peat smoke\n" * 30, encoding="utf-8")
    stages = [{**TRIM, "sources": str(own), "heldout": 0.0}]
    text = text_of(tmp_path)
    made = recipe("sentence_embedding", sentence_teacher, text, *stages)
    folder = run(made, output=tmp_path / "run")
    first = stage_result(folder, "01-trim_vocabulary")
    assert first["coverage"] == {}
    assert first["pieces"]["after"] == 5 + 2 + 2 * len({*"peatsmoke"})
    own.write_text("peat smoke oak\n" * 30, encoding="utf-8")
    run(made, output=tmp_path / "run")
    assert stage_result(folder, "01-trim_vocabulary")["pieces"]["after"] > first["pieces"]["after"]


def test_a_plan_tells_what_is_kept_at_most(sentence_teacher: Path, tmp_path: Path) -> None:
    made = recipe("sentence_embedding", sentence_teacher, text_of(tmp_path), {**TRIM, "size": 80})
    lines = "\n".join(plan_run(made, tmp_path / "run"))
    assert "the subword tokens that its text uses, at most 80 of 86" in lines


def test_columns_without_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="columns: the stage has no sources of its own"):
        recipe("masked_lm", tmp_path, tmp_path, {**TRIM, "columns": ["text"]})


def test_a_narrower_student_of_a_trimmed_teacher_reads_its_own_tokens(
    masked_lm_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    build = Surgery.build

    def recorded(surgery: Any, shape: Any, sample: Any = None) -> Any:
        read.extend(token for text in sample or () for token in text)
        return build(surgery, shape, sample)

    monkeypatch.setattr(Surgery, "build", recorded)
    chosen = [
        # the run's first tokens are the whole teacher's
        {"kind": "make_student", "writes": "other", "width": 16},
        {"kind": "trim_vocabulary", "model": "teacher", "writes": "small"},
        {"kind": "make_student", "teacher": "small", "width": 16},
    ]
    made = recipe("masked_lm", masked_lm_teacher, text_of(tmp_path), *chosen)
    folder = run(made, output=tmp_path / "run")
    small = load_model(folder / "stages/02-trim_vocabulary/model", "masked_lm")
    before, after = read[: len(read) // 2], read[len(read) // 2 :]
    assert before != after
    whole = load_model(masked_lm_teacher, "masked_lm").tokenizer
    words = whole.convert_ids_to_tokens(before)
    assert words == small.tokenizer.convert_ids_to_tokens(after)
