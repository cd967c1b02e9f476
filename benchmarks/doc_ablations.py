"""Tables of arms: one thing left out or done otherwise, and what that costs."""

from __future__ import annotations

from typing import Any

from doc_tables import difference, load, machine, markdown, over_seeds, stage_result


def masked_lm_ablation() -> str:
    """The arms of benchmarks/masked_lm_ablation.yaml."""
    result = load("masked_lm_ablation")
    scores = stage_result(result, "evaluate")
    labels = {
        "adapted": "teacher: all-MiniLM-L6-v2, all of it trained on masked LM",
        "untrained": "its half, untrained",
        "plain": "its half, trained without a teacher",
        "triple": "triple loss",
        "without-soft": "without soft targets",
        "without-cosine": "without hidden cosine",
        "without-hard": "without hard targets",
    }
    rows = [["", "loss", "top-1", "top-1 kept", "agrees with the teacher", "KL from the teacher"]]
    for name, label in labels.items():
        model = scores["models"][name]
        kept, agreement = scores["retention"].get(name, {}), model.get("agreement", {})
        rows.append(
            [
                label,
                f"{model['masked_lm']['loss']:.3f}",
                f"{model['masked_lm']['top1']:.1%}",
                f"{kept['masked_lm.top1']:.1%}" if kept else "",
                f"{agreement['top1']:.1%}" if agreement else "",
                f"{agreement['kl']:.3f}" if agreement else "",
            ]
        )
    unigram = scores["references"]["unigram"]["masked_lm"]
    rows.append(["unigram", f"{unigram['loss']:.3f}", f"{unigram['top1']:.1%}", "", "", ""])
    tokens = {
        s["writes"]: s["result"]["tokens"] for s in result["stages"] if "tokens" in s["result"]
    }
    note = (
        f"\nThe teacher saw {tokens['adapted']:,} tokens, every student {tokens['triple']:,}; "
        "scored on "
        f"{scores['masked_positions']:,} masked positions of {scores['records']:,} held-out "
        "sequences. "
        "One seed.\n"
    )
    return markdown(rows) + note


def _ablation(result: dict[str, Any], labels: dict[str, str]) -> str:
    """Each arm's mean score, its range over seeds, and the paired difference to the reference."""
    rows = [["", *(cell for label in labels.values() for cell in (label, "less the reference"))]]
    reference = result["arms"][result["reference"]]
    for arm, scores in result["arms"].items():
        cells = []
        for key in labels:
            score = scores[key]
            cells.append(over_seeds(score["mean"], score["seeds"].values()))
            same = arm in (result["reference"], "teacher")
            cells.append("" if same else difference(score["difference"], *score["interval"]))
        named = f"{arm} (reference)" if arm == result["reference"] else arm
        done, wanted = (len(s[next(iter(labels))]["seeds"]) for s in (scores, reference))
        rows.append([named if done == wanted else f"{named}, {done} of {wanted} seeds", *cells])
    return markdown(rows)


_HOW = (
    "In parentheses: the least and the greatest of the seeds; the paired 95% bootstrap interval of "
    "the difference. Bold: an interval without 0."
)


def ablation_embeddings() -> str:
    result = load("ablation_embeddings")
    labels = {"title -> article": "title to article, MRR", "question -> paragraph": "SQuAD, MRR"}
    settings = result["settings"]
    seeds = len(result["arms"][result["reference"]]["title -> article"]["seeds"])
    note = f"\n{settings['tokens']:,} tokens an arm, {seeds} seeds; {machine(result)}. {_HOW}\n"
    return _ablation(result, labels) + note


def ablation_sst2() -> str:
    result = load("ablation_sst2")
    settings = result["settings"]
    seeds = len(result["arms"][result["reference"]]["accuracy"]["seeds"])
    note = (
        f"\n{settings['labelled']:,} sentences with labels and {settings['unlabelled']:,} without, "
        f"{settings['steps']} steps of 32 an arm, {seeds} seeds, "
        f"872 sentences of the dev set; {machine(result)}. {_HOW}\n"
    )
    return _ablation(result, {"accuracy": "accuracy"}) + note


def ablation_positions() -> str:
    result = load("ablation_positions")
    settings = result["settings"]
    seeds = len(result["arms"][result["reference"]]["top1"]["seeds"])
    ratio = settings["time_ratio"]
    spread = f"{min(ratio['rounds']):.2f} to {max(ratio['rounds']):.2f}"
    note = (
        f"\n{settings['tokens']:,} tokens an arm, the last {ratio['median']:.2f} times as many, "
        f"which take as long (median of {len(ratio['rounds'])} interleaved rounds, {spread}); "
        f"{seeds} seeds; {machine(result)}. {_HOW}\n"
    )
    return _ablation(result, {"top1": "top-1", "minus loss": "minus loss"}) + note
