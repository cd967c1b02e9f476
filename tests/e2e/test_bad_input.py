"""Bad input: exit code 2, one sentence that names the thing, and nothing that was there is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5Model,
)

from bad_input import Potstill, refused, run, tree, work
from conftest import sentences, tiny_config, tiny_tokenizer

__all__ = ["work"]  # a fixture

# --- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("text.txt", None, ["text.txt: the file was not found"]),
        ("text.txt", b"", ["text.txt: there is no text."]),
        ("text.txt", b"\n \n", ["text.txt: there is no text."]),
        ("text.txt", b"\x7fELF\0\0\1\2", ["text.txt: a binary file"]),
        ("text.txt", "malt\ncafé\n".encode("latin-1"), ["text.txt: not utf-8", "line 2"]),
        ("text.jsonl", b'{"text": "malt"}\n{"text": \n', ["text.jsonl:2: not valid JSON"]),
        (
            "text.jsonl",
            b'{"title": "malt"}\n',
            ["text.jsonl:1: no column 'text'; there are: title"],
        ),
        ("text.csv", b"title,body\nmalt,oak\n", ["no column 'text'; there are: ", "title", "body"]),
        ("text.csv", b"text\nmalt,oak\n", ["text.csv:2: 2 fields, but the header has 1"]),
        ("text.parquet", b"malt", ["text.parquet: not a readable Parquet file"]),
        ("text.docx", b"malt", ["text.docx: unknown suffix '.docx'"]),
        ("text.txt", b"malt\n" * 9, ["corpus: nothing is left to train on.", "min_length 4"]),
    ],
)
def test_text(
    potstill: Potstill,
    masked_lm_teacher: Path,
    work: Path,
    name: str,
    content: bytes | None,
    parts: list[str],
) -> None:
    if content is not None:
        (work / name).write_bytes(content)
    finished = run(potstill, tree(masked_lm_teacher, name))
    if "nothing is left" in parts[0]:  # only found once all of it is tokenised
        assert finished.code == 2
        assert finished.err.count("\n") == 1
        assert all(part in finished.err for part in parts)
        return
    refused(finished, *parts)
    assert not (work / "runs").exists()


def test_a_line_beyond_the_first_records(
    potstill: Potstill, masked_lm_teacher: Path, work: Path
) -> None:
    lines = [json.dumps({"text": text}) for text in sentences(150)]
    (work / "text.jsonl").write_text("\n".join([*lines, "{oak}"]))
    finished = run(potstill, tree(masked_lm_teacher, "text.jsonl"))
    assert finished.code == 2
    assert finished.err.count("\n") == 1
    assert "text.jsonl:151: not valid JSON" in finished.err


# --- teachers -------------------------------------------------------------------------------------


def small(kind: str) -> Any:
    vocabulary = tiny_config().vocab_size
    match kind:
        case "gpt2":
            config = GPT2Config(
                vocab_size=vocabulary, n_positions=64, n_embd=16, n_layer=2, n_head=2
            )
            return GPT2LMHeadModel(config)
        case "t5":
            config = T5Config(vocab_size=vocabulary, d_model=16, d_ff=16, num_layers=1, num_heads=2)
            return T5Model(config)
        case _:
            widths = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
            layers = {"encoder_layers": 1, "decoder_layers": 1}
            heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
            return BartModel(BartConfig(vocab_size=vocabulary, **widths, **layers, **heads))


@pytest.mark.parametrize("task", ["masked_lm", "sentence_embedding"])
@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("gpt2", "is a decoder (gpt2). Use an encoder"),
        ("t5", "is an encoder-decoder (t5)"),
        ("bart", "is an encoder-decoder (bart)"),
    ],
)
def test_a_teacher_that_is_no_encoder(
    potstill: Potstill, work: Path, text_file: Path, kind: str, what: str, task: str
) -> None:
    small(kind).save_pretrained("teacher")
    tiny_tokenizer().save_pretrained("teacher")
    recipe = tree("./teacher", text_file, task=task, stages=[{"kind": "make_student"}])
    refused(run(potstill, recipe), "teacher", what, "Use an encoder, which Potstill distills.")


def test_a_headless_teacher_of_masked_lm(
    potstill: Potstill, sentence_teacher: Path, text_file: Path, work: Path
) -> None:
    error = refused(
        run(potstill, tree(sentence_teacher, text_file)),
        "holds no trained masked-LM head",
        "finetune stage of task masked_lm",
    )
    assert str(sentence_teacher) in error


def _no_folder(_: Path) -> None: ...


def _empty(folder: Path) -> None:
    folder.mkdir()


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _no_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def _other_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (_no_folder, "was not found. Check the path of the model folder."),
        (_empty, "is not a model folder (it has no config.json)"),
        (_no_weights, "no model.safetensors"),
        (_cut_weights, "its safetensors file is damaged"),
        (_broken_config, "cannot be loaded"),
        (_no_tokenizer, "tokenizer"),
        (_other_shape, "has another shape than config.json gives"),
    ],
)
def test_a_folder_that_is_no_whole_teacher(
    potstill: Potstill,
    masked_lm_teacher: Path,
    text_file: Path,
    work: Path,
    damage: Callable[[Path], None],
    what: str,
) -> None:
    if damage not in (_no_folder, _empty):
        shutil.copytree(masked_lm_teacher, "teacher")
    damage(work / "teacher")
    refused(run(potstill, tree("./teacher", text_file)), "teacher", what)


def test_a_teacher_of_a_package_or_the_hub(potstill: Potstill, text_file: Path, work: Path) -> None:
    refused(
        run(potstill, tree("package:no_such_package/model", text_file)),
        "the package 'no_such_package' is not installed",
    )
    refused(
        run(potstill, tree("org/model", text_file)),
        "teacher.model: 'org/model' is not a local folder, and the hub cannot be reached",
    )


# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("make_student.layers=[0,9]", ["layers: 9 is out of range", "0 to 3"]),
        ("make_student.depth=7", ["depth: 7 is out of range", "4 layers"]),
        ("distill.objectives.soft_targets.temperature=0", ["temperature", "greater than 0"]),
        ("distill.objectives.soft_targets.temperature=-1", ["temperature", "greater than 0"]),
        (
            "distill.objectives.soft_targets.wieght=1",
            ["objectives.0.wieght: unknown key", "Did you mean 'weight'?"],
        ),
        ("distil.model=student", ["distil: unknown key", "Did you mean 'distill'?"]),
        ("corpus.max_lenght=9", ["corpus.max_lenght: unknown key", "Did you mean 'max_length'?"]),
        ("corpus.max_length=500", ["corpus.max_length: 500 tokens exceed", "Set at most 64."]),
        ("corpus.columns=[body]", ["no column 'body'; there are: text"]),
        ("seed=malt", ["seed", "given: 'malt'"]),
        ("seed", ["seed: an override has the form KEY=VALUE"]),
        ("distill.training.max_steps=null", ["no end is given"]),
        ("distill.training.precision=fp16", ["precision", "'fp16'"]),
        ("task=translation", ["task", "'translation'"]),
        ("make_student.kind=make_studnet", ["make_studnet", "Did you mean 'make_student'?"]),
        ("distill.model=pupil", ["the model 'pupil' is not written by a stage before it"]),
    ],
)
def test_a_value_that_does_not_fit(
    potstill: Potstill,
    masked_lm_teacher: Path,
    text_file: Path,
    work: Path,
    override: str,
    parts: list[str],
) -> None:
    refused(run(potstill, tree(masked_lm_teacher, text_file), override), *parts)
    assert not (work / "runs").exists()


def test_weights_that_sum_to_0(
    potstill: Potstill, masked_lm_teacher: Path, text_file: Path, work: Path
) -> None:
    finished = run(
        potstill,
        tree(masked_lm_teacher, text_file),
        "distill.objectives.soft_targets.weight=0",
        "distill.objectives.hard_targets.weight=0",
    )
    refused(finished, "objectives: their weights sum to 0")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"name: [", ["recipe.yaml", "the YAML is not valid"]),
        (b"- a\n", ["recipe.yaml", "Write a mapping"]),
        (b"", ["recipe.yaml", "the recipe is empty"]),
        (b"\xff\xfe\0", ["recipe.yaml: the file is not UTF-8 text"]),
        (b"name: bad\n", ["recipe.yaml: task: no value is set"]),
    ],
)
def test_a_file_that_is_no_recipe(
    potstill: Potstill, work: Path, content: bytes, parts: list[str]
) -> None:
    (work / "recipe.yaml").write_bytes(content)
    refused(potstill("run", "recipe.yaml"), *parts)


def test_a_recipe_that_is_not_there(potstill: Potstill, work: Path) -> None:
    refused(potstill("run", "quickstrat"), "quickstrat: ", "Did you mean 'quickstart'?")
    refused(potstill("run", "malt.yaml"), "malt.yaml: this is neither a file nor a shipped recipe")


@pytest.mark.parametrize(
    "arguments", [["rnu", "quickstart"], ["run", "--plna", "quickstart"], ["run"], ["bench"]]
)
def test_bad_usage(potstill: Potstill, work: Path, arguments: list[str]) -> None:
    finished = potstill(*arguments)
    assert finished.code == 2
    assert "Traceback" not in finished.err
    if arguments[0] == "rnu":
        assert "No such command 'rnu'" in finished.err
        assert "'run'" in finished.err
    if "--plna" in arguments:
        assert "--plan" in finished.err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["evaluate", "m", "--baseline", "m", "--text", "t.txt", "--unit", "foo"],
            ["'--unit'", "'foo'", "'line', 'paragraph', 'document'"],
        ),
        (
            ["bench", "m", "--length", "16", "--length", "2"],
            ["'--length'", "3"],
        ),
        (["bench", "m", "--rounds", "2"], ["'--rounds'", "3"]),
    ],
)
def test_an_option_that_does_not_fit(
    potstill: Potstill, work: Path, arguments: list[str], parts: list[str]
) -> None:
    finished = potstill(*arguments)
    assert (finished.code, finished.out) == (2, "")
    assert "pydantic" not in finished.err
    said = " ".join(finished.err.replace("│", " ").split())
    assert all(part in said for part in parts), said


def test_a_teacher_that_leads_out_of_its_folder(
    potstill: Potstill, sentence_teacher: Path, text_file: Path, work: Path
) -> None:
    """Before anything is written, here or there."""
    shutil.copytree(sentence_teacher, work / "teacher")
    (work / "victim").mkdir()
    (work / "victim" / "config.json").write_text('{"pooling_mode": "mean"}')
    kinds = [("Transformer", ""), ("Pooling", "../victim")]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": p} for kind, p in kinds]
    (work / "teacher" / "modules.json").write_text(json.dumps(modules))
    stages = [{"kind": "make_student"}]
    recipe = tree("./teacher", text_file, task="sentence_embedding", stages=stages)
    for arguments in ([], ["--plan"]):
        refused(run(potstill, recipe, *arguments), "modules.json names the path '../victim'")
    modules[1]["path"] = "1_Pooling"
    (work / "teacher" / "modules.json").write_text(json.dumps(modules))
    (work / "teacher" / "1_Pooling").symlink_to(work / "victim")
    for command in (["run", "recipe.yaml"], ["bench", "teacher"]):
        refused(potstill(*command), "teacher: 1_Pooling is a link to a folder")
    assert not (work / "runs").exists()


def broken(teacher: Path, folder: Path, tensor: str) -> Path:
    """A copy of which one number is none."""
    shutil.copytree(teacher, folder)
    weights = load_file(folder / "model.safetensors")
    weights[tensor].view(-1)[0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_teacher_whose_weights_are_not_finite(
    potstill: Potstill, masked_lm_teacher: Path, text_file: Path, work: Path
) -> None:
    """A finished run is as it was."""
    recipe = tree("./teacher", text_file, stages=[{"kind": "make_student"}])
    shutil.copytree(masked_lm_teacher, work / "teacher")
    assert run(potstill, recipe).code == 0
    before = contents(work / "runs" / "bad")
    assert "model/model.safetensors" in before
    shutil.rmtree(work / "teacher")
    tensor = "bert.encoder.layer.2.attention.self.query.bias"
    broken(masked_lm_teacher, work / "teacher", tensor)
    said = f"teacher: {tensor} holds NaN or infinity"
    for command in (
        ["run", "recipe.yaml"],
        ["run", "recipe.yaml", "--plan"],
        ["run", "recipe.yaml", "-o", "other"],
        ["evaluate", "teacher", "--baseline", "teacher", "--text", text_file],
        ["bench", "teacher"],
    ):
        refused(potstill(*command), said)
    assert contents(work / "runs" / "bad") == before
    assert not (work / "other").exists()


def test_a_training_whose_weights_are_no_numbers_any_more(
    potstill: Potstill, masked_lm_teacher: Path, text_file: Path, work: Path
) -> None:
    recipe = tree(masked_lm_teacher, text_file)
    recipe["corpus"]["heldout"] = 0
    recipe["stages"][1]["training"] |= {"max_steps": 1, "learning_rate": 1e39, "warmup": 0}
    finished = run(potstill, recipe)
    assert finished.code == 1
    assert "error: the weights are not finite at step 1 (" in finished.err
    assert "Lower training.learning_rate" in " ".join(finished.err.split())
    assert not list((work / "runs" / "bad" / "stages" / "02-distill").rglob("*.safetensors"))
    assert not (work / "runs" / "bad" / "model").exists()


# --- output ---------------------------------------------------------------------------------------


def test_a_path_below_a_file(
    potstill: Potstill, masked_lm_teacher: Path, text_file: Path, work: Path
) -> None:
    (work / "file").write_text("malt")
    recipe = tree(masked_lm_teacher, text_file)
    refused(run(potstill, recipe, "--output", "file"), "file is a file, not a folder")
    refused(run(potstill, recipe, "--output", "file/run"), "file/run cannot be used")
    assert (work / "file").read_text() == "malt"


def test_a_folder_of_something_else(
    potstill: Potstill, masked_lm_teacher: Path, text_file: Path, work: Path
) -> None:
    recipe = tree(masked_lm_teacher, text_file)
    (work / "letters").mkdir()
    (work / "letters" / "a.txt").write_text("malt")
    refused(run(potstill, recipe, "-o", "letters"), "letters is not empty and is not a run")
    (work / "other").mkdir()
    (work / "other" / "recipe.yaml").write_text("name: another\n")
    refused(
        run(potstill, recipe, "-o", "other"), "other holds the run of recipe 'another'", "--output"
    )
    assert (work / "other" / "recipe.yaml").read_text() == "name: another\n"
    assert [path.name for path in (work / "other").iterdir()] == ["recipe.yaml"]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_nothing_of_a_finished_run_is_lost(
    potstill: Potstill, masked_lm_teacher: Path, text_file: Path, work: Path
) -> None:
    """Whatever is wrong with the next command, the run is as it was, recipe.yaml included."""
    recipe = tree(masked_lm_teacher, text_file)
    assert run(potstill, recipe).code == 0
    before = contents(work / "runs" / "bad")
    assert "model/model.safetensors" in before
    for override in (
        "teacher=./nowhere",
        "corpus.sources=nowhere.txt",
        "corpus.columns=[body]",
        "make_student.layers=[9]",
        "distill.objectives.soft_targets.temperature=0",
        "corpus.max_length=500",
        "distill.masking={whole_word: maybe}",
    ):
        refused(run(potstill, recipe, override))
        assert contents(work / "runs" / "bad") == before


# --- other commands -------------------------------------------------------------------------------


def test_other_commands(
    potstill: Potstill, masked_lm_teacher: Path, sentence_teacher: Path, text_file: Path, work: Path
) -> None:
    (work / "folder").mkdir()
    refused(potstill("report", "folder"), "folder: not a run folder, there is no recipe.yaml.")
    refused(potstill("report", "nowhere"), "nowhere: not a run folder, there is no recipe.yaml.")
    refused(potstill("bench", "folder"), "folder")
    refused(
        potstill("evaluate", "nowhere", "--baseline", masked_lm_teacher, "--text", text_file),
        "nowhere: the model cannot be loaded (there is no config.json on this machine",
    )
    refused(
        potstill("evaluate", sentence_teacher, "--baseline", "folder", "--text", text_file),
        "folder",
    )
    refused(
        potstill(
            *("evaluate", masked_lm_teacher, "--baseline", masked_lm_teacher),
            *("--text", "nowhere.txt"),
        ),
        "nowhere.txt: the file was not found",
    )
