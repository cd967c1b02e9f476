"""The Python functions: what they refuse, what they resume, what they find done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import sentences, student_of
from potstill.evaluation import evaluate
from potstill.pipeline import api, distill, finetune
from potstill.pipeline.api import triple_loss
from potstill.recipe import (
    Distill,
    HardTargets,
    Objective,
    SoftTargets,
    Task,
    TaskData,
    Training,
    load_recipe,
)
from potstill.storage import RunFolder, open_run
from potstill.training import loop

SHORT = Training(max_steps=2, batch_size=6, log_every=1, precision="fp32")


@pytest.fixture
def pair(sentence_teacher: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A sentence encoder and its half, as folders."""
    student = student_of(sentence_teacher, "sentence_embedding", tmp_path / "student")
    return student, sentence_teacher


def steps(output: Path) -> list[int]:
    events = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [event["step"] for event in events if event["event"] == "train"]


@pytest.mark.parametrize(
    ("objectives", "training", "message"),
    [
        ([SoftTargets(), HardTargets()], SHORT, "text without labels has no gold target"),
        ([SoftTargets(positions="masked")], SHORT, "sentence_embedding masks no token"),
        (
            [SoftTargets()],
            SHORT.model_copy(update={"micro_batch_size": 3}),
            "in_batch.group: with micro-batches the number of texts",
        ),
    ],
)
def test_what_a_recipe_refuses_is_refused(
    pair: tuple[Path, Path],
    text_file: Path,
    tmp_path: Path,
    objectives: list[Objective],
    training: Training,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        distill(*pair, str(text_file), tmp_path / "o", training=training, objectives=objectives)
    assert not (tmp_path / "o").exists()


def test_a_finished_training_is_found_done(
    pair: tuple[Path, Path], text_file: Path, tmp_path: Path
) -> None:
    def again() -> tuple[bytes, int]:
        folder = distill(*pair, str(text_file), tmp_path / "o", training=SHORT)
        weights = folder / "model.safetensors"
        return weights.read_bytes(), weights.stat().st_mtime_ns

    first = again()
    assert steps(tmp_path / "o") == [1, 2]
    assert again() == first


def test_a_training_killed_before_it_is_done_takes_no_step_again(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again() -> Path:
        return finetune(masked_lm_teacher, str(text_file), tmp_path / "out", training=SHORT)

    def fail(*_: Any) -> None:
        raise InterruptedError

    for owner, name in ((RunFolder, "finish"), (api, "drop_checkpoints")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, fail)
            with pytest.raises(InterruptedError):
                again()
        before = (tmp_path / "out/model/model.safetensors").read_bytes()
        assert list(tmp_path.glob("out/checkpoints/step-*"))
        monkeypatch.setattr(loop._Loop, "_step", fail)
    assert (again() / "model.safetensors").read_bytes() == before
    assert not list(tmp_path.glob("out/checkpoints*"))


@pytest.mark.parametrize("other", ["text", "seed", "model"])
def test_work_on_something_else_is_not_resumed(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path, other: str
) -> None:
    output = tmp_path / "o"
    training = Training(max_steps=4, batch_size=6, log_every=1, precision="fp32")
    finetune(masked_lm_teacher, str(text_file), output, training=training)
    changed: dict[str, Any] = {"model": masked_lm_teacher, "text": str(text_file), "seed": 1}
    if other == "text":
        changed["text"] = str(tmp_path / "other.txt")
        Path(changed["text"]).write_text("\n".join(sentences(60, seed=9)))
    elif other == "seed":
        changed["seed"] = 2
    else:
        changed["model"] = output / "model"
    shutil.copytree(output, tmp_path / "same")
    before = json.loads((output / "DONE").read_text())["fingerprint"]
    finetune(**changed, output=output, training=training)
    assert json.loads((output / "DONE").read_text())["fingerprint"] != before
    assert [e for e in (output / "log.jsonl").read_text().splitlines() if '"resume"' in e] == []


def test_one_process_at_a_time(pair: tuple[Path, Path], text_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "o"
    output.mkdir()
    with (
        open_run(output, "any").lock(),
        pytest.raises(ValueError, match="another potstill process"),
    ):
        distill(*pair, str(text_file), output, training=SHORT)


# --- tasks with labels ----------------------------------------------------------------------------


def labelled(folder: Path, count: int = 120) -> TaskData:
    lines = [f"{text}\t{'late' if 'oak' in text else 'early'}" for text in sentences(count)]
    path = folder / "labelled.tsv"
    path.write_text("\n".join(["text\tlabel", *lines]) + "\n", encoding="utf-8")
    return TaskData.model_validate({"train": str(path), "max_length": 40})


def test_a_classifier_from_python(sentence_teacher: Path, tmp_path: Path) -> None:
    data = labelled(tmp_path)
    training = Training(max_steps=2, batch_size=8)
    teacher = finetune(
        sentence_teacher, data, tmp_path / "teacher", training=training, task="classification"
    )
    small = student_of(teacher, "classification", tmp_path / "small")
    student = distill(small, teacher, data, tmp_path / "student", training=training)
    again = distill(small, teacher, data, tmp_path / "student", training=training)
    assert again == student
    result = evaluate([student], teacher, data)
    assert result["labels"] == ["early", "late"]
    assert set(result["references"]) == {"majority", "tfidf"}
    scores = result["models"][str(student)]["classification"]
    assert 0 <= scores["accuracy"] <= 1
    files = [path for source in data.train for path in source.paths]  # type: ignore[union-attr]
    by_file = evaluate([student], teacher, files)
    assert set(by_file["references"]) == {"majority"}  # nothing to learn TF-IDF from
    assert by_file["records"] == 120
    assert by_file["warnings"] == []


def test_text_of_another_kind(sentence_teacher: Path, tmp_path: Path) -> None:
    training = Training(max_steps=1)
    with pytest.raises(
        ValueError, match=r"classification reads labeled examples\. Give a TaskData"
    ):
        finetune(
            sentence_teacher, "x.txt", tmp_path / "o", training=training, task="classification"
        )
    with pytest.raises(ValueError, match=r"masked_lm reads text without labels\. Give files"):
        finetune(sentence_teacher, labelled(tmp_path), tmp_path / "o", training=training)


@pytest.mark.parametrize(
    ("task", "recipe"),
    [
        ("sentence_embedding", "embedding"),
        ("masked_lm", "distilbert"),
        ("classification", "classification"),
        ("regression", "regression"),
        ("sentence_similarity", "sentence-similarity"),
        ("token_classification", "token-classification"),
        ("question_answering", "question-answering"),
    ],
)
def test_the_losses_are_those_of_the_shipped_recipe(task: Task, recipe: str) -> None:
    text = "corpus.sources=x" if Task(task).reads_text else "data.train=x"
    stages = load_recipe(recipe, ["teacher=x", text]).stages
    [shipped] = [stage for stage in stages if isinstance(stage, Distill)]
    assert triple_loss(task) == shipped.objectives


def test_an_encoder_with_scored_pairs_from_python(sentence_teacher: Path, tmp_path: Path) -> None:
    texts = sentences(60)
    lines = [
        f"{a}\t{b}\t{n % 4}" for n, (a, b) in enumerate(zip(texts[:30], texts[30:], strict=True))
    ]
    (tmp_path / "pairs.tsv").write_text("\n".join(["a\tb\tscore", *lines]) + "\n")
    path = str(tmp_path / "pairs.tsv")
    data = TaskData.model_validate(
        {"train": path, "dev": path, "text": ["a", "b"], "label": "score", "max_length": 24}
    )
    training = Training(max_steps=2, batch_size=8)
    student = distill(sentence_teacher, sentence_teacher, data, tmp_path / "run", training=training)
    found = evaluate([student], sentence_teacher, data)
    for name in (str(sentence_teacher), str(student)):
        assert set(found["models"][name]["sentence_similarity"]) >= {"spearman", "pearson", "mse"}
