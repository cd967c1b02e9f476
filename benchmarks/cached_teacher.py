"""What an epoch of task distillation costs with a cached teacher, beside plain fine-tuning.

    python benchmarks/cached_teacher.py --threads 2 --output cached_teacher.json

The same student is trained for an epoch in three ways, by the real loop (`training.train`): plain
(gold labels, no teacher), cached (soft targets, gold labels, cosine of pooled features, from a
teacher's kept answers) and live (the same losses, the teacher asked for every batch). Models have
the shapes of all-MiniLM-L6-v2 and of its half, with random weights, and examples are random tokens
of 8 to 48: neither changes what a step costs. The three take turns, in another order every round,
and ratios are taken within a round; the target is a median of at most 1.1 for cached over plain.
What asking the teacher about all examples takes, once, is told beside them.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import script
import torch
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from potstill.benchmarking.rounds import order
from potstill.data import Examples
from potstill.models import LoadedModel
from potstill.recipe import (
    HardTargets,
    HiddenCosine,
    InBatch,
    Objective,
    SoftTargets,
    Task,
    Training,
)
from potstill.storage import environment
from potstill.tasks.heads import Reading
from potstill.training import Job, Trainee, train
from potstill.training.teacher_cache import Answers, Asking, teacher_answers
from potstill.training.teachers import CachedTeacher, LiveTeacher

WAYS = ("plain", "cached", "live")
TARGET = 1.1
SIZES = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size")
FULL = {**dict(zip(SIZES, (30522, 384, 12, 1536), strict=True)), "max_position_embeddings": 64}
TINY = {**dict(zip(SIZES, (100, 32, 4, 48), strict=True)), "max_position_embeddings": 64}
SHORTEST, LONGEST = 8, 48
GOLD: list[Objective] = [HardTargets()]
TRIPLE: list[Objective] = [
    SoftTargets(weight=5.0),
    HardTargets(weight=2.0),
    HiddenCosine(of="pooled"),
]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All that is printed."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    shape = TINY if options.tiny else FULL
    settings = Training(epochs=1, batch_size=options.batch, precision="fp32")
    given = _examples(options.examples, shape["vocab_size"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        teacher, student = (_model(shape, depth) for depth in (6, 3))
        teacher.model.save_pretrained(folder / "teacher")
        begin = time.perf_counter()
        answers = teacher_answers(
            copy.deepcopy(teacher), folder / "teacher", Asking([given], True), folder / "cache"
        )
        asking = time.perf_counter() - begin
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(-1, options.rounds):  # the first one warms up
            for way in order(WAYS, turn):
                spent = _epoch(way, student, teacher, answers, given, settings, folder)
                if turn >= 0:
                    seconds[way].append(spent)
    ratios = {
        way: [a / b for a, b in zip(seconds[way], seconds["plain"], strict=True)]
        for way in WAYS[1:]
    }
    return {
        "target": TARGET,
        "examples": options.examples,
        "batch_size": options.batch,
        "rounds": options.rounds,
        "threads": options.threads,
        "shape": {**shape, "teacher_layers": 6, "student_layers": 3},
        "epoch_s": {way: {"median": statistics.median(s), "all": s} for way, s in seconds.items()},
        "over_plain": {
            way: {"median": statistics.median(r), "all": r} for way, r in ratios.items()
        },
        "asking_once_s": asking,
        "environment": environment(),
    }


def _epoch(
    way: str,
    student: LoadedModel,
    teacher: LoadedModel,
    answers: Answers,
    given: Examples,
    settings: Training,
    folder: Path,
) -> float:
    """Seconds of one epoch in one way, by the loop's own clock."""
    objectives = GOLD if way == "plain" else TRIPLE
    reading = Reading.of(Task.CLASSIFICATION, objectives, InBatch(), settings.batch_size)
    teachers: dict[str, list[LiveTeacher | CachedTeacher]] = {
        "plain": [],
        "cached": [CachedTeacher(copy.deepcopy(teacher), answers, reading)]
        if way == "cached"
        else [],
        "live": [LiveTeacher(copy.deepcopy(teacher), reading)] if way == "live" else [],
    }
    trainee = Trainee(copy.deepcopy(student), teachers[way], reading, settings.chunk_size)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        job = Job(
            trainee=trainee,
            train=given,
            heldout=given.chosen(np.zeros(0, dtype=np.int64)),
            masker=None,
            pad_id=0,
            settings=settings,
            seed=1,
            folder=Path(own),
            fingerprint="",
        )
        return train(job).seconds


def _model(shape: dict[str, int], depth: int) -> LoadedModel:
    config = BertConfig(**shape, num_hidden_layers=depth, num_labels=2)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, "[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
    )
    model = BertForSequenceClassification(config)
    return LoadedModel(model, tokenizer, Task.CLASSIFICATION, f"{depth} layers")


def _examples(count: int, vocabulary: int) -> Examples:
    """Random tokens and labels."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(SHORTEST, LONGEST + 1, count).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    names = [str(number) for number in range(count)]
    return Examples(
        ids=rng.integers(2, vocabulary, offsets[-1]).astype(np.int32),
        offsets=offsets,
        lengths=lengths,
        types=None,
        gold=rng.integers(0, 2, count),
        texts=[(name,) for name in names],
        origins=names,
    )


def main() -> None:
    parser = script.arguments(__doc__, rounds=5)
    parser.add_argument("--examples", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    script.finish(measure(options), options.output)


if __name__ == "__main__":
    main()
