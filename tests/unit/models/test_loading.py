"""Model folders: what is opened, what is refused, and that others read what we write."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    FNetConfig,
    FNetForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from conftest import sentences, student_of, tiny_config, tiny_tokenizer
from potstill.compression import make_student
from potstill.errors import NotFinite
from potstill.models import LoadedModel, load_model, save_model, task_of
from potstill.models.families import FAMILIES
from potstill.models.loading import UntrainedHead, with_model
from potstill.models.sentence_modules import pool
from potstill.recipe import Task
from potstill.tasks import predict

TEXTS = [*sentences(7, seed=4), "heart", " ".join(sentences(9, seed=5))]  # the last is cut


def folder_of(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def edited(folder: Path, **changes: Any) -> Path:
    """The folder with another config.json."""
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return folder


def parsed(loaded: LoadedModel) -> Any:
    """What turns token vectors into embeddings, white space in its files aside."""
    if loaded.sentence is None:
        return None
    files = {name: json.loads(text) for name, text in loaded.sentence.files}
    return replace(loaded.sentence, files=()), files


def refused(folder: Path | str, task: Task = "masked_lm") -> str:
    """The sentence of the refusal, without the name of the folder."""
    with pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
        load_model(folder, task)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(folder), "FOLDER")


# --- others read what we write --------------------------------------------------------------------

# plain transformers and sentence-transformers, in a process that has no Potstill
ELSEWHERE = """
import sys
sys.modules["potstill"] = None
import numpy, torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer
encoder, masked_lm, texts, out = sys.argv[1:]
texts = open(texts, encoding="utf-8").read().splitlines()
vectors = SentenceTransformer(encoder, device="cpu").encode(texts)
tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder)
assert type(model).__name__ == "DistilBertModel"
inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
assert set(inputs) == {"input_ids", "attention_mask"}
with torch.no_grad():
    hidden, real = model(**inputs).last_hidden_state, inputs["attention_mask"][:, :, None]
means = torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=1)
tokenizer = AutoTokenizer.from_pretrained(masked_lm)
model = AutoModelForMaskedLM.from_pretrained(masked_lm)
assert type(model).__name__ == "DistilBertForMaskedLM"
inputs = tokenizer("the [MASK] runs", return_tensors="pt")
with torch.no_grad():
    best = model(**inputs).logits[0, 2].softmax(-1).topk(5)
tokens = tokenizer.convert_ids_to_tokens(best.indices.tolist())
numpy.savez(out, vectors=vectors, means=means, tokens=tokens, probabilities=best.values)
"""


def test_others_give_the_answers_of_predict(
    sentence_teacher: Path, masked_lm_teacher: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sentence_transformers", reason="it is in the test extra")
    encoder = student_of(sentence_teacher, "sentence_embedding", tmp_path / "encoder")
    filler = student_of(masked_lm_teacher, "masked_lm", tmp_path / "filler")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    arguments = [str(tmp_path / name) for name in ("encoder", "filler", "texts.txt", "out.npz")]
    command = [sys.executable, "-I", "-c", ELSEWHERE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    other = np.load(tmp_path / "out.npz")
    found = predict(encoder, TEXTS, "sentence_embedding")
    np.testing.assert_allclose(found, other["vectors"], atol=1e-5)
    np.testing.assert_allclose(found, other["means"], atol=1e-5)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    filled = predict(filler, ["the [MASK] runs"], "masked_lm")[0][0]
    assert list(filled.tokens) == other["tokens"].tolist()
    assert filled.probabilities == pytest.approx(other["probabilities"], abs=1e-5)


@pytest.mark.parametrize("task", ["masked_lm", "sentence_embedding"])
@pytest.mark.parametrize("made", [False, True], ids=["teacher", "student"])
def test_a_saved_model_is_the_same_when_loaded(
    request: pytest.FixtureRequest, tmp_path: Path, task: Task, made: bool
) -> None:
    names = {"masked_lm": "masked_lm_teacher", "sentence_embedding": "sentence_teacher"}
    first = load_model(request.getfixturevalue(names[task]), task)
    if made:
        first = with_model(first, make_student(first.model), "student")
    save_model(first, tmp_path / "saved")
    second = load_model(tmp_path / "saved", task)
    assert type(second.model) is type(first.model)
    states = first.model.state_dict(), second.model.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert parsed(second) == parsed(first)
    assert (second.task, second.max_length) == (task, 64)
    assert not second.model.training
    inputs = [each.tokenizer(TEXTS, truncation=True, max_length=64) for each in (first, second)]
    assert inputs[0] == inputs[1]
    assert ("token_type_ids" in inputs[0]) is not made  # DistilBERT has none
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    assert not list((tmp_path / "saved").rglob("*.bin"))


def test_a_distilberts_tokenizer_says_what_it_takes(
    masked_lm_teacher: Path, tmp_path: Path
) -> None:
    """The type alone does not: transformers' own choice would give token types again."""
    folder = student_of(masked_lm_teacher, "masked_lm", tmp_path)
    saved = json.loads((folder / "tokenizer_config.json").read_text())
    assert saved["model_input_names"] == ["input_ids", "attention_mask"]
    assert set(AutoTokenizer.from_pretrained(folder)("copper pot")) == set(
        saved["model_input_names"]
    )
    teacher = load_model(masked_lm_teacher, "masked_lm")
    assert with_model(teacher, teacher.model, "same").tokenizer is teacher.tokenizer
    student = with_model(teacher, make_student(teacher.model), "new")
    assert "token_type_ids" in teacher.tokenizer("copper")  # the teacher's own is left as it was
    assert (student.name, student.task, student.sentence) == ("new", "masked_lm", None)


# --- masked-LM heads ------------------------------------------------------------------------------


def test_an_untrained_head_is_refused_and_finetune_named(sentence_teacher: Path) -> None:
    message = (
        f"{sentence_teacher} holds no trained masked-LM head (missing: "
        f"cls.predictions.bias). Train "
        "one with a finetune stage of task masked_lm before distilling from it."
    )
    for weights in (True, False):
        with pytest.raises(UntrainedHead, match=f"^{re.escape(message)}$"):
            load_model(sentence_teacher, "masked_lm", weights=weights)
    loaded = load_model(sentence_teacher, "masked_lm", untrained_head=True)
    assert type(loaded.model).__name__ == "BertForMaskedLM"
    encoder = AutoModel.from_pretrained(sentence_teacher).state_dict()
    found = loaded.model.base_model.state_dict()
    assert all(torch.equal(found[name], encoder[name]) for name in found)


def test_a_head_without_its_layers_is_untrained_too(tmp_path: Path) -> None:
    """Saved from a headless DistilBERT: only the word embeddings of the head are there."""
    teacher = BertModel(tiny_config(layers=2))
    folder = folder_of(make_student(teacher), tmp_path)
    with pytest.raises(UntrainedHead, match=r"\(missing: vocab_"):
        load_model(folder, "masked_lm")


def test_the_head_of_pretraining_is_taken(tmp_path: Path) -> None:
    """BERT's own checkpoints also hold a next-sentence head, which is left out."""
    torch.manual_seed(0)
    model = BertForPreTraining(tiny_config(layers=1, initializer_range=0.2)).eval()
    loaded = load_model(folder_of(model, tmp_path), "masked_lm")
    inputs = loaded.tokenizer("the copper still", return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).prediction_logits
        torch.testing.assert_close(loaded.model(**inputs).logits, expected)


def test_an_encoder_is_taken_out_of_a_masked_lm_model(masked_lm_teacher: Path) -> None:
    loaded = load_model(masked_lm_teacher, "sentence_embedding")
    whole = load_model(masked_lm_teacher, "masked_lm").model.base_model.state_dict()
    found = loaded.model.state_dict()
    assert type(loaded.model) is BertModel
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in found)


def test_without_weights_there_are_shapes_alone(masked_lm_teacher: Path) -> None:
    shapes = load_model(masked_lm_teacher, "masked_lm", weights=False).model.state_dict()
    whole = load_model(masked_lm_teacher, "masked_lm").model.state_dict()
    assert {name: value.shape for name, value in shapes.items()} == {
        name: value.shape for name, value in whole.items()
    }
    assert {value.device.type for value in shapes.values()} == {"meta"}


def test_weights_are_read_as_float32(tmp_path: Path) -> None:
    model = BertForMaskedLM(tiny_config(layers=1)).to(torch.bfloat16)
    loaded = load_model(folder_of(model, tmp_path), "masked_lm")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            lambda: GPT2LMHeadModel(
                GPT2Config(
                    **{"vocab_size": 87, "n_embd": 16, "n_layer": 1, "n_head": 2},
                    **{"bos_token_id": 2, "eos_token_id": 3},
                )
            ),
            "FOLDER is a decoder (gpt2). Use an encoder, which Potstill distills.",
        ),
        (
            lambda: T5ForConditionalGeneration(
                T5Config(vocab_size=87, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
            ),
            "FOLDER is an encoder-decoder (t5). Use an encoder, which Potstill distills.",
        ),
        (
            lambda: FNetForMaskedLM(
                FNetConfig(
                    **{"vocab_size": 87, "hidden_size": 16, "num_hidden_layers": 1},
                    intermediate_size=16,
                )
            ),
            f"FOLDER is of the unknown family fnet. Use one of {', '.join(FAMILIES)}, or add a row "
            "to models/families.py.",
        ),
    ],
    ids=["decoder", "encoder-decoder", "unknown"],
)
def test_what_is_no_known_encoder_is_refused(model: Any, expected: str, tmp_path: Path) -> None:
    folder = folder_of(model(), tmp_path)
    assert refused(folder, "masked_lm") == expected
    assert refused(folder, "sentence_embedding") == expected


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(BertForMaskedLM(tiny_config(layers=2)), tmp_path / "model")


def test_pickled_weights_are_not_read(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.unlink()
    torch.save(BertForMaskedLM(tiny_config(layers=2)).state_dict(), folder / "pytorch_model.bin")
    assert refused(folder) == (
        "FOLDER: the model cannot be loaded (it has no model.safetensors, and pickled .bin weights "
        "are not read). Save the model as safetensors."
    )


def test_a_cut_off_file_is_named_damaged(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    start = "FOLDER: the model cannot be loaded (its safetensors file is damaged: "
    assert refused(folder).startswith(start)


def test_a_config_of_another_model_is_refused(folder: Path) -> None:
    assert refused(edited(folder, num_hidden_layers=3)) == (
        "FOLDER: 16 weights are missing from the checkpoint, such as "
        "bert.encoder.layer.2.attention.output.LayerNorm.bias. Save the model again, or use the "
        "config of this checkpoint."
    )
    assert refused(edited(folder, num_hidden_layers=2, intermediate_size=50)) == (
        "FOLDER: bert.encoder.layer.0.intermediate.dense.bias has another shape than config.json "
        "gives. Use the config of this checkpoint."
    )


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    narrow = folder_of(BertForMaskedLM(tiny_config(layers=1, vocab_size=60)), tmp_path / "narrow")
    assert refused(narrow) == (
        "FOLDER: the tokenizer has 87 tokens, but the model only 60. Use the tokenizer of this "
        "model."
    )
    for path in folder.glob("*token*"):
        path.unlink()
    assert refused(folder) == (
        "FOLDER: there is no tokenizer (no tokenizer.json or vocab.txt). Save one in the model "
        "folder."
    )


def test_what_is_no_model_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # read by huggingface_hub once, when it is imported
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert refused(tmp_path / "none") == "FOLDER was not found. Check the path of the model folder."
    for name in ("./none", "~/none/such", "a/b/c"):
        assert refused(name) == "FOLDER was not found. Check the path of the model folder."
    path = tmp_path / "file"
    path.touch()
    assert refused(path) == (
        "FOLDER is not a model folder (it has no config.json). Give a folder that holds "
        "config.json and model.safetensors."
    )
    assert refused("nobody/none-such") == (
        "FOLDER: the model cannot be loaded (it is not a local folder, and the hub cannot be "
        "reached or is switched off). Check the name and the connection."
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refused(empty) == (
        "FOLDER is not a model folder (it has no config.json). Give a folder that holds "
        "config.json and model.safetensors."
    )


def test_the_task_of_a_folder(sentence_teacher: Path, folder: Path, tmp_path: Path) -> None:
    assert task_of(folder) == "masked_lm"
    assert task_of(student_of(sentence_teacher, "sentence_embedding", tmp_path / "e")) == (
        "sentence_embedding"
    )
    assert task_of(sentence_teacher) == "sentence_embedding"  # without modules: a plain encoder
    chooser = tmp_path / "chooser"
    BertForMultipleChoice(tiny_config()).save_pretrained(chooser)
    with pytest.raises(
        ValueError, match=r"BertForMultipleChoice has the head of an unknown task\. Use"
    ):
        task_of(chooser)
    with pytest.raises(
        ValueError, match=r"is not a model folder \(it has no config\.json\)\. Give"
    ):
        task_of(tmp_path)


@pytest.mark.parametrize(
    ("cls", "settings", "task"),
    [
        (BertForSequenceClassification, {}, "classification"),
        (BertForSequenceClassification, {"num_labels": 1}, "regression"),
        (
            BertForSequenceClassification,
            {"problem_type": "multi_label_classification"},
            "multi_label",
        ),
        (
            BertForSequenceClassification,
            {"num_labels": 1, "problem_type": "multi_label_classification"},
            "multi_label",
        ),
        (BertForTokenClassification, {}, "token_classification"),
        (BertForQuestionAnswering, {}, "question_answering"),
    ],
)
def test_the_task_of_a_head(cls: Any, settings: dict[str, Any], task: str, tmp_path: Path) -> None:
    config = tiny_config()
    config.update(settings)
    cls(config).save_pretrained(tmp_path)
    assert task_of(tmp_path) == task


def test_a_checkpoint_with_more_layers_than_its_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json lists 1 layers, but .* layer 1 \(counted"):
        load_model(folder, "masked_lm")


def test_weights_that_transformers_has_no_place_for(folder: Path) -> None:
    """Before version 5 BERT could have relative positions (relative_key)."""
    weights = load_file(folder / "model.safetensors")
    attention = "bert.encoder.layer.1.attention.self"
    # what is computed anyway, and heads of other tasks, are left alone
    weights |= {
        "bert.embeddings.position_ids": torch.arange(64)[None],
        f"{attention}.rotary_emb.inv_freq": torch.ones(4),
        "cls.seq_relationship.weight": torch.ones(2, 32),
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    load_model(folder, "masked_lm")
    weights[f"{attention}.distance_embedding.weight"] = torch.ones(127, 8)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    edited(folder, position_embedding_type="relative_key")
    assert refused(folder) == (
        f"FOLDER: transformers has no place for {attention}.distance_embedding.weight of the "
        "checkpoint, so the model would differ from the trained one. Use a model of the plain "
        "architecture."
    )


# --- sentence encoders ----------------------------------------------------------------------------

OLD, NEW = "sentence_transformers.models.", "sentence_transformers.sentence_transformer.modules.x."
ENCODER = [("Transformer", ""), ("Pooling", "1_Pooling")]


def encoder(
    folder: Path,
    modules: list[tuple[str, str]],
    pooling: dict[str, Any] | None,
    start: str = OLD,
    **files: dict[str, Any],
) -> Path:
    """A folder of sentence-transformers with these modules, as it would save them."""
    folder_of(BertModel(tiny_config(layers=1)), folder)
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"{start}{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def flags(**given: bool) -> dict[str, Any]:
    """1_Pooling/config.json as written up to sentence-transformers 5."""
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    modes = {f"pooling_mode_{name}": given.get(name, False) for name in names}
    return {"word_embedding_dimension": 32, **modes, "include_prompt": True}


def word(mode: Any) -> dict[str, Any]:
    """1_Pooling/config.json as written by sentence-transformers 6."""
    return {"embedding_dimension": 32, "pooling_mode": mode, "include_prompt": True}


@pytest.mark.parametrize(
    ("pooling", "start", "expected"),
    [
        (flags(mean_tokens=True), OLD, "mean"),
        (flags(cls_token=True), OLD, "cls"),
        (flags(max_tokens=True), OLD, "max"),
        (word("mean"), NEW, "mean"),
        (word("cls"), NEW, "cls"),
        (word("max"), NEW, "max"),
    ],
)
@pytest.mark.parametrize("normalize", [False, True])
def test_pooling_in_old_flags_and_in_a_new_word(
    tmp_path: Path, pooling: dict[str, Any], start: str, expected: str, normalize: bool
) -> None:
    modules = [*ENCODER, ("Normalize", "2_Normalize")] if normalize else ENCODER
    folder = encoder(tmp_path / "in", modules, pooling, start)
    loaded = load_model(folder, "sentence_embedding")
    assert loaded.sentence is not None
    assert (loaded.sentence.pooling, loaded.sentence.normalize) == (expected, normalize)
    save_model(loaded, tmp_path / "out")
    for path in ("modules.json", "1_Pooling/config.json"):  # kept as they came
        saved, given = (each / path for each in (tmp_path / "out", folder))
        assert json.loads(saved.read_text()) == json.loads(given.read_text())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", "{", "modules.json is not readable as JSON"),
        (
            "modules.json",
            '{"type": "x"}',
            "modules.json is not a list of modules, each with a type",
        ),
        ("modules.json", '[{"idx": 0}]', "modules.json is not a list of modules, each with a type"),
        ("1_Pooling/config.json", "no", "1_Pooling/config.json is not readable as JSON"),
        (
            "sentence_bert_config.json",
            '{"do_lower_case": true}',
            "sentence_bert_config.json sets do_lower_case to True, which Potstill does not apply",
        ),
        (
            "config_sentence_transformers.json",
            '{"default_prompt_name": "query"}',
            "config_sentence_transformers.json sets default_prompt_name to 'query', which",
        ),
    ],
)
def test_sentence_settings_that_would_be_lost(
    tmp_path: Path, file: str, content: str, message: str
) -> None:
    folder = encoder(tmp_path / "in", ENCODER, word("mean"))
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=re.escape(f"{folder}: {message}")):
        load_model(folder, "sentence_embedding")


def test_a_list_of_one_pooling(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "in", ENCODER, {**word("mean"), "pooling_mode": ["mean"]})
    sentence = load_model(folder, "sentence_embedding").sentence
    assert sentence is not None
    assert sentence.pooling == "mean"


def test_a_plain_encoder_gets_mean_pooling_and_normalisation(sentence_teacher: Path) -> None:
    sentence = load_model(sentence_teacher, "sentence_embedding").sentence
    assert sentence is not None
    assert (sentence.pooling, sentence.normalize, sentence.max_length) == ("mean", True, 64)
    files = {name: json.loads(text) for name, text in sentence.files}
    kinds = [module["type"].rsplit(".", 1)[-1] for module in files["modules.json"]]
    assert kinds == ["Transformer", "Pooling", "Normalize"]
    assert files["1_Pooling/config.json"] == {
        "word_embedding_dimension": 32,
        "pooling_mode_mean_tokens": True,
    }


@pytest.mark.parametrize(
    ("modules", "pooling", "expected"),
    [
        (
            [*ENCODER, ("Dense", "2_Dense")],
            word("mean"),
            "FOLDER: modules.json has a Dense module, which Potstill cannot carry over. Use "
            "a model with Transformer, Pooling and Normalize modules only.",
        ),
        (
            ENCODER[:1],
            None,
            "FOLDER: modules.json has no Pooling module with a config.json. Save the model again.",
        ),
        (
            ENCODER,
            flags(lasttoken=True),
            "FOLDER: pooling pooling_mode_lasttoken is not supported. Use mean, cls or max.",
        ),
        (
            ENCODER,
            word("lasttoken"),
            "FOLDER: pooling lasttoken is not supported. Use mean, cls or max.",
        ),
        (
            ENCODER,
            flags(cls_token=True, mean_tokens=True),
            "FOLDER: pooling pooling_mode_cls_token, pooling_mode_mean_tokens is not supported. "
            "Use mean, cls or max.",
        ),
    ],
)
def test_modules_that_can_not_be_kept_are_refused(
    tmp_path: Path, modules: list[tuple[str, str]], pooling: dict[str, Any] | None, expected: str
) -> None:
    assert refused(encoder(tmp_path, modules, pooling), "sentence_embedding") == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"max_seq_length": 17}, 17), ({"max_seq_length": None}, 64), ({"max_seq_length": 900}, 64)],
)
def test_the_length_limit_of_sentence_transformers(
    tmp_path: Path, settings: dict[str, Any], expected: int
) -> None:
    folder = encoder(tmp_path, ENCODER, word("mean"), sentence_bert_config=settings)
    assert load_model(folder, "sentence_embedding").max_length == expected


def test_the_length_limit_where_sentence_transformers_6_writes_it(tmp_path: Path) -> None:
    """It sets the tokenizer's model_max_length and leaves max_seq_length out."""
    settings = {"transformer_task": "feature-extraction"}
    folder = encoder(tmp_path, ENCODER, word("mean"), NEW, sentence_bert_config=settings)
    tokenizer = folder / "tokenizer_config.json"
    changed = json.loads(tokenizer.read_text()) | {"model_max_length": 17}
    tokenizer.write_text(json.dumps(changed))
    assert load_model(folder, "sentence_embedding").max_length == 17


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_pooling_is_over_real_tokens(pooling: Any) -> None:
    hidden = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)) - 1
    lengths = (3, 1, 5)
    mask = torch.tensor([[1] * length + [0] * (5 - length) for length in lengths])
    found = pool(hidden, mask, pooling)
    for text, length in enumerate(lengths):
        for width in range(4):
            values = [float(hidden[text, token, width]) for token in range(length)]
            by_name = {"mean": sum(values) / length, "cls": values[0], "max": max(values)}
            assert float(found[text, width]) == pytest.approx(by_name[pooling], abs=1e-6)


def test_pooling_reads_nothing_from_padding() -> None:
    hidden = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    other = torch.where(mask.bool().unsqueeze(-1), hidden, torch.full_like(hidden, 1e4))
    for pooling in ("mean", "cls", "max"):
        assert torch.equal(pool(hidden, mask, pooling), pool(other, mask, pooling))


def test_pooling_s_config_follows_a_narrower_one(sentence_teacher: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="it is in the test extra"
    )
    teacher = load_model(sentence_teacher, "sentence_embedding")
    narrow = with_model(teacher, make_student(teacher.model, width=16), "narrow")
    save_model(narrow, tmp_path)
    encoder = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    assert encoder.get_embedding_dimension() == 16
    found = torch.tensor(encoder.encode(TEXTS))
    expected = torch.tensor(predict(tmp_path, TEXTS, "sentence_embedding"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("question_answering", ["start", "end"]),
        ("token_classification", ["O", "B-cask", "I-cask", "B-oak", "I-oak"]),
    ],
)
def test_a_new_head_has_as_many_outputs_as_its_own_task_asks(
    task: Any, labels: list[str], tmp_path: Path
) -> None:
    """Not as many as the head of another task that the checkpoint has."""
    config = tiny_config(layers=1, id2label={0: "a", 1: "b", 2: "c"})
    folder = folder_of(BertForSequenceClassification(config), tmp_path / "model")
    loaded = load_model(folder, task, untrained_head=True, labels=labels)
    assert loaded.model.config.num_labels == len(labels)
    assert list(loaded.model.config.id2label.values()) == labels
    logits = loaded.model(torch.tensor([[2, 5, 3]]))
    shape = logits.start_logits if task == "question_answering" else logits.logits
    assert shape.shape[:2] == (1, 3)
    save_model(loaded, tmp_path / "again")
    again = load_model(tmp_path / "again", task, labels=labels)
    assert again.model.config.num_labels == len(labels)


# --- what leads out of a model folder -------------------------------------------------------------


@pytest.mark.parametrize("where", ["../../victim", "/victim", "1_Pooling/", "a\\b", "."])
def test_a_module_whose_path_leads_out_of_the_folder(where: str, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    where = where.replace("/victim", f"{tmp_path}/victim") if where == "/victim" else where
    folder = encoder(tmp_path / "a" / "in", [ENCODER[0], ("Pooling", where)], word("mean"))
    (tmp_path / "victim" / "config.json").write_text(json.dumps(word("mean")))
    expected = f"FOLDER: modules.json names the path {where!r}, which does not lie plainly below "
    assert refused(folder, "sentence_embedding").startswith(expected)
    with pytest.raises(ValueError, match=r"modules\.json names the path"):
        task_of(folder)


def as_cached(folder: Path, cache: Path, name: str) -> Path:
    """A model folder as the hub's cache holds it: blobs, and a snapshot of links to them."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    commit = "0" * 40
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(repository / "blobs" / str(number))
        link.symlink_to(os.path.relpath(repository / "blobs" / str(number), link.parent))
    return snapshot


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # read by huggingface_hub once, when it is imported
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    made = encoder(tmp_path / "made", ENCODER, word("cls"))
    return as_cached(made, tmp_path / "hub", "some/encoder")


def test_a_model_in_the_hub_s_cache(cached: Path, tmp_path: Path) -> None:
    """By its path, which a run takes, by a link to it, and by its name."""
    (tmp_path / "link").symlink_to(cached)
    for spec in (str(cached), str(tmp_path / "link"), "some/encoder"):
        loaded = load_model(spec, "sentence_embedding")
        assert loaded.sentence is not None
        assert loaded.sentence.pooling == "cls"
        assert task_of(spec) == "sentence_embedding"
    save_model(loaded, tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("link", ["tokenizer_config.json", "1_Pooling/config.json"])
def test_a_link_out_of_a_repository_in_the_hub_s_cache(
    link: str, cached: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    other.write_bytes((cached / link).read_bytes())
    (cached / link).unlink()
    (cached / link).symlink_to(other)
    for spec in (str(cached), "some/encoder"):
        with pytest.raises(ValueError, match=f"{link} is a link to a file outside of the model"):
            load_model(spec, "sentence_embedding")


def test_weights_that_are_a_link_to_elsewhere(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "big.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "big.safetensors")
    assert refused(folder) == (
        "FOLDER: model.safetensors is a link to a file outside of the model folder, which is not "
        "followed. Replace the link by a copy of the file."
    )


def test_a_tokenizer_and_shards_that_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.1.0.json").write_bytes((folder / "tokenizer.json").read_bytes())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    named = {"fast_tokenizer_files": ["../tokenizer.1.0.json"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | named))
    assert "tokenizer_config.json names the path '../tokenizer.1.0.json'" in refused(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(tmp_path / "x.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "../x.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.safetensors.index.json names the path '../x.safetensors'" in refused(folder)


# --- weights that are no numbers ------------------------------------------------------------------

BROKEN = "bert.encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused_when_it_is_read(value: float, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[BROKEN][3, 5] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert refused(folder) == (
        f"FOLDER: {BROKEN} holds NaN or infinity. Use a model whose weights are finite."
    )
    weights["bert.embeddings.LayerNorm.bias"][0] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert refused(folder) == (
        "FOLDER: bert.embeddings.LayerNorm.bias and 1 more tensor hold NaN or infinity. Use a "
        "model whose weights are finite."
    )
    load_model(folder, "masked_lm", weights=False)  # which reads none
    table = "bert.embeddings.word_embeddings.weight"  # which the head's decoder shares
    weights = load_file(folder / "model.safetensors") | {BROKEN: torch.zeros(32, 48)}
    weights["bert.embeddings.LayerNorm.bias"][0] = 0
    weights[table][0, 0] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert refused(folder).startswith(f"FOLDER: {table} holds NaN or infinity. ")


def test_a_weight_that_is_not_finite_is_not_written(folder: Path, tmp_path: Path) -> None:
    loaded = load_model(folder, "masked_lm")
    buffer = torch.full((2, 2), float("-inf"))
    loaded.model.register_buffer("mask", buffer, persistent=False)  # as attention masks are
    save_model(loaded, tmp_path / "finite")
    with torch.no_grad():
        loaded.model.get_parameter(BROKEN)[0, 0] = float("nan")
    with pytest.raises(NotFinite, match=f"{BROKEN} holds NaN or infinity, so nothing is written"):
        save_model(loaded, tmp_path / "broken")
    assert not (tmp_path / "broken").exists()
    with torch.no_grad():
        loaded.model.get_parameter(BROKEN)[0, 0] = 0
    loaded.model.register_buffer("kept", buffer)
    with pytest.raises(NotFinite, match="kept holds NaN or infinity"):
        save_model(loaded, tmp_path / "broken")
