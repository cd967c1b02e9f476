"""Made-up examples in the official layouts of GLUE, IMDb and SQuAD."""

from __future__ import annotations

import random
from pathlib import Path

from conftest import sentences
from tiny_tasks import questions, write_squad

TRAIN, SCORED = 12, 8

_STS = "index genre filename year old_index source1 source2 sentence1 sentence2"
_MNLI = (
    "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
    "sentence1_parse sentence2_parse sentence1 sentence2"
)
_MRPC = ["#1 ID", "#2 ID", "#1 String", "#2 String"]
_INFERENCE = "index sentence1 sentence2"

# folder -> header, labels
TABLES: dict[str, tuple[list[str], list[str]]] = {
    "CoLA": (["", "", "", ""], ["0", "1"]),
    "SST-2": (["sentence", "label"], ["0", "1"]),
    "MRPC": (["Quality", *_MRPC], ["0", "1"]),
    "QQP": (["id", "qid1", "qid2", "question1", "question2", "is_duplicate"], ["0", "1"]),
    "STS-B": (f"{_STS} score".split(), []),
    "MNLI": (f"{_MNLI} label1 gold_label".split(), ["contradiction", "entailment", "neutral"]),
    "QNLI": (["index", "question", "sentence", "label"], ["entailment", "not_entailment"]),
    "RTE": (f"{_INFERENCE} label".split(), ["entailment", "not_entailment"]),
    "WNLI": (f"{_INFERENCE} label".split(), ["0", "1"]),
}
_TEXTS = {"sentence", "sentence1", "sentence2", "question", "question1", "question2"}
_TEXTS |= {"#1 String", "#2 String"}


def write_glue(folder: Path, tasks: list[str] | None = None) -> Path:
    """All nine tasks; test files, which nothing reads, are not there."""
    for name in tasks or TABLES:
        own = folder / name
        own.mkdir(parents=True)
        header, labels = TABLES[name]
        parts = ("_matched", "_mismatched") if name == "MNLI" else ("",)
        _table(own / "train.tsv", header, labels, TRAIN, name)
        for number, part in enumerate(parts):
            _table(own / f"dev{part}.tsv", header, labels, SCORED, name, seed=1 + number)
    return folder


def _table(
    path: Path, header: list[str], labels: list[str], count: int, task: str, seed: int = 0
) -> None:
    rng, texts = random.Random(seed), iter(sentences(2 * count, seed))
    lines = [] if header[0] == "" else ["\t".join(header)]
    for number in range(count):
        label = labels[number % len(labels)] if labels else f"{rng.uniform(0, 5):.3f}"
        if header[0] == "":
            fields = ["mm01", label, "*" if label == "0" else "", _short(next(texts))]
        else:
            fields = []
            for column in header:
                if column in _TEXTS:
                    # quotes are text in these files
                    fields.append(('"' if number == 0 else "") + _short(next(texts)))
                elif column in ("Quality", "is_duplicate", "label", "gold_label", "score"):
                    fields.append(label)
                else:
                    fields.append(str(number))
        lines.append("\t".join(fields))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _short(text: str) -> str:
    return " ".join(text.split()[:8])


def write_imdb(folder: Path) -> Path:
    for side, count in (("train", TRAIN), ("test", SCORED)):
        texts = iter(sentences(count, len(side)))
        for label in ("neg", "pos"):
            own = folder / "aclImdb" / side / label
            own.mkdir(parents=True)
            for number in range(count // 2):
                path = own / f"{number}_{number % 10}.txt"
                path.write_text(f"{next(texts)}<br /><br />{label}", encoding="utf-8")
    return folder


def write_squads(folder: Path) -> Path:
    for version, lacking in (("1.1", 0.0), ("2.0", 0.4)):
        for side, count in (("train", TRAIN), ("dev", SCORED)):
            rows = questions(count, seed=len(side), lacking=lacking)
            write_squad(folder / f"{side}-v{version}.json", rows)
    return folder
