"""An exported folder in what people run it with: each gives the answers of plain transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from conftest import sentences, tiny_config, tiny_tokenizer
from potstill.models import load_model, save_model
from potstill.recipe import Task
from tiny_graphs import exported

TEXTS = ["copper", *sentences(5, seed=11)]


def expected_embeddings(folder: Path) -> np.ndarray:
    """One text at a time, so that nothing is padded."""
    model, tokenizer = (
        AutoModel.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    vectors = []
    for text in TEXTS:
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        vectors.append((mean / mean.norm()).numpy())
    return np.stack(vectors)


@pytest.fixture(scope="module")
def encoder(sentence_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "encoder"
    save_model(load_model(sentence_teacher, "sentence_embedding"), folder)
    exported(folder, "sentence_embedding")
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "classifier"
    torch.manual_seed(0)
    config = tiny_config(layers=2, initializer_range=0.3, num_labels=3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    exported(folder, "classification")
    return folder


def inputs_of(folder: Path) -> dict[str, np.ndarray]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return dict(tokenizer(TEXTS, padding=True, return_tensors="np"))


def expected_logits(folder: Path) -> np.ndarray:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        each = [model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS]
    return torch.cat(each).numpy()


def test_onnxruntime(encoder: Path, classifier: Path) -> None:
    import onnxruntime

    for folder, output, expected in (
        (encoder, "sentence_embedding", expected_embeddings(encoder)),
        (classifier, "logits", expected_logits(classifier)),
    ):
        session = onnxruntime.InferenceSession(
            folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"]
        )
        [found] = session.run([output], inputs_of(folder))
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("task", ["sentence_embedding", "classification"])
def test_openvino(task: Task, encoder: Path, classifier: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is in the extra test")
    folder = encoder if task == "sentence_embedding" else classifier
    expected = (expected_logits if task == "classification" else expected_embeddings)(folder)
    output = "logits" if task == "classification" else "sentence_embedding"
    # by itself it computes in bf16 on a CPU that has it
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(folder / "onnx" / "model.onnx", "CPU", exact)
    found = compiled(inputs_of(folder))[output]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_sentence_transformers(encoder: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.SentenceTransformer(str(encoder), device="cpu")
    np.testing.assert_allclose(model.encode(TEXTS), expected_embeddings(encoder), atol=1e-5)


SCRIPT = """
import { env, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline }
  from '@huggingface/transformers';
const [, , models, given] = process.argv;
const texts = JSON.parse(given);
env.allowRemoteModels = false;
env.localModelPath = models;
const options = { dtype: 'fp32', local_files_only: true };
const read = async (name) => (await AutoTokenizer.from_pretrained(name, options))(
  texts, { padding: true });
const encoder = await AutoModel.from_pretrained('encoder', options);
const { sentence_embedding } = await encoder(await read('encoder'));
const extract = await pipeline('feature-extraction', 'encoder', options);
const pooled = await extract(texts, { pooling: 'mean', normalize: true });
const classifier = await AutoModelForSequenceClassification.from_pretrained('classifier', options);
const { logits } = await classifier(await read('classifier'));
console.log(JSON.stringify({
  graph: sentence_embedding.tolist(), pooled: pooled.tolist(), logits: logits.tolist() }));
"""


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with transformers.js installed from npm."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: transformers.js needs Node.js")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(
            [*command, "@huggingface/transformers"],
            cwd=folder, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.skip("npm did not install @huggingface/transformers within ten minutes")
    if done.returncode:
        said = (done.stderr.strip() or "npm failed").splitlines()[0]
        pytest.skip(f"npm can't install @huggingface/transformers: {said}")
    return folder


def test_transformers_js(
    node_folder: Path, encoder: Path, classifier: Path, tmp_path: Path
) -> None:
    for folder in (encoder, classifier):
        shutil.copytree(folder, tmp_path / folder.name)
    script = node_folder / "ask.js"
    script.write_text(SCRIPT)
    done = subprocess.run(
        ["node", script, tmp_path, json.dumps(TEXTS)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(found["graph"], expected_embeddings(encoder), atol=1e-4)
    np.testing.assert_allclose(found["pooled"], expected_embeddings(encoder), atol=1e-4)
    np.testing.assert_allclose(found["logits"], expected_logits(classifier), atol=1e-4)
