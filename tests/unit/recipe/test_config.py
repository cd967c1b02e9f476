"""What of a config enters a digest: a key that was added later does so only where it is set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

import pytest
from pydantic import Field
from tiny_recipes import sentence_of, tree
from transformers import PreTrainedTokenizerFast

from conftest import tiny_tokenizer
from potstill.data import tokenize_corpus
from potstill.data.sources import sources_fingerprint
from potstill.pipeline.fingerprints import inputs_digest, stage_digest
from potstill.recipe import (
    Config,
    Corpus,
    Distill,
    Evaluate,
    HubDataset,
    MakeStudent,
    SoftTargets,
    Task,
    TaskData,
    Training,
    parse_recipe,
)
from potstill.recipe.config import ADDED_LATER, FORMER, digested, today
from potstill.recipe.files import _override
from potstill.suites.catalog import SUITES
from potstill.suites.data import SuiteData
from potstill.suites.trials import Entrant, Trial


class LaterObjective(SoftTargets):
    extra: Annotated[Annotated[int, Field(ge=1)] | None, ADDED_LATER] = None


class LaterTraining(Training):
    extra: Annotated[list[str], ADDED_LATER] = Field(default=[])


class LaterDistill(Distill):
    """As a later version might have it: a key of its own, of a part, and of parts in a list."""

    extra: Annotated[int, ADDED_LATER] = Field(default=3, ge=1)
    part: Annotated[LaterObjective, ADDED_LATER] = LaterObjective()
    training: LaterTraining
    objectives: list[LaterObjective]
    by_name: Annotated[dict[str, LaterObjective], ADDED_LATER] = Field(default={})


class LaterCorpus(Corpus):
    extra: Annotated[bool, ADDED_LATER] = False


class LaterHub(HubDataset):
    extra: Annotated[str | None, ADDED_LATER] = None


SETTINGS: dict[str, Any] = {
    "objectives": [{"kind": "soft_targets"}],
    "training": {"epochs": 1, "betas": [0.9, 0.999]},
}


def digest(**changes: Any) -> str:
    return stage_digest("before", LaterDistill.model_validate({**SETTINGS, **changes}))


def test_a_key_that_was_added_later_leaves_the_digest_as_it_was() -> None:
    assert digest() == stage_digest("before", Distill.model_validate(SETTINGS))
    given = {"extra": 3, "part": {}, "objectives": [{"kind": "soft_targets", "extra": None}]}
    given["training"] = {**SETTINGS["training"], "extra": []}
    assert digest(**given) == digest()


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 4},
        {"part": {"extra": 1}},
        {"part": {"weight": 2}},
        {"objectives": [{"kind": "soft_targets", "extra": 1}]},
        {"training": {**SETTINGS["training"], "extra": ["a"]}},
        {"by_name": {"a": {}}},
        {"repeats": 2},
    ],
)
def test_set_to_something_else_it_gives_another_digest(change: dict[str, Any]) -> None:
    assert digest(**change) != digest()


def test_what_is_set_enters_with_the_rest_of_its_part() -> None:
    set_ones = LaterDistill.model_validate(
        {**SETTINGS, "part": {"weight": 2}, "by_name": {"a": {}, "b": {"extra": 1}}}
    )
    found = digested(set_ones)
    plain = SoftTargets().model_dump(mode="json")
    assert found["part"] == {**plain, "weight": 2}
    assert found["by_name"] == {"a": plain, "b": {**plain, "extra": 1}}
    assert "extra" not in found


def test_a_config_without_such_keys_enters_whole_and_a_dump_always_is() -> None:
    stage = Evaluate(models=["teacher"])
    assert list(digested(stage).items()) == list(stage.model_dump(mode="json").items())
    later = LaterDistill.model_validate(SETTINGS)
    assert {"extra", "part", "by_name"} <= later.model_dump(mode="json").keys()
    assert later.model_dump(mode="json")["objectives"][0]["extra"] is None


# --- keys that were removed -----------------------------------------------------------------------


class FormerTraining(Training):
    """As an older version had it."""

    gone: int | None = None


class FormerDistill(Distill):
    removed: ClassVar[Mapping[str, str]] = {}
    sparsity: dict[str, Any] | None = None
    training: FormerTraining


class TodaysTraining(Training):
    removed: ClassVar[Mapping[str, str]] = {"gone": "the key was removed. Omit it."}


class TodaysDistill(Distill):
    training: TodaysTraining


@pytest.mark.parametrize("written", [{}, {"sparsity": None}])
def test_a_key_that_was_removed_leaves_the_digest_as_it_was(written: dict[str, Any]) -> None:
    before = stage_digest("before", FormerDistill.model_validate(SETTINGS))
    training = {**SETTINGS["training"], "gone": None} if written else SETTINGS["training"]
    today = TodaysDistill.model_validate({**SETTINGS, **written, "training": training})
    assert stage_digest("before", today) == before
    assert "sparsity" not in today.model_dump()
    assert "gone" not in today.training.model_dump()


def test_set_to_something_it_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"sparsity: the key was removed, for .* Omit it; prune, "):
        Distill.model_validate({**SETTINGS, "sparsity": {"final": 0.5}})
    with pytest.raises(ValueError, match=r"gone: the key was removed\. Omit it\."):
        TodaysDistill.model_validate({**SETTINGS, "training": {"epochs": 1, "gone": 3}})


# --- keys that were renamed -----------------------------------------------------------------------


def test_a_renamed_key_has_its_former_name_in_digests_alone() -> None:
    before = {name: former for former, name in FORMER.items()}
    for key in ("initialise", "initialize"):
        stage = MakeStudent.model_validate({key: "random"})
        assert stage.initialize == "random"
        assert "initialise" not in stage.model_dump()
        found = digested(stage)
        assert list(found) == [before.get(name, name) for name in stage.model_dump()]
        assert found["initialise"] == "random"
    data = {"train": "a.csv", "unlabelled": "b.txt", "max_unlabelled": 9}
    task = TaskData.model_validate(data)
    assert task == TaskData.model_validate({today(key): item for key, item in data.items()})
    assert task.max_unlabeled == 9
    assert {"unlabelled", "max_unlabelled"} <= digested(task).keys()


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        (
            {"initialise": "rand"},
            "initialise: input should be 'teacher' or 'random' (given: 'rand').",
        ),
        (
            {"initialize": "rand"},
            "initialize: input should be 'teacher' or 'random' (given: 'rand').",
        ),
        ({"initialise": True}, "initialise: true is not valid here. Give another value."),
        ({"initialisation": 1}, "initialisation: unknown key. Did you mean 'initialize'?"),
        (
            {"initialise": "random", "initialize": "random"},
            "initialise: the key is now called initialize, which is set, too. Omit initialise.",
        ),
    ],
)
def test_an_error_has_the_name_that_was_written(student: dict[str, Any], expected: str) -> None:
    make = {"kind": "make_student", **student}
    assert sentence_of(parse_recipe, tree(make), "x") == f"x: stages.0.{expected}"


def test_either_name_overrides_the_other() -> None:
    data = {"train": "a.csv", "unlabelled": {"kind": "hub", "name": "a"}}
    for key, former in (("unlabeled", "unlabelled"), ("unlabelled", "unlabeled")):
        given = {"data": {"train": "a.csv", former: "old.txt"}}
        _override(given, f"data.{key}=new.txt")
        assert given == {"data": {"train": "a.csv", key: "new.txt"}}
    given = {"data": data}
    _override(given, "data.unlabeled.split=test")
    assert TaskData.model_validate(given["data"]).unlabeled == [HubDataset(name="a", split="test")]


def test_all_students_are_asked_for_by_either_name() -> None:
    make = {"kind": "make_student", "initialize": "random"}
    for key in ("initialise", "initialize"):
        recipe = parse_recipe(tree(make, student={key: "random"}), "x")
        assert isinstance(recipe.stages[0], MakeStudent)
        assert recipe.stages[0].initialize == "random"
        found = sentence_of(parse_recipe, tree(make, student={key: "teacher"}), "x")
        assert f"student.{key}: teacher differs from random in stage 1 (make_student)." in found


# --- wherever a config enters a digest or a cache key ---------------------------------------------


def test_the_rule_holds_for_the_text_of_a_recipe(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the still runs", encoding="utf-8")

    def found(kind: type[Corpus], **settings: Any) -> str:
        corpus = kind.model_validate({"sources": str(text), **settings})
        return inputs_digest(Task.MASKED_LM, 1, corpus, [])

    assert found(LaterCorpus) == found(Corpus)
    assert found(LaterCorpus, extra=True) != found(Corpus)


def test_the_rule_holds_for_sources() -> None:
    before = sources_fingerprint([HubDataset(name="a")])
    assert sources_fingerprint([LaterHub(name="a")]) == before
    assert sources_fingerprint([LaterHub(name="a", extra="b")]) != before


def test_the_rule_holds_for_the_token_cache(tmp_path: Path) -> None:
    text, cache = tmp_path / "text.txt", tmp_path / "cache"
    text.write_text("\n".join(["the still runs slowly and keeps the heart"] * 9), encoding="utf-8")
    tokenizer: PreTrainedTokenizerFast = tiny_tokenizer()

    def caches(kind: type[Corpus], **settings: Any) -> int:
        """How many there are when this one has been asked for, too."""
        corpus = kind.model_validate({"sources": str(text), "min_length": 1, **settings})
        tokenize_corpus(corpus, tokenizer, cache, seed=0)
        return len(list(cache.iterdir()))

    assert caches(Corpus, heldout=0) == 1
    assert caches(LaterCorpus, heldout=0) == 1
    assert caches(LaterCorpus, heldout=0, extra=True) == 2


def test_the_rule_holds_for_the_trainings_of_a_suite(tmp_path: Path) -> None:
    data = SuiteData(SUITES["glue"][0], tmp_path, counts={})
    entrant = Entrant("model", tmp_path, "digest")

    def key(training: Training) -> str:
        return Trial(entrant, data, training, 64, 1, tmp_path).key

    before = key(Training(epochs=1))
    assert key(LaterTraining(epochs=1)) == before
    assert key(LaterTraining(epochs=1, extra=["a"])) != before


# --- the marks in today's recipes -----------------------------------------------------------------


def test_every_mark_is_outermost_and_has_a_default() -> None:
    for kind in _kinds(Config):
        for key, field in kind.model_fields.items():
            assert not _inside(field.annotation), f"{kind.__name__}.{key}"
            marked = ADDED_LATER in field.metadata
            assert not (marked and field.is_required()), f"{kind.__name__}.{key}"


def _kinds(kind: type[Config]) -> Iterator[type[Config]]:
    for below in kind.__subclasses__():
        yield below
        yield from _kinds(below)


def _inside(annotation: Any) -> bool:
    return annotation is ADDED_LATER or any(_inside(one) for one in get_args(annotation))
