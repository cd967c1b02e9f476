"""Tables of what is saved: bytes and time of each step, speed and memory of a training step."""

from __future__ import annotations

import statistics
from typing import Any

from doc_tables import interval, kept_share, load, machine, markdown, over_seeds, spread

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
    result = load("compress_embeddings")
    squad = result["squad"]
    key = "retrieval.mrr"

    def kept(model: str) -> list[str]:
        elsewhere = squad["models"][model]
        return [
            kept_share(result["metrics"]["comparisons"][model], key),
            spread(elsewhere["kept"], *elsewhere["interval"], ".1%"),
        ]

    scores = result["metrics"]["models"]["teacher"]["scores"]["retrieval"]["mrr"]
    own = [f"1 ({scores:.3f})", f"1 ({squad['models']['teacher']['mrr']:.3f})"]
    note = (
        f"MRR of {result['metrics']['settings']['records']} held-out articles by their titles, and "
        f"of {squad['paragraphs']} paragraphs of SQuAD by {squad['questions']} questions."
    )
    heads = ["MRR kept, title to article", "MRR kept, SQuAD"]
    return _steps(result, heads, own, kept) + f"\n{note} {_STEPS_HOW} {machine(result)}.\n"


def compress_sst2() -> str:
    """Each step of `classification-compact`, as benchmarks/compress.py ran it."""
    result = load("compress_sst2")
    key = "classification.accuracy"

    def kept(model: str) -> list[str]:
        return [kept_share(result["metrics"]["comparisons"][model], key)]

    score = result["metrics"]["models"]["teacher"]["scores"]["classification"]["accuracy"]
    note = f"{result['metrics']['settings']['records']} sentences of SST-2's dev set."
    table = _steps(result, ["accuracy kept"], [f"1 ({score:.3f})"], kept)
    return table + f"\n{note} {_STEPS_HOW} {machine(result)}.\n"


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
        speeds = [interval(one) for one in ratios[name]["speedup"].values()]
        row(name, label, [*speeds, *kept(name)])
    return markdown(rows)


def bert_base_shapes() -> str:
    """What benchmarks/bert_base_shapes.py wrote: a row a model, made of the one before."""
    result = load("bert_base_shapes")
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
            row.append(interval(cpu[name][length]) if ratio else "1")
            row.append(interval(ratio["speedup"][length]) if ratio else "1")
        rows.append([*row, f"{model['multiply_adds'][lengths[-1]] / 1e9:.1f} G"])
    over = result["noise"]["wall_over_cpu"]
    note = (
        f"\nRandom weights, no head; {result['threads']} thread, batch 1, medians of "
        f"{result['rounds']} interleaved rounds of {result['repeats']} and, in parentheses, their "
        f"95% intervals; {machine(result)}. The timed passes took {over:.2f} times their CPU time"
    )
    if result["noise"]["noisy"]:
        note += ": other work was using the processor"
    return markdown(rows) + note + ".\n"


def cached_teacher() -> str:
    """An epoch with a teacher's kept answers, and with the teacher asked, over a plain one."""
    result = load("cached_teacher")
    ways = {
        "cached": "the teacher's kept answers",
        "live": "the teacher asked for every batch",
    }
    rows = [["an epoch of the triple loss with", "time, in plain epochs"]]
    for way, label in ways.items():
        found = result["over_plain"][way]
        rows.append([label, over_seeds(found["median"], found["all"], ".2f")])
    asking = result["asking_once_s"] / result["epoch_s"]["plain"]["median"]
    shape = result["shape"]
    note = (
        f"\nThe shapes of all-MiniLM-L6-v2 and its half ({shape['teacher_layers']} and "
        f"{shape['student_layers']} layers, random weights), {result['examples']:,} examples of 8 "
        f"to 48 tokens, {result['threads']} thread; medians (and range) of {result['rounds']} "
        f"interleaved rounds; {machine(result)}. Asking about all examples, once, took "
        f"{asking:.1f} plain epochs.\n"
    )
    return markdown(rows) + note


def distill_step() -> str:
    """Potstill's step beside a plain one."""
    result = load("distill_step")
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
                spread(speed["median"], speed["min"], speed["max"], ".2f"),
                f"{ours['peak_memory_bytes'] / 1e9:.2f} GB ({ratio['peak_memory']:.0%})",
                f"{theirs['peak_memory_bytes'] / 1e9:.2f} GB",
            ]
        )
    floor = result["floor_bytes"]
    note = (
        f"\nBERT-base to 6 layers, {result['batch']['texts']} texts of {result['batch']['tokens']} "
        f"tokens, {result['threads']} threads, medians (and range) of {result['rounds']} "
        f"interleaved rounds; {machine(result)}. Weights, gradients and AdamW's moments need "
        f"{floor['total'] / 1e9:.2f} GB of the memory whatever the step is, Python and libraries "
        f"{result['variants']['potstill-all']['memory_before_models_bytes'] / 1e9:.2f} GB.\n"
    )
    return markdown(rows) + note


def training_speed() -> str:
    """Potstill's training at real lengths beside a plain loop and another trainer."""
    result = load("training_speed")
    rows = [["way", "tokens/s in float32", "tokens/s in its fastest format"]]
    for way in ("plain", "potstill", "potstill, cached", "sentence-transformers"):
        cells = [way]
        for kind in ("fp32", "best"):
            found = result["tokens_per_s"][f"{way}, {kind}"]
            each = found["rounds"]
            cells.append(spread(found["median"], min(each), max(each), ",.0f"))
        cells[-1] += f" ({found['precision'].removeprefix('precision: ')})"
        rows.append(cells)

    def ratio(name: str) -> str:
        one = result["ratios"][name]
        return spread(one["median"], one["min"], one["max"], ".2f")

    padding, product = result["computed_over_real"], result["matrix_product_flops_per_s"]
    trainer = "sentence-transformers, best"
    note = (
        f"\nall-MiniLM-L6-v2 to 3 layers on {result['rows']:,} texts of BBC News, at most 64 "
        f"tokens, {result['threads']} threads, medians (and range) of {result['rounds']} "
        f"interleaved rounds; {machine(result)}. Ratios within a round: potstill over plain "
        f"{ratio('potstill, best / plain, best')}; cached over a live teacher "
        f"{ratio('cached, best / potstill, best')}; cached over sentence-transformers, whose "
        f"vectors were computed before, too, {ratio(f'cached, best / {trainer}')}; live over it "
        f"{ratio(f'potstill, best / {trainer}')}. Computed tokens over real ones: "
        f"{padding['potstill']:.3f}, shuffled {padding['shuffled']:.3f}. Outside the models and "
        f"the head: {result['outside_models_and_head']:.1%} of the loop's time. A large matrix "
        f"product: {product['float32'] / 1e9:,.0f} GFLOP/s in float32, "
        f"{product['bfloat16'] / 1e9:,.0f} in bfloat16.\n"
    )
    return markdown(rows) + note
