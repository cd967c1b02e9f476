"""Each shipped recipe, shortened, on tiny models and a little text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM, BertForSequenceClassification

from conftest import Finished, sentences, student_of, tiny_config, tiny_tokenizer
from potstill.recipe import Distill, HardTargets, load_recipe, shipped_recipes
from tiny_families import family_model
from tiny_tasks import questions, tagged_sentences, write_conll, write_squad
from tiny_tokenizers import family_tokenizer

Potstill = Callable[..., Finished]
BENCHMARK = (
    "benchmark.lengths=[8,16]",
    "benchmark.rounds=3",
    "benchmark.repeats=1",
    "benchmark.models=[]",  # the teacher alone: a process less to start
)
SHORTER = (
    "corpus.max_length=40",
    "corpus.heldout=0.3",
    "distill.training.max_steps=3",
    *BENCHMARK,
)
MASKED_LM = (
    "distill.training.batch_size=8",
    "distill.training.micro_batch_size=4",
    "evaluate.max_records=40",
)


@pytest.fixture(scope="module")
def deep_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked-LM BERT of BERT-base's depth."""
    folder = tmp_path_factory.mktemp("deep_teacher")
    torch.manual_seed(2)
    BertForMaskedLM(tiny_config(layers=12, initializer_range=0.2)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def result(recipe: str, stage: str) -> Any:
    return json.loads(Path(f"runs/{recipe}/stages/{stage}/result.json").read_text())


def finished_well(finished: Finished, recipe: str) -> None:
    assert finished.code == 0, finished.err
    assert finished.err == ""
    folder = Path("runs") / recipe
    assert (folder / "model" / "README.md").is_file()
    assert (folder / "report.html").stat().st_size > 10_000
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"teacher", "student"} <= set(metrics["models"])
    assert metrics["models"]["student"]["scores"]


@pytest.mark.parametrize("name", ["distilbert", "distilbert-article"])
def test_the_masked_lm_recipes(
    potstill: Potstill, work: Path, deep_teacher: Path, text_file: Path, name: str
) -> None:
    finished = potstill(
        *("run", name, f"teacher={deep_teacher}", f"corpus.sources={text_file}"),
        *(*SHORTER, *MASKED_LM),
    )
    finished_well(finished, name)
    made = result(name, "01-make_student")
    assert made["layers"] == [0, 2, 4, 7, 9, 11]
    assert (made["from_type"], made["to_type"]) == ("bert", "distilbert")
    trained = result(name, "02-distill")
    assert trained["steps"] == 3
    assert {o["kind"] for o in trained["objectives"]} == {
        "soft_targets",
        "hard_targets",
        "hidden_cosine",
    }
    assert result(name, "03-evaluate")["models"]["student"]["masked_lm"]["loss"] > 0


@pytest.mark.parametrize(
    ("name", "family", "changes"),
    [
        ("minilm-v2", "bert", ["student.width=12", "distill.objectives.relations.heads=4"]),
        ("tinybert", "bert", []),
        ("distilroberta", "roberta", []),
        ("modernbert-half", "modernbert", []),
    ],
)
def test_recipes_of_other_families_and_objectives(
    potstill: Potstill, work: Path, text_file: Path, name: str, family: str, changes: list[str]
) -> None:
    save_teacher(family, work / "teacher")
    fitting = [
        *("finetune.training.max_steps=2", "finetune.training.batch_size=8"),
        "finetune.training.micro_batch_size=4",
    ]
    kinds = [stage.kind for stage in load_recipe(name).stages]
    finished = potstill(
        *("run", name, "teacher=teacher", f"corpus.sources={text_file}", *changes),
        *(*SHORTER, *MASKED_LM, *(fitting if "finetune" in kinds else [])),
    )
    assert finished.code == 0, finished.err
    asked = {
        o.kind for s in load_recipe(name).stages if isinstance(s, Distill) for o in s.objectives
    }
    trained = result(name, "02-distill")
    assert {objective["kind"] for objective in trained["objectives"]} == asked
    made = result(name, "01-make_student")
    assert (len(made["layers"]), made["from_type"]) == (6, family)
    assert Path(f"runs/{name}/model/README.md").is_file()
    scored = "with_head" if "finetune" in kinds else "student"
    number = kinds.index("evaluate") + 1
    assert result(name, f"{number:02}-evaluate")["models"][scored]["masked_lm"]["loss"] > 0


def save_teacher(family: str, folder: Path) -> None:
    """Twelve layers, with a tokenizer of the family's own."""
    tokenizer = family_tokenizer(family)
    size = max(tokenizer.get_vocab().values()) + 1
    special = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("pad", "cls", "sep")}
    family_model(family, "masked_lm", layers=12, vocab_size=size, **special).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_the_embedding_recipe(
    potstill: Potstill, work: Path, sentence_teacher: Path, text_file: Path
) -> None:
    finished = potstill(
        *("run", "embedding", f"teacher={sentence_teacher}", f"corpus.sources={text_file}"),
        *SHORTER,
    )
    finished_well(finished, "embedding")
    assert result("embedding", "01-make_student")["layers"] == [0, 3]
    scores = result("embedding", "03-evaluate")["models"]
    assert set(scores) == {"teacher", "untrained", "student"}
    assert scores["student"]["similarity"]["pearson"] > 0
    assert "retrieval" not in scores["student"]  # no query column is named
    assert Path("runs/embedding/model/modules.json").is_file()


def test_the_quickstart(potstill: Potstill, work: Path, sentence_teacher: Path) -> None:
    for number, text in enumerate(sentences(120, seed=7)):
        path = work / ("copper", "oak")[number % 2] / f"{number:03}.txt"
        path.parent.mkdir(exist_ok=True)
        words = text.split()
        path.write_text(f"{' '.join(words[:5])}\n{text} {' '.join(reversed(words))}\n")
    sources = "{kind: files, paths: ['*/*.txt'], unit: document, encodings: [utf-8, latin-1]}"
    finished = potstill(
        *("quickstart", f"teacher={sentence_teacher}", f"corpus.sources={sources}", *SHORTER),
        *("quantize.lengths=[8,16]", "quantize.rounds=3"),
    )
    finished_well(finished, "quickstart")
    scores = result("quickstart", "06-evaluate")
    assert set(scores["models"]["student"]) == {"retrieval", "topic_probe", "similarity", "hidden"}
    for name in ("trimmed", "onnx", "quantized"):
        assert set(scores["models"][name]) >= {"retrieval", "topic_probe", "similarity"}
    for graph in ("model.onnx", "model_quantized.onnx"):
        assert (Path("runs/quickstart/model/onnx") / graph).is_file()
    assert set(scores["references"]) == {"tfidf"}


COMPACT = (
    "stages.1.training.max_steps=3",
    "stages.3.training.max_steps=3",
    "quantize.lengths=[8,16]",
    "quantize.rounds=3",
    # a model this small spends its time elsewhere, and what int8 costs it is chance
    "quantize.require_faster=false",
    "quantize.max_drop=1",
)


def compressed_well(recipe: str) -> None:
    """Smaller at each step, and what is published is the last one."""
    pruned, trimmed = result(recipe, "03-prune"), result(recipe, "05-trim_vocabulary")
    assert pruned["parameters"]["after"] < pruned["parameters"]["before"]
    assert trimmed["parameters"]["before"] == pruned["parameters"]["after"]
    config = json.loads(Path(f"runs/{recipe}/model/config.json").read_text())
    assert config.get("intermediate_size", config.get("hidden_dim")) == 24
    assert config["vocab_size"] == trimmed["pieces"]["after"]
    for graph in ("model.onnx", "model_quantized.onnx"):
        assert (Path(f"runs/{recipe}/model/onnx") / graph).is_file()
    names = {"teacher", "student", "pruned", "recovered", "trimmed", "onnx", "quantized"}
    assert set(result(recipe, "08-evaluate")["models"]) == names | {"untrained"}


def test_the_compact_embedding_recipe(
    potstill: Potstill, work: Path, sentence_teacher: Path, text_file: Path
) -> None:
    finished = potstill(
        *("run", "embedding-compact", f"teacher={sentence_teacher}"),
        *(f"corpus.sources={text_file}", "corpus.max_length=40", "corpus.heldout=0.3"),
        *(*COMPACT, *BENCHMARK),
    )
    finished_well(finished, "embedding-compact")
    compressed_well("embedding-compact")


def test_the_compact_classification_recipe(potstill: Potstill, work: Path) -> None:
    teacher = save_task_teacher(work / "teacher")
    train = labelled(work, "text", label=lambda number: number % 2)
    finished = potstill(
        *("run", "classification-compact", f"teacher={teacher}", f"data.train={train}"),
        *("data.labels=[bad,good]", *OF_TASKS, *COMPACT),
    )
    finished_well(finished, "classification-compact")
    compressed_well("classification-compact")


def test_every_shipped_recipe_is_run_here() -> None:
    tested = {"distilbert", "distilbert-article", "embedding", "quickstart"}
    tested |= {"minilm-v2", "tinybert", "distilroberta", "modernbert-half"}
    tested |= {"classification", "classification-from-encoder", "classification-two-steps"}
    tested |= {"sentence-similarity", "fine-tune", "embedding-compact", "classification-compact"}
    tested |= {"multi-label", "regression", "token-classification", "question-answering"}
    assert set(shipped_recipes()) == tested


def test_distilbert_has_the_hyper_parameters_of_the_reference() -> None:
    """huggingface/transformers v4, research_projects/distillation: README.md and train.py."""
    for name, target in (("distilbert", "gold"), ("distilbert-article", "teacher")):
        recipe = load_recipe(name)
        stage = next(stage for stage in recipe.stages if isinstance(stage, Distill))
        weights = {o.kind: o.weight for o in stage.objectives}
        assert weights == {"soft_targets": 5.0, "hard_targets": 2.0, "hidden_cosine": 1.0}
        assert [o.target for o in stage.objectives if isinstance(o, HardTargets)] == [target]
        training = stage.training
        assert (training.learning_rate, training.eps, training.warmup) == (5e-4, 1e-6, 0.05)
        assert (training.epochs, training.clip, training.weight_decay) == (3, 5.0, 0.0)
        assert training.betas == (0.9, 0.98)
        assert training.batch_size == 4000
        assert (stage.masking.probability, stage.masking.smoothing) == (0.15, 0.7)
        assert (recipe.corpus.max_length, recipe.corpus.min_length) == (512, 12)


@pytest.mark.parametrize("name", ["distilbert", "embedding"])
def test_a_shipped_recipe_is_planned_or_says_what_is_missing(
    potstill: Potstill, work: Path, name: str
) -> None:
    """As shipped, offline: the hub's teacher is not there, the embedding recipe wants one named."""
    finished = potstill("run", name, "--plan")
    assert finished.code == 2
    assert finished.err.count("\n") == 1
    what = (
        "'google-bert/bert-base-uncased' is not a local folder and is not cached"
        if name == "distilbert"
        else "teacher: no value is set"
    )
    assert what in finished.err
    assert list(work.iterdir()) == []


# --- tasks ----------------------------------------------------------------------------------------

OF_TASKS = (
    "data.max_length=40",
    "data.heldout=0.3",
    *BENCHMARK,
)


def labelled(folder: Path, *columns: str, label: Callable[[int], Any]) -> Path:
    lines = ["\t".join([*columns, "label"])]
    for number, text in enumerate(sentences(60)):
        lines.append("\t".join([*[f"{text} {column}" for column in columns], str(label(number))]))
    path = folder / "train.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def save_task_teacher(folder: Path, **settings: Any) -> Path:
    torch.manual_seed(3)
    config = tiny_config(layers=4, initializer_range=0.2)
    config.update(settings)
    BertForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def shortened(name: str) -> list[str]:
    """Overrides of each training of a recipe, by its number."""
    stages = load_recipe(name, ["teacher=x", "data.train=x", "teachers.small=x"]).stages
    return [
        f"stages.{number}.{change}"
        for number, stage in enumerate(stages)
        if stage.kind in ("finetune", "distill")
        for change in ("training={max_steps: 2, batch_size: 8}", "repeats=1")
    ]


NAMES = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}


@pytest.mark.parametrize(
    ("name", "teacher", "label", "more"),
    [
        ("classification", NAMES, ["bad", "good"], []),
        ("classification-from-encoder", None, ["bad", "good"], []),
        ("classification-two-steps", NAMES, ["bad", "good"], ["teachers.small=small"]),
        (
            "multi-label",
            {**NAMES, "problem_type": "multi_label_classification"},
            ["bad", "bad,good"],
            [],
        ),
        ("regression", {"num_labels": 1}, [0.5, 3], ["data.text=[text,other]"]),
        ("sentence-similarity", None, [0.5, 3], ["data.text=[text,other]", "data.label=label"]),
    ],
)
def test_recipes_of_tasks(
    potstill: Potstill,
    work: Path,
    sentence_teacher: Path,
    name: str,
    teacher: dict[str, Any] | None,
    label: list[Any],
    more: list[str],
) -> None:
    folder = sentence_teacher if teacher is None else save_task_teacher(work / "teacher", **teacher)
    if "teachers.small=small" in more:
        student_of(sentence_teacher, "sentence_embedding", work / "small")
    columns = ["text", "other"] if "data.text=[text,other]" in more else ["text"]
    train = labelled(work, *columns, label=lambda number: label[number % 2])
    finished = potstill(
        *("run", name, f"teacher={folder}", f"data.train={train}", *more),
        *(*OF_TASKS, *shortened(name)),
    )
    assert finished.code == 0, finished.err
    metrics = json.loads(Path(f"runs/{name}/metrics.json").read_text())
    task = load_recipe(name, ["teacher=x", "data.train=x", "teachers.small=x"]).task
    for model in ("teacher", "plain", "student"):
        assert metrics["models"][model]["scores"][task]
    assert Path(f"runs/{name}/model/README.md").is_file()


def test_a_fine_tuned_model_is_another_recipe_s_teacher(
    potstill: Potstill, work: Path, sentence_teacher: Path
) -> None:
    train = labelled(work, "text", label=lambda number: ["bad", "bad,good"][number % 2])
    finished = potstill(
        *("run", "fine-tune", f"teacher={sentence_teacher}", f"data.train={train}"),
        *("task=multi_label", "data.max_length=40", "data.heldout=0.3", *shortened("fine-tune")),
    )
    assert finished.code == 0, finished.err
    scores = json.loads(Path("runs/fine-tune/metrics.json").read_text())
    assert 0 <= scores["models"]["teacher"]["scores"]["multi_label"]["micro_f1"] <= 1
    assert set(scores["references"]) == {"majority", "tfidf"}
    assert "The model scores" in Path("runs/fine-tune/report.html").read_text()
    again = potstill(
        *("run", "multi-label", "teacher=runs/fine-tune/model", f"data.train={train}", "--plan"),
        *OF_TASKS,
    )
    assert again.code == 0, again.err


@pytest.mark.parametrize("name", ["token-classification", "question-answering"])
def test_recipes_of_tokens_and_answers(
    potstill: Potstill, work: Path, sentence_teacher: Path, name: str
) -> None:
    if name == "token-classification":
        train = write_conll(work / "train.conll", tagged_sentences(80))
        fitting = []
    else:
        train = write_squad(work / "train.json", questions(80))
        fitting = ["data.stride=8"]
    finished = potstill(
        *("run", name, f"teacher={sentence_teacher}", f"data.train={train}", *fitting),
        *(*OF_TASKS, *shortened(name)),
    )
    finished_well(finished, name)
    metrics = json.loads(Path(f"runs/{name}/metrics.json").read_text())
    task = load_recipe(name, ["teacher=x", "data.train=x"]).task
    for model in ("teacher", "plain", "student"):
        assert 0 <= metrics["models"][model]["scores"][task]["f1"] <= 1
    assert result(name, "02-make_student")["layers"] == [0, 3]
