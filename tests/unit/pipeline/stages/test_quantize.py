"""The quantize stage, in runs: what is written, what it says, and what a failure leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tiny_recipes import of_encoder, stage_result

from conftest import sentences
from potstill import quantize
from potstill.errors import ParityFailed, QuantizationFailed
from potstill.graphs import quantization, sensitivity
from potstill.pipeline import run
from potstill.pipeline.rehearsal import rehearse
from potstill.pipeline.stages import quantize as quantize_stage
from potstill.pipeline.stages.quantize import headline
from potstill.recipe import Corpus, Files, Quantize, Recipe
from potstill.tasks import predict

EXPORT = {"kind": "export", "model": "teacher"}
SPEED = {"lengths": [8], "rounds": 3}


def tree(teacher: Path, text: Path, *stages: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(of_encoder(teacher, text, *stages))


@pytest.fixture(scope="module")
def finished(
    sentence_teacher: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    stages = (
        {"kind": "make_student"},
        {"kind": "export"},
        {"kind": "quantize", "max_drop": 0.5, "reduce_range": True, **SPEED},
        {"kind": "evaluate"},
        {"kind": "report"},
    )
    recipe = tree(sentence_teacher, text_file, *stages)
    return run(recipe, output=tmp_path_factory.mktemp("runs") / "run")


def test_a_quantised_graph_is_published_beside_the_float_one(finished: Path) -> None:
    found = sorted(path.name for path in (finished / "model/onnx").iterdir())
    assert found == ["model.onnx", "model_quantized.onnx"]
    texts = sentences(6, seed=9)
    models = [finished / "model/onnx" / name for name in found]
    one, two = (np.asarray(predict(model, texts, "sentence_embedding")) for model in models)
    assert 0.98 < (one * two).sum(axis=1).min() < 1 - 1e-7
    told = stage_result(finished, "03-quantize")
    assert told["weight_bytes"] == models[1].stat().st_size < models[0].stat().st_size
    assert told["source_weight_bytes"] == models[0].stat().st_size
    assert told["weight_range"] == {"bits": 7, "why": "as asked for"}
    assert {layer["float"] for layer in told["layers"]} == {False}
    assert list(told["speedup"]) == ["8"]
    budget = told["budget"]
    assert budget["float_layers"] == []
    assert budget["source"] >= budget["reached"] >= budget["source"] - 0.5


def test_it_is_compared_with_its_source_on_text_and_corners(finished: Path) -> None:
    told = stage_result(finished, "03-quantize")["parity"]
    corners = [corner["corner"] for corner in told["corners"]]
    assert corners[:3] == ["real text", "one text", "one text of one token"]
    assert corners[-1] == "a sentence pair"
    assert 0.98 < told["agreement"] < 1  # int8 is never quite the same
    sentence = f"the mean cosine of their vectors is {told['agreement']:.3f}"
    assert sentence in told["sentence"]
    assert sentence in (finished / "report.html").read_text()


def test_too_little_agreement_fails_and_leaves_no_model(
    finished: Path, text_file: Path, tmp_path: Path, speeds: Speeds
) -> None:
    graph, wanted = finished / "model/onnx/model.onnx", Quantize(agreement=1.0)
    with pytest.raises(ParityFailed, match=r"agree in .*the lowest accepted agreement is 100%"):
        quantize(graph, str(text_file), tmp_path / "q", settings=wanted)
    assert not (tmp_path / "q/model").exists()


@pytest.mark.parametrize(
    ("heldout", "texts"), [(0.2, "held-out texts"), (0.0, "training texts, for none are held out,")]
)
def test_it_says_what_text_it_was_compared_on(
    finished: Path, text_file: Path, tmp_path: Path, speeds: Speeds, heldout: float, texts: str
) -> None:
    corpus = Corpus(sources=[Files(paths=[str(text_file)])], min_length=4, heldout=heldout)
    quantize(finished / "model/onnx/model.onnx", corpus, tmp_path / "q")
    told = json.loads((tmp_path / "q/result.json").read_text())
    assert f" {texts} the mean cosine" in told["parity"]["sentence"]


def test_metrics_and_report_show_it(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    told = stage_result(finished, "03-quantize")
    assert metrics["models"]["quantized"]["weight_bytes"] == told["weight_bytes"]
    assert metrics["models"]["quantized"]["parameters"] == metrics["models"]["onnx"]["parameters"]
    assert "scores" in metrics["models"]["quantized"]
    assert all(finding in metrics["findings"] for finding in told["findings"])
    assert told["layers"][0]["name"] in (finished / "report.html").read_text()


Speeds = Callable[[float], None]


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Speeds:
    """Timings as they are told: real ones would make these tests depend on the machine."""

    def set_to(ratio: float) -> None:
        def timed(models: Any, settings: Any) -> dict[str, Any]:
            _, name = models  # the first is the baseline
            one = {"median": ratio, "low": ratio, "high": ratio}
            lengths = {str(length): one for length in settings.lengths}
            return {"ratios": {name: {"speedup": lengths}}, "noise": {"message": None}}

        monkeypatch.setattr(quantize_stage, "benchmark", timed)

    set_to(1.5)
    return set_to


def test_a_slower_model_is_said_to_be_slower(
    finished: Path, text_file: Path, tmp_path: Path, speeds: Speeds
) -> None:
    graph = finished / "model/onnx/model.onnx"
    speeds(0.8)
    path = quantize(graph, str(text_file), tmp_path / "q", settings=Quantize(method="4bit"))
    assert path.is_file()
    told = json.loads((tmp_path / "q" / "result.json").read_text())
    assert told["slower"] == ["16", "128"]
    assert "slower than teacher: 0.80 times its speed at 16 tokens" in told["findings"][0]


def test_the_gate_of_speed_fails_and_leaves_no_model(
    finished: Path, text_file: Path, tmp_path: Path, speeds: Speeds
) -> None:
    graph, wanted = finished / "model/onnx/model.onnx", Quantize(require_faster=True)
    speeds(0.99)
    with pytest.raises(QuantizationFailed, match=r"0\.99 times its speed at 16 tokens"):
        quantize(graph, str(text_file), tmp_path / "q", settings=wanted)
    assert not (tmp_path / "q/model").exists()
    speeds(1.01)
    assert quantize(graph, str(text_file), tmp_path / "q", settings=wanted).is_file()


def test_a_budget_keeps_the_layers_that_hurt_in_float(
    finished: Path, text_file: Path, tmp_path: Path, speeds: Speeds, monkeypatch: Any
) -> None:
    """The score is made to depend on one layer: the one that is the most sensitive but one."""
    graph, needed = finished / "model/onnx/model.onnx", []

    def scores(self: Any) -> Any:
        onnx = pytest.importorskip("onnx")
        floats = {n.name for n in onnx.load(self.target).graph.node if n.op_type == "MatMul"}
        reached = 0.9 if all(name in floats for name in needed) and needed else 0.7
        return "retrieval.mrr", {"teacher": 0.9, self.stage.writes: reached}

    monkeypatch.setattr(quantize_stage._Quantizing, "_scores", scores)
    wanted = Quantize(max_drop=0.05, texts=4, embeddings=False, reduce_range=True)
    with pytest.raises(QuantizationFailed, match=r"no layer but all \d+ in float"):
        quantize(graph, str(text_file), tmp_path / "none", settings=wanted)
    assert not (tmp_path / "none/model").exists()

    source = quantization.FloatGraph(graph, wanted)
    ids = np.arange(5, 12)[None]
    samples = [{"input_ids": ids, "attention_mask": np.ones_like(ids)}]
    ranked = sensitivity.sensitivities(source, samples)
    needed.append(ranked[1].layer)
    quantize(graph, str(text_file), tmp_path / "some", settings=wanted)
    told = json.loads((tmp_path / "some/result.json").read_text())
    kept = told["budget"]["float_layers"]
    assert needed[0] == kept[-1]
    assert {layer["name"] for layer in told["layers"] if layer["float"]} == set(kept)
    assert told["budget"]["reached"] == 0.9
    assert told["budget"]["all_quantised"] == 0.7
    assert needed[0] in told["findings"][0]
    assert "0.7000" in told["findings"][0]


def test_a_budget_of_similarities_is_judged_beside_the_source(
    finished: Path, text_file: Path, tmp_path: Path, speeds: Speeds
) -> None:
    """What reached it is the correlation with the float graph's similarities, by another way."""
    graph = finished / "model/onnx/model.onnx"
    wanted = Quantize(method="4bit", max_drop=0.01, texts=4, embeddings=False)
    path = quantize(graph, str(text_file), tmp_path / "q", settings=wanted)
    budget = json.loads((tmp_path / "q/result.json").read_text())["budget"]
    texts = text_file.read_text().splitlines()
    pairs = np.triu_indices(len(texts), 1)

    def similarities(model: Path) -> np.ndarray:
        vectors = np.array(predict(str(model), texts, "sentence_embedding"), dtype=np.float64)
        found: np.ndarray = (vectors @ vectors.T)[pairs]
        return found

    of_all = float(np.corrcoef(similarities(graph), similarities(path))[0, 1])
    assert 0.99 <= budget["reached"] < 1
    assert budget["reached"] == pytest.approx(of_all, abs=0.005)  # of all texts, not held-out ones
    assert budget["tried"][0][1] < 1
    assert budget["float_layers"]


def test_all_layers_in_float_is_no_quantisation(
    finished: Path, text_file: Path, tmp_path: Path
) -> None:
    graph, wanted = finished / "model/onnx/model.onnx", Quantize(float_layers=["*"])
    with pytest.raises(ValueError, match=r"float_layers: all \d+ layers .* stay in float"):
        quantize(graph, str(text_file), tmp_path / "q", settings=wanted)
    assert not (tmp_path / "q/model").exists()


def test_only_exported_float_models_are_quantised(sentence_teacher: Path, text_file: Path) -> None:
    def refused(*stages: dict[str, Any]) -> str:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            tree(sentence_teacher, text_file, *stages)
        return str(caught.value)

    quantise = {"kind": "quantize"}
    assert "the model 'teacher' is not an ONNX file." in refused({**quantise, "model": "teacher"})
    twice = {**quantise, "model": "quantized", "writes": "again"}
    assert "is already quantized." in refused(EXPORT, quantise, twice)
    assert "method: fp16 converts the whole graph." in refused(
        EXPORT, {**quantise, "method": "fp16", "max_drop": 0.1}
    )
    assert "query: only max_drop reads it. Set max_drop" in refused(
        EXPORT, {**quantise, "query": "title"}
    )
    trained = {"kind": "distill", "model": "quantized", "objectives": [], "training": {"epochs": 1}}
    assert refused(EXPORT, quantise, trained)


def test_a_folder_is_no_graph(sentence_teacher: Path, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not an \.onnx file\. Name what an export"):
        quantize(sentence_teacher, str(text_file), tmp_path / "q")
    assert not (tmp_path / "q/model").exists()
    shutil.rmtree(tmp_path / "q", ignore_errors=True)


def test_the_score_is_the_one_that_the_task_is_judged_by() -> None:
    embedding = {"similarity": {"pearson": 1.0}, "retrieval": {"mrr": 0.8}}
    result = {"task": "sentence_embedding", "models": {"a": embedding}}
    assert headline(result) == "retrieval.mrr"
    del embedding["retrieval"]
    assert headline(result) == "similarity.pearson"
    scores = {"classification": {"accuracy": 0.9, "f1": 0.8}}
    task = {"task": "classification", "metric": "f1", "models": {"a": scores}}
    assert headline(task) == "classification.f1"


def test_columns_of_the_budget_are_looked_for_first(
    sentence_teacher: Path, text_file: Path
) -> None:
    quantise = {"kind": "quantize", "max_drop": 0.1, "query": "titel", "lengths": [8]}
    recipe = tree(sentence_teacher, text_file, EXPORT, quantise)
    with pytest.raises(
        ValueError, match=r"\(quantize\): query: no column is called 'titel'\. Name one of text\."
    ):
        rehearse(recipe, {"teacher": sentence_teacher})


def test_the_folder_around_a_graph_is_copied_without_what_its_links_lead_to(
    finished: Path, text_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished / "model", tmp_path / "model")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    (tmp_path / "model" / "notes").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"notes is a link to a folder, which is not followed"):
        quantize(tmp_path / "model/onnx/model.onnx", [str(text_file)], tmp_path / "out")
    assert not (tmp_path / "out" / "model").exists()


def test_weights_around_a_graph_that_are_not_finite(
    finished: Path, text_file: Path, tmp_path: Path
) -> None:
    """No graph reads them, but they would be published with it."""
    shutil.copytree(finished / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    name = next(iter(weights))
    weights[name][0] = float("nan")
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"model: {name} holds NaN or infinity"):
        quantize(tmp_path / "model/onnx/model.onnx", [str(text_file)], tmp_path / "out")
    assert not (tmp_path / "out" / "model").exists()
