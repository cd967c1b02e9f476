"""Recipes: what is read, what overrides do, and the sentence for everything that is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_recipes import distill, finetune, left_open, sentence_of, tree, written

from potstill.recipe import (
    Distill,
    Evaluate,
    Files,
    HardTargets,
    HubDataset,
    MakeStudent,
    SoftTargets,
    Student,
    dump_recipe,
    load_recipe,
    main_model,
    parse_recipe,
    shipped_recipes,
)

# --- what is read ---------------------------------------------------------------------------------


def test_importing_the_recipe_imports_no_torch() -> None:
    code = (
        "import sys, potstill.recipe.files as r; r.load_recipe('distilbert'); "
        "print([m for m in ('torch', 'transformers', 'numpy', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_shipped_recipes_load() -> None:
    assert list(shipped_recipes()) == [
        "classification-compact",
        "classification-from-encoder",
        "classification-two-steps",
        "classification",
        "distilbert-article",
        "distilbert",
        "distilroberta",
        "embedding-compact",
        "embedding",
        "fine-tune",
        "minilm-v2",
        "modernbert-half",
        "multi-label",
        "question-answering",
        "quickstart",
        "regression",
        "sentence-similarity",
        "tinybert",
        "token-classification",
    ]
    for name in shipped_recipes():
        recipe = load_recipe(name, left_open(name))
        assert recipe.name == name
        assert recipe.description
        kinds = [stage.kind for stage in recipe.stages]
        if name == "fine-tune":
            assert kinds == ["finetune", "evaluate", "report"]
            continue
        assert kinds[-3:] == ["evaluate", "benchmark", "report"]
        untrained = ("make_student", "trim_vocabulary", "export", "quantize")
        trained = [kind for kind in kinds[:-3] if kind not in untrained]
        if name.endswith("-compact"):
            assert trained == ["distill", "prune", "distill"]
            continue
        if recipe.data is not None:  # the teacher where it has no head, the plain twin, the student
            of_encoders = ("classification-from-encoder", "token-classification")
            of_encoders += ("question-answering", "sentence-similarity")
            first = ["finetune"] if name in of_encoders else []
            assert trained == [*first, "finetune", "distill"]
        else:
            head = ["finetune"] if name in ("minilm-v2", "tinybert") else []
            assert trained == ["distill", *head]


def test_the_embedding_recipe_asks_for_teacher_and_text() -> None:
    hint = "no value is set. Set it in the recipe, or with"
    assert sentence_of(load_recipe, "embedding") == f"embedding: teacher: {hint} teacher=VALUE."
    assert sentence_of(load_recipe, "embedding", ["teacher=x"]) == (
        f"embedding: corpus.sources: {hint} corpus.sources=VALUE."
    )


@pytest.mark.parametrize(
    ("name", "target"), [("distilbert", "gold"), ("distilbert-article", "teacher")]
)
def test_distilbert_is_the_reference(name: str, target: str) -> None:
    """The released weights' settings: huggingface/transformers v4, research_projects/distillation.

    AdamW 5e-4 with betas .9/.98 and eps 1e-6, no decay, warm-up 5%, clip 5, 3 epochs; 5 soft : 2
    masked LM : 1 cosine at T 2 over all tokens; 15% masked 80/10/10, smoothing 0.7; sequences of 12
    to 512 tokens, at most half of them unknown.
    """
    recipe = load_recipe(name)
    make, train, *_ = recipe.stages
    assert make == MakeStudent(layers="alternate")
    assert isinstance(train, Distill)
    soft, hard, cosine = train.objectives
    assert soft == SoftTargets(weight=5.0, temperature=2.0, divergence="kl", positions="all")
    assert hard == HardTargets(weight=2.0, target=target)
    assert (cosine.kind, cosine.weight) == ("hidden_cosine", 1.0)
    assert train.masking.model_dump() == {
        **{"probability": 0.15, "mask": 0.8, "random": 0.1},
        **{"whole_word": False, "smoothing": 0.7},
    }
    expected = {
        **{"learning_rate": 5e-4, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.0},
        **{"warmup": 0.05, "clip": 5.0, "epochs": 3, "batch_size": 4000, "micro_batch_size": 5},
    }
    assert {key: getattr(train.training, key) for key in expected} == expected
    corpus = recipe.corpus
    assert (corpus.min_length, corpus.max_length, corpus.max_unknown) == (12, 512, 0.5)
    sources = [source for source in corpus.sources if isinstance(source, HubDataset)]
    assert [source.name for source in sources] == ["wikimedia/wikipedia", "bookcorpus/bookcorpus"]
    assert [source.revision for source in sources] == ["main", "refs/convert/parquet"]


def test_a_path_is_a_source_and_a_teacher() -> None:
    recipe = parse_recipe(tree(corpus={"sources": ["a.txt", {"kind": "hub", "name": "b"}]}), "x")
    assert recipe.corpus.sources == [Files(paths=["a.txt"]), HubDataset(name="b")]
    assert (recipe.teacher.model, recipe.teacher.revision) == ("folder", None)
    assert parse_recipe(tree(corpus={"sources": {"paths": ["a"], "kind": "files"}}), "x") == (
        parse_recipe(tree(corpus={"sources": "a"}), "x")
    )


def test_the_resolved_recipe_says_all_and_reads_back(tmp_path: Path) -> None:
    for name in shipped_recipes():
        recipe = load_recipe(name, left_open(name))
        path = written(tmp_path, dump_recipe(recipe))
        # what is asked of all students stands in the stages by now
        assert load_recipe(path) == recipe.model_copy(update={"student": Student()})
        dumped = yaml.safe_load(path.read_text(encoding="utf-8"))
        # what all students are asked for stands in the stages that make them
        assert set(dumped) == set(type(recipe).model_fields) - {"student"}
        for stage, kept in zip(recipe.stages, dumped["stages"], strict=True):
            assert set(kept) == set(type(stage).model_fields)
        training = next(s["training"] for s in dumped["stages"] if "training" in s)
        assert training["log_every"] == 10  # a default that no shipped recipe names
        assert training["betas"] in ([0.9, 0.98], [0.9, 0.999])


def test_students_are_asked_for_at_the_top_or_in_their_stages() -> None:
    makes = [{"kind": "make_student"}, {"kind": "make_student", "writes": "plain", "width": 64}]
    recipe = parse_recipe(tree(*makes, student={"depth": 2, "width": 64}), "x")
    assert [(s.depth, s.width) for s in recipe.stages] == [(2, 64), (2, 64)]  # type: ignore[union-attr]
    again = parse_recipe(yaml.safe_load(dump_recipe(recipe)), "x")
    assert again.stages == recipe.stages


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (
            {"width": 32},
            "student.width: 32 differs from 64 in stage 1 (make_student). Omit one of the two.",
        ),
        ({"widht": 32}, "student.widht: unknown key. Did you mean 'width'?"),
        ({"at_most": "2 M"}, "stages.0.at_most: it chooses the shape. Omit width."),
    ],
)
def test_a_student_that_can_not_be(student: dict[str, Any], message: str) -> None:
    make = {"kind": "make_student", "width": 64}
    assert message in sentence_of(parse_recipe, tree(make, student=student), "x")


def test_a_dumped_recipe_is_a_recipe() -> None:
    for stages in ([{"kind": "benchmark"}], [{"kind": "make_student"}]):
        recipe = parse_recipe(tree(*stages), "x")
        assert type(recipe).model_validate(recipe.model_dump(mode="json")) == recipe


def test_a_student_that_no_stage_makes() -> None:
    found = sentence_of(parse_recipe, tree({"kind": "benchmark"}, student={"depth": 1}), "x")
    assert found == "x: student: no stage makes a student. Add a make_student stage."


def test_a_recipe_does_not_change() -> None:
    recipe = parse_recipe(tree(), "x")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 2  # type: ignore[misc]


def test_what_stages_read_and_write() -> None:
    recipe = load_recipe("quickstart")
    made, trained, trimmed, exported, quantised, scored, timed, told = recipe.stages
    assert (made.reads, made.written) == (["teacher"], ["untrained"])
    assert (trained.reads, trained.written) == (["untrained", "teacher"], ["student"])
    assert (trimmed.reads, trimmed.written) == (["student"], ["trimmed"])
    assert (exported.reads, exported.written) == (["trimmed"], ["onnx"])
    assert (quantised.reads, quantised.written) == (["onnx"], ["quantized"])
    for stage in (scored, timed):
        assert (stage.reads, stage.written) == (["teacher"], [])
    assert (told.reads, told.written) == ([], [])
    assert [stage.kind for stage in recipe.stages if stage.trains] == ["distill"]
    assert [stage.kind for stage in recipe.stages if stage.writes_onnx] == ["export", "quantize"]
    assert Evaluate(models=["student", "teacher"]).reads == ["student", "teacher"]


# --- contents -------------------------------------------------------------------------------------

TWICE = [{"kind": "soft_targets"}, {"kind": "soft_targets", "temperature": 4}]
WEIGHTLESS = [{"kind": "soft_targets", "weight": 0}, {"kind": "hidden_cosine", "weight": 0}]


def text(**changes: Any) -> dict[str, Any]:
    return tree(corpus={"sources": "a", **changes})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # keys
        (tree(sead=1), "sead: unknown key. Did you mean 'seed'?"),
        (
            tree(zzz=1),
            "zzz: unknown key. The valid keys are corpus, data, description, name, seed, "
            "stages, student, task, teacher, teachers, threads.",
        ),
        (
            tree(finetune(learnin_rate=1)),
            "stages.0.training.learnin_rate: unknown key. Did you mean 'learning_rate'?",
        ),
        (
            tree(distill(objectives=[{"kind": "soft_targets", "temprature": 1}])),
            "stages.0.objectives.0.temprature: unknown key. Did you mean 'temperature'?",
        ),
        (
            tree(distill(objectives=[{"kind": "hidden_cosine", "zzz": 1}])),
            "stages.0.objectives.0.zzz: unknown key. The valid keys are kind, of, weight.",
        ),
        (
            text(sources={"kind": "hub", "name": "a", "spilt": "b"}),
            "corpus.sources.0.spilt: unknown key. Did you mean 'split'?",
        ),
        (
            text(heldout_sources={"kind": "files", "paths": ["a"], "units": "line"}),
            "corpus.heldout_sources.0.units: unknown key. Did you mean 'unit'?",
        ),
        # which is also one that is missing
        (tree(teacher={"modle": "a"}), "teacher.modle: unknown key. Did you mean 'model'?"),
        (
            tree({"kind": "finetune"}),
            "stages.0.training: no value is set. Set it in the recipe, or with "
            "stages.0.training=VALUE.",
        ),
        # kinds
        (
            tree({"kind": "distil"}),
            "stages.0.kind: 'distil' is not a kind. Did you mean 'distill'?",
        ),
        (
            tree({"kind": "xyz"}),
            "stages.0.kind: 'xyz' is not a kind. The kinds are "
            "finetune, make_student, distill, prune, trim_vocabulary, "
            "export, quantize, evaluate, benchmark, report.",
        ),
        (
            tree({"title": "x"}),
            "stages.0.kind: no value is set. The kinds are finetune, "
            "make_student, distill, prune, trim_vocabulary, export, "
            "quantize, evaluate, benchmark, report.",
        ),
        (
            text(sources={"paths": ["a"]}),
            "corpus.sources.0.kind: no value is set. The kinds are files, dataset_folder, hub.",
        ),
        (
            tree(distill(objectives=[{"kind": "soft_target"}])),
            "stages.0.objectives.0.kind: 'soft_target' is not a kind. Did you mean 'soft_targets'?",
        ),
        # values that don't go together
        (
            text(min_length=40, max_length=30),
            "corpus.min_length: 40 is above max_length 30, so no text is left. Lower min_length.",
        ),
        (
            tree(distill(masking={"mask": 0.8, "random": 0.3})),
            "stages.0.masking.mask: mask + random is 1.1, more than 1. Lower one of the two.",
        ),
        (
            tree(finetune(epochs=None)),
            "stages.0.training: no end is given. Set epochs, max_steps or max_tokens.",
        ),
        (
            tree(finetune(batch_size=10, micro_batch_size=4)),
            "stages.0.training.batch_size: 10 is not a multiple of micro_batch_size 4. Set "
            "a multiple.",
        ),
        (
            tree(distill(objectives=TWICE)),
            "stages.0.objectives: soft_targets is listed twice. Merge the two.",
        ),
        (
            tree(distill(objectives=WEIGHTLESS)),
            "stages.0.objectives: their weights sum to 0. Give at least one a weight above 0.",
        ),
        (
            tree(distill(in_batch={"group": 5})),
            "stages.0.in_batch.group: the micro-batch of 32 is not a multiple of 5. Set a "
            "divisor of it.",
        ),
        # stages that don't go together
        (
            tree(distill(), distill(model="student")),
            "stage 2 (distill): the model 'student' is not written by a stage before it. "
            "Name one of these: teacher.",
        ),
        (
            tree({"kind": "evaluate", "baseline": "other"}),
            "stage 1 (evaluate): the model 'other' is not written by a stage before it. "
            "Name one of these: teacher.",
        ),
        (
            {
                **tree(finetune(keep="best")),
                "corpus": {"sources": "text.txt", "heldout": 0},
            },
            "stage 1 (finetune): keep best and patience need held-out text. Raise "
            "corpus.heldout, or omit both.",
        ),
        # stages that don't fit the task
        (
            tree(finetune(), task="sentence_embedding"),
            "stage 1 (finetune): text without labels gives a sentence encoder nothing to "
            "learn from. Use task sentence_similarity with pairs that have a score, or "
            "masked_lm.",
        ),
        (
            tree(distill(objectives=[{"kind": "hard_targets"}]), task="sentence_embedding"),
            "stage 1 (distill): objectives.hard_targets: text without labels has no gold "
            "target. Set target: teacher.",
        ),
        (
            tree(
                distill(objectives=[{"kind": "soft_targets", "positions": "masked"}]),
                task="sentence_embedding",
            ),
            "stage 1 (distill): objectives.soft_targets: sentence_embedding masks no "
            "token. Set positions: all.",
        ),
        (
            tree(distill(training={"epochs": 1, "batch_size": 2}), task="sentence_embedding"),
            "stage 1 (distill): training.batch_size: 2 texts are too few to compare each "
            "with at least two others. Set at least 3.",
        ),
        (
            tree(distill(writes="s"), {"kind": "evaluate", "baseline": "s"}, {"kind": "benchmark"}),
            "baseline: the last evaluate stage and the last benchmark stage name s and "
            "teacher, but share a table. Name the same model in both.",
        ),
        (
            tree(finetune(batch_size=True)),
            "stages.0.training.batch_size: true is not valid here. Give another value.",
        ),
        (
            {**tree(finetune()), "data": {"train": "a.csv", "labels": [False, True]}},
            "data.labels: false is not valid here. YAML reads yes, no, on and off as true "
            'or false. Put such a word in quotes, as in "no".',
        ),
        (
            tree(distill(training={"epochs": 1, "micro_batch_size": 8}), task="sentence_embedding"),
            "stage 1 (distill): in_batch.group: with micro-batches the number of texts to "
            "compare with each other is required. Set it to at most micro_batch_size, 8.",
        ),
    ],
)
def test_what_is_wrong_with_a_recipe(content: dict[str, Any], expected: str) -> None:
    assert sentence_of(parse_recipe, content, "my.yaml") == f"my.yaml: {expected}"


@pytest.mark.parametrize(
    ("content", "key", "given"),
    [
        (tree(seed=-1), "seed", "-1"),
        (tree(seed="x"), "seed", "'x'"),
        (tree(task="embeddings"), "task", "'embeddings'"),
        (tree(name="a b"), "name", "'a b'"),
        (tree(name="../up"), "name", "'../up'"),
        (tree(teacher={"model": None}), "teacher.model", "None"),
        (text(heldout=1), "corpus.heldout", "1"),
        (text(max_length=7), "corpus.max_length", "7"),
        (tree(finetune(learning_rate=0)), "stages.0.training.learning_rate", "0"),
        (tree(finetune(betas=[0.9, 1])), "stages.0.training.betas.1", "1"),
        (tree(finetune(precision="fp16")), "stages.0.training.precision", "'fp16'"),
        (tree({"kind": "make_student", "layers": "midle"}), "stages.0.layers", "'midle'"),
        (tree({"kind": "make_student", "layers": [0, -1]}), "stages.0.layers.1", "-1"),
        (tree({"kind": "make_student", "layers": [0, "a"]}), "stages.0.layers.1", "'a'"),
        (tree(finetune(learning_rate=float("inf"))), "stages.0.training.learning_rate", "inf"),
        (tree(distill(in_batch={"group": 2})), "stages.0.in_batch.group", "2"),
        (tree({"kind": "make_student", "writes": "a/b"}), "stages.0.writes", "'a/b'"),
        (tree({"kind": "benchmark", "rounds": 2}), "stages.0.rounds", "2"),
        (tree("report"), "stages.0", "'report'"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_key(
    content: dict[str, Any], key: str, given: str
) -> None:
    """The words between are pydantic's."""
    message = sentence_of(parse_recipe, content, "my.yaml")
    assert message.startswith(f"my.yaml: {key}: ")
    assert message.endswith(f" (given: {given}).")


def test_long_values_are_not_repeated() -> None:
    message = sentence_of(parse_recipe, tree(stages=[]), "my.yaml")
    assert message.startswith("my.yaml: stages: ")
    assert "given" not in message


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ([{"kind": "make_student", "writes": "untrained"}, distill(model="untrained")], 2),
        (  # the plain twin is made and trained last
            [
                {"kind": "make_student"},
                distill(model="student"),
                {"kind": "make_student", "writes": "plain"},
                {"kind": "finetune", "model": "plain", "training": {"epochs": 1}},
            ],
            2,
        ),
        ([finetune(), {"kind": "make_student"}, distill(model="student"), {"kind": "report"}], 3),
        ([{"kind": "make_student"}, {"kind": "make_student", "writes": "other"}], 2),
        ([finetune(), finetune()], 2),
        ([{"kind": "benchmark"}], None),
    ],
)
def test_which_model_a_recipe_is_about(stages: list[dict[str, Any]], expected: int | None) -> None:
    assert main_model(parse_recipe(tree(*stages), "x").stages) == expected


def test_groups_make_micro_batches_possible() -> None:
    training = {"epochs": 1, "batch_size": 32, "micro_batch_size": 8}
    stage = distill(training=training, in_batch={"group": 4})
    recipe = parse_recipe(tree(stage, task="sentence_embedding"), "x")
    assert recipe.stages[0].in_batch.group == 4  # type: ignore[union-attr]


def test_a_finished_distill_stage_with_several_teachers_is_made_from_its_model() -> None:
    # reports read the stages of finished runs as they were written, unchecked
    stage = Distill.model_construct(model="half", teacher=[{"model": "one"}, {"model": "two"}])
    assert stage.made_from == "half"
    assert stage.written == ["half"]
