from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, BertConfig, BertForMaskedLM, BertModel

from conftest import sentences, tiny_config, tiny_tokenizer
from potstill.compression import make_student
from potstill.data import tokenize_corpus
from potstill.models import LoadedModel, load_model
from potstill.pipeline.outlook import Outline
from potstill.pipeline.plan.cost import (
    EFFICIENCY,
    LIBRARIES,
    _counted,
    cost_of,
    flops_per_token,
    matmul_flops,
    memory_bytes,
    steps_and_tokens,
    trained_parameters,
)
from potstill.pipeline.plan.text import Text, sample_text
from potstill.pipeline.rehearsal import rehearse
from potstill.recipe import Corpus, Distill, Finetune, Recipe, Task, Training
from tiny_families import NAMES, family_config, family_model

# A layer of the tiny models: width 32, inner width 48; weights and biases, and two layer norms.
LAYER = 4 * (32 * 32 + 32) + (32 * 48 + 48) + (48 * 32 + 32) + 2 * 2 * 32
VOCABULARY = tiny_config().vocab_size
LENGTH = 20
# The operations of each token of a text that long: two a weight, and attention's two products with
# every other token. So much less than autograd's is a vocabulary head that alone is trained: the
# decoder is the word embeddings, which stay, and nothing below the transform wants a gradient.
PASS = 2 * (4 * 32 * 32 + 2 * 32 * 48) + 2 * 2 * LENGTH * 32
HEAD = 2 * 32 * (VOCABULARY + 32)


def outlines(teacher: Path, text: Path, task: str, *stages: dict[str, Any]) -> list[Outline]:
    recipe = {
        "name": "estimate",
        "task": task,
        "teacher": str(teacher),
        "corpus": {"sources": [str(text)], "max_length": 32, "min_length": 4},
        "stages": list(stages),
    }
    return rehearse(Recipe.model_validate(recipe), {"teacher": teacher})


def distill(*objectives: dict[str, Any], **training: Any) -> dict[str, Any]:
    return {
        "kind": "distill",
        "objectives": list(objectives),
        "training": {"max_steps": 10, "batch_size": 8, **training},
    }


SOFT_ALL = {"kind": "soft_targets", "positions": "all"}
SOFT_MASKED = {"kind": "soft_targets", "positions": "masked"}
COSINE = {"kind": "hidden_cosine"}
MAKE = {"kind": "make_student"}


# --- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objectives", "rows"),
    [
        ([SOFT_ALL, COSINE], 1.0),
        ([SOFT_MASKED], 0.15),
        ([{"kind": "logits_mse"}], 1.0),
        ([COSINE, {"kind": "relations"}], 0.0),
    ],
)
def test_flops_of_masked_lm_distillation(
    masked_lm_teacher: Path, text_file: Path, objectives: list[dict[str, Any]], rows: float
) -> None:
    *_, outline = outlines(masked_lm_teacher, text_file, "masked_lm", MAKE, distill(*objectives))
    # 4 layers forward, 2 layers forward and twice that backward; the head of both at `rows`
    layers = 4 * PASS + 3 * 2 * PASS
    assert flops_per_token(outline, LENGTH) == pytest.approx(layers + rows * (HEAD + 3 * HEAD))


def test_flops_of_sentence_distillation_have_no_head(
    sentence_teacher: Path, text_file: Path
) -> None:
    soft = {"kind": "soft_targets"}
    *_, outline = outlines(sentence_teacher, text_file, "sentence_embedding", MAKE, distill(soft))
    assert flops_per_token(outline, LENGTH) == 4 * PASS + 3 * 2 * PASS


def test_flops_of_recomputed_activations_and_of_a_head_alone(
    masked_lm_teacher: Path, text_file: Path
) -> None:
    training = {"max_steps": 1, "gradient_checkpointing": True}
    finetune = {"kind": "finetune", "training": training}
    (outline,) = outlines(masked_lm_teacher, text_file, "masked_lm", finetune)
    assert flops_per_token(outline, LENGTH) == pytest.approx(4 * 4 * PASS + 0.15 * 3 * HEAD)
    (outline,) = outlines(masked_lm_teacher, text_file, "masked_lm", {**finetune, "train": "head"})
    assert flops_per_token(outline, LENGTH) == pytest.approx(4 * PASS + 0.15 * 2 * HEAD)


def test_efficiency_gives_the_measured_speeds_of_minilm() -> None:
    """Two cores of about 150 GFLOP/s: 1,600 tokens/s distilling 6 to 3, 1,150 of masked LM."""
    distilling = _minilm(Distill, 6, 3, {"objectives": [SOFT_ALL]}, Task.SENTENCE_EMBEDDING)
    training = _minilm(Finetune, None, 6, {}, Task.MASKED_LM)
    for outline, measured in ((distilling, 1600), (training, 1150)):
        speed = EFFICIENCY * 150e9 / flops_per_token(outline, length=32)
        assert speed == pytest.approx(measured, rel=0.03)


def _minilm(
    kind: Any,
    teacher: int | None,
    student: int,
    more: Any,
    task: Any,
    training: Training | None = None,
) -> Outline:
    """MiniLM's shapes (width 384, inner width 1536, 30,522 tokens), on the meta device."""

    def model(layers: int) -> LoadedModel:
        config = BertConfig(
            hidden_size=384,
            intermediate_size=1536,
            num_attention_heads=12,
            num_hidden_layers=layers,
        )
        with torch.device("meta"):
            masked = task == Task.MASKED_LM
            made = BertForMaskedLM(config) if masked else BertModel(config, add_pooling_layer=False)
            return LoadedModel(made, tiny_tokenizer(), task, "minilm")

    stage = kind(training=training or Training(max_steps=1), **more)
    return Outline(stage, model(student), () if teacher is None else (model(teacher),))


def test_time_is_tokens_over_speed(masked_lm_teacher: Path, text_file: Path) -> None:
    *_, outline = outlines(masked_lm_teacher, text_file, "masked_lm", MAKE, distill(COSINE))
    text = Text(4, [torch.zeros(20).numpy()] * 4, 1000.0, False, 1.0, 0.004, [])
    cost = cost_of(outline, text, matmul=1e9)
    assert (cost.steps, cost.tokens) == (10, 10 * 8 * 20)
    flops = flops_per_token(outline, length=20)
    assert cost.seconds == pytest.approx(1600 * flops / (EFFICIENCY * 1e9))


def test_repeats_and_a_teacher_that_is_asked_once() -> None:
    text = Text(4, [torch.zeros(20).numpy()] * 4, 1000.0, True, 0.0, None, [], labeled=500.0)
    layer = 2 * (4 * 384 * 384 + 2 * 384 * 1536) + 2 * 2 * 20 * 384
    more = {"repeats": 3, "objectives": [{"kind": "soft_targets"}]}
    settings = Training(epochs=2, batch_size=10)
    kept = _minilm(Distill, 6, 3, more, Task.CLASSIFICATION, settings)
    live = _minilm(Distill, 6, 3, {**more, "cache": False}, Task.CLASSIFICATION, settings)
    twin = _minilm(Finetune, None, 3, {"repeats": 3}, Task.CLASSIFICATION, settings)
    per_second = EFFICIENCY * 1e12
    costs = [cost_of(outline, text, matmul=1e12) for outline in (kept, live, twin)]
    assert [cost.steps for cost in costs] == [200, 200, 100]
    own = 3 * 3 * layer / per_second
    asking = 1000 * 20 * 6 * layer / per_second
    assert costs[0].asking == pytest.approx(asking)
    assert costs[0].seconds == pytest.approx(3 * 2 * 1000 * 20 * own + asking)
    assert costs[1].seconds == pytest.approx(3 * 2 * (1000 * 20 * own + asking))
    assert costs[2].seconds == pytest.approx(3 * 2 * 500 * 20 * own)


def test_matmul_is_timed_in_a_plausible_range() -> None:
    assert 1e8 < matmul_flops(torch.device("cpu"), torch.float32) < 1e15


@pytest.mark.parametrize("name", NAMES)
def test_a_pass_of_every_family_is_counted_as_it_runs(name: str) -> None:
    """Without weights as with them, where attention is computed the plain way."""
    with torch.device("meta"):
        outline = AutoModel.from_config(family_config(name))
    real = family_model(name, "headless")
    for model in (outline, real):
        model.train().set_attn_implementation("eager")
    ids = torch.ones(1, 40, dtype=torch.long)
    saved: dict[int, torch.Tensor] = {}
    own = {t.untyped_storage().data_ptr() for t in [*real.parameters(), *real.buffers()]}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FlopCounterMode(display=False) as forward, hooks:
        hidden = real(ids)[0]
    with FlopCounterMode(display=False) as backward:
        hidden.backward(torch.ones_like(hidden))
    stored = sum(t.untyped_storage().nbytes() for key, t in saved.items() if key not in own)
    found = 40 * _counted(outline, 40)
    assert found[:2].tolist() == [forward.get_total_flops(), backward.get_total_flops()]
    assert found[2] == pytest.approx(stored, rel=0.001)  # all but the ids


# --- steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "per_epoch", "expected"),
    [
        ({"epochs": 2}, 100, (26, 26 * 100 / 13 * 10)),  # 12 batches of 8 and one of 4
        ({"epochs": 0.5}, 96, (6, 480)),
        ({"epochs": 3, "max_steps": 5}, 96, (5, 400)),
        ({"max_tokens": 401}, 96, (6, 480)),  # the step that reaches it counts
        ({"max_tokens": 401, "max_steps": 4}, 96, (4, 320)),
        ({"max_steps": 7, "epochs": 9}, None, (7, 560)),
        ({"epochs": 9, "max_tokens": 401}, None, (6, 480)),
        ({"epochs": 9}, None, (None, None)),
    ],
)
def test_steps_end_at_the_first_limit(
    limits: dict[str, Any], per_epoch: float | None, expected: tuple[int | None, float | None]
) -> None:
    steps, tokens = steps_and_tokens(Training(batch_size=8, **limits), per_epoch, mean=10.0)
    assert steps == expected[0]
    assert tokens == (expected[1] if expected[1] is None else pytest.approx(expected[1]))


# --- memory ---------------------------------------------------------------------------------------


def test_memory_by_hand(masked_lm_teacher: Path, text_file: Path) -> None:
    _, outline = outlines(
        masked_lm_teacher,
        text_file,
        "masked_lm",
        MAKE,
        distill(SOFT_ALL, micro_batch_size=4, dropout=False, chunk_size=64),
    )
    teacher = 4 * LAYER + (VOCABULARY + 64 + 2) * 32 + 64 + (32 * 32 + 32 + 64 + VOCABULARY)
    student = 2 * LAYER + (VOCABULARY + 64) * 32 + 64 + (32 * 32 + 32 + 64 + VOCABULARY)
    memory = memory_bytes(outline, longest=30)
    assert memory == {
        "libraries": LIBRARIES,
        "teacher's weights": 4 * teacher,
        "student's weights, gradients and optimizer": 16 * student,
        # of each of two layers eight widths, both sides of the activation and two norms' moments
        "activations": 4 * 30 * 4 * (2 * (8 * 32 + 2 * 48 + 2 * 2) + 32 + 2),
        "logits of a chunk": 64 * VOCABULARY * 4 * 4,
    }


def test_memory_of_relations_projections_and_a_second_loss_on_logits(
    masked_lm_teacher: Path, text_file: Path
) -> None:
    objectives = [SOFT_ALL, {"kind": "relations", "heads": 8}]
    settings = {"micro_batch_size": 4, "chunk_size": 64}
    _, outline = outlines(
        masked_lm_teacher, text_file, "masked_lm", MAKE, distill(*objectives, **settings)
    )
    memory = memory_bytes(outline, longest=30)
    # three relations of eight heads: two matrices of the student's, one of the teacher's
    assert memory["attention's matrices"] == 4 * 30 * 4 * 30 * 3 * 8 * 3
    more = distill(SOFT_ALL, {"kind": "logits_mse"}, **settings)
    _, outline = outlines(masked_lm_teacher, text_file, "masked_lm", MAKE, more)
    assert memory_bytes(outline, longest=30)["logits of a chunk"] == 64 * VOCABULARY * 4 * 5
    with torch.device("meta"):
        wide = BertForMaskedLM(tiny_config(hidden_size=48))
    assert outline.model is not None
    teacher = LoadedModel(wide, tiny_tokenizer(), Task.MASKED_LM, "wide")
    stage = Distill.model_validate(distill({"kind": "hidden_mse"}))
    own = trained_parameters(Outline(stage, outline.model, outline.teachers))
    assert trained_parameters(Outline(stage, outline.model, (teacher,))) == own + 2 * 48 * 32


@pytest.mark.parametrize("dropout", [False, True])
def test_activations_are_what_autograd_keeps(
    sentence_teacher: Path, text_file: Path, dropout: bool
) -> None:
    """Counted: all that a forward pass of the student saves for backward, its weights aside."""
    soft = {"kind": "soft_targets"}
    stage = distill(soft, dropout=dropout)
    _, outline = outlines(sentence_teacher, text_file, "sentence_embedding", MAKE, stage)
    model = load_model(sentence_teacher, "sentence_embedding").model.train(dropout)
    model.encoder.layer = model.encoder.layer[:2]
    saved: dict[int, torch.Tensor] = {}
    weights = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(torch.ones(8, 30, dtype=torch.long), torch.ones(8, 30, dtype=torch.long))
    counted = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    assert output.last_hidden_state.requires_grad
    assert memory_bytes(outline, longest=30)["activations"] == pytest.approx(counted, rel=0.05)


def test_a_head_alone_trains_few_parameters(masked_lm_teacher: Path, text_file: Path) -> None:
    stage = {"kind": "finetune", "train": "head", "training": {"max_steps": 1}}
    (outline,) = outlines(masked_lm_teacher, text_file, "masked_lm", stage)
    # transform and its norm, and the decoder's bias; the decoder is the word embeddings
    assert trained_parameters(outline) == 32 * 32 + 32 + 64 + VOCABULARY
    assert memory_bytes(outline, longest=30)["activations"] == 0


def test_checkpoints_hold_weights_and_two_moments(masked_lm_teacher: Path, text_file: Path) -> None:
    text = Text(1, [torch.zeros(20).numpy()], 10.0, True, 1.0, 1.0, [])
    for keep, number in (("last", 2), ("best", 3)):
        *_, outline = outlines(
            masked_lm_teacher, text_file, "masked_lm", MAKE, distill(SOFT_ALL, keep=keep)
        )
        trained = sum(p.numel() for p in outline.model.model.parameters()) if outline.model else 0
        assert cost_of(outline, text, 1e9).checkpoints == number * 12 * trained


# --- text -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    with torch.device("meta"):
        return LoadedModel(
            BertModel(tiny_config()), tiny_tokenizer(), Task.SENTENCE_EMBEDDING, "tiny"
        )


def corpus(*sources: Any, **settings: Any) -> Corpus:
    given = {"heldout": 0.0, "min_length": 4, "max_length": 32, **settings}
    return Corpus.model_validate({"sources": list(sources), **given})


def write(folder: Path, name: str, lines: list[str]) -> str:
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(folder / name)


def test_a_small_corpus_is_counted_exactly(tmp_path: Path, loaded: LoadedModel) -> None:
    settings = corpus(write(tmp_path, "a.txt", sentences(80)), write(tmp_path, "b.txt", ["malt"]))
    text = sample_text(settings, loaded)
    counts = tokenize_corpus(settings, loaded.tokenizer, tmp_path / "cache", 1).counts
    assert text.whole
    assert text.per_epoch == counts["sequences_train"]
    assert text.per_epoch * text.mean == pytest.approx(counts["tokens_train"])
    assert text.records == 81


@pytest.mark.parametrize("format", ["txt", "jsonl", "csv", "parquet"])
def test_a_large_file_is_scaled_from_its_first_records(
    tmp_path: Path, loaded: LoadedModel, format: str
) -> None:
    # the same 50 texts again and again, so that any 500 of them are like all of them
    lines = [line for _ in range(50) for line in sentences(50)]
    match format:
        case "txt":
            path = write(tmp_path, "a.txt", lines)
        case "jsonl":
            path = write(tmp_path, "a.jsonl", [json.dumps({"n": 1, "text": t}) for t in lines])
        case "csv":
            path = write(tmp_path, "a.csv", ["text,n", *(f"{line},1" for line in lines)])
        case _:
            path = str(tmp_path / "a.parquet")
            pq.write_table(pa.table({"text": lines}), path)
    settings = corpus(path, heldout=0.2)
    text = sample_text(settings, loaded)
    counts = tokenize_corpus(settings, loaded.tokenizer, tmp_path / "cache", 1).counts
    assert (text.records, text.whole) == (500, False)
    total = counts["sequences_train"] + counts["sequences_heldout"]
    assert text.per_epoch == pytest.approx(0.8 * total, rel=0.01)
    assert text.share == pytest.approx(0.2, rel=0.01)


def test_the_sample_is_spread_over_files(tmp_path: Path, loaded: LoadedModel) -> None:
    for number in range(1000):  # the second half is five times as long
        write(tmp_path, f"{number:04}.txt", ["malt barley water " * (2 if number < 500 else 10)])
    source = {"kind": "files", "paths": [f"{tmp_path}/*.txt"], "unit": "document"}
    text = sample_text(corpus(source, max_length=64), loaded)
    assert text.records == 500
    assert text.per_epoch == pytest.approx(1000, rel=0.01)
    assert text.mean == pytest.approx((8 + 32) / 2, rel=0.01)


def test_a_data_set_folder_is_scaled_by_its_rows(tmp_path: Path, loaded: LoadedModel) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": sentences(10) * 90}).save_to_disk(str(tmp_path / "set"))
    text = sample_text(corpus({"kind": "dataset_folder", "path": str(tmp_path / "set")}), loaded)
    assert text.records == 500
    assert text.per_epoch == pytest.approx(900, rel=0.01)


def test_questions_are_scaled_by_their_number(tmp_path: Path, loaded: LoadedModel) -> None:
    """A SQuAD file is one line, however many questions it has."""
    asked = [
        {"id": str(n), "question": text, "answers": []} for n, text in enumerate(sentences(900))
    ]
    article = {"title": "a", "paragraphs": [{"context": "malt barley", "qas": asked}]}
    path = tmp_path / "asked.json"
    path.write_text(json.dumps({"version": "v2.0", "data": [article]}))
    text = sample_text(corpus(str(path), columns=["question"]), loaded)
    assert text.records == 500
    assert text.per_epoch == pytest.approx(900, rel=0.01)


def test_a_hub_data_set_has_no_size(
    tmp_path: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    stream = datasets.Dataset.from_dict({"text": sentences(600)}).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stream)
    text = sample_text(
        corpus({"kind": "hub", "name": "org/set"}, write(tmp_path, "a.txt", sentences(9))), loaded
    )
    assert (text.per_epoch, text.share, text.unsized) == (None, None, ["org/set:train"])
    assert text.records == 250 + 9


def test_a_sample_of_short_texts_is_refused(tmp_path: Path, loaded: LoadedModel) -> None:
    settings = corpus(write(tmp_path, "a.txt", ["malt"] * 9), min_length=20)
    with pytest.raises(
        ValueError, match="none of 9 sampled records can be trained on with min_length 20"
    ):
        sample_text(settings, loaded)


def test_make_student_on_the_meta_device_is_the_real_one(
    masked_lm_teacher: Path, text_file: Path
) -> None:
    (outline,) = outlines(masked_lm_teacher, text_file, "masked_lm", MAKE)
    real = make_student(load_model(masked_lm_teacher, "masked_lm").model)
    assert outline.model is not None
    assert {p.device.type for p in outline.model.model.parameters()} == {"meta"}
    shapes = {name: tuple(p.shape) for name, p in real.named_parameters()}
    assert {name: tuple(p.shape) for name, p in outline.model.model.named_parameters()} == shapes
