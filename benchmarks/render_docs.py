"""Numbers in README and docs come from committed JSON: this collects and renders them.

    python benchmarks/render_docs.py collect runs/quickstart quickstart
    python benchmarks/render_docs.py render

The first writes benchmarks/results/quickstart.json, the second the tables of README.md and docs/
and the picture in docs/images/. `render --check` changes nothing and fails where a text differs
from its JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TEXTS = (
    "README.md",
    "docs/benchmark.md",
    "docs/masked-lm.md",
    "docs/LOG.md",
    "docs/ablation.md",
    "docs/compress.md",
    "docs/suites.md",
    "docs/tasks.md",
    "src/potstill/recipes/README.md",
)
MARKER = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def collect(run: Path, name: str) -> Path:
    """One JSON of what a run measured and on what machine; examples and raw samples stay behind."""
    stages = []
    for folder in sorted((run / "stages").iterdir()):
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        done = json.loads((folder / "DONE").read_text(encoding="utf-8"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["stage"]
        for key in [key for key in result if key in ("examples", "softened") or key[:3] == "raw"]:
            del result[key]
        stages.append(
            {
                "kind": config["kind"],
                "writes": config.get("writes"),
                "seconds": round(done["seconds"], 1),
                "result": result,
            }
        )
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    value = {"environment": environment, "stages": stages}
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    return path


def render(check: bool) -> list[str]:
    """Fill the marked tables and draw the picture; returns the names of texts that differed."""
    changed = []
    for name in TEXTS:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = MARKER.sub(lambda match: f"{match[1]}{_table(match[2])}{match[3]}", before)
        if after != before:
            changed.append(name)
            if not check:
                path.write_text(after, encoding="utf-8")
    if not check:
        _draw(ROOT / "docs" / "images" / "quickstart.svg")
    return changed


def _load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def _table(name: str) -> str:
    return {
        "quickstart": quickstart,
        "masked_lm_ablation": masked_lm_ablation,
        "distill_step": distill_step,
        "shipped_quickstart": shipped_quickstart,
        "ablation_embeddings": ablation_embeddings,
        "ablation_sst2": ablation_sst2,
        "ablation_positions": ablation_positions,
        "tasks": tasks,
        "bert_base_shapes": bert_base_shapes,
        "compress_embeddings": compress_embeddings,
        "compress_sst2": compress_sst2,
        "glue": glue,
    }[name]()


def _stage(result: dict[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = [s["result"] for s in result["stages"] if s["kind"] == kind][-1]
    return found


def shipped_quickstart() -> str:
    """The line of the one recipe that was run as it ships."""
    result = _load("quickstart")
    kept = _kept(_stage(result, "evaluate"), "student")
    minutes = sum(stage["seconds"] for stage in result["stages"]) / 60
    return (
        f"`quickstart` took {minutes:.0f} minutes on 2 CPU cores and kept {kept} of the teacher's "
        "MRR (in parentheses: 95% interval).\n"
    )


def quickstart() -> str:
    """Teacher, student, what was made of it, and the student before training."""
    result = _load("quickstart")
    scores, speed = _stage(result, "evaluate"), _stage(result, "benchmark")
    columns = {
        **{"teacher": "teacher", "student": "student", "trimmed": "vocabulary trimmed"},
        **{"onnx": "ONNX", "quantized": "int8", "untrained": "student before training"},
    }
    models = [name for name in columns if name in speed["models"]]
    rows = [["", *(columns[name] for name in models), "TF-IDF"]]

    def row(label: str, cells: list[str], reference: str = "") -> None:
        rows.append([label, *cells, reference])

    made = _stage(result, "make_student")
    row("layers", [str(made["teacher_layers"]), *[str(len(made["layers"]))] * (len(models) - 1)])
    row("parameters", [f"{speed['models'][m]['parameters'] / 1e6:.1f} M" for m in models])
    row("weights", [f"{speed['models'][m]['weight_bytes'] / 1e6:.1f} MB" for m in models])
    tfidf = scores["references"]["tfidf"]
    for label, task, metric in (
        ("finds an article by its title, MRR", "retrieval", "mrr"),
        ("the same, recall@1", "retrieval", "recall_at_1"),
        ("topic accuracy of a linear probe", "topic_probe", "accuracy"),
        ("correlation of similarity matrices", "similarity", "pearson"),
    ):
        cells = [f"{scores['models'][m][task][metric]:.3f}" for m in models]
        reference = tfidf.get(task, {}).get(metric)
        row(label, cells, "" if reference is None else f"{reference:.3f}")
    kept = [_kept(scores, name) for name in models[1:]]
    row("**MRR kept**", ["", *kept])
    for length in speed["models"]["teacher"]["latency_ms"]:
        cells = ["1", *(_speed(speed, name, length) for name in models[1:])]
        row(f"**times as fast**, one text of {length} tokens", cells)
    count = scores["records"]
    note = (
        f"\n{count} held-out articles. In parentheses: 95% intervals. Speed on 1 thread, in "
        "float32 but for int8, interleaved; "
        f"{_machine(result)}. The whole job took "
        f"{sum(s['seconds'] for s in result['stages']) / 60:.1f} minutes.\n"
    )
    return _markdown(rows) + note


def _kept(scores: dict[str, Any], name: str) -> str:
    low, high = scores["intervals"][name]["retrieval.mrr"]
    return f"{scores['retention'][name]['retrieval.mrr']:.1%} ({low:.1%} to {high:.1%})"


def _speed(speed: dict[str, Any], name: str, length: str) -> str:
    return _interval(speed["ratios"][name]["speedup"][length])


def _interval(ratio: dict[str, Any]) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def masked_lm_ablation() -> str:
    """The arms of benchmarks/masked_lm_ablation.yaml."""
    result = _load("masked_lm_ablation")
    scores = _stage(result, "evaluate")
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
    return _markdown(rows) + note


def _ablation(result: dict[str, Any], labels: dict[str, str], digits: int = 3) -> str:
    """Each arm's mean score, its range over seeds, and the paired difference to the reference."""
    rows = [["", *(cell for label in labels.values() for cell in (label, "less the reference"))]]
    reference = result["arms"][result["reference"]]
    for arm, scores in result["arms"].items():
        cells = []
        for key in labels:
            score = scores[key]
            seeds = score["seeds"].values()
            spread = f" ({min(seeds):.{digits}f} to {max(seeds):.{digits}f})"
            cells.append(f"{score['mean']:.{digits}f}{spread if len(seeds) > 1 else ''}")
            low, high = score["interval"]
            difference = (
                f"{score['difference']:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
            )
            sure = low > 0 or high < 0
            same = arm in (result["reference"], "teacher")
            cells.append("" if same else f"**{difference}**" if sure else difference)
        named = f"{arm} (reference)" if arm == result["reference"] else arm
        done, wanted = (len(s[next(iter(labels))]["seeds"]) for s in (scores, reference))
        rows.append([named if done == wanted else f"{named}, {done} of {wanted} seeds", *cells])
    return _markdown(rows)


_HOW = (
    "In parentheses: the least and the greatest of the seeds; the paired 95% bootstrap interval of "
    "the difference. Bold: an interval without 0."
)


def ablation_embeddings() -> str:
    result = _load("ablation_embeddings")
    labels = {"title -> article": "title to article, MRR", "question -> paragraph": "SQuAD, MRR"}
    settings = result["settings"]
    seeds = len(result["arms"][result["reference"]]["title -> article"]["seeds"])
    note = f"\n{settings['tokens']:,} tokens an arm, {seeds} seeds; {_machine(result)}. {_HOW}\n"
    return _ablation(result, labels) + note


def ablation_sst2() -> str:
    result = _load("ablation_sst2")
    settings = result["settings"]
    seeds = len(result["arms"][result["reference"]]["accuracy"]["seeds"])
    note = (
        f"\n{settings['labelled']:,} sentences with labels and {settings['unlabelled']:,} without, "
        f"{settings['steps']} steps of 32 an arm, {seeds} seeds, "
        f"872 sentences of the dev set; {_machine(result)}. {_HOW}\n"
    )
    return _ablation(result, {"accuracy": "accuracy"}) + note


def ablation_positions() -> str:
    result = _load("ablation_positions")
    settings = result["settings"]
    seeds = len(result["arms"][result["reference"]]["top1"]["seeds"])
    ratio = settings["time_ratio"]
    spread = f"{min(ratio['rounds']):.2f} to {max(ratio['rounds']):.2f}"
    note = (
        f"\n{settings['tokens']:,} tokens an arm, the last {ratio['median']:.2f} times as many, "
        f"which take as long (median of {len(ratio['rounds'])} interleaved rounds, {spread}); "
        f"{seeds} seeds; {_machine(result)}. {_HOW}\n"
    )
    return _ablation(result, {"top1": "top-1", "minus loss": "minus loss"}) + note


TASKS = {
    "sst2_few": "SST-2, 1,000 labels, accuracy",
    "sst2_many": "SST-2, 32,000 labels, accuracy",
    "cola": "CoLA, Matthews' correlation",
    "rte": "RTE, accuracy",
    "bbc": "BBC News, accuracy",
    "wnut": "WNUT 17, F1 of entities",
    "squad": "SQuAD 2.0, F1 of words",
}


def tasks() -> str:
    """What benchmarks/tasks.py wrote: a row a task."""
    rows = [["", "teacher", "plain twin", "student", "kept", "less the twin", "best trivial"]]
    machine = ""
    for name, label in TASKS.items():
        if not (RESULTS / f"{name}.json").is_file():
            continue
        result = _load(name)
        evaluation, machine = result["evaluation"], _machine(result)
        task, metric = evaluation["task"], evaluation["metric"]
        key = f"{task}.{metric}"
        scores = {model: result["models"][model]["scores"][task] for model in result["models"]}

        def cell(model: str, scores: Any = scores, metric: str = metric) -> str:
            seeds = scores[model].get("seeds")
            spread = f" ({min(seeds):.3f} to {max(seeds):.3f})" if seeds else ""
            return f"{scores[model][metric]:.3f}{spread}"

        kept = "not clearly above chance"
        if key in evaluation["retention"].get("student", {}):
            low, high = evaluation["intervals"]["student"][key]
            kept = f"{evaluation['retention']['student'][key]:.1%} ({low:.1%} to {high:.1%})"
        told = evaluation["differences"]["plain"]
        low, high = told["interval"]
        less = f"{told['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
        trivial = max(value[task][metric] for value in evaluation["references"].values())
        rows.append(
            [
                *(label, cell("teacher"), cell("plain"), cell("student"), kept),
                *(f"**{less}**" if low > 0 or high < 0 else less, f"{trivial:.3f}"),
            ]
        )
    return _markdown(rows) + (
        f"\n{machine}. In parentheses: of scores the least and the greatest of three seeds; else "
        "the 95% bootstrap interval over the test examples. Bold: an interval without 0.\n"
    )


def bert_base_shapes() -> str:
    """What benchmarks/bert_base_shapes.py wrote: a row a model, made of the one before."""
    result = _load("bert_base_shapes")
    models, ratios, cpu = result["models"], result["ratios"], result["cpu_time"]
    pieces = result["pieces"]
    labels = {
        "bert-base": "BERT-base, PyTorch",
        "distilbert": "half the layers, DistilBERT",
        "pruned": f"{result['kept_units']:.0%} of the inner FFN units",
        "trimmed": f"{pieces['after']:,} of {pieces['before']:,} pieces",
        "onnx": "ONNX",
        "quantized": "int8",
    }
    lengths = list(models["bert-base"]["latency_ms"])
    head = ["", "parameters", "weights", "times as small"]
    for length in lengths:
        head += [f"CPU time, {length} tokens", "times as fast", "by wall time"]
    rows = [[*head, f"multiply-adds, {lengths[-1]} tokens"]]
    for name, label in labels.items():
        model, ratio = models[name], ratios.get(name)
        row = [label, f"{model['parameters'] / 1e6:.1f} M"]
        row.append(f"{model['weight_bytes'] / 1e6:.1f} MB")
        row.append(f"{1 / ratio['size_ratio']:.1f}" if ratio else "1")
        for length in lengths:
            samples = [one for each in result["raw_cpu"][name][length] for one in each]
            row.append(f"{statistics.median(samples):.1f} ms")
            row.append(_interval(cpu[name][length]) if ratio else "1")
            row.append(_speed(result, name, length) if ratio else "1")
        rows.append([*row, f"{model['multiply_adds'][lengths[-1]] / 1e9:.1f} G"])
    over = result["noise"]["wall_over_cpu"]
    note = (
        f"\nRandom weights, no head; {result['threads']} thread, batch 1, medians of "
        f"{result['rounds']} interleaved rounds of {result['repeats']} and, in parentheses, their "
        f"95% intervals; {_machine(result)}. The timed passes took {over:.2f} times their CPU time"
    )
    unclear = [
        label
        for name, label in labels.items()
        if any(
            one["verdict"] == "can't tell"
            for one in ratios.get(name, {}).get("speedup", {}).values()
        )
    ]
    if result["noise"]["noisy"]:
        note += ": other work was using the processor"
    if unclear:
        note += f'; by wall time alone the verdict is "can\'t tell" for {"; ".join(unclear)}'
    return _markdown(rows) + note + ".\n"


def glue() -> str:
    """What `potstill evaluate --suite glue` wrote as suite.json: a row a score."""
    if not (RESULTS / "glue.json").is_file():
        return "Not measured yet.\n"
    result = _load("glue")
    models, kept, told = result["models"], result["retention"], result["settings"]["tasks"]
    rows = [["times 100", "examples, trained on", "scored", *models, *(f"{n}, kept" for n in kept)]]
    for task, about in result["tasks"].items():
        names = about["metrics"] if len(about["metrics"]) == 1 else [*about["metrics"], "score"]
        for metric in names:
            part = metric.removeprefix("accuracy") if task == "mnli" and metric != "score" else ""
            counts = about["examples"]
            sizes = [counts["train"], counts.get(f"scored{part}", "")]
            found = [model["tasks"][task][metric] for model in models.values()]
            shares = [own["tasks"][task][metric] for own in kept.values()]
            small = ", too small a set" if about["small"] else ""
            shown = ["none" if share is None else f"{share:.1%}{small}" for share in shares]
            label = f"{about['title']}, {metric.replace('_', ' ')}"
            rows.append([label, *map(str, sizes), *map(_over_seeds, found), *shown])
    for key, label in (("all", "average"), ("without_wnli", "average without WNLI")):
        averages = [f"{100 * model['average'][key]:.1f}" for model in models.values()]
        shares = [own["overall"][key] for own in kept.values()]
        shown = ["none" if share is None else f"{share:.1%}" for share in shares]
        rows.append([label, "", "", *averages, *shown])
    rates = sorted({f"{task['training']['learning_rate']:g}" for task in told.values()})
    count = len(result["settings"]["seeds"])
    how = "One seed" if count == 1 else f"Medians of {count} seeds"
    partial = ""
    if result["partial"]:
        partial = f"**Partial, not the whole suite**: {'; '.join(result['partial_reasons'])}. "
    return _markdown(rows) + (
        f"\n{partial}{how}, in parentheses the least and the greatest; learning rate "
        f"{', '.join(rates)}; {_machine(result)}.\n"
    )


def _over_seeds(score: dict[str, Any]) -> str:
    spread = f" ({100 * score['min']:.1f} to {100 * score['max']:.1f})"
    return f"{100 * score['median']:.1f}{spread if len(score['all']) > 1 else ''}"


STEPS = {
    "student": "half the layers, distilled",
    "pruned": "half of each layer's inner units",
    "recovered": "distilled again",
    "trimmed": "word pieces that the text uses",
    "onnx": "ONNX",
    "quantized": "int8",
}


def compress_embeddings() -> str:
    """Each step of `embedding-compact`, as benchmarks/compress.py ran it."""
    result = _load("compress_embeddings")
    squad = result["squad"]
    key = "retrieval.mrr"

    def kept(model: str) -> list[str]:
        own = result["metrics"]["comparisons"][model]
        low, high = own["retention_intervals"][key]
        elsewhere = squad["models"][model]
        share = elsewhere["kept"]
        return [
            f"{own['retention_by_score'][key]:.1%} ({low:.1%} to {high:.1%})",
            "{:.1%} ({:.1%} to {:.1%})".format(share, *elsewhere["interval"]),
        ]

    scores = result["metrics"]["models"]["teacher"]["scores"]["retrieval"]["mrr"]
    own = [f"1 ({scores:.3f})", f"1 ({squad['models']['teacher']['mrr']:.3f})"]
    note = (
        f"MRR of {result['metrics']['settings']['records']} held-out articles by their titles, and "
        f"of {squad['paragraphs']} paragraphs of SQuAD by {squad['questions']} questions."
    )
    heads = ["MRR kept, title to article", "MRR kept, SQuAD"]
    return _steps(result, heads, own, kept) + f"\n{note} {_STEPS_HOW} {_machine(result)}.\n"


def compress_sst2() -> str:
    """Each step of `classification-compact`, as benchmarks/compress.py ran it."""
    result = _load("compress_sst2")
    key = "classification.accuracy"

    def kept(model: str) -> list[str]:
        own = result["metrics"]["comparisons"][model]
        low, high = own["retention_intervals"][key]
        return [f"{own['retention_by_score'][key]:.1%} ({low:.1%} to {high:.1%})"]

    score = result["metrics"]["models"]["teacher"]["scores"]["classification"]["accuracy"]
    note = f"{result['metrics']['settings']['records']} sentences of SST-2's dev set."
    table = _steps(result, ["accuracy kept"], [f"1 ({score:.3f})"], kept)
    return table + f"\n{note} {_STEPS_HOW} {_machine(result)}.\n"


_STEPS_HOW = (
    "Speed in one interleaved session, 1 thread, one text; in parentheses 95% intervals, and the "
    "teacher's own score."
)


def _steps(result: dict[str, Any], heads: list[str], own: list[str], kept: Any) -> str:
    models, ratios = result["metrics"]["models"], result["ratios"]
    rows = [
        ["", "parameters", "weights", "times smaller"]
        + [f"times as fast, {length} tokens" for length in models["teacher"]["latency_ms"]]
        + heads
    ]
    whole = models["teacher"]["weight_bytes"]

    def row(name: str, label: str, cells: list[str]) -> None:
        size = models[name]["weight_bytes"]
        rows.append(
            [
                *(label, f"{models[name]['parameters'] / 1e6:.1f} M", f"{size / 1e6:.1f} MB"),
                *(f"{whole / size:.1f}", *cells),
            ]
        )

    row("teacher", "teacher", [*["1"] * len(models["teacher"]["latency_ms"]), *own])
    for name, label in STEPS.items():
        speeds = [
            f"{one['median']:.2f} ({one['low']:.2f} to {one['high']:.2f})"
            for one in ratios[name]["speedup"].values()
        ]
        row(name, label, [*speeds, *kept(name)])
    return _markdown(rows)


def distill_step() -> str:
    """Potstill's step beside a plain one."""
    result = _load("distill_step")
    rows = [["soft targets", "tokens/s, times the plain step's", "peak memory", "plain step's"]]
    for positions, label, plain in (
        ("all", "on all tokens", "all"),
        ("masked", "on masked positions", "masked"),
        ("masked_beside_all", "on masked positions, beside a plain step on all tokens", "all"),
    ):
        ratio = result["ratios"][positions]
        speed = ratio["tokens_per_s"]
        ours = result["variants"][f"potstill-{'all' if positions == 'all' else 'masked'}"]
        theirs = result["variants"][f"plain-{plain}"]
        rows.append(
            [
                label,
                f"{speed['median']:.2f} ({speed['min']:.2f} to {speed['max']:.2f})",
                f"{ours['peak_memory_bytes'] / 1e9:.2f} GB ({ratio['peak_memory']:.0%})",
                f"{theirs['peak_memory_bytes'] / 1e9:.2f} GB",
            ]
        )
    floor = result["floor_bytes"]
    note = (
        f"\nBERT-base to 6 layers, {result['batch']['texts']} texts of {result['batch']['tokens']} "
        f"tokens, {result['threads']} threads, medians (and range) of {result['rounds']} "
        f"interleaved rounds; {_machine(result)}. Weights, gradients and AdamW's moments need "
        f"{floor['total'] / 1e9:.2f} GB of the memory whatever the step is, Python and libraries "
        f"{result['variants']['potstill-all']['memory_before_models_bytes'] / 1e9:.2f} GB.\n"
    )
    return _markdown(rows) + note


def _machine(result: dict[str, Any]) -> str:
    cpu = result["environment"]["cpu"]
    flags = ", ".join(flag.upper().replace("_", " ") for flag in cpu["flags"])
    return f"{cpu['model']}, {cpu['logical_cores']} cores, {flags}"


def _markdown(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    return "\n".join(lines) + "\n"


def _draw(path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "potstill"
    from matplotlib import pyplot

    result = _load("quickstart")
    scores, speed = _stage(result, "evaluate"), _stage(result, "benchmark")
    names = {"untrained": "before training", "student": "distilled", "quantized": "int8"}
    fast = speed["ratios"]["quantized"]["speedup"]
    bars = [
        *((f"MRR kept,\n{t}", scores["retention"][m]["retrieval.mrr"]) for m, t in names.items()),
        ("weights,\nint8", speed["ratios"]["quantized"]["size_ratio"]),
        *((f"time, {n} tokens,\nint8", 1 / r["median"]) for n, r in fast.items()),
    ]
    figure, axes = pyplot.subplots(figsize=(8, 2.8))
    for number, (_, value) in enumerate(bars):
        axes.bar(number, value, color="#2f6fb3" if number < len(names) else "#c8642b", width=0.6)
        axes.text(number, value + 0.02, f"{value:.0%}", ha="center", color="#777777")
    axes.axhline(1, color="#999999", linewidth=1, linestyle="--")
    axes.set_xticks(range(len(bars)), [label for label, _ in bars], color="#777777")
    axes.set_yticks([0, 0.5, 1], ["0", "50%", "teacher"], color="#777777")
    axes.set_ylim(0, 1.15)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, transparent=True, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect")
    collecting.add_argument("run", type=Path)
    collecting.add_argument("name")
    rendering = commands.add_parser("render")
    rendering.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.command == "collect":
        print(collect(arguments.run, arguments.name))
        return 0
    changed = render(arguments.check)
    print("\n".join(changed) or "nothing differs")
    return int(arguments.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
