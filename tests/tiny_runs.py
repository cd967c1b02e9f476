"""Run folders as finished runs leave them, of tiny models that no run has trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

from conftest import student_of, tiny_config, tiny_tokenizer
from potstill.recipe import Recipe, Task, dump_recipe, load_recipe
from potstill.storage import RunFolder
from potstill.storage.onnx_files import GRAPH, ONNX
from tiny_graphs import exported

LABELS = {0: "early", 1: "late", 2: "<b>never</b>"}
TAGS = {0: "O", 1: "B-still", 2: "I-still", 3: "B-cask"}


def tiny_teacher(folder: Path, task: Task, *, seed: int = 0) -> Path:
    """A model of two layers with the task's head, all at random."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"layers": 2, "initializer_range": 0.3}
    match task:
        case "masked_lm":
            model: Any = BertForMaskedLM(tiny_config(**settings))
        case "sentence_embedding" | "sentence_similarity":
            model = BertModel(tiny_config(**settings))
        case "question_answering":
            model = BertForQuestionAnswering(tiny_config(**settings))
        case "token_classification":
            model = BertForTokenClassification(tiny_config(**settings, id2label=TAGS))
        case "regression":
            model = BertForSequenceClassification(
                tiny_config(**settings, num_labels=1, problem_type="regression")
            )
        case "classification" | "multi_label":
            kind = "multi_label" if task == "multi_label" else "single_label"
            model = BertForSequenceClassification(
                tiny_config(**settings, id2label=LABELS, problem_type=f"{kind}_classification")
            )
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_run(
    folder: Path, task: Task, *, columns: int = 1, evaluation: dict[str, Any] | None = None
) -> Path:
    """A run of make_student, distill (at T = 2.5), export and evaluate, all of them finished.

    Its teacher lies beside it; its models are `teacher`, `untrained`, `student` and `onnx`.
    """
    teacher = tiny_teacher(folder / "teacher", task)
    run = RunFolder(folder / "run")
    recipe = _recipe(folder, task, teacher, columns)
    run.path.mkdir()
    (run.path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    made = student_of(teacher, task, folder / "made")
    exported(made, task)
    for number, stage in enumerate(recipe.stages, start=1):
        place = run.stage_folder(number, stage.kind)
        place.mkdir(parents=True)
        writes = {name: "model" for name in stage.written}
        if writes:
            shutil.copytree(made, place / "model")
        if stage.kind == "export":
            writes = {"onnx": f"model/{ONNX}/{GRAPH}"}
        config = {"stage": stage.model_dump(mode="json")}
        (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
        result = evaluation if stage.kind == "evaluate" and evaluation else {}
        (place / "result.json").write_text(json.dumps(result), encoding="utf-8")
        run.finish(place, "", writes, {}, 1.0)
    return run.path


def _recipe(folder: Path, task: Task, teacher: Path, columns: int) -> Recipe:
    folder.mkdir(exist_ok=True)
    text = folder / "text.tsv"
    text.write_text("no run reads it\n", encoding="utf-8")
    source = {"kind": "files", "paths": [str(text)]}
    tree: dict[str, Any] = {"name": "tiny.run", "description": "", "task": task}
    tree["teacher"] = {"model": str(teacher)}
    if task in ("masked_lm", "sentence_embedding"):
        tree["corpus"] = {"sources": [source], "max_length": 32}
    else:
        names = ["question", "context"] if task == "question_answering" else ["first", "second"]
        pair = columns == 2 or task in ("question_answering", "sentence_similarity")
        tree["data"] = {"train": [source], "text": names if pair else ["text"]}
        tree["data"]["max_length"] = 60 if task == "question_answering" else 24
    values = task in ("regression", "sentence_similarity")
    objective = {"kind": "logits_mse"} if values else {"kind": "soft_targets", "temperature": 2.5}
    tree["stages"] = [
        {"kind": "make_student", "writes": "untrained"},
        {
            "kind": "distill",
            "model": "untrained",
            "writes": "student",
            "objectives": [objective],
            "training": {"max_steps": 1},
        },
        {"kind": "export", "model": "student", "writes": "onnx"},
        {"kind": "evaluate"},
    ]
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(tree), encoding="utf-8")
    return load_recipe(path)
