"""The texts say what the committed results and the code say."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Finished, sentences
from potstill.models import load_model, save_model
from potstill.recipe import (
    Benchmark,
    Corpus,
    Distill,
    Evaluate,
    Export,
    Finetune,
    GraphPruning,
    MakeStudent,
    Report,
    TaskData,
    Training,
    parse_recipe,
)
from tiny_tasks import questions, tagged_sentences, write_conll, write_squad

ROOT = Path(__file__).resolve().parents[2]


def test_numbers_in_the_texts_are_those_of_the_committed_results() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "render_docs.py"), "render", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "model",
    [
        *(Corpus, TaskData, Training, MakeStudent, Distill, Finetune),
        *(Export, GraphPruning, Evaluate, Benchmark, Report),
    ],
)
def test_every_key_of_a_recipe_is_explained(model: type) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[a-z_]+", page))
    assert set(model.model_fields) - {"kind"} <= named


def test_the_recipe_in_the_page_is_valid() -> None:
    import yaml

    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert block is not None
    assert parse_recipe(yaml.safe_load(block[1]), "docs/recipes.md").name == "my-encoder"


def test_links_between_the_texts_lead_somewhere() -> None:
    for text in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", text.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (text.parent / target).exists(), f"{text.name}: {target}"


def test_the_page_of_the_export_runs_as_written(
    sentence_teacher: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    potstill: Callable[..., Finished],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sentence_teacher, "my-encoder")
    shutil.copy(text_file, "my-text.txt")
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    recipe, commands = re.findall(r"```(?:yaml)?\n(.*?)```", page, re.DOTALL)[:2]
    (tmp_path / "export.yaml").write_text(recipe)
    for line in commands.strip().splitlines():
        # tiny models have 64 positions
        shorter = ["--length", "16"] if " bench " in line else []
        done = potstill(*line.split()[1:], *shorter)
        assert done.code == 0, done.err


@pytest.mark.parametrize("page", ["token-classification", "question-answering"])
def test_the_commands_of_a_page_run_as_written(
    page: str,
    sentence_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    potstill: Callable[..., Finished],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my-encoder", "my-tagger", "my-reader"):
        shutil.copytree(sentence_teacher, tmp_path / name)
    task = page.replace("-", "_")
    for name, kind in (("my-tagger", "token_classification"), ("my-reader", "question_answering")):
        if kind == task:  # a model that has been fine-tuned
            labels = ["O", "B-still", "I-still", "B-cask", "I-cask"]
            loaded = load_model(
                tmp_path / name,
                task,  # type: ignore[arg-type]
                untrained_head=True,
                labels=labels if kind == "token_classification" else None,
            )
            save_model(loaded, tmp_path / name)
    for name in ("train", "dev", "test"):
        write_conll(tmp_path / f"{name}.conll", tagged_sentences(40))
    for name in ("train", "dev"):
        write_squad(tmp_path / f"{name}-v2.0.json", questions(40))
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    commands = re.findall(r"^potstill run .*", text, re.MULTILINE)
    assert len(commands) == 2
    # the tiny teacher has 64 positions
    fitting = ["data.max_length=40", "benchmark.lengths=[8,16]"]
    fitting += ["data.stride=8"] if page == "question-answering" else []
    for command in commands:
        finished = potstill(*shlex.split(command)[1:], *fitting, "--plan")
        assert finished.code == 0, finished.err
        assert page in finished.out


def test_the_commands_of_tasks_run_as_written(
    sentence_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    potstill: Callable[..., Finished],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my-encoder", "FOLDER"):
        shutil.copytree(sentence_teacher, tmp_path / name)
    loaded = load_model(
        sentence_teacher, "classification", untrained_head=True, labels=["cask", "still"]
    )
    save_model(loaded, tmp_path / "path" / "to" / "your-model")
    texts = sentences(80)
    lines = [f"{text}\t{text}\t{('cask', 'still')[n % 2]}" for n, text in enumerate(texts)]
    for name in ("train", "dev"):
        Path(f"{name}.tsv").write_text("\n".join(["text\tsentence\tlabel", *lines]) + "\n")
    pairs = [f"{text}\t{texts[0]}\t{n % 6}" for n, text in enumerate(texts)]
    for name in ("sts", "sts-train", "sts-test"):
        Path(f"{name}.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *pairs]) + "\n")
    Path("text.txt").write_text("\n".join(texts))
    commands = []
    for page in ("tasks", "cached-teacher"):
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        commands += re.findall(r"^potstill run .*", text, re.MULTILINE)
    assert len(commands) == 7
    for command in commands:
        # the tiny teacher has 64 positions
        fitting = ["data.max_length=40", "benchmark.lengths=[8,16]"]
        if " embedding " in command:
            fitting[0] = "corpus.max_length=40"
        if " fine-tune " in command:  # whose model the next one reads
            fitting = [fitting[0], "finetune.training={max_steps: 1}", "data.heldout=0.3"]
        else:
            fitting.append("--plan")
        finished = potstill(*shlex.split(command)[1:], *fitting)
        assert finished.code == 0, f"{command}: {finished.err}"
