from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from potstill.storage.files import writing
from potstill.storage.model_folders import check_folder, check_path


def test_what_safetensors_says_is_an_os_error(tmp_path: Path) -> None:
    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(OSError, match=r"No space left on device") as caught, writing(tmp_path):
        raise SafetensorError(said)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))
    with pytest.raises(OSError, match=r"Input/output error") as caught, writing(tmp_path):
        raise SafetensorError("something else")
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("what", ["save_file", "checkpoint"])
def test_a_file_that_may_not_grow(what: str, tmp_path: Path) -> None:
    """In a process of its own: a limit on file sizes can't be raised again."""
    code = f"""
import resource, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from potstill.training.checkpoint import save_checkpoint
from potstill.storage.files import writing
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
tensors = {{"w": torch.zeros(4096)}}
path = Path({str(tmp_path)!r})
try:
    if {what!r} == "checkpoint":
        save_checkpoint(path, 1, {{"model": tensors}}, {{}})
    else:
        with writing(path):
            save_file(tensors, path / "w.safetensors")
except OSError as error:
    print(error.errno)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(errno.EFBIG)
    assert not list(tmp_path.glob("step-*"))


# --- no path leads out of a model folder ----------------------------------------------------------


def model_folder(folder: Path) -> Path:
    (folder / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "1_Pooling/config.json"):
        (folder / name).write_text("{}")
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(ValueError, match=re.escape(f"{folder}: ")) as caught:
        check_folder(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{folder}: ")


def test_a_plain_folder_and_links_within_it(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "copy.safetensors").symlink_to("model.safetensors")
    (folder / "1_Pooling" / "again.json").symlink_to(folder / "config.json")
    (folder / "circle.json").symlink_to("circle.json")
    check_folder(folder)
    (tmp_path / "link").symlink_to(folder)  # the folder itself may be one
    check_folder(tmp_path / "link")


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "tokenizer.json", "chat_template.jinja", "1_Pooling/config.json"],
)
@pytest.mark.parametrize("target", ["other.json", "nowhere"])
def test_a_link_to_a_file_outside(name: str, target: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (tmp_path / "other.json").write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / target)
    assert refused(folder) == (
        f"{name} is a link to a file outside of the model folder, which is not followed. "
        "Replace the link by a copy of the file."
    )


def test_a_link_to_a_folder(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "1_Pooling").rename(tmp_path / "other")
    (folder / "1_Pooling").symlink_to(tmp_path / "other")
    said = (
        "1_Pooling is a link to a folder, which is not followed. Replace the link by a copy of the "
        "folder."
    )
    assert refused(folder) == said
    (folder / "1_Pooling").unlink()
    (tmp_path / "other").rename(folder / "kept")
    (folder / "1_Pooling").symlink_to("kept")
    assert refused(folder) == said


def test_links_that_no_model_is_read_through(tmp_path: Path) -> None:
    """A model may lie in the folder of a whole project."""
    folder = model_folder(tmp_path / "model")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.csv").write_text("")
    (folder / "data").symlink_to(tmp_path / "data")
    (folder / "rows.csv").symlink_to(tmp_path / "data" / "rows.csv")
    check_folder(folder)
    with pytest.raises(ValueError, match=r"rows\.csv is a link to a file outside"):
        check_folder(folder, [folder / "rows.csv"])
    with pytest.raises(ValueError, match=r"data is a link to a folder"):
        check_folder(folder, [folder / "data"])


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A model as the hub's cache holds it: all links."""
    blobs = tmp_path / "models--a--b" / "blobs"
    rev = blobs.parent / "snapshots" / "rev"
    blobs.mkdir(parents=True)
    (rev / "1_Pooling").mkdir(parents=True)
    for number, name in enumerate(("config.json", "model.safetensors", "1_Pooling/config.json")):
        (blobs / str(number)).write_text("{}")
        up = "../" * (2 + name.count("/"))
        (rev / name).symlink_to(f"{up}blobs/{number}")
    return rev


def test_the_hub_s_cache(snapshot: Path, tmp_path: Path) -> None:
    check_folder(snapshot)
    (tmp_path / "link").symlink_to(snapshot)
    check_folder(tmp_path / "link")
    (snapshot / "small").mkdir()  # a model may lie in a folder of a repository
    (snapshot / "small" / "config.json").symlink_to("../../../blobs/0")
    check_folder(snapshot / "small")


@pytest.mark.parametrize(
    "target",
    [
        "../../../models--c--d/blobs/0",
        "../../refs/main",
        "../other/config.json",
        "../../blobs/../../secret.json",
        "../../blobs/leads-out",
    ],
)
def test_the_hub_s_cache_with_a_link_to_elsewhere(snapshot: Path, target: str) -> None:
    (snapshot.parents[1] / "blobs" / "leads-out").symlink_to("../../secret.json")
    (snapshot / "tokenizer.json").symlink_to(target)
    assert refused(snapshot).startswith("tokenizer.json is a link to a file outside of the model")


def test_blobs_that_are_a_link_themselves(snapshot: Path, tmp_path: Path) -> None:
    blobs = snapshot.parents[1] / "blobs"
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    assert "is a link to a file outside of the model folder" in refused(snapshot)


OUTSIDE = ["../x", "a/../../x", "/x", "a//x", "a/", "./a", "..", ".", "a\\x", "..\\x", "a\0"]


@pytest.mark.parametrize("path", [*OUTSIDE, 3, ["a"]])
def test_a_path_that_is_not_plainly_below(path: object) -> None:
    with pytest.raises(ValueError, match=r"^model: x\.json names the path ") as caught:
        check_path("model", "x.json", path)
    assert repr(path) in str(caught.value)


def test_a_path_below() -> None:
    for path in ("1_Pooling", "a/b.json", "..a", "model-00001-of-00002.safetensors", "%2e%2e"):
        assert check_path("model", "x.json", path) == path


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("modules.json", [{"path": ""}, {"path": "../x"}]),
        ("model.safetensors.index.json", {"weight_map": {"a": "a.safetensors", "b": "../x"}}),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.json", "../x"]}),
        ("config.json", {"configuration_files": ["../x"]}),
        ("config.json", {"transformers_weights": "../x"}),
        ("own.safetensors.index.json", {"weight_map": {"a": "../x"}}),
    ],
)
def test_files_that_name_a_path_outside(file: str, content: object, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / file).write_text(json.dumps(content))
    assert refused(folder).startswith(f"{file} names the path '../x', which does not lie plainly")
    (folder / file).write_text(json.dumps(content).replace("../x", "x"))
    check_folder(folder)
    (folder / "x").symlink_to(tmp_path)
    assert refused(folder).startswith("x is a link to a folder")


def test_an_index_in_a_folder_names_a_path_outside(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "config.json").write_text('{"transformers_weights": "a/own.index.json"}')
    (folder / "a").mkdir()
    (folder / "a" / "own.index.json").write_text('{"weight_map": {"a": "../../x"}}')
    assert refused(folder).startswith("a/own.index.json names the path '../../x', which does not")


def test_weights_that_no_manifest_lists(tmp_path: Path) -> None:
    """What decides a model lies at most one folder deep, where fingerprints look."""
    folder = model_folder(tmp_path / "model")
    (folder / "config.json").write_text('{"transformers_weights": "a/b/w.safetensors"}')
    assert refused(folder).startswith("config.json names the path 'a/b/w.safetensors', which lies")
    (folder / "config.json").write_text('{"transformers_weights": "a/w.safetensors"}')
    check_folder(folder)


@pytest.mark.parametrize("content", ["{", "[3]", "3", '{"weight_map": 3}', '{"weight_map": null}'])
def test_files_that_name_nothing(content: str, tmp_path: Path) -> None:
    """Whoever reads them says what is wrong with them."""
    folder = model_folder(tmp_path / "model")
    for file in ("modules.json", "model.safetensors.index.json", "tokenizer_config.json"):
        (folder / file).write_text(content)
    check_folder(folder)
