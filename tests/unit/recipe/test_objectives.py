"""Objectives and teachers in a recipe: what is read, and the sentence for what is wrong."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import yaml
from tiny_recipes import distill, sentence_of, tree

from potstill.recipe import (
    AttentionMse,
    Distill,
    HiddenMse,
    Objective,
    Recipe,
    Relations,
    SoftTargets,
    WeightedTeacher,
    dump_recipe,
    parse_recipe,
)

KINDS = [
    str(get_args(model.model_fields["kind"].annotation)[0])
    for model in get_args(get_args(Objective)[0])
]


def parsed(stage: dict[str, Any], **changes: Any) -> tuple[Recipe, Distill]:
    recipe = parse_recipe(tree(stage, **changes), "x")
    found = recipe.stages[0]
    assert isinstance(found, Distill)
    return recipe, found


def test_every_objective_is_read_by_its_kind_alone() -> None:
    assert len(KINDS) == 10
    for task in ("masked_lm", "sentence_embedding"):
        none = {"gold_mse"} if task != "masked_lm" else {"gold_mse", "vector_mse"}
        chosen = [kind for kind in KINDS if kind not in none]
        objectives: list[dict[str, Any]] = [{"kind": kind} for kind in chosen]
        if task == "sentence_embedding":
            objectives[chosen.index("hard_targets")]["target"] = "teacher"
        recipe, stage = parsed(distill(objectives=objectives), task=task)
        assert [objective.kind for objective in stage.objectives] == chosen
        assert parse_recipe(yaml.safe_load(dump_recipe(recipe)), "again") == recipe


def test_layers_by_rule_or_by_number() -> None:
    objectives = [
        {"kind": "hidden_mse", "layers": [1, 3], "embeddings": False},
        {"kind": "attention_mse", "layers": "last"},
    ]
    _, stage = parsed(distill(objectives=objectives))
    expected = [HiddenMse(layers=[1, 3], embeddings=False), AttentionMse(layers="last")]
    assert stage.objectives == expected


def test_a_teacher_by_name_or_several_by_weight() -> None:
    given = {"teachers": {"big": "folder", "other": {"model": "org/name", "revision": "v1"}}}
    one = [WeightedTeacher(model="big")]
    for teacher in ("big", ["big"], [{"model": "big"}]):
        recipe, stage = parsed(distill(teacher=teacher), **given)
        assert (stage.teacher, stage.teachers) == ("big", one)
        assert stage.models_read == ["teacher", "big"]
    assert recipe.teachers["other"].revision == "v1"
    several = ["big", {"model": "other", "weight": 2}, "big"]
    recipe, stage = parsed(distill(teacher=several), **given)
    assert [(t.model, t.weight) for t in stage.teachers] == [("big", 1), ("other", 2), ("big", 1)]
    assert stage.models_read == ["teacher", "big", "other"]
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe)), "again") == recipe


def soft(**changes: Any) -> dict[str, Any]:
    return distill(objectives=[{"kind": "soft_targets", **changes}])


def other(kind: str, **changes: Any) -> dict[str, Any]:
    return distill(objectives=[{"kind": kind, **changes}])


COMPILED = {"epochs": 1, "compile": True}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            tree(soft(schedule="linear")),
            "stages.0.objectives.0: schedule linear has no end: set final_temperature",
        ),
        (
            tree(soft(final_temperature=1)),
            "stages.0.objectives.0: final_temperature is never reached: set schedule to linear or "
            "cosine, or leave it out",
        ),
        (
            tree(other("relations", pairs=["qq", "qq"])),
            "stages.0.objectives.0: pairs: qq, qq names one twice",
        ),
        (
            tree(other("hidden_mse", layer=[1])),
            "unknown key 'layer' in stages.0.objectives.0; did you mean 'layers'?",
        ),
        (
            tree(distill(objectives=[{"kind": "relation"}])),
            "stages.0.objectives.0: unknown kind 'relation'; did you mean 'relations'?",
        ),
        (
            tree(other("hidden_mse", layers=[False, True])),
            "stages.0.objectives.0: layers has false, where another kind of value belongs",
        ),
        (
            tree({"kind": "make_student", "layers": [0, True]}),
            "stages.0: layers has true, where another kind of value belongs",
        ),
        (
            tree(other("vector_mse")),
            "the recipe: stage 1 (distill): vector_mse compares sentence vectors, and masked LM "
            "has none; use logits_mse or hidden_mse instead",
        ),
        (
            tree(other("logits_mse", positions="masked"), task="sentence_embedding"),
            "the recipe: stage 1 (distill): no token of sentence embeddings is masked; set "
            "positions: all in logits_mse",
        ),
        (
            tree(distill(objectives=[{"kind": "relations"}], training=COMPILED)),
            "stages.0: objective relations reads inside the layers, which training.compile makes "
            "opaque: leave one of them out",
        ),
        (
            tree(distill(objectives=[{"kind": "relations"}], cache=True)),
            "stages.0: cache: true keeps a teacher's logits and a vector a text, and relations "
            "reads the hidden states of tokens: leave it out, or set cache: auto",
        ),
        (
            tree(distill(cache=True)),
            "the recipe: stage 1 (distill): cache: true is for classification, multi_label, "
            "regression, sentence_similarity, token_classification; in masked_lm leave it out",
        ),
        (
            tree(distill(cache="always")),
            "stages.0.cache: input should be 'auto', True or False (given: 'always')",
        ),
        (
            tree(other("hidden_cosine", of="pooled")),
            "the recipe: stage 1 (distill): hidden_cosine: masked_lm has no vector of a whole "
            "text; set of: tokens",
        ),
        (
            tree(distill(teacher=["teacher", "big"])),
            "the recipe: stage 1 (distill) reads the model 'big', which no stage before it writes",
        ),
        (
            tree(teachers={"teacher": "folder"}),
            "the recipe: teachers.teacher: that name is the key teacher's: choose another for a "
            "further one",
        ),
        (
            tree(distill(teacher=[{"modle": "teacher"}])),
            "unknown key 'modle' in stages.0.teacher.0; did you mean 'model'?",
        ),
        (
            tree(teachers={"big": {"modle": "a"}}),
            "unknown key 'modle' in teachers.big; did you mean 'model'?",
        ),
    ],
)
def test_what_is_wrong_with_objectives_and_teachers(content: dict[str, Any], expected: str) -> None:
    assert sentence_of(parse_recipe, content, "my.yaml") == f"my.yaml: {expected}"


@pytest.mark.parametrize(
    ("content", "key", "given"),
    [
        (tree(other("hidden_mse", layers="midle")), "stages.0.objectives.0.layers", "'midle'"),
        (tree(other("hidden_mse", layers=[0, -1])), "stages.0.objectives.0.layers.1", "-1"),
        (tree(other("relations", heads=0)), "stages.0.objectives.0.heads", "0"),
        (tree(other("relations", pairs=["qv"])), "stages.0.objectives.0.pairs.0", "'qv'"),
        (tree(soft(schedule="steps")), "stages.0.objectives.0.schedule", "'steps'"),
        (tree(distill(teacher="a b")), "stages.0.teacher", "'a b'"),
        (
            tree(distill(teacher=["teacher", {"model": "teacher", "weight": 0}])),
            "stages.0.teacher.1.weight",
            "0",
        ),
        (tree(distill(teacher=["teacher", 7])), "stages.0.teacher.1", "7"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_key(
    content: dict[str, Any], key: str, given: str
) -> None:
    message = sentence_of(parse_recipe, content, "my.yaml")
    assert message.startswith(f"my.yaml: {key}: ")
    assert message.endswith(f"(given: {given})")


def test_defaults_are_those_of_the_papers() -> None:
    assert Relations().pairs == ["qq", "kk", "vv"]
    assert (Relations().teacher_layer, Relations().student_layer) == (None, None)
    assert HiddenMse().embeddings
    assert (SoftTargets().schedule, SoftTargets().final_temperature) == ("constant", None)
