"""Objectives and teachers in a recipe: what is read, and the sentence for what is wrong."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import pytest
import yaml
from tiny_recipes import distill, sentence_of, tree

from potstill.recipe import (
    AttentionMse,
    Distill,
    HiddenMse,
    InnerObjective,
    LogitObjective,
    Objective,
    Recipe,
    Relations,
    SoftTargets,
    WeightedTeacher,
    dump_recipe,
    parse_recipe,
)
from potstill.recipe.objectives import ObjectiveConfig

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


def test_an_objective_that_does_not_say_what_it_is_over_is_no_class() -> None:
    with pytest.raises(
        TypeError, match=r"^the objective Silent does not define its reads and rows$"
    ):

        class Silent(ObjectiveConfig):
            kind: Literal["silent"] = "silent"

    with pytest.raises(TypeError, match=r"^the objective Half does not define its rows$"):

        class Half(ObjectiveConfig):
            reads: ClassVar[Literal["tokens"]] = "tokens"


def test_the_unions_are_those_of_what_is_read() -> None:
    for model in get_args(get_args(Objective)[0]):
        reads = model().reads
        assert (reads == "logits") == (model in get_args(LogitObjective))
        assert (reads == "layers") == (model in get_args(InnerObjective))


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
        assert stage.reads == ["teacher", "big"]
    assert recipe.teachers["other"].revision == "v1"
    several = ["big", {"model": "other", "weight": 2}, "big"]
    recipe, stage = parsed(distill(teacher=several), **given)
    assert [(t.model, t.weight) for t in stage.teachers] == [("big", 1), ("other", 2), ("big", 1)]
    assert stage.reads == ["teacher", "big", "other"]
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
            "stages.0.objectives.0.schedule: linear has no end. Set final_temperature.",
        ),
        (
            tree(soft(final_temperature=1)),
            "stages.0.objectives.0.final_temperature: it is never reached. Set schedule to "
            "linear or cosine, or omit it.",
        ),
        (
            tree(other("relations", pairs=["qq", "qq"])),
            "stages.0.objectives.0.pairs: qq, qq names one twice. Name each once.",
        ),
        (
            tree(other("hidden_mse", layer=[1])),
            "stages.0.objectives.0.layer: unknown key. Did you mean 'layers'?",
        ),
        (
            tree(distill(objectives=[{"kind": "relation"}])),
            "stages.0.objectives.0.kind: 'relation' is not a kind. Did you mean 'relations'?",
        ),
        (
            tree(other("hidden_mse", layers=[False, True])),
            "stages.0.objectives.0.layers: false is not valid here. Give another value.",
        ),
        (
            tree({"kind": "make_student", "layers": [0, True]}),
            "stages.0.layers: true is not valid here. Give another value.",
        ),
        (
            tree(other("vector_mse")),
            "stage 1 (distill): objectives.vector_mse: masked_lm has no vector of a whole "
            "text. Use hidden_mse, or hidden_cosine with of: tokens.",
        ),
        (
            tree(other("logits_mse", positions="masked"), task="sentence_embedding"),
            "stage 1 (distill): objectives.logits_mse: sentence_embedding masks no token. "
            "Set positions: all.",
        ),
        (
            tree(distill(objectives=[{"kind": "relations"}], training=COMPILED)),
            "stages.0.training.compile: objective relations reads inside the layers, which "
            "are opaque when compiled. Omit one of the two.",
        ),
        (
            tree(distill(objectives=[{"kind": "relations"}], cache=True)),
            "stages.0.cache: true caches a teacher's logits and one vector per text, and "
            "relations reads the hidden states of tokens. Omit the objective, or set "
            "cache: auto.",
        ),
        (
            tree(distill(cache=True)),
            "stage 1 (distill): cache: true is for sentence_embedding, classification, "
            "multi_label, regression, sentence_similarity, token_classification, not masked_lm. "
            "Omit the key.",
        ),
        (
            tree(distill(cache="always")),
            "stages.0.cache: input should be 'auto', True or False (given: 'always').",
        ),
        (
            tree(other("hidden_cosine", of="pooled")),
            "stage 1 (distill): objectives.hidden_cosine: masked_lm has no vector of a "
            "whole text. Use hidden_mse, or hidden_cosine with of: tokens.",
        ),
        (
            tree(distill(teacher=["teacher", "big"])),
            "stage 1 (distill): the model 'big' is not written by a stage before it. Name "
            "one of these: teacher.",
        ),
        (
            tree(teachers={"teacher": "folder"}),
            "teachers.teacher: the name belongs to the key teacher. Choose another name.",
        ),
        (
            tree(distill(teacher=[{"modle": "teacher"}])),
            "stages.0.teacher.0.modle: unknown key. Did you mean 'model'?",
        ),
        (
            tree(teachers={"big": {"modle": "a"}}),
            "teachers.big.modle: unknown key. Did you mean 'model'?",
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
    assert message.endswith(f" (given: {given}).")


def test_defaults_are_those_of_the_papers() -> None:
    assert Relations().pairs == ["qq", "kk", "vv"]
    assert (Relations().teacher_layer, Relations().student_layer) == (None, None)
    assert HiddenMse().embeddings
    assert (SoftTargets().schedule, SoftTargets().final_temperature) == ("constant", None)
