"""Tiny models and text that the tests share. Nothing here needs a network."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

from potstill import make_student
from potstill.models import load_model, save_model
from potstill.models.loading import with_model
from potstill.recipe import Task

# fmt: off
WORDS = [
    "still", "pot", "copper", "malt", "barley", "water", "fire", "spirit", "heart", "head",
    "tail", "cask", "oak", "peat", "smoke", "grain", "yeast", "wash", "low", "wine",
    "the", "a", "runs", "boils", "keeps", "and", "slowly", "never", "always", "warm",
]
# fmt: on
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] + list(
    "abcdefghijklmnopqrstuvwxyz"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS, *PIECES])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def tiny_config(layers: int = 4, **changes: object) -> BertConfig:
    return BertConfig(
        **{
            "vocab_size": len(SPECIAL) + len(WORDS) + len(PIECES),
            "hidden_size": 32,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "hidden_dropout_prob": 0.1,
            **changes,
        }
    )


def sentences(count: int, seed: int = 0) -> list[str]:
    """Random sentences of 6 to 30 words with some order in them: a word is often followed by its
    neighbour.
    """
    rng = random.Random(seed)
    result = []
    for _ in range(count):
        words = [rng.randrange(len(WORDS))]
        for _ in range(rng.randint(5, 29)):
            words.append(
                (words[-1] + 1) % len(WORDS) if rng.random() < 0.8 else rng.randrange(len(WORDS))
            )
        result.append(" ".join(WORDS[i] for i in words))
    return result


def student_of(teacher: Path, task: Task, folder: Path) -> Path:
    """The half of a teacher, as `make_student` makes it, in a folder of its own."""
    loaded = load_model(teacher, task)
    save_model(with_model(loaded, make_student(loaded.model), "student"), folder)
    return folder


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session", autouse=True)
def _float32() -> Iterator[None]:
    """`precision: auto` means float32 on every machine: of bf16 nobody could tell rounding from a
    mistake, and where a CPU has it, whether it is taken depends on a measurement.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("potstill.models.devices.cpu_has_bf16", lambda: False)
        yield


@pytest.fixture(scope="session")
def masked_lm_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked_lm_teacher")
    torch.manual_seed(0)
    BertForMaskedLM(tiny_config(initializer_range=0.2)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sentence_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A headless encoder; without modules.json it gets mean pooling and normalisation."""
    folder = tmp_path_factory.mktemp("sentence_teacher")
    torch.manual_seed(1)
    BertModel(tiny_config(initializer_range=0.2)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(sentences(300)), encoding="utf-8")
    return path


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files and folders as they are flushed to the disk; what is renamed, under its new name."""
    order: list[Path] = []
    sync, replace = os.fsync, os.replace

    def recorded(handle: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        sync(handle)

    def renamed(source: Path, target: Path) -> None:
        replace(source, target)
        order.append(Path(target))

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(os, "replace", renamed)
    return order


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def potstill(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Finished]]:
    """The `potstill` command in this process: potstill("run", "recipe.yaml", ...)."""
    from potstill.cli import entry

    def command(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["potstill", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            entry.main()
        out, err = capfd.readouterr()
        code = stop.value.code
        assert isinstance(code, int)
        return Finished(code, out, err)

    before = signal.getsignal(signal.SIGTERM)
    yield command
    signal.signal(signal.SIGTERM, before)
