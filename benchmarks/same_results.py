"""Whether two versions of the code compute the same to the bit: all recipes, on tiny models.

OLD_SRC and NEW_SRC are folders that hold the package `potstill`, such as `src` of two checkouts.
Each shipped recipe runs shortened in a process of either version: same inputs, float32, one thread,
CPU. Compared are losses of all steps, scores, weights, ONNX graphs, fingerprints and the names of
all files; not compared are times, memory, and the pages that show them. The exit status is 1 if
anything differs.

    python benchmarks/same_results.py OLD_SRC NEW_SRC [--recipes NAME ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

TEXT = "the pot still runs slowly and keeps warm a copper head tail never boils low oak malt smoke"
WORDS = TEXT.split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = [*SPECIAL, *WORDS, *(f"##{letter}" for letter in LETTERS), *LETTERS]
INPUTS = "../inputs"  # from either version's working directory, so that paths are the same
# Only whether they are there is compared: they show times, the machine, or defaults of new keys.
NOT_READ = {"environment.json", "recipe.yaml", "report.html", "README.md"}
# Measured times and memory, and what is made of them, wherever they are in a JSON file.
MEASURED = {
    *("seconds", "load_s", "peak_memory_bytes", "latency_ms", "latency_intervals_ms"),
    *("throughput_per_s", "throughput_by_batch", "noise", "noisy", "raw", "raw_cpu"),
    *("raw_throughput_per_s", "raw_throughput_by_batch", "speedup", "slower", "findings"),
}


# --- inputs ---------------------------------------------------------------------------------------


def make_inputs(folder: Path) -> None:
    """Teachers and text for all recipes, by transformers and tokenizers alone."""
    folder.mkdir(parents=True)
    _write_teachers(folder)
    texts = _sentences(300)
    (folder / "text.txt").write_text("\n".join(texts), encoding="utf-8")
    for number, text in enumerate(_sentences(120, seed=7)):
        path = folder / "documents" / ("copper", "oak")[number % 2] / f"{number:03}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{' '.join(text.split()[:5])}\n{text} {text[::-1]}\n", encoding="utf-8")
    for task, labels in (
        ("classification", ("bad", "good")),
        ("multi_label", ("bad", "bad,good")),
        ("regression", ("0.5", "3")),
        ("sentence_similarity", ("0.5", "3")),
    ):
        rows = [f"{text}\t{text} still\t{labels[i % 2]}\n" for i, text in enumerate(texts[:60])]
        content = "".join(["text\tother\tlabel\n", *rows])
        (folder / f"{task}.tsv").write_text(content, encoding="utf-8")
    tags = {"oak": "B-wood", "copper": "B-metal", "malt": "B-grain"}
    blocks = ["\n".join(f"{w}\t{tags.get(w, 'O')}" for w in t.split()) for t in texts[:80]]
    (folder / "token_classification.conll").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    paragraphs = [_paragraph(number, text) for number, text in enumerate(texts[:80])]
    tree = {"version": "v2.0", "data": [{"title": "made up", "paragraphs": paragraphs}]}
    (folder / "question_answering.json").write_text(json.dumps(tree), encoding="utf-8")


def _sentences(count: int, seed: int = 0) -> list[str]:
    """Random sentences in which a word is often followed by its neighbor in the list."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        numbers = [rng.randrange(len(WORDS))]
        for _ in range(rng.randint(5, 29)):
            follows = rng.random() < 0.8
            numbers.append((numbers[-1] + 1 if follows else rng.randrange(99)) % len(WORDS))
        found.append(" ".join(WORDS[number] for number in numbers))
    return found


def _paragraph(number: int, text: str) -> dict[str, Any]:
    """One question, whose answer is the text's third word; every fifth has none."""
    words = text.split()
    lacks = number % 5 == 0
    answer = {"text": words[2], "answer_start": len(" ".join(words[:2])) + 1}
    asked = {"id": str(number), "question": f"{words[1]} ?", "is_impossible": lacks}
    return {"context": text, "qas": [{**asked, "answers": [] if lacks else [answer]}]}


def _write_teachers(folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, BertTokenizer
    from transformers import AutoModelForSequenceClassification as Classifier

    labels = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    several = {**labels, "problem_type": "multi_label_classification"}
    ends = {"bos_token_id": 2, "eos_token_id": 3}
    modern = {"local_attention": 8, "cls_token_id": 2, "sep_token_id": 3, **ends}
    for seed, (name, family, head, layers, changes) in enumerate(
        [
            ("masked_lm", "bert", AutoModelForMaskedLM, 12, {}),
            ("roberta", "roberta", AutoModelForMaskedLM, 12, {"max_position_embeddings": 66}),
            ("modernbert", "modernbert", AutoModelForMaskedLM, 12, modern),
            ("encoder", "bert", AutoModel, 4, {}),
            ("small", "bert", AutoModel, 2, {}),
            ("classification", "bert", Classifier, 4, labels),
            ("multi_label", "bert", Classifier, 4, several),
            ("regression", "bert", Classifier, 4, {"num_labels": 1}),
        ]
    ):
        sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
        settings = {"max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0}
        settings |= {"vocab_size": len(VOCABULARY), "num_hidden_layers": layers, **sizes}
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, **{**settings, **changes})
        head.from_config(config).save_pretrained(folder / name)
        types = ["token_type_ids"] if family == "bert" else []
        reads = ["input_ids", *types, "attention_mask"]
        numbers = {token: number for number, token in enumerate(VOCABULARY)}
        tokenizer = BertTokenizer(vocab=numbers, model_max_length=64, model_input_names=reads)
        tokenizer.save_pretrained(folder / name)


# --- runs -----------------------------------------------------------------------------------------


def recipes_of(source: Path) -> dict[str, dict[str, Any]]:
    """Name -> content of the recipes that a version ships, wherever it has them."""
    trees = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in sorted((source / "potstill").rglob("*.yaml"))
    }
    return {name: tree for name, tree in trees.items() if "stages" in tree}


def overrides_of(name: str, tree: dict[str, Any]) -> list[str]:
    """What makes a shipped recipe one of tiny models, a little text and a few steps."""
    task, stages = tree["task"], tree["stages"]
    families = {"distilroberta": "roberta", "modernbert-half": "modernbert"}
    first = stages[0]  # of some recipes it makes the teacher
    trained = first["kind"] == "finetune" and first.get("model", "teacher") == "teacher"
    plain = trained or task == "sentence_embedding"
    found = [f"teacher={INPUTS}/{families.get(name, 'encoder' if plain else task)}"]
    if task in ("masked_lm", "sentence_embedding"):
        found += [f"corpus.sources={INPUTS}/text.txt", "corpus.max_length=40", "corpus.heldout=0.3"]
    else:
        found += [f"data.train={INPUTS}/{task}.*", "data.max_length=40", "data.heldout=0.3"]
    if task in ("regression", "sentence_similarity"):
        found += ["data.text=[text,other]", "data.label=label"]
    found += {
        "minilm-v2": ["student.width=16", "distill.objectives.relations.heads=4"],
        "quickstart": [
            f"corpus.sources={{kind: files, paths: ['{INPUTS}/documents/*/*.txt'], unit: document}}"
        ],
        "classification-two-steps": [f"teachers.small={INPUTS}/small"],
        "question-answering": ["data.stride=8"],
    }.get(name, [])
    return found + [
        f"stages.{number}.{change}"
        for number, stage in enumerate(stages)
        for change in _shorter(stage, task)
    ]


def _shorter(stage: dict[str, Any], task: str) -> Iterator[str]:
    match stage["kind"]:
        case "distill" | "finetune":
            yield from ("training.precision=fp32", "training.log_every=1", "training.max_steps=8")
            if task != "sentence_embedding":  # whose batches are groups
                yield from ("training.batch_size=8", "training.micro_batch_size=4")
            if stage.get("repeats", 1) > 1:
                yield "repeats=2"
        case "quantize":
            yield from ("lengths=[8,16]", "rounds=3", "require_faster=false")
            if "max_drop" in stage:
                yield "max_drop=1"  # of a model this small what int8 costs is chance
        case "benchmark":
            yield from ("lengths=[8,16]", "rounds=3", "repeats=1", "models=[]")
        case "evaluate":
            yield "max_records=40"


def run_recipe(source: Path, folder: Path, name: str, overrides: list[str]) -> Path | str:
    """Run a recipe with one version of the code: the run folder, or what it said when it failed."""
    folder.mkdir(exist_ok=True)
    changes = {"PYTHONPATH": str(source), "POTSTILL_CACHE": str(folder / "cache")}
    changes |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    changes |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "potstill", "run", name, *overrides, "--output", name]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **changes}, capture_output=True, text=True
    )
    return folder / name if done.returncode == 0 else done.stderr.strip()[-500:]


# --- comparison -----------------------------------------------------------------------------------


def differences(old: Path, new: Path) -> list[str]:
    """Each file of two run folders that differs, with the first place where a JSON file does."""
    names = [
        {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()} - {".lock"}
        for run in (old, new)
    ]
    found = [
        f"{name}: only in the {'old' if name in names[0] else 'new'} run"
        for name in sorted(names[0] ^ names[1])
    ]
    for name in sorted(names[0] & names[1]):
        if Path(name).name in NOT_READ:
            continue
        where = _differing(_content(old / name), _content(new / name))
        if where is not None:
            found.append(f"{name}{where}")
    return found


def _content(path: Path) -> Any:
    """What of a file must be the same."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.name == "DONE":  # the files themselves are compared
        record = json.loads(path.read_text(encoding="utf-8"))
        return {**record, "files": sorted(record["files"])}
    if path.suffix != ".json":
        return path.read_bytes()
    content = json.loads(path.read_text(encoding="utf-8"))
    # A stage's settings are in its fingerprint; here they have the defaults of new keys.
    return content["fingerprint"] if path.match("stages/*/config.json") else content


def _differing(old: Any, new: Any) -> str | None:
    """Where two contents differ first; None: nowhere."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in [*old, *(new.keys() - old.keys())] if key not in MEASURED]
        pairs = [(f".{key}", old.get(key, "nothing"), new.get(key, "nothing")) for key in keys]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(f"[{i}]", *pair) for i, pair in enumerate(zip(old, new, strict=True))]
    elif repr(old) == repr(new):  # all digits of a number; 1 is not 1.0
        return None
    else:
        return ": other bytes" if isinstance(old, bytes) else f": {old} is now {new}"[:200]
    for where, one, other in pairs:
        below = _differing(one, other)
        if below is not None:
            return where + below
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, metavar="OLD_SRC")
    parser.add_argument("new", type=Path, metavar="NEW_SRC")
    parser.add_argument("--recipes", nargs="+", metavar="NAME", help="these instead of all")
    parser.add_argument("--work", type=Path, help="an empty folder that is kept, to look into")
    parser.add_argument("--json", type=Path, metavar="FILE", help="what was found, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = compare(options, (options.work or Path(temporary)).resolve())
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    bad = [name for name, differing in found.items() if differing]
    print(f"{len(found)} recipes: " + (f"{len(bad)} differ: {', '.join(bad)}" if bad else "equal"))
    return 1 if bad else 0


def compare(options: argparse.Namespace, work: Path) -> dict[str, list[str]]:
    """Recipe -> what differs, each printed as it is found."""
    sides = {"old": options.old.resolve(), "new": options.new.resolve()}
    trees = {side: recipes_of(source) for side, source in sides.items()}
    make_inputs(work / "inputs")
    found: dict[str, list[str]] = {}
    for name in options.recipes or sorted(trees["old"] | trees["new"]):
        start = time.perf_counter()
        missing = [side for side in sides if name not in trees[side]]
        if missing:
            found[name] = [f"not shipped by the {side} version" for side in missing]
        else:
            overrides = overrides_of(name, trees["old"][name])
            runs = {s: run_recipe(source, work / s, name, overrides) for s, source in sides.items()}
            failed = [f"{side}: {run}" for side, run in runs.items() if isinstance(run, str)]
            found[name] = failed or differences(*runs.values())
        seconds = time.perf_counter() - start
        print(f"{name}: {'; '.join(found[name]) or 'equal'} ({seconds:.0f} s)", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
