"""The stage prune through recipes and from Python, on tiny models."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer
from tiny_labels import write_model
from tiny_pruning import encoder_of
from tiny_recipes import of_encoder, stage_result
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import potstill
from conftest import sentences, tiny_tokenizer
from potstill.compression.parts import widths_of
from potstill.models import load_config
from potstill.models.families import FAMILIES
from potstill.pipeline import run
from potstill.pipeline.plan.plan import plan_run
from potstill.pipeline.stages.prune import most_important, shaped
from potstill.recipe import Recipe, dump_recipe, parse_recipe
from tiny_families import NAMES, family_model

PRUNE = {"kind": "prune", "model": "teacher", "writes": "student"}
RECOVER = {
    "kind": "distill",
    "objectives": [{"kind": "soft_targets"}, {"kind": "hidden_cosine"}],
    "training": {"max_steps": 40, "batch_size": 16, "learning_rate": 2e-3, "dropout": False},
}

OBJECTIVES = [{"kind": "soft_targets"}, {"kind": "hard_targets"}]


def recipe(teacher: Path, text: Path, *stages: dict[str, Any], **more: Any) -> Recipe:
    return Recipe.model_validate(of_encoder(teacher, text, *stages, **more))


def labelled(folder: Path, count: int, seed: int) -> str:
    lines = ["text\tlabel"]
    for number, one in enumerate(sentences(count, seed)):
        lines.append(f"{one}\t{'abc'[number % 3]}")
    path = folder / f"{seed}.tsv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def of_labels(teacher: Path, folder: Path, *stages: dict[str, Any]) -> Recipe:
    tree = {"name": "tiny", "task": "classification", "teacher": str(teacher)}
    data: dict[str, Any] = {"train": labelled(folder, 120, 1), "dev": labelled(folder, 60, 2)}
    data |= {"labels": ["a", "b", "c"], "max_length": 64}
    return Recipe.model_validate({**tree, "data": data, "stages": list(stages)})


def test_half_the_units_go_and_a_distillation_wins_back(
    sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    stages = [{**PRUNE, "writes": "pruned", "ffn": 0.25}, {**RECOVER, "model": "pruned"}]
    stages[1]["writes"] = "student"
    made = run(
        recipe(sentence_teacher, text_file, *stages, {"kind": "evaluate"}, {"kind": "report"}),
        output=tmp_path / "run",
    )
    told = stage_result(made, "01-prune")
    folder = made / "stages/01-prune/model"
    before, after = (AutoModel.from_pretrained(f) for f in (sentence_teacher, folder))
    assert after.config.intermediate_size == 12
    assert after.encoder.layer[0].output.dense.weight.shape == (32, 12)
    assert told["ffn"]["before"] == 48
    assert told["ffn"]["after"] == 12
    # a unit is a row of one matrix, a column of the other, and a bias, in each of 4 layers
    lost = told["parameters"]["before"] - told["parameters"]["after"]
    assert lost == 4 * 36 * (32 + 32 + 1)
    assert told["weight_bytes"]["before"] - told["weight_bytes"]["after"] == 4 * lost
    assert before.num_parameters() - after.num_parameters() == lost
    assert told["effect"]["after"] < told["effect"]["before"] == 1.0
    found = stage_result(made, "03-evaluate")["models"]
    assert (
        found["pruned"]["similarity"]["pearson"] < found["student"]["similarity"]["pearson"]
    )  # recovered
    published = SentenceTransformer(str(made / "model"), device="cpu").encode(["still pot"])
    np.testing.assert_allclose(
        published, potstill.predict(made / "model", ["still pot"], "sentence_embedding"), atol=1e-5
    )
    assert load_config(made / "model").intermediate_size == 12
    page = (made / "report.html").read_text(encoding="utf-8")
    assert "pruned: 12 of 48 inner units of each layer kept" in page
    assert "not trained after it" not in page
    assert "12 of 48 inner units" in (made / "model/README.md").read_text(encoding="utf-8")


def test_what_is_not_recovered_is_published_and_said_to_be_so(
    sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    stages = [
        {"kind": "make_student"},
        {"kind": "prune", "ffn": 20, "importance": "magnitude", "writes": "slim"},
        {"kind": "report"},
    ]
    made = run(recipe(sentence_teacher, text_file, *stages), output=tmp_path / "run")
    told = stage_result(made, "02-prune")
    assert told["texts"] == 0
    config = load_config(made / "model")
    assert widths_of(config, FAMILIES["distilbert"]).ffn == 20
    page = (made / "report.html").read_text(encoding="utf-8")
    assert "The model slim was pruned and not trained after it" in page


def test_a_classifier_by_its_gold_labels(tmp_path: Path) -> None:
    teacher = write_model("classification", tmp_path / "teacher")
    stages = [{**PRUNE, "ffn": 6, "texts": 100}, {**RECOVER, "objectives": OBJECTIVES}]
    made = run(of_labels(teacher, tmp_path, *stages, {"kind": "report"}), output=tmp_path / "run")
    told = stage_result(made, "01-prune")
    assert told["texts"] == 100
    rows = [line.split("\t") for line in (tmp_path / "2.tsv").read_text().splitlines()[1:]]
    for folder, found in (
        (teacher, told["effect"]["before"]),
        (made / "stages/01-prune/model", told["effect"]["after"]),
    ):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            losses = [
                model(
                    **tokenizer(text, return_tensors="pt"),
                    labels=torch.tensor(["abc".index(label)]),
                ).loss
                for text, label in rows
            ]
        assert found == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert told["effect"]["measure"] == "cross-entropy"
    assert load_config(made / "model").intermediate_size == 6


def test_units_that_say_nothing_go_first(masked_lm_teacher: Path, tmp_path: Path) -> None:
    """A masked LM half of whose units are read by nothing: without them it is the same."""
    model = AutoModelForMaskedLM.from_pretrained(masked_lm_teacher).eval()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.output.dense.weight[:, ::2] = 0
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(sentences(60)), encoding="utf-8")
    for importance in ("taylor", "magnitude"):
        folder = potstill.prune(
            tmp_path / "model", str(text), tmp_path / importance, ffn=24, importance=importance
        )
        assert folder == tmp_path / importance / "model"
        pruned = AutoModelForMaskedLM.from_pretrained(folder).eval()
        assert pruned.config.intermediate_size == 24
        ids_BL = torch.tensor([[2, 7, 9, 4, 11, 3]])
        with torch.no_grad():
            torch.testing.assert_close(
                pruned(ids_BL).logits, model(ids_BL).logits, rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("name", NAMES)
def test_layers_leave_as_if_they_were_taken_out_in_place(name: str) -> None:
    model = family_model(name, "masked_lm", layers=4)
    scores = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    kept = most_important(scores, 2, FAMILIES[name])
    assert kept == ([0, 1] if name == "modernbert" else [1, 3])  # whose first layer stays
    small = shaped(encoder_of(model), kept, encoder_of(model).widths)
    assert type(small) is type(model)
    layers: Any = model.base_model.get_submodule(FAMILIES[name].layers)
    for place in reversed(range(4)):
        if place not in kept:
            del layers[place]
    ids_BL = torch.randint(5, 53, (2, 12), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        torch.testing.assert_close(small(ids_BL).logits, model(ids_BL).logits)


def test_layers_units_and_width_at_once(
    sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    settings = {"layers": 3, "ffn": 30, "width": 16}
    stages = [{**PRUNE, **settings}, {"kind": "evaluate"}, {"kind": "report"}]
    made = run(recipe(sentence_teacher, text_file, *stages), output=tmp_path / "run")
    folder = made / "stages/01-prune/model"
    pruned = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    shape = (pruned.config.num_hidden_layers, *astuple(encoder_of(pruned).widths))
    assert shape == (3, 16, 2, 30)  # heads keep their width of 8
    told = stage_result(made, "01-prune")
    assert told["width"]["heads"] == {"before": 4, "after": 2}
    assert 0 < told["width"]["share_kept"] < 1
    assert told["parameters"]["after"] == pruned.num_parameters()
    assert len(told["layers"]["importance"]) == 4
    assert sum(told["layers"]["importance"]) == pytest.approx(1.0)
    page = (made / "report.html").read_text(encoding="utf-8")
    assert "3 of 4 layers, 30 of 48 inner units of each layer and 16 of 32 channels kept" in page
    vectors = SentenceTransformer(str(folder), device="cpu").encode(["still pot"])
    assert vectors.shape == (1, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"ffn": 49},
            r"stage 1 \(prune\): ffn: 49 is out of range\. The model's .* size is 48: set",
        ),
        ({"ffn": 48}, r"ffn: 48 is the model's .* size already\. Set a smaller one\."),
        ({"layers": 5}, r"layers: 5 is out of range, the model has 4\. Set fewer"),
        ({"layers": 4}, r"the model has 4 already, so nothing would be pruned\. Set fewer"),
        ({"width": 40}, r"width: 40 is out of range, the model's is 32\. Set less"),
        ({"width": 32}, r"width: the model's is 32 already\. Set less"),
        (
            {"width": 20},
            "width: 20 is not a multiple of 8, the width of one .* Set a multiple of 8",
        ),
    ],
)
def test_what_is_refused_before_anything_runs(
    settings: dict[str, Any], message: str, sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    made = recipe(sentence_teacher, text_file, {**PRUNE, **settings})
    with pytest.raises(ValueError, match=message):
        run(made, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "this would prune nothing. Set ffn, layers or width."),
        (
            {"ffn": 1.5},
            "ffn: 1.5 is out of range. Give a fraction between 0 and 1, or the number of units",
        ),
        ({"ffn": 0}, "ffn: 0 is out of range."),
        (
            {"ffn": "half"},
            "ffn: half is out of range. Give a fraction between 0 and 1, or the number of units",
        ),
        ({"ffn": True}, "ffn: true is not valid here."),
        (
            {"ffn": 0.5, "directions": "components"},
            "directions: they apply to a width, and none is set.",
        ),
        (
            {"layers": 2, "importance": "magnitude"},
            "does not rank whole layers. Set importance to taylor",
        ),
        (
            {"ffn": 0.5, "importance": "magnitude", "texts": 9},
            "texts: importance magnitude reads no texts.",
        ),
        ({"ffn": 0.5, "importance": "random"}, "importance"),
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        potstill.prune("model", "text.txt", "out", **settings)


@pytest.mark.parametrize(
    "stage",
    [
        {**PRUNE, "ffn": 0.5, "importance": "magnitude"},
        {"kind": "export", "model": "teacher", "prune": {"ffn": 0.5, "importance": "magnitude"}},
    ],
)
def test_a_resolved_recipe_with_all_defaults_reads_as_it_was(
    stage: dict[str, Any], sentence_teacher: Path, text_file: Path
) -> None:
    made = recipe(sentence_teacher, text_file, stage)
    assert parse_recipe(yaml.safe_load(dump_recipe(made)), "here") == made


def test_what_can_not_be_pruned(masked_lm_teacher: Path, tmp_path: Path) -> None:
    graph = tmp_path / "onnx/model.onnx"
    graph.parent.mkdir()
    graph.write_bytes(b"")
    (tmp_path / "config.json").write_text((masked_lm_teacher / "config.json").read_text())
    with pytest.raises(
        ValueError, match=r"is an ONNX file and can't be changed\. Name the model folder"
    ):
        potstill.prune(graph, "text.txt", tmp_path / "o", ffn=0.5)
    exported = [{"kind": "export", "model": "teacher"}, {**PRUNE, "model": "onnx", "ffn": 0.5}]
    with pytest.raises(ValueError, match=r"stage 2 \(prune\): the model 'onnx' is an ONNX file"):
        recipe(masked_lm_teacher, tmp_path, *exported)
    text = of_labels(masked_lm_teacher, tmp_path, {**PRUNE, "ffn": 0.5})  # which has no such head
    with pytest.raises(ValueError, match="holds no trained classification head"):
        run(text, output=tmp_path / "run")


def test_a_plan_tells_shape_and_cost(
    sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    made = recipe(sentence_teacher, text_file, {**PRUNE, "ffn": 0.5, "texts": 64}, RECOVER)
    lines = "\n".join(plan_run(made, tmp_path / "run"))
    assert "leaves  4 layers of width 32, intermediate size 24" in lines
    assert "1 prune: gradients of at most 64 texts, about" in lines
    alone = recipe(sentence_teacher, text_file, {**PRUNE, "ffn": 0.5, "importance": "magnitude"})
    assert "1 prune: by the size of weights, without text" in "\n".join(
        plan_run(alone, tmp_path / "run")
    )
