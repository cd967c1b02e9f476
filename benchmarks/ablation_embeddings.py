"""Which objective, start, layer map and temperature is best for a sentence encoder?

all-MiniLM-L6-v2 from 6 to 3 layers on BBC News, every arm on the same tokens in the same order,
seed by seed. Scored on held-out title -> article, and on question -> paragraph of SQuAD, which no
arm is trained on. Every finished (arm, seed) is a file in the work folder: the same command goes on
where it stopped, and two of them share the work.

    python benchmarks/ablation_embeddings.py --work FOLDER --squad squad-v2.0-dev-part.json
    python benchmarks/ablation_embeddings.py --work FOLDER --summary > ablation_embeddings.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import ablation
import numpy as np
import torch

from potstill.data import read_records
from potstill.data.sources import heldout_side
from potstill.evaluation import retrieval
from potstill.models import Runtime
from potstill.pipeline import run
from potstill.recipe import Recipe, load_recipe
from potstill.storage.places import resolve_path

TOKENS = 100_000

SOFT = {"kind": "soft_targets", "weight": 1.0, "temperature": 1.0}
HARD = {"kind": "hard_targets", "weight": 0.1, "target": "teacher"}
COSINE = {"kind": "hidden_cosine", "weight": 20.0}
RELATIONS = {"kind": "relations", "weight": 1.0}
TRIPLE = [SOFT, HARD, COSINE]

# name -> (keys of make_student, objectives). The weight of an added objective gives it about the
# size of the soft targets or the cosine at the first step.
UNTRAINED = "untrained"
ARMS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    UNTRAINED: ({}, []),
    "triple": ({}, TRIPLE),
    "without soft": ({}, [HARD, COSINE]),
    "without hard": ({}, [SOFT, COSINE]),
    "without cosine": ({}, [SOFT, HARD]),
    "random start": ({"initialize": "random"}, TRIPLE),
    "layers first": ({"layers": "first"}, TRIPLE),
    "layers last": ({"layers": "last"}, TRIPLE),
    "layers uniform": ({"layers": "uniform"}, TRIPLE),
    "T 2": ({}, [{**SOFT, "temperature": 2.0}, HARD, COSINE]),
    "T 4": ({}, [{**SOFT, "temperature": 4.0}, HARD, COSINE]),
    "T 8": ({}, [{**SOFT, "temperature": 8.0}, HARD, COSINE]),
    "MSE of vectors alone": ({}, [{"kind": "vector_mse", "weight": 1.0}]),
    "MSE of logits for soft": ({}, [{"kind": "logits_mse", "weight": 1.0}, HARD, COSINE]),
    "MiniLMv2 alone": ({}, [RELATIONS]),
    "triple and MiniLMv2": ({}, [*TRIPLE, RELATIONS]),
    "triple and PKD": ({}, [*TRIPLE, {"kind": "patient_hidden", "weight": 10.0}]),
    "MSE of vectors and cosine": ({}, [{"kind": "vector_mse", "weight": 20.0}, COSINE]),
    "paper's 5 : 2 : 1, T 2": (
        {},
        [
            {**SOFT, "weight": 5.0, "temperature": 2.0},
            {**HARD, "weight": 2.0},
            {**COSINE, "weight": 1.0},
        ],
    ),
}


def recipe_of(arm: str, seed: int, tokens: int) -> Recipe:
    """The quickstart with this arm's student and objectives; training alone."""
    student, objectives = ARMS[arm]
    tree = load_recipe("quickstart").model_dump(mode="json")
    tree["name"], tree["seed"], tree["threads"] = "ablation", seed, torch.get_num_threads()
    make, distil = tree["stages"][:2]
    training = {**distil["training"], "max_tokens": tokens, "evaluate_sequences": 32}
    # in a copy, the defaults that were written out would hide what an arm leaves out
    stages = [{"kind": "make_student", "writes": "untrained", "layers": make["layers"], **student}]
    if objectives:
        stages.append({**distil, "objectives": objectives, "training": training})
    return Recipe.model_validate({**tree, "student": {}, "stages": stages})


def train(arm: str, seed: int, work: Path, tokens: int) -> Path:
    folder = work / "runs" / f"{ablation.slug(arm)}-{seed}"
    run(recipe_of(arm, seed, tokens), output=folder)
    return folder / "model"


def heldout(seed: int) -> tuple[list[str], list[str]]:
    """Titles and bodies of the articles that this seed holds out, each body once."""
    corpus = load_recipe("quickstart").corpus
    bodies: dict[str, str] = {}
    for record in read_records(corpus.sources, corpus.columns):
        if heldout_side(record, corpus.columns, corpus.group_by, corpus.heldout, seed):
            body = " ".join(record.columns["body"].split())
            bodies.setdefault(body, record.columns["title"])
    return list(bodies.values()), list(bodies)


def questions(squad: Path) -> tuple[list[str], list[str], list[int]]:
    """Answerable questions, paragraphs, and the number of each question's paragraph."""
    asked, paragraphs, own = [], [], []
    for article in json.loads(squad.read_text())["data"]:
        for paragraph in article["paragraphs"]:
            paragraphs.append(paragraph["context"])
            for question in paragraph["qas"]:
                if not question["is_impossible"]:
                    asked.append(question["question"])
                    own.append(len(paragraphs) - 1)
    return asked, paragraphs, own


def reciprocal_ranks(runtime: Runtime, queries: list[str], texts: list[str], own: list[int]) -> Any:
    queries_QD, texts_PD = runtime.embed(queries), runtime.embed(texts)
    blocks = retrieval.cosine_blocks(queries_QD.astype(np.float64), texts_PD)
    ranks = [retrieval.target_ranks(scores, np.array(own)[rows]) for rows, scores in blocks]
    return 1 / np.concatenate(ranks)


def score(folder: str | Path, seed: int, squad: Path) -> dict[str, list[float]]:
    runtime = Runtime.open(folder, "sentence_embedding")
    titles, bodies = heldout(seed)
    asked, paragraphs, own = questions(squad)
    return {
        "title -> article": reciprocal_ranks(
            runtime, titles, bodies, list(range(len(titles)))
        ).tolist(),
        "question -> paragraph": reciprocal_ranks(runtime, asked, paragraphs, own).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--squad", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args()
    if options.summary:
        settings = {"tokens": options.tokens, "teacher": "all-MiniLM-L6-v2", "metric": "MRR"}
        print(
            json.dumps(
                ablation.summary(
                    options.work, list(ARMS), settings, shared=["question -> paragraph"]
                ),
                indent=1,
            )
        )
        return
    torch.set_num_threads(options.threads)
    os.environ["POTSTILL_CACHE"] = str(options.work / "cache")
    teacher = load_recipe("quickstart").teacher.model
    for seed in options.seeds:
        for name in ("teacher", *ARMS):
            with ablation.claim(options.work, name, seed) as path:
                if path is None:
                    continue
                if name == "teacher":
                    model: Path = resolve_path(teacher)
                else:
                    model = train(name, seed, options.work, options.tokens)
                path.write_text(json.dumps(score(model, seed, options.squad)))
                if name in ARMS:
                    shutil.rmtree(options.work / "runs" / f"{ablation.slug(name)}-{seed}")


if __name__ == "__main__":
    main()
