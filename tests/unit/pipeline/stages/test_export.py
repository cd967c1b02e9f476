"""The export stage, in runs: what is written, published, scored; and what a failure leaves."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import yaml
from tiny_recipes import of_encoder, stage_result, written

from conftest import Finished, sentences
from potstill import evaluate, export
from potstill.errors import ParityFailed
from potstill.models import load_model, save_model
from potstill.pipeline import run
from potstill.pipeline.plan.plan import plan_run
from potstill.pipeline.runner import rebuild_report
from potstill.pipeline.stages import export as export_stage
from potstill.recipe import GraphPruning, Recipe
from potstill.storage.onnx_files import count_parameters
from potstill.tasks import predict
from tiny_graphs import moved

MAKE = {"kind": "make_student", "writes": "student"}
EXPORT = {"kind": "export"}


def onnx_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.onnx*"))


@pytest.fixture(scope="module")
def finished(
    sentence_teacher: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    teacher = tmp_path_factory.mktemp("teacher")
    save_model(moved(load_model(sentence_teacher, "sentence_embedding")), teacher)
    recipe = of_encoder(teacher, text_file, MAKE, EXPORT, {"kind": "evaluate"}, {"kind": "report"})
    return run(Recipe.model_validate(recipe), output=tmp_path_factory.mktemp("runs") / "run")


def test_a_whole_model_folder_is_written_and_published(finished: Path) -> None:
    folder = finished / "stages/02-export/model"
    assert onnx_files(finished) == [
        "model/onnx/model.onnx",
        "stages/02-export/model/onnx/model.onnx",
    ]
    assert not list(finished.rglob(".onnx.tmp"))
    texts = sentences(5, seed=9)
    expected = predict(finished / "stages/01-make_student/model", texts, "sentence_embedding")
    for model in (folder, finished / "model", finished / "model/onnx/model.onnx"):
        found = predict(model, texts, "sentence_embedding")
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_result_keeps_each_corner(finished: Path) -> None:
    found = stage_result(finished, "02-export")
    graph = finished / "model/onnx/model.onnx"
    assert found["opset"] == 18
    assert found["inputs"] == ["input_ids", "attention_mask"]
    assert found["outputs"] == ["last_hidden_state", "sentence_embedding"]
    assert found["weight_bytes"] == graph.stat().st_size
    student = load_model(finished / "model", "sentence_embedding").model
    assert found["parameters"] == student.num_parameters()
    names = [corner["corner"] for corner in found["corners"]]
    assert names[0] == "real text"
    assert "a sentence pair" in names
    worst = max(value for corner in found["corners"] for value in corner["difference"].values())
    assert 0 < found["difference"] == worst < found["tolerance"] == 1e-4


def test_it_is_scored_as_its_source(finished: Path) -> None:
    scores = stage_result(finished, "03-evaluate")["models"]
    assert list(scores) == ["teacher", "student", "onnx"]
    for part, values in scores["student"].items():
        assert scores["onnx"][part] == pytest.approx(values, abs=1e-5)
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["models"]["onnx"]["parameters"] == metrics["models"]["student"]["parameters"]
    assert (
        metrics["models"]["onnx"]["weight_bytes"]
        == stage_result(finished, "02-export")["weight_bytes"]
    )


def test_report_and_card_tell_of_it(finished: Path) -> None:
    worst = f"{stage_result(finished, '02-export')['difference']:.1e}"
    report = (finished / "report.html").read_text()
    assert "onnx is student as an ONNX graph of opset 18 (model.onnx)." in report
    assert f"differ by {worst} of the largest at most; 0.0001 was accepted" in report
    assert "a sentence pair" in report
    card = (finished / "model/README.md").read_text()
    assert "onnx/model.onnx is the same model as an ONNX graph of opset 18." in card
    assert f"differ by {worst} of the largest at most" in card


# --- shapes that only a graph can have ---

PRUNE = {"heads": 0.5, "ffn": 0.5}


def shapes(graph: Path) -> Counter[tuple[int, ...]]:
    """Weight matrices of a graph: how often each shape is there."""
    found = onnx.load(graph).graph.initializer
    return Counter(tuple(tensor.dims) for tensor in found if len(tensor.dims) == 2)


@pytest.fixture(scope="module")
def pruned(
    sentence_teacher: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    teacher = tmp_path_factory.mktemp("teacher")
    save_model(moved(load_model(sentence_teacher, "sentence_embedding")), teacher)
    whole = {"kind": "export", "model": "teacher", "writes": "whole"}
    smaller = {"kind": "export", "model": "teacher", "writes": "onnx", "prune": PRUNE}
    quantize = {"kind": "quantize", "rounds": 3, "lengths": [8]}
    recipe = of_encoder(
        teacher, text_file, whole, smaller, quantize, {"kind": "evaluate"}, {"kind": "report"}
    )
    return run(Recipe.model_validate(recipe), output=tmp_path_factory.mktemp("runs") / "run")


def test_a_pruned_graph_is_smaller_and_its_folder_whole(pruned: Path) -> None:
    one, two = (pruned / "stages" / name / "model" for name in ("01-export", "02-export"))
    graph = two / "onnx/model.onnx"
    assert graph.stat().st_size < (one / "onnx/model.onnx").stat().st_size
    found = stage_result(pruned, "02-export")
    model = load_model(two, "sentence_embedding").model  # whole, by plain transformers
    assert (two / "model.safetensors").read_bytes() == (one / "model.safetensors").read_bytes()
    config, told = model.config, found["pruned"]["layers"]
    heads, units = told["attention heads"], told["inner FFN units"]
    layers, width = config.num_hidden_layers, config.hidden_size
    assert heads["of"] == config.num_attention_heads
    assert units["of"] == config.intermediate_size
    assert sum(heads["kept"]) == max(layers * heads["of"] // 2, layers)
    assert sum(units["kept"]) == layers * units["of"] // 2
    # every weight that was pruned is there in its smaller shape, transposed as ONNX multiplies
    of_a_head = width // heads["of"]
    expected: Counter[tuple[int, ...]] = Counter()
    for head_count, unit_count in zip(heads["kept"], units["kept"], strict=True):
        expected[width, of_a_head * head_count] += 3
        expected[of_a_head * head_count, width] += 1
        expected[width, unit_count] += 1
        expected[unit_count, width] += 1
    there = shapes(graph)
    assert all(there[shape] >= count for shape, count in expected.items())
    old = (width, units["of"]), (units["of"], width)
    assert all(there[shape] == expected[shape] for shape in old)
    assert found["parameters"] == found["pruned"]["parameters"]["after"]
    gone = sum(
        (heads["of"] - head_count) * of_a_head * (4 * width + 3)
        + (units["of"] - unit_count) * (2 * width + 1)
        for head_count, unit_count in zip(heads["kept"], units["kept"], strict=True)
    )
    assert found["parameters"] == model.num_parameters() - gone


def test_what_pruning_changed_is_told(pruned: Path) -> None:
    found = stage_result(pruned, "02-export")
    told = found["pruned"]
    assert told["importance"] == "taylor"
    folder = pruned / "stages/01-export/model"
    # the mean cosine of the vectors of whole model and pruned graph, as numpy computes it
    assert 0 < told["agreement"] < 1
    one = predict(folder, sentences(40, seed=3), "sentence_embedding")
    graph = pruned / "stages/02-export/model/onnx/model.onnx"
    two = predict(graph, sentences(40, seed=3), "sentence_embedding")
    assert abs(float((one * two).sum(1).mean()) - told["agreement"]) < 0.1
    [finding] = found["findings"]
    assert finding.startswith("onnx keeps 8 of 16 attention heads and ")
    assert f"the mean cosine of their vectors is {told['agreement']:.3f}" in finding
    report = (pruned / "report.html").read_text()
    assert "the mean cosine of their vectors is " in report
    heads = ", ".join(map(str, told["layers"]["attention heads"]["kept"]))
    assert f"layer by layer: {heads} of 4 attention heads; " in report
    assert "No config.json can say such a shape" in report


def test_a_pruned_graph_is_quantised_and_scored(pruned: Path) -> None:
    scores = stage_result(pruned, "04-evaluate")["models"]
    assert set(scores) == {"teacher", "whole", "onnx", "quantized"}
    result = stage_result(pruned, "03-quantize")
    assert result["weight_bytes"] < stage_result(pruned, "02-export")["weight_bytes"]


def test_it_says_beforehand_where_the_shape_lives(
    sentence_teacher: Path, text_file: Path, tmp_path: Path, potstill: Callable[..., Finished]
) -> None:
    prune = {"heads": 0.5, "importance": "magnitude", "agreement": 0.999}
    stage = EXPORT | {"model": "teacher", "prune": prune}
    path = written(tmp_path, yaml.safe_dump(of_encoder(sentence_teacher, text_file, stage)))
    plan = potstill("run", path, "--plan", "--output", tmp_path / "run")
    assert "only the ONNX graph has this shape" in " ".join(plan.out.split())
    done = potstill("run", path, "--output", tmp_path / "run")
    assert done.code == 1
    said = " ".join(done.out.split())
    assert said.index("only the ONNX graph has this shape") < said.index("writing onnx as an ONNX")
    assert "onnx keeps 8 of 16 attention heads: " in said
    assert "its answers agree in " in done.err
    assert (
        "lowest accepted agreement is 99.9%. Set a lower agreement if that is enough." in done.err
    )
    assert not onnx_files(tmp_path)
    assert not (tmp_path / "run/stages/01-export/model").exists()


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ({}, "stages.0.prune: this would prune nothing. Set heads, ffn or both."),
        ({"heads": 1.0}, "prune.heads: input should be less than 1 (given: 1.0)"),
        ({"head": 0.5}, "stages.0.prune.head: unknown key. Did you mean 'heads'?"),
        (
            {"heads": 0.99},
            "prune.heads: 0.99 removes nothing from 4 layers of 4. Set a smaller",
        ),
        ({"ffn": 0.5, "importance": "magnitude", "texts": 4}, "importance magnitude reads no tex"),
    ],
)
def test_what_can_t_be_pruned_is_refused_before_anything_starts(
    sentence_teacher: Path,
    text_file: Path,
    tmp_path: Path,
    potstill: Callable[..., Finished],
    prune: dict[str, object],
    message: str,
) -> None:
    stage = EXPORT | {"model": "teacher", "prune": prune}
    path = written(tmp_path, yaml.safe_dump(of_encoder(sentence_teacher, text_file, stage)))
    done = potstill("run", path, "--output", tmp_path / "run")
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "run").exists()


def test_nothing_runs_twice_and_a_damaged_graph_is_published_again(finished: Path) -> None:
    recipe = Recipe.model_validate(yaml.safe_load((finished / "recipe.yaml").read_text()))
    published = finished / "model/onnx/model.onnx"
    whole, done = published.read_bytes(), finished / "stages/02-export/DONE"
    before = done.stat().st_mtime_ns
    published.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"model\.onnx is not what stage 2 \(export\) wrote"):
        rebuild_report(finished)
    run(recipe, output=finished)
    assert published.read_bytes() == whole
    assert done.stat().st_mtime_ns == before


def test_a_failed_gate_leaves_no_graph(
    sentence_teacher: Path,
    text_file: Path,
    tmp_path: Path,
    potstill: Callable[..., Finished],
) -> None:
    recipe = of_encoder(sentence_teacher, text_file, MAKE, EXPORT | {"tolerance": 1e-12})
    path, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(recipe))
    done = potstill("run", path, "--output", folder)
    assert done.code == 1
    [line] = done.err.splitlines()
    assert "failed the parity gate: its outputs differ by " in line
    assert "and 1e-12 is accepted" in line
    assert not onnx_files(folder)
    assert not (folder / "stages/02-export/model").exists()
    assert not (folder / "stages/02-export/DONE").exists()
    # what came before it is there, and the run goes on once the gate is what it should be
    assert (folder / "model/model.safetensors").is_file()
    assert potstill("run", path, "export.tolerance=1e-4", "--output", folder).code == 0
    assert (folder / "model/onnx/model.onnx").is_file()


def test_an_export_that_is_no_longer_asked_for_is_not_published(
    sentence_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    recipe = Recipe.model_validate(of_encoder(sentence_teacher, text_file, MAKE, EXPORT))
    folder = run(recipe, output=tmp_path / "run")
    assert (folder / "model/onnx/model.onnx").is_file()
    run(Recipe.model_validate(of_encoder(sentence_teacher, text_file, MAKE)), output=folder)
    assert not (folder / "model/onnx").exists()
    assert (folder / "model/model.safetensors").is_file()


class Disk(NamedTuple):
    free: int


def test_too_little_disk(
    sentence_teacher: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    potstill: Callable[..., Finished],
) -> None:
    recipe = of_encoder(sentence_teacher, text_file, MAKE, EXPORT)
    path = written(tmp_path, yaml.safe_dump(recipe))
    monkeypatch.setattr(export_stage.shutil, "disk_usage", lambda _: Disk(10))
    done = potstill("run", path, "--output", tmp_path / "run")
    assert done.code == 1
    assert "the export needs about " in done.err
    assert not (tmp_path / "run/stages/02-export/model").exists()


def test_an_onnx_file_can_t_be_trained(sentence_teacher: Path, text_file: Path) -> None:
    other = {"kind": "make_student", "teacher": "onnx", "writes": "smaller"}
    with pytest.raises(ValueError, match=r"stage 3 \(make_student\): the model 'onnx' is an"):
        Recipe.model_validate(of_encoder(sentence_teacher, text_file, MAKE, EXPORT, other))


def test_from_python(masked_lm_teacher: Path, text_file: Path, tmp_path: Path) -> None:
    graph = export(masked_lm_teacher, str(text_file), tmp_path / "exported")
    assert graph == tmp_path / "exported/model/onnx/model.onnx"
    before = graph.stat().st_mtime_ns
    assert export(masked_lm_teacher, str(text_file), tmp_path / "exported") == graph
    assert graph.stat().st_mtime_ns == before
    pruned = GraphPruning(ffn=0.5)
    smaller = export(masked_lm_teacher, str(text_file), tmp_path / "smaller", prune=pruned)
    assert count_parameters(smaller) < count_parameters(graph)
    found = evaluate([graph], masked_lm_teacher, str(text_file))["models"]
    one, two = found[str(graph)], found[str(masked_lm_teacher)]
    assert one["masked_lm"] == pytest.approx(two["masked_lm"], rel=1e-4)
    assert one["agreement"]["top1"] == pytest.approx(1.0)
    assert one["agreement"]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert "hidden" not in one  # the graph gives logits alone


def test_a_failed_gate_from_python(
    masked_lm_teacher: Path, text_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ParityFailed):
        export(masked_lm_teacher, str(text_file), tmp_path / "exported", tolerance=1e-13)
    assert not onnx_files(tmp_path)


def test_a_folder_without_a_model(text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"it has no config\.json"):
        export(tmp_path / "empty", str(text_file), tmp_path / "exported")
    shutil.rmtree(tmp_path / "empty")
    assert not (tmp_path / "exported").exists()


def test_without_the_extra_nothing_starts(
    sentence_teacher: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    potstill: Callable[..., Finished],
) -> None:
    recipe = of_encoder(sentence_teacher, text_file, MAKE, EXPORT)
    path = written(tmp_path, yaml.safe_dump(recipe))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = potstill("run", path, "--output", tmp_path / "run")
    assert done.code == 2
    assert "pip install 'potstill[onnx]'" in done.err
    assert not (tmp_path / "run").exists()


def test_the_plan_names_it(sentence_teacher: Path, text_file: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        of_encoder(sentence_teacher, text_file, MAKE, EXPORT, {"kind": "evaluate"})
    )
    lines = plan_run(recipe, tmp_path / "run")
    assert any(line.split()[:5] == ["2", "export", "student", "->", "onnx"] for line in lines)
    assert any(line.split()[:2] == ["onnx", "distilbert,"] for line in lines)
