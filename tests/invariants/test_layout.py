"""The house itself: what lies where, and what is loaded for what."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import potstill
from tiny_graphs import exported

SOURCE = Path(potstill.__file__).parent
PACKAGES = sorted(path.parent for path in SOURCE.rglob("__init__.py"))


def test_nothing_else_lies_directly_in_the_package() -> None:
    assert {path.stem for path in SOURCE.glob("*.py")} == {
        *("__init__", "__main__", "_lazy", "errors")
    }


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_three_files_of_one_prefix_are_a_folder(folder: Path) -> None:
    prefixes = Counter(path.stem.split("_")[0] for path in folder.glob("*.py"))
    del prefixes[""]  # __init__ and its like
    assert [prefix for prefix, count in prefixes.items() if count >= 3] == []


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_a_package_tells_its_story_and_defines_nothing(folder: Path) -> None:
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    assert [node.name for node in ast.walk(tree) if isinstance(node, defined)] == []


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_no_file_hides_what_its_package_hands_on(folder: Path) -> None:
    package = ".".join(["potstill", *folder.relative_to(SOURCE).parts])
    code = (
        f"import importlib, json; package = importlib.import_module({package!r}); "
        "names = getattr(package, '__all__', []); "
        "[getattr(package, name) for name in names]; "  # each can be had
        "print(json.dumps([sorted(names), dir(package)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, listed = json.loads(done.stdout)
    files = {path.stem for path in folder.iterdir()}
    assert files.isdisjoint(names)
    assert set(names) <= set(listed)


@pytest.mark.parametrize(
    "module",
    [
        *("potstill", "potstill.recipe", "potstill.storage", "potstill.data.files"),
        *("potstill.storage.run_folder", "potstill.storage.places", "potstill.storage.caches"),
        *("potstill.pipeline.inputs", "potstill.cli.entry", "potstill.cli.doctor"),
    ],
)
def test_what_is_asked_first_imports_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_graph_is_timed_without_torch(sentence_teacher: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="it is in the extra onnx")
    folder = tmp_path / "model"
    folder.mkdir()
    for path in sentence_teacher.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    _, graph = exported(folder, "sentence_embedding")
    code = (
        "import sys\nfrom potstill.benchmarking import worker\n"
        f"worker._child([{str(graph)!r}])\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    command = {"command": "run", "batch": 1, "length": 8, "seed": 0, "repeats": 2}
    asked = json.dumps(command) + "\n"
    done = subprocess.run([sys.executable, "-c", code], input=asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ready, timed = map(json.loads, done.stdout.splitlines())
    assert ready["load_s"] > 0
    assert len(timed["wall_s"]) == 2
