"""The words of what a user reads: none of those in words.txt, and docstrings that begin plainly."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import potstill

# Folders whose words are still to be gone through; an entry leaves with the folder's last words.
NOT_YET = ("reporting",)

SOURCE = Path(potstill.__file__).parent
FILES = [
    path
    for path in sorted(SOURCE.rglob("*.py"))
    if not any(path.is_relative_to(SOURCE / folder) for folder in NOT_YET)
]
LINES = (Path(__file__).parents[1] / "words.txt").read_text(encoding="utf-8").splitlines()
WORDS = [line.split("\t") for line in LINES if line and not line.startswith("#")]
# What files of older runs hold, too; what shows it has words of its own.
IN_FILES = ("can't tell",)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# `code`, and names with a dot, a slash or an underscore in them: keys, paths and identifiers
NAMES = re.compile(r"`[^`]*`|[\w*]+(?:[._/][\w*]+)+")
NOT_VERBS = ("A", "An", "How", "Of", "Some", "The", "What", "Where", "Whether", "Which", "Who")


def found(expression: str, text: str) -> re.Match[str] | None:
    return re.search(expression, text, re.IGNORECASE)


def names(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def docstrings(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.Constant]]:
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            expression = node.body[0]
            assert isinstance(expression, ast.Expr)
            assert isinstance(expression.value, ast.Constant)
            yield node, expression.value


def strings(node: ast.AST) -> Iterator[ast.Constant | ast.JoinedStr]:
    """Each string as it is written, and each f-string whole."""
    if isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    ):
        yield node
    elif not isinstance(node, ast.FormattedValue):
        for child in ast.iter_child_nodes(node):
            yield from strings(child)
    if isinstance(node, ast.JoinedStr):
        for part in node.values:
            yield from strings(part.value) if isinstance(part, ast.FormattedValue) else ()


def read_by_users(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of each string with a space in it; of a docstring, the first line."""
    first_lines = {id(constant) for _, constant in docstrings(tree)}
    for node in strings(tree):
        values = node.values if isinstance(node, ast.JoinedStr) else [node]
        text = "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in values)
        text = text.strip().split("\n")[0] if id(node) in first_lines else text
        if " " in text.strip() and text not in IN_FILES:
            yield node.lineno, NAMES.sub("`", text)


@pytest.mark.parametrize("line", WORDS, ids=lambda line: str(line[1]))
def test_a_phrase_finds_its_hit_and_leaves_the_other_alone(line: list[str]) -> None:
    expression, hit, other = line
    assert found(expression, hit)
    assert not found(expression, other)


def test_f_strings_are_read_whole_and_docstrings_by_their_first_line() -> None:
    lines = [
        "def f(n):",
        '    """A b.',
        "",
        '    C d."""',
        """    return f"x {n:4d} y{f('u v')}", "`g h` a.b i" """,
    ]
    tree = ast.parse("\n".join(lines))
    assert [text for _, text in read_by_users(tree)] == ["A b.", "x {} y{}", "u v", "` ` i"]


@pytest.mark.parametrize("path", FILES, ids=names)
def test_no_string_holds_a_word_to_avoid(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [
        f"{path}:{line}: {match[0].strip()!r} in {text!r}"
        for line, text in read_by_users(tree)
        for expression, *_ in WORDS
        if (match := found(expression, text))
    ] == []


@pytest.mark.parametrize("path", FILES, ids=names)
def test_public_docstrings_begin_with_one_plain_sentence(path: Path) -> None:
    wrong = []
    for node, constant in docstrings(ast.parse(path.read_text(encoding="utf-8"))):
        first = str(constant.value).strip().split("\n")[0]
        sentence = first.endswith(".") and not re.search(r"[.!?] [A-Z]", first)
        plain = not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or (
            first.split(" ")[0] not in NOT_VERBS
        )
        if not getattr(node, "name", "").startswith("_") and not (sentence and plain):
            wrong.append(f"{path}:{constant.lineno}: {first}")
    assert wrong == []
