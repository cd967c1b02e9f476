from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from tiny_labels import write_model
from transformers import BertForMaskedLM

from conftest import sentences, tiny_config, tiny_tokenizer
from potstill.compression import make_student
from potstill.data import read_records
from potstill.data.sources import heldout_side
from potstill.models import LoadedModel, load_model
from potstill.objectives.pairing import check_pair
from potstill.pipeline import Silent
from potstill.pipeline.context import Context
from potstill.pipeline.outlook import check_text_length
from potstill.pipeline.stages import distill as distill_stage
from potstill.pipeline.stages.stage import run_stage
from potstill.recipe import (
    Corpus,
    Distill,
    Finetune,
    HiddenCosine,
    LogitsMse,
    MakeStudent,
    Relations,
    SoftTargets,
    Stage,
    Task,
    TaskData,
    Training,
)
from potstill.training import teacher_cache
from potstill.training.trainee import is_trained
from tiny_runs import tiny_teacher


class Recorder(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def corpus(*paths: Path, **settings: Any) -> Corpus:
    given = {"max_length": 40, "min_length": 4, "heldout": 0.2, **settings}
    return Corpus.model_validate({"sources": [str(path) for path in paths], **given})


@pytest.fixture
def context(masked_lm_teacher: Path, text_file: Path, tmp_path: Path) -> Context:
    return Context(
        task=Task.MASKED_LM,
        seed=1,
        text_settings=corpus(text_file),
        run=tmp_path,
        cache=tmp_path / "cache",
        models={"teacher": masked_lm_teacher},
        reporter=Recorder(),
    )


def stage(tree: dict[str, Any]) -> Stage:
    parsed: Stage = TypeAdapter(Stage).validate_python(tree)
    return parsed


def done(tree: dict[str, Any], context: Context, name: str = "stage") -> dict[str, Any]:
    """Run a stage; its result.json. What it wrote is in the context."""
    folder = context.run / name
    folder.mkdir()
    writes = run_stage(stage(tree), folder, context, "a")
    context.models.update({model: folder / path for model, path in writes.items()})
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


# --- make_student ---------------------------------------------------------------------------------


def test_make_student_tells_what_it_did(context: Context, masked_lm_teacher: Path) -> None:
    result = done({"kind": "make_student", "writes": "half"}, context)
    teacher, student = (
        load_model(folder, "masked_lm").model
        for folder in (masked_lm_teacher, context.models["half"])
    )
    assert result == {
        "teacher_layers": 4,
        "layers": [0, 3],
        "widths": {"hidden": 32, "heads": 4, "ffn": 48},
        "teacher_widths": {"hidden": 32, "heads": 4, "ffn": 48},
        "chosen": "2 of 4 layers (0, 3), width 32, FFN 48, 21.11 k parameters",
        "initialise": "teacher",
        "rule": "alternate",
        "from_type": "bert",
        "to_type": "distilbert",
        "parameters": {"teacher": teacher.num_parameters(), "student": student.num_parameters()},
        "warnings": [],
    }
    assert done({"kind": "make_student", "layers": [3, 1, 0]}, context, "other")["rule"] == "list"


def test_make_student_warns_of_pairs(context: Context) -> None:
    result = done({"kind": "make_student", "pairs": True}, context)
    (warning,) = result["warnings"]
    assert "The student stays BERT" in warning
    told = f"student: {result['chosen']}"
    assert context.reporter.said == [told, f"note: {warning}"]  # type: ignore[attr-defined]
    assert result["to_type"] == "bert"


def test_a_narrower_student_keeps_what_the_corpus_says_most_of(
    context: Context, masked_lm_teacher: Path
) -> None:
    done({"kind": "make_student", "width": 16, "writes": "narrow"}, context)
    found = load_model(context.models["narrow"], "masked_lm").model.state_dict()
    teacher = load_model(masked_lm_teacher, "masked_lm").model
    train = context.text_for("teacher").corpus.train
    texts = [train[i].tolist() for i in range(64)]
    expected = make_student(teacher, width=16, sample=texts).state_dict()
    other = make_student(teacher, width=16).state_dict()
    key = "distilbert.embeddings.word_embeddings.weight"
    torch.testing.assert_close(found[key], expected[key])
    assert not torch.allclose(found[key], other[key])


def test_a_student_that_starts_at_random_is_one_of_the_run_s_seed(context: Context) -> None:
    make = {"kind": "make_student", "initialise": "random", "width": 16}
    found = []
    for number, seed in enumerate((1, 1, 2)):
        seeded = replace(context, seed=seed)
        done({**make, "writes": f"random{number}"}, seeded, f"made{number}")
        found.append((context.models[f"random{number}"] / "model.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]


# --- training -------------------------------------------------------------------------------------


def changed(before: Path, after: Path) -> set[str]:
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    return {name for name in old if not torch.equal(old[name], new[name])}


def test_finetuning_a_head_leaves_the_rest(context: Context, masked_lm_teacher: Path) -> None:
    training = {"max_steps": 2, "batch_size": 4, "warmup": 0}
    result = done({"kind": "finetune", "train": "head", "training": training}, context)
    names = changed(masked_lm_teacher, context.models["teacher"])
    assert names
    assert all(name.startswith("cls.predictions.") for name in names)
    assert result["steps"] == 2
    assert [o["kind"] for o in result["objectives"]] == ["hard_targets"]
    done({"kind": "finetune", "training": training}, context, "all")
    everything = changed(context.run / "stage/model", context.models["teacher"])
    assert any(name.startswith("bert.encoder.layer.0.") for name in everything)


def test_distilling_hidden_states_leaves_the_head(context: Context) -> None:
    """Without a gradient it would only be decayed, and stall data-parallel training."""
    done({"kind": "make_student"}, context, "made")
    objectives = [{"kind": "hidden_cosine"}, {"kind": "soft_targets", "weight": 0}]
    training = {"max_steps": 2, "batch_size": 4, "warmup": 0, "weight_decay": 0.1}
    result = done({"kind": "distill", "objectives": objectives, "training": training}, context)
    names = changed(context.run / "made/model", context.models["student"])
    assert names
    assert not any(name.startswith("vocab_") for name in names)
    # an objective without weight is left out: it would cost its time for nothing
    assert [o["kind"] for o in result["objectives"]] == ["hidden_cosine"]
    assert set(result["final"]["components"]) == {"hidden_cosine"}


def test_which_parameters_a_stage_trains(masked_lm_teacher: Path, sentence_teacher: Path) -> None:
    masked = load_model(masked_lm_teacher, "masked_lm", weights=False)
    sentence = load_model(sentence_teacher, "sentence_embedding", weights=False)
    training = {"max_steps": 1}
    both = stage(
        {
            "kind": "distill",
            "objectives": [{"kind": "soft_targets"}, {"kind": "hidden_cosine"}],
            "training": training,
        }
    )
    assert isinstance(both, Distill)
    cosine = both.model_copy(update={"objectives": [HiddenCosine()]})
    head = Finetune.model_validate({"train": "head", "training": training})

    def trained(stage: Finetune | Distill, loaded: LoadedModel) -> tuple[bool, bool]:
        """The body's and the head's."""
        names = "bert.encoder.layer.0.output.dense.weight", "cls.predictions.transform.dense.weight"
        return is_trained(stage, loaded, names[0]), is_trained(stage, loaded, names[1])

    assert trained(both, masked) == (True, True)
    assert trained(cosine, masked) == (True, False)
    weightless = both.model_copy(update={"objectives": [HiddenCosine(), SoftTargets(weight=0)]})
    assert trained(weightless, masked) == (True, False)
    for objective, reads_head in ((LogitsMse(), True), (Relations(), False)):
        only = both.model_copy(update={"objectives": [objective]})
        assert trained(only, masked) == (True, reads_head)
    assert trained(head, masked) == (False, True)
    assert trained(head.model_copy(update={"train": "all"}), masked) == (True, True)
    assert trained(cosine, sentence)[0]


def test_a_repeat_is_flushed_before_it_counts_as_finished(
    tmp_path: Path, flushed: list[Path]
) -> None:
    """A power cut after it would leave a result beside a model that is not whole."""
    context = labelled(tiny_teacher(tmp_path / "teacher", "classification"), tmp_path)
    training = {"max_steps": 1, "batch_size": 4}
    done({"kind": "finetune", "model": "teacher", "training": training, "repeats": 2}, context)
    for number in (1, 2):
        own = tmp_path / f"stage/repeat-{number}"
        before = flushed[: flushed.index(own / "result.json")]
        named = ("model/model.safetensors", "model/config.json", "model", "log.jsonl", "")
        assert {own / name for name in named} <= set(before)
        assert not (own / "checkpoints").exists()


# --- what doesn't go together ---------------------------------------------------------------------


def other(tmp_path: Path, **changes: Any) -> LoadedModel:
    torch.manual_seed(3)
    BertForMaskedLM(tiny_config(2, **changes)).save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    return load_model(tmp_path / "other", "masked_lm")


def test_a_student_that_can_not_follow_its_teacher(masked_lm_teacher: Path, tmp_path: Path) -> None:
    teacher = load_model(masked_lm_teacher, "masked_lm")
    narrow = other(tmp_path, hidden_size=16)
    check_pair(narrow, teacher, [SoftTargets()])
    with pytest.raises(ValueError, match=r"the student's are 16 wide, the teacher's 32\. Omit it"):
        check_pair(narrow, teacher, [SoftTargets(), HiddenCosine()])
    padded = other(tmp_path, vocab_size=teacher.model.config.vocab_size + 8)
    with pytest.raises(ValueError, match=r"teacher .* their distributions can't be compared"):
        check_pair(padded, teacher, [SoftTargets()])
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["whisky"])
    with pytest.raises(ValueError, match="different vocabularies"):
        check_pair(replace(teacher, tokenizer=tokenizer), teacher, [SoftTargets()])


def test_a_length_beyond_the_positions(masked_lm_teacher: Path, text_file: Path) -> None:
    teacher = load_model(masked_lm_teacher, "masked_lm")
    check_text_length(corpus(text_file, max_length=64), teacher)
    with pytest.raises(
        ValueError,
        match=r"corpus\.max_length: 65 tokens exceed the maximum sequence length of .*, 64\. Set",
    ):
        check_text_length(corpus(text_file, max_length=65), teacher)


# --- text -----------------------------------------------------------------------------------------


def test_the_corpus_tells_its_warnings(context: Context, tmp_path: Path) -> None:
    path = tmp_path / "twice.txt"
    path.write_text("\n".join(sentences(20) * 2))
    context = replace(context, text_settings=corpus(path))
    assert context.text_for("teacher").corpus.counts["duplicates"] == 20
    notes = context.reporter.said  # type: ignore[attr-defined]
    assert any(note.startswith("note: 20 texts are the same") for note in notes)


def test_heldout_records(context: Context, tmp_path: Path, text_file: Path) -> None:
    settings = context.corpus_settings
    records = context.heldout_records
    assert 30 < len(records) < 90  # a fifth of 300
    assert records == [
        record
        for record in read_records(settings.sources, ["text"])
        if heldout_side(record, ["text"], None, 0.2, 1)
    ]
    own = tmp_path / "own.txt"
    own.write_text("malt and oak\n")
    settings = corpus(text_file, heldout_sources=[str(own)])
    context = replace(context, text_settings=settings)
    assert [record.columns["text"] for record in context.heldout_records] == ["malt and oak"]


def test_settings_of_a_made_student_reach_it(context: Context) -> None:
    result = done({"kind": "make_student", "depth": 3, "layers": "last"}, context)
    assert result["layers"] == [1, 2, 3]
    family = MakeStudent(family="bert").model_dump()
    assert done(family, context, "bert")["to_type"] == "bert"


def labelled(teacher: Path, folder: Path, **changes: Any) -> Context:
    lines = [f"{text}\t{number % 3}" for number, text in enumerate(sentences(40))]
    (folder / "train.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    given = {"train": str(folder / "train.tsv"), "max_length": 40}
    return Context(
        task=Task.CLASSIFICATION,
        seed=1,
        text_settings=TaskData.model_validate(given),
        run=folder,
        cache=folder / "tokens",
        models={"teacher": teacher},
        reporter=Recorder(),
        **changes,
    )


def test_a_student_whose_labels_are_in_another_order(tmp_path: Path) -> None:
    """As `potstill.distill` may be given one, which goes through no rehearsal."""
    context = labelled(tiny_teacher(tmp_path / "teacher", "classification"), tmp_path)
    small = tiny_teacher(tmp_path / "small", "classification", seed=1)
    config = json.loads((small / "config.json").read_text())
    config["id2label"] = {"0": "late", "1": "early", "2": "<b>never</b>"}
    (small / "config.json").write_text(json.dumps(config))
    context.models["small"] = small
    training = {"max_steps": 1}
    for kind, more in [("finetune", {}), ("distill", {"objectives": [{"kind": "soft_targets"}]})]:
        with pytest.raises(ValueError, match="the labels of its head are late, early"):
            done({"kind": kind, "model": "small", "training": training, **more}, context, kind)


@pytest.mark.parametrize("is_main", [True, False])
def test_other_processes_wait_until_the_first_has_asked(
    is_main: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = write_model("classification", tmp_path / "teacher")
    context = labelled(teacher, tmp_path, is_main=is_main)
    happened: list[str] = []
    ask = teacher_cache.teacher_answers

    def recorded(*arguments: Any, **more: Any) -> Any:
        happened.append("asks")
        return ask(*arguments, **more)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distill_stage, "wait_for_all", lambda: happened.append("waits"))
    monkeypatch.setattr(distill_stage, "teacher_answers", recorded)
    twice = Distill(objectives=[SoftTargets()], training=Training(epochs=2))
    found = distill_stage._answers(
        twice, {"teacher": load_model(teacher, "classification")}, context.text_for("teacher")
    )
    assert happened == (["asks", "waits"] if is_main else ["waits", "asks"])
    assert len(found["teacher"]) == 40  # train and dev
