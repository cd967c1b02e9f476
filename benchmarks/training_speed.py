"""Tokens per second of sentence distillation at real lengths, beside a plain loop and a trainer's.

    python benchmarks/training_speed.py --threads 2 --output training_speed.json

The quickstart's teacher, student, texts and objective: all-MiniLM-L6-v2 to every other layer of it,
titles and beginnings of BBC News (at most 64 tokens), soft and hard targets within a batch and the
hidden cosine. Every way trains on the same rows once per round, from the same weights:

- plain: shuffled batches, padded to their longest text, the objective on whole matrices;
- potstill: the training loop with a live teacher;
- potstill, cached: the same, after the teacher was asked once (its time is given apart);
- sentence-transformers: its trainer with MSELoss, which learns another objective, on vectors that
  the teacher gave before (their time is given apart).

Each in float32 and in what its own measurement finds fastest. Ways take turns; a ratio is of two
ways in the same round. Tokens are real ones: padding does not count.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import script
import torch
from torch.nn import functional as F

from potstill import make_student
from potstill.benchmarking.rounds import order
from potstill.data import Tokens, tokenize_corpus
from potstill.data.batches import epoch_batches
from potstill.models import load_model, save_model
from potstill.models.loading import with_model
from potstill.recipe import Distill, Task, load_recipe
from potstill.storage import environment
from potstill.storage.places import resolve_path
from potstill.tasks.heads import Reading
from potstill.training import Job, Trainee, train
from potstill.training.teacher_cache import Answers, Asking, teacher_answers
from potstill.training.teachers import CachedTeacher, LiveTeacher

RECIPE = "quickstart"
PLAIN = "plain"
WAYS = (PLAIN, "potstill", "potstill, cached", "sentence-transformers")
PRECISIONS = ("fp32", "best")


class Bench:
    """Hold what all ways share: models, rows, and the recipe's settings."""

    def __init__(self, rows: int, folder: Path) -> None:
        recipe = load_recipe(RECIPE)
        stage = next(stage for stage in recipe.stages if isinstance(stage, Distill))
        assert recipe.corpus is not None
        self.folder, self.stage = folder, stage
        place = Path(resolve_path(recipe.teacher.model))
        self.teacher = load_model(place, Task.SENTENCE_EMBEDDING)
        self.student = with_model(self.teacher, make_student(self.teacher.model), "student")
        save_model(self.student, folder / "student")
        self.place = place
        found = tokenize_corpus(recipe.corpus, self.teacher.tokenizer, folder / "tokens", 1).train
        self.rows = chosen(found, rows)
        self.tokens = int(self.rows.lengths.sum())
        self.batch = stage.training.batch_size
        self.reading = Reading.of(
            Task.SENTENCE_EMBEDDING, stage.objectives, stage.in_batch, self.batch
        )
        begin = time.perf_counter()
        asked = Asking([self.rows], vectors=True, hidden=True)
        self.answers = teacher_answers(self.teacher, place, asked, folder / "cache")
        self.asking = time.perf_counter() - begin
        self.outside: dict[str, list[float]] = {"fp32": [], "auto": []}

    def texts(self) -> list[str]:
        decode = self.teacher.tokenizer.decode
        return [decode(self.rows[i], skip_special_tokens=True) for i in range(len(self.rows))]


def chosen(tokens: Tokens, count: int) -> Tokens:
    """Return some sequences, drawn once."""
    picked = np.random.default_rng(0).permutation(len(tokens))[:count]
    parts = [tokens[i] for i in picked]
    lengths = np.array([len(part) for part in parts], dtype=np.int32)
    return Tokens(
        ids=np.concatenate(parts).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        lengths=lengths,
        token_counts=tokens.token_counts,
        fingerprint="training-speed",
    )


# --- ways: each trains once on all rows and returns seconds ---------------------------------------


def plain(bench: Bench, precision: str, number: int) -> tuple[float, str]:
    student = copy.deepcopy(bench.student).model.train(False)
    teacher = bench.teacher.model
    soft, hard, cosine = (objective.weight for objective in bench.stage.objectives)
    temperature, scale = bench.stage.objectives[0].temperature, bench.stage.in_batch.scale
    settings = bench.stage.training
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=settings.learning_rate, betas=settings.betas, eps=settings.eps
    )
    shuffled = np.random.default_rng(number).permutation(len(bench.rows))
    mode: Any = nullcontext()
    if precision == "bf16":
        mode = torch.autocast("cpu", torch.bfloat16)

    def embedded(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> tuple[Any, Any]:
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        wide = mask[..., None].float()
        return hidden, F.normalize((hidden * wide).sum(1) / wide.sum(1), dim=-1)

    begin = time.perf_counter()
    for start in range(0, len(shuffled), bench.batch):
        part = [bench.rows[i] for i in shuffled[start : start + bench.batch]]
        longest = max(len(ids) for ids in part)
        ids = torch.tensor([[*each.tolist(), *[0] * (longest - len(each))] for each in part])
        mask = torch.tensor([[1] * len(each) + [0] * (longest - len(each)) for each in part])
        optimizer.zero_grad()
        with mode:
            with torch.no_grad():
                hidden_t, unit_t = embedded(teacher, ids, mask)
            hidden_s, unit_s = embedded(student, ids, mask)
        own = torch.eye(len(part), dtype=torch.bool)
        sims_t, sims_s = (
            (scale * unit @ unit.T).masked_fill(own, -1e4) for unit in (unit_t, unit_s)
        )
        loss = (
            soft
            * temperature**2
            * F.kl_div(
                F.log_softmax(sims_s / temperature, -1),
                F.softmax(sims_t / temperature, -1),
                reduction="batchmean",
            )
        )
        loss = loss + hard * F.cross_entropy(sims_s, sims_t.argmax(-1))
        real = mask.bool()
        loss = loss + cosine * (1 - F.cosine_similarity(hidden_s[real], hidden_t[real])).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), settings.clip or 5.0)
        optimizer.step()
    return time.perf_counter() - begin, precision


def potstill(
    bench: Bench, precision: str, number: int, answers: Answers | None
) -> tuple[float, str]:
    teacher = copy.deepcopy(bench.teacher)
    asked: Any = (
        LiveTeacher(teacher, bench.reading)
        if answers is None
        else CachedTeacher(teacher, answers, bench.reading)
    )
    settings = bench.stage.training.model_copy(
        update={"epochs": 1.0, "max_tokens": None, "precision": precision}
    )
    trainee = Trainee(copy.deepcopy(bench.student), [asked], bench.reading, settings.chunk_size)
    said: list[str] = []
    spent = [0.0]
    backward, trainee.forward = torch.autograd.backward, _counted(trainee.forward, spent)  # type: ignore[method-assign]
    torch.autograd.backward = _counted(backward, spent)
    with tempfile.TemporaryDirectory(dir=bench.folder) as own:
        job = Job(
            trainee=trainee,
            train=bench.rows,
            heldout=_none(bench.rows),
            masker=None,
            pad_id=0,
            settings=settings,
            seed=number,
            folder=Path(own),
            fingerprint="",
            say=said.append,
        )
        try:
            seconds = train(job).seconds
        finally:
            torch.autograd.backward = backward
    bench.outside[precision].append(1 - spent[0] / seconds)
    return seconds, said[-1].split(" (")[0] if said else "fp32"


def _counted(work: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """Wrap a function so that the seconds it takes are added up."""

    def counted(*given: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        try:
            return work(*given, **named)
        finally:
            spent[0] += time.perf_counter() - begin

    return counted


def _none(tokens: Tokens) -> Tokens:
    return Tokens(
        tokens.ids[:0], np.zeros(1, np.int64), tokens.lengths[:0], tokens.token_counts, "none"
    )


def trainer(
    bench: Bench, precision: str, number: int, vectors: np.ndarray, texts: list[str]
) -> tuple[float, str]:
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MSELoss

    model = SentenceTransformer(str(bench.folder / "student"), device="cpu")
    settings = bench.stage.training
    with tempfile.TemporaryDirectory(dir=bench.folder) as own:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=own,
            num_train_epochs=1,
            per_device_train_batch_size=bench.batch,
            learning_rate=settings.learning_rate,
            bf16=precision == "bf16",
            use_cpu=True,
            seed=number,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        data = Dataset.from_dict({"text": texts, "label": vectors.tolist()})
        trained = SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=data, loss=MSELoss(model)
        ).train()
    return float(trained.metrics["train_runtime"]), precision


# --- measuring ------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All that is printed."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(options.rows, Path(name))
        texts = bench.texts()
        begin = time.perf_counter()
        vectors = _encoded(bench, texts)
        encoding = time.perf_counter() - begin
        ways: dict[str, Callable[[str, int], tuple[float, str]]] = {
            PLAIN: lambda precision, n: plain(bench, precision, n),
            "potstill": lambda precision, n: potstill(bench, precision, n, None),
            "potstill, cached": lambda precision, n: potstill(bench, precision, n, bench.answers),
            "sentence-transformers": lambda p, n: trainer(bench, p, n, vectors, texts),
        }
        runs = {
            f"{way}, {kind}": _bound(way, ways[way], kind, options)
            for way in ways
            for kind in PRECISIONS
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        told: dict[str, str] = {}
        for turn in range(-1, options.rounds):  # the first one warms up
            for key in order(list(runs), turn):
                spent, told[key] = runs[key](turn + 1)
                if turn >= 0:
                    seconds[key].append(spent)
                print(f"round {turn + 1}, {key}: {spent:.1f} s ({told[key]})", flush=True)
        lengths = bench.rows.lengths
        dealt = epoch_batches(lengths, bench.batch, 1, 0)
        random = np.random.default_rng(1).permutation(len(lengths))
        loose = [random[i : i + bench.batch] for i in range(0, len(random), bench.batch)]
        return {
            "rows": len(lengths),
            "tokens": bench.tokens,
            "batch_size": bench.batch,
            "threads": options.threads,
            "rounds": options.rounds,
            "computed_over_real": {
                "potstill": _padded(lengths, dealt),
                "shuffled": _padded(lengths, loose),
            },
            "tokens_per_s": {
                key: {
                    "median": bench.tokens / statistics.median(found),
                    "rounds": [bench.tokens / each for each in found],
                    "precision": told[key],
                }
                for key, found in seconds.items()
            },
            "ratios": _ratios(seconds),
            # of the loop's wall time; what the trial of formats takes counts as the models'
            "outside_models_and_head": statistics.median(bench.outside["fp32"]),
            "asking_once_s": {"potstill": bench.asking, "sentence-transformers": encoding},
            "matrix_product_flops_per_s": {
                str(dtype).removeprefix("torch."): _product(dtype)
                for dtype in (torch.float32, torch.bfloat16)
            },
            "environment": environment(),
        }


def _bound(
    way: str,
    run: Callable[[str, int], tuple[float, str]],
    kind: str,
    options: argparse.Namespace,
) -> Callable[[int], tuple[float, str]]:
    if kind == "fp32":
        return lambda number: run("fp32", number)
    if way.startswith("potstill"):
        return lambda number: run("auto", number)
    # others have a switch and no measurement: what two passes find faster
    spent = {precision: run(precision, 0)[0] for precision in ("fp32", "bf16")}
    best = min(spent, key=lambda precision: spent[precision])
    return lambda number: run(best, number)


def _encoded(bench: Bench, texts: list[str]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(bench.place), device="cpu")
    found: np.ndarray = model.encode(texts, batch_size=bench.batch)
    return found


def _padded(lengths: np.ndarray, batches: list[np.ndarray]) -> float:
    computed = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return computed / int(lengths.sum())


def _ratios(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return tokens per second of one way over another's, a ratio a round."""
    pairs = {
        "potstill, best / potstill, fp32": ("potstill, best", "potstill, fp32"),
        "potstill, fp32 / plain, fp32": ("potstill, fp32", "plain, fp32"),
        "potstill, best / plain, best": ("potstill, best", "plain, best"),
        "cached, best / potstill, best": ("potstill, cached, best", "potstill, best"),
        "potstill, best / sentence-transformers, best": (
            "potstill, best",
            "sentence-transformers, best",
        ),
        "cached, best / sentence-transformers, best": (
            "potstill, cached, best",
            "sentence-transformers, best",
        ),
        "cached, fp32 / sentence-transformers, fp32": (
            "potstill, cached, fp32",
            "sentence-transformers, fp32",
        ),
    }
    found = {}
    for name, (fast, slow) in pairs.items():
        each = [b / a for a, b in zip(seconds[fast], seconds[slow], strict=True)]
        found[name] = {"median": statistics.median(each), "min": min(each), "max": max(each)}
    return found


def _product(dtype: torch.dtype) -> float:
    matrix = torch.ones(2048, 2048, dtype=dtype)
    return 2 * 2048**3 / (min(timeit.repeat(lambda: matrix @ matrix, number=2, repeat=5)) / 2)


def main() -> None:
    parser = script.arguments(__doc__, rounds=5)
    parser.add_argument("--rows", type=int, default=768)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    script.finish(measure(options), options.output)


if __name__ == "__main__":
    main()
