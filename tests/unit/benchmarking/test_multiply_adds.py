"""Multiply-adds, against counts by hand and those that torch counts of a model with weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LongformerConfig, LongformerModel

from potstill.benchmarking.multiply_adds import multiply_adds, of_model
from potstill.compression.parts import Encoder
from potstill.compression.pruning import reshaped
from potstill.graphs import write_graph
from potstill.graphs.quantization import FloatGraph
from potstill.models import load_model, save_model
from potstill.recipe import Quantize
from tiny_families import HEADS, MISSING, NAMES, family_model
from tiny_graphs import exported, moved

LENGTH = 11
D, FFN, V, LAYERS = 24, 40, 53, 6  # of tiny_families
LAYER = 4 * LENGTH * D**2 + 2 * LENGTH**2 * D + 2 * LENGTH * D * FFN


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("bert", "masked_lm", LAYERS * LAYER + LENGTH * D * D + LENGTH * D * V),
        ("bert", "classification", LAYERS * LAYER + D * D + D * 3),  # the first token's pooler
        ("distilbert", "headless", LAYERS * LAYER),
        # embeddings of 16, widened
        ("electra", "headless", LAYERS * LAYER + LENGTH * 16 * D),
        # a gate beside what writes the inner width
        ("modernbert", "headless", LAYERS * (LAYER + LENGTH * D * FFN)),
        # two heads of keys and values for four of queries: half of two projections less
        ("eurobert", "headless", LAYERS * (LAYER + LENGTH * D * FFN - LENGTH * D * D)),
    ],
)
def test_of_a_model_by_hand(name: str, head: str, expected: int) -> None:
    assert of_model(family_model(name, head).to("meta"), LENGTH) == expected


@pytest.mark.parametrize("name", NAMES)
def test_weights_and_a_mask_change_nothing(name: str) -> None:
    for head in HEADS:
        if (name, head) in MISSING:
            continue
        model = family_model(name, head).requires_grad_(False)
        model.set_attn_implementation("eager")
        ids_BL = torch.randint(5, V, (1, LENGTH))
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL))
        assert of_model(model.to("meta"), LENGTH) == counter.get_total_flops() / 2, head


def test_a_model_whose_code_reads_values(tmp_path: Path) -> None:
    config = LongformerConfig(
        **{"vocab_size": V, "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"intermediate_size": FFN, "max_position_embeddings": 64, "attention_window": [4, 4]},
    )
    model = LongformerModel(config, add_pooling_layer=False).eval().requires_grad_(False)
    with pytest.raises(RuntimeError, match="meta"):
        of_model(LongformerModel(config).to("meta"), LENGTH)
    model.save_pretrained(tmp_path)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.randint(5, V, (1, LENGTH)))
    assert multiply_adds(tmp_path, [LENGTH]) == {"11": counter.get_total_flops() / 2}


def by_hand(folder: Path) -> int:
    """Of a text of LENGTH tokens in a masked LM."""
    config = json.loads((folder / "config.json").read_text())
    width, inner = config["hidden_size"], config["intermediate_size"]
    layer = 4 * LENGTH * width**2 + 2 * LENGTH**2 * width + 2 * LENGTH * width * inner
    head = LENGTH * width * (width + config["vocab_size"])
    return int(config["num_hidden_layers"] * layer + head)


def test_a_graph_has_those_of_its_model(masked_lm_teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(moved(load_model(masked_lm_teacher, "masked_lm")), folder)
    _, graph = exported(folder, "masked_lm")
    expected = {"11": by_hand(folder)}
    assert multiply_adds(folder, [LENGTH]) == expected
    assert multiply_adds(graph, [LENGTH]) == expected
    # how numbers are written does not change how many are multiplied
    for method in ("dynamic", "4bit"):
        path = folder / "onnx" / f"{method}.onnx"
        FloatGraph(graph, Quantize(method=method)).write(path, [], [])
        assert multiply_adds(path, [LENGTH]) == expected, method
    # fp16 writes the embeddings, which the decoder shares, once more: that is another shape
    path = folder / "onnx" / "fp16.onnx"
    FloatGraph(graph, Quantize(method="fp16")).write(path, [], [])
    assert multiply_adds(path, [LENGTH]) == {"11": None}
    # nor does it matter whether the weights are there
    (folder / "model.safetensors").unlink()
    assert multiply_adds(graph, [LENGTH, LENGTH]) == expected


def test_a_graph_without_a_model_of_its_shape_has_none(
    masked_lm_teacher: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(masked_lm_teacher, folder)
    source = moved(load_model(folder, "masked_lm"))
    layers = source.model.config.num_hidden_layers
    smaller = reshaped(Encoder(source.model, source.family), None, [torch.arange(5)] * layers)
    place = folder / "onnx"
    place.mkdir()
    graph = write_graph(replace(source, model=smaller), place)
    assert multiply_adds(graph, [8, LENGTH]) == {"8": None, "11": None}
    (folder / "config.json").write_text('{"model_type": "of-tomorrow"}')
    assert multiply_adds(graph, [8]) == {"8": None}
