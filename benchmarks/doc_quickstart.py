"""The quickstart's numbers: README's table and picture, and the recipe's line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from doc_tables import interval, load, machine, markdown, spread, stage_result


def shipped_quickstart() -> str:
    """The line of the one recipe that was run as it ships."""
    result = load("quickstart")
    kept = _kept(stage_result(result, "evaluate"), "student")
    minutes = sum(stage["seconds"] for stage in result["stages"]) / 60
    return (
        f"`quickstart` took {minutes:.0f} minutes on 2 CPU cores and kept {kept} of the teacher's "
        "MRR (in parentheses: 95% interval).\n"
    )


def quickstart() -> str:
    """Teacher, student, what was made of it, and the student before training."""
    result = load("quickstart")
    scores, speed = stage_result(result, "evaluate"), stage_result(result, "benchmark")
    columns = {
        **{"teacher": "teacher", "student": "student", "trimmed": "vocabulary trimmed"},
        **{"onnx": "ONNX", "quantized": "int8", "untrained": "student before training"},
    }
    models = [name for name in columns if name in speed["models"]]
    rows = [["", *(columns[name] for name in models), "TF-IDF"]]

    def row(label: str, cells: list[str], reference: str = "") -> None:
        rows.append([label, *cells, reference])

    made = stage_result(result, "make_student")
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
        cells = ["1", *(interval(speed["ratios"][name]["speedup"][length]) for name in models[1:])]
        row(f"**times as fast**, one text of {length} tokens", cells)
    count = scores["records"]
    note = (
        f"\n{count} held-out articles. In parentheses: 95% intervals. Speed on 1 thread, in "
        "float32 but for int8, interleaved; "
        f"{machine(result)}. The whole job took "
        f"{sum(s['seconds'] for s in result['stages']) / 60:.1f} minutes.\n"
    )
    return markdown(rows) + note


def _kept(scores: dict[str, Any], name: str) -> str:
    key = "retrieval.mrr"
    return spread(scores["retention"][name][key], *scores["intervals"][name][key], ".1%")


def draw(path: Path) -> None:
    """README's picture."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "potstill"
    from matplotlib import pyplot

    result = load("quickstart")
    scores, speed = stage_result(result, "evaluate"), stage_result(result, "benchmark")
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
