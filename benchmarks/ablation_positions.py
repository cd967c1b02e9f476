"""Soft targets on all tokens or on masked ones alone, for masked LM: at equal tokens and time.

The teacher is the adapted one of masked_lm_ablation.yaml. First a token of each is timed in
interleaved rounds; the arm "masked, equal time" then gets that many times the tokens.

    python benchmarks/ablation_positions.py --work FOLDER --teacher ADAPTED --text valid.txt
    python benchmarks/ablation_positions.py --work FOLDER --summary > ablation_positions.json
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import ablation
import numpy as np
import torch

from potstill.data import collate, make_masker, read_records, tokenize_corpus
from potstill.data.masking import EVALUATION_EPOCH
from potstill.data.sources import heldout_side
from potstill.models import load_model
from potstill.pipeline import run
from potstill.recipe import Masking, Recipe, load_recipe
from potstill.tasks.heads import masked_lm_signals

TOKENS = 40_000
ROUNDS = 7
ALL, MASKED, LONGER = "all", "masked, equal tokens", "masked, equal time"
UNTRAINED, PLAIN = "untrained", "without a teacher"


BASE = Path(__file__).parent / "masked_lm_ablation.yaml"


def split(work: Path, text: list[str]) -> None:
    """Both sides as files, by the seed that the teacher was trained with.

    So no seed of a student's trains or is scored on what the teacher saw on the other side.
    """
    recipe = load_recipe(BASE, [f"corpus.sources.1.paths={json.dumps(text)}"])
    corpus = recipe.corpus
    assert corpus is not None
    lines: dict[bool, list[str]] = {False: [], True: []}
    for record in read_records(corpus.sources, corpus.columns):
        held = heldout_side(record, corpus.columns, corpus.group_by, corpus.heldout, recipe.seed)
        lines[held].append(json.dumps({"text": record.columns["text"]}) + "\n")
    for held, name in ((False, "train"), (True, "heldout")):
        (work / f"{name}.jsonl").write_text("".join(lines[held]), encoding="utf-8")


def recipe_of(arm: str, seed: int, tokens: int, teacher: Path, work: Path) -> Recipe:
    tree = load_recipe(BASE).model_dump(mode="json")
    corpus = {**tree["corpus"], "sources": str(work / "train.jsonl")}
    corpus["heldout_sources"] = str(work / "heldout.jsonl")
    triple = next(s for s in tree["stages"] if s.get("writes") == "triple")
    training = {
        **triple["training"],
        **{"max_tokens": tokens, "evaluate_every": 10**6, "evaluate_sequences": 32, "log_every": 1},
    }
    soft, hard, cosine = triple["objectives"]
    soft = {**soft, "positions": "all" if arm == ALL else "masked"}
    stages: list[dict[str, Any]] = [{"kind": "make_student", "writes": "untrained"}]
    told = {"model": "untrained", "writes": "student", "training": training}
    if arm == PLAIN:
        stages.append({"kind": "finetune", **told})
    elif arm != UNTRAINED:
        stages.append({"kind": "distill", "objectives": [soft, hard, cosine], **told})
    return Recipe.model_validate(
        {
            "name": "ablation",
            "task": "masked_lm",
            "seed": seed,
            "threads": torch.get_num_threads(),
            "teacher": str(teacher),
            "corpus": corpus,
            "stages": stages,
        }
    )


def score(folder: Path, recipe: Recipe, work: Path) -> dict[str, list[float]]:
    """Of each masked position of held-out text: 1 if the likeliest token is right; minus the loss.

    The same text and masks for all arms and seeds.
    """
    assert recipe.corpus is not None
    loaded = load_model(folder, "masked_lm")
    corpus = tokenize_corpus(recipe.corpus, loaded.tokenizer, work / "cache", recipe.seed)
    masker = make_masker(Masking(), loaded.tokenizer, corpus.train.token_counts)
    right, gain = [], []
    order = np.argsort(corpus.heldout.lengths, kind="stable")
    for start in range(0, len(order), 32):
        rows = order[start : start + 32]
        pad = int(loaded.tokenizer.pad_token_id or 0)
        batch = collate(corpus.heldout, rows, pad, masker.of_epoch(1, EVALUATION_EPOCH))
        chosen_BL = batch.gold_BL >= 0
        with torch.inference_mode():
            signals = masked_lm_signals(loaded, batch, chosen_BL)
            assert signals.features_KD is not None
            assert signals.readout is not None
            logits_KV = signals.readout.logits(signals.features_KD, slice(None))
            log_KV = torch.log_softmax(logits_KV, -1)
        gold_K = batch.gold_BL[chosen_BL]
        right += (log_KV.argmax(-1) == gold_K).float().tolist()
        gain += log_KV.gather(1, gold_K[:, None])[:, 0].tolist()
    return {"top1": right, "minus loss": gain}


def seconds_per_token(folder: Path) -> float:
    """Of the steps in the middle of a training, by its log."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "train"]
    first, last = steps[1], steps[-1]
    return float((last["seconds"] - first["seconds"]) / (last["tokens"] - first["tokens"]))


def measure_ratio(work: Path, teacher: Path) -> dict[str, Any]:
    """How many times as long a token takes with soft targets on all tokens: interleaved rounds."""
    ratios = []
    for number in range(ROUNDS):
        found = {}
        for arm in (ALL, MASKED) if number % 2 else (MASKED, ALL):
            folder = work / "timing"
            shutil.rmtree(folder, ignore_errors=True)
            recipe = recipe_of(arm, 1, 6_000, teacher, work)
            run(recipe, output=folder)
            found[arm] = seconds_per_token(folder / "stages" / "02-distill")
        ratios.append(found[ALL] / found[MASKED])
        print(f"round {number + 1}: {ratios[-1]:.2f}", flush=True)
    shutil.rmtree(work / "timing")
    return {"median": float(np.median(ratios)), "rounds": ratios}


def main() -> None:
    parser = ablation.arguments(__doc__)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--text", nargs="+")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    options = parser.parse_args()
    arms = [UNTRAINED, PLAIN, ALL, MASKED, LONGER]
    work, ratio_file = options.work, options.work / "ratio.json"
    if options.summary:
        settings = {"tokens": options.tokens, "time_ratio": json.loads(ratio_file.read_text())}
        ablation.print_summary(work, arms, settings, ALL, shared=["top1", "minus loss"])
        return
    work.mkdir(parents=True, exist_ok=True)
    ablation.begin(options)
    if not (work / "heldout.jsonl").exists():
        split(work, options.text)
    if not ratio_file.exists():
        started = time.perf_counter()
        ratio_file.write_text(json.dumps(measure_ratio(work, options.teacher)))
        print(f"timed for {time.perf_counter() - started:.0f} s", flush=True)
    ratio = json.loads(ratio_file.read_text())["median"]

    def scored(name: str, seed: int, folder: Path) -> dict[str, list[float]]:
        tokens = round(options.tokens * (ratio if name == LONGER else 1))
        recipe, model = recipe_of(name, seed, tokens, options.teacher, work), options.teacher
        if name != "teacher":
            model = ablation.last_model(run(recipe, output=folder))
        return score(model, recipe, work)

    ablation.score_all(options, arms, scored)


if __name__ == "__main__":
    main()
