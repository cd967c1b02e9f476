"""Which objective, start, layer map and temperature is best for a classifier?

A fine-tuned all-MiniLM-L6-v2 (see sst2_teacher.yaml) from 6 to 3 layers on few labels of SST-2 and
more of its text, which the teacher labels; every arm for as many steps, on the same examples in the
same order, seed by seed. The plain twin has the labels alone. Scored on SST-2's dev set. Every
finished (arm, seed) is a file in the work folder: the same command goes on where it stopped, and
several of them share the work.

    potstill run benchmarks/sst2_teacher.yaml data.train=SST-2/train.tsv data.test=SST-2/dev.tsv
    python benchmarks/ablation_sst2.py --work FOLDER --teacher runs/sst2-teacher/model --data SST-2
    python benchmarks/ablation_sst2.py --work FOLDER --summary > ablation_sst2.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ablation
import torch

from potstill.models import load_config, load_model
from potstill.pipeline import run
from potstill.recipe import Recipe
from potstill.tasks import read_for, tokenize_task
from potstill.tasks.predictions import head_outputs

LABELLED, UNLABELED, STEPS = 1000, 6000, 219

SOFT = {"kind": "soft_targets", "weight": 5.0, "temperature": 2.0}
HARD = {"kind": "hard_targets", "weight": 2.0}
COSINE = {"kind": "hidden_cosine", "weight": 1.0}
RELATIONS = {"kind": "relations", "weight": 1.0}
TRIPLE = [SOFT, HARD, COSINE]

# An arm without objectives is trained without a teacher.
ARMS: ablation.Arms = {
    "untrained": ({}, []),
    "plain twin": ({}, []),
    **ablation.common_arms(SOFT, HARD, COSINE),
    "T 1": ({}, [{**SOFT, "temperature": 1.0}, HARD, COSINE]),
    "T 4": ({}, [{**SOFT, "temperature": 4.0}, HARD, COSINE]),
    "T 8": ({}, [{**SOFT, "temperature": 8.0}, HARD, COSINE]),
    "MSE of logits for soft": ({}, [{"kind": "logits_mse", "weight": 1.0}, HARD, COSINE]),
    "MiniLMv2 and hard": ({}, [RELATIONS, HARD]),
    "triple and MiniLMv2": ({}, [*TRIPLE, RELATIONS]),
    "triple and PKD": ({}, [*TRIPLE, {"kind": "patient_hidden", "weight": 1.0}]),
}


def recipe_of(arm: str, seed: int, teacher: Path, data: Path) -> Recipe:
    student, objectives = ARMS[arm]
    training = {
        **{"max_steps": STEPS, "batch_size": 32, "learning_rate": 2.0e-4, "warmup": 0.1},
        **{"evaluate_every": 10**6, "evaluate_sequences": 32},
    }
    follow: dict[str, Any] = {"kind": "finetune"}
    if objectives:
        follow = {"kind": "distill", "objectives": objectives}
    return Recipe.model_validate(
        {
            "name": "ablation",
            "task": "classification",
            "seed": seed,
            "threads": torch.get_num_threads(),
            "teacher": str(teacher),
            "data": {
                "train": str(data / "train.tsv"),
                "test": str(data / "dev.tsv"),
                "text": "sentence",
                "max_length": 64,
                # each seed has subsets of its own
                "max_train": LABELLED,
                "unlabeled": str(data / "train.tsv"),
                "max_unlabeled": UNLABELED,
                "heldout": 0.005,
            },
            "stages": [
                {"kind": "make_student", "writes": "untrained", **student},
                {**follow, "model": "untrained", "writes": "student", "training": training},
            ][: 1 if arm == "untrained" else 2],
        }
    )


def score(folder: Path, recipe: Recipe) -> dict[str, list[float]]:
    """1 for each sentence of the dev set that is answered rightly."""
    assert recipe.data is not None
    loaded = load_model(folder, "classification")
    rows = read_for("classification", recipe.data, load_config(folder), recipe.seed)
    test = tokenize_task(rows, loaded.tokenizer).test
    right = head_outputs(loaded, test).argmax(axis=1) == test.gold
    return {"accuracy": right.astype(float).tolist()}


def main() -> None:
    parser = ablation.arguments(__doc__)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    if options.summary:
        settings = {
            **{"labelled": LABELLED, "unlabelled": UNLABELED, "steps": STEPS},
            **{"metric": "accuracy", "teacher": "all-MiniLM-L6-v2, fine-tuned"},
        }
        ablation.print_summary(options.work, list(ARMS), settings, shared=["accuracy"])
        return
    ablation.begin(options)

    def scored(name: str, seed: int, folder: Path) -> dict[str, list[float]]:
        arm = name if name in ARMS else "triple"
        recipe = recipe_of(arm, seed, options.teacher, options.data)
        if name == "teacher":
            return score(options.teacher, recipe)
        return score(ablation.last_model(run(recipe, output=folder)), recipe)

    ablation.score_all(options, list(ARMS), scored)


if __name__ == "__main__":
    main()
