import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import psutil
import pytest

from potstill.storage import RunFolder, environment, open_run
from potstill.storage.files import read_json, write_json, write_text
from potstill.storage.machine import installed_version, read_cpu
from potstill.storage.manifest import manifest, manifest_digest, verify_manifest
from potstill.storage.run_folder import drop_checkpoints

# --- files ----------------------------------------------------------------------------------------


def test_write_text_replaces_whole_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old\n")
    write_text(path, "new € ü\r\n")
    assert path.read_bytes() == "new € ü\r\n".encode()
    assert os.listdir(tmp_path) == ["a.txt"]
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "x" * 100_000 + "\ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_json_roundtrip_and_refusals(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"pi": 0.1 + 0.2, "name": "ü", "list": [1, None, True]}
    write_json(path, value)
    assert read_json(path) == value
    assert json.loads(path.read_text(encoding="utf-8")) == value
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert read_json(path) == value


@pytest.mark.parametrize("content", [b'{"a": ', b"\xff\xfe\x00", b""])
def test_read_json_names_the_bad_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.json: not valid JSON"):
        read_json(path)
    with pytest.raises(ValueError, match=r"none\.json: cannot be read \(No such file"):
        read_json(tmp_path / "none.json")


# --- manifests ------------------------------------------------------------------------------------


def test_manifest_holds_sizes_and_hashes_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.bin").write_bytes(b"abc")
    (tmp_path / "a.txt").write_bytes(b"")
    files = manifest(tmp_path)
    # the published test vectors of SHA-256 (FIPS 180-2) for "" and "abc"
    assert list(files.items()) == [
        (
            "a.txt",
            {
                "bytes": 0,
                "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            },
        ),
        (
            "b/c.bin",
            {
                "bytes": 3,
                "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            },
        ),
    ]


def test_verify_manifest_names_what_changed(tmp_path: Path) -> None:
    for name in ("same", "flipped", "longer", "gone"):
        (tmp_path / name).write_bytes(b"0123")
    files = manifest(tmp_path)
    assert verify_manifest(tmp_path, files) == []
    (tmp_path / "flipped").write_bytes(b"0122")
    (tmp_path / "longer").write_bytes(b"01234")
    (tmp_path / "gone").unlink()
    (tmp_path / "unlisted").touch()
    assert verify_manifest(tmp_path, files) == ["flipped", "gone", "longer"]


def test_manifest_digest_depends_on_content_and_not_on_order() -> None:
    a, b = {"bytes": 1, "sha256": "aa"}, {"bytes": 2, "sha256": "bb"}
    expected = hashlib.sha256(b"x\x001\x00aa\ny\x002\x00bb\n").hexdigest()
    assert manifest_digest({"x": a, "y": b}) == expected
    assert manifest_digest({"y": b, "x": a}) == expected
    assert manifest_digest({"x": b, "y": a}) != expected
    assert manifest_digest({"x": a}) != expected


# --- opening --------------------------------------------------------------------------------------


def recipe(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(text)


def test_open_run_creates_and_reopens(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "mine"
    assert open_run(path, "mine").path == path
    assert path.is_dir()
    with open_run(path, "mine").lock():
        pass
    open_run(path, "mine")  # stopped before it wrote recipe.yaml: still its own
    recipe(path, "name: mine\nseed: 1\n")
    (path / "stages").mkdir()
    assert open_run(str(path), "mine").path == path


def test_open_run_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(
        ValueError, match=r"^--output: .*/file is a file, not a folder\. Choose another folder\.$"
    ):
        open_run(file, "mine")
    with pytest.raises(ValueError, match=r"cannot be used \(Not a directory\)"):
        open_run(file / "below", "mine")
    recipe(tmp_path / "other", "name: other\n")
    with pytest.raises(
        ValueError,
        match=(
            r"other holds the run of recipe 'other'\. Choose another folder, or delete "
            r"that run\."
        ),
    ):
        open_run(tmp_path / "other", "mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(ValueError, match="is not empty and is not a run"):
        open_run(tmp_path / "photos", "mine")
    assert os.listdir(tmp_path / "photos") == ["cat.jpg"]


@pytest.mark.parametrize("text", ["", "[1, 2", "seed: 1\n", "- a\n"])
def test_open_run_refuses_a_recipe_without_a_name(tmp_path: Path, text: str) -> None:
    recipe(tmp_path / "odd", text)
    with pytest.raises(
        ValueError, match=r"odd is not a run \(its recipe\.yaml is not a recipe with a name\)"
    ):
        open_run(tmp_path / "odd", "mine")


def test_open_run_refuses_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as root every folder is writable, so the system's answer is replaced
    monkeypatch.setattr("potstill.storage.run_folder.os.access", lambda *_: False)
    with pytest.raises(ValueError, match="mine cannot be written"):
        open_run(tmp_path / "mine", "mine")


# --- the lock -------------------------------------------------------------------------------------

HOLD = """
import sys
from potstill.storage import open_run
with open_run(sys.argv[1], "mine").lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    run = open_run(tmp_path, "mine")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    try:
        assert holder.stdout.readline() == "held\n"
        message = rf"another potstill process \(pid {holder.pid}\) is using this folder"
        with pytest.raises(ValueError, match=message), run.lock():
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    with run.lock():
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    with run.lock():  # freed at the end of the block, too
        pass


# --- stages ---------------------------------------------------------------------------------------


def finished(tmp_path: Path) -> tuple[RunFolder, Path]:
    run = RunFolder(tmp_path)
    stage = run.stage_folder(3, "distill")
    (stage / "model").mkdir(parents=True)
    (stage / "checkpoints" / "step-1").mkdir(parents=True)
    (stage / "checkpoints-best" / "step-1").mkdir(parents=True)
    for name in ("checkpoints/step-1/x", "checkpoints-best/step-1/x", "model/weights", "log.jsonl"):
        (stage / name).write_bytes(b"0123")
    (stage / ".log.jsonl.abc.tmp").touch()
    run.finish(stage, "f1", {"student": "model"}, {"teacher": "d1"}, 12.5)
    return run, stage


def test_done_gives_back_what_finish_wrote(tmp_path: Path) -> None:
    run, stage = finished(tmp_path)
    assert stage == tmp_path / "stages" / "03-distill"
    record = run.done(stage)
    assert record is not None
    assert list(record["files"]) == ["log.jsonl", "model/weights"]
    del record["files"]
    assert record == {
        "fingerprint": "f1",
        "writes": {"student": "model"},
        "reads": {"teacher": "d1"},
        "seconds": 12.5,
    }
    assert run.damage == {}


def test_done_is_none_before_finish(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.done(run.stage_folder(1, "distill")) is None
    assert run.damage == {}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("model/weights", b"012", "model/weights is missing or changed"),
        ("model/weights", b"0124", "model/weights is missing or changed"),
        ("model/weights", None, "model/weights is missing or changed"),
        ("DONE", b'{"files"', "DONE is not readable"),
        ("DONE", b'{"fingerprint": "f1"}', "DONE is not readable"),
        ("DONE", b"[]", "DONE is not readable"),
    ],
)
def test_a_damaged_stage_is_not_done_and_says_why(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    run, stage = finished(tmp_path)
    original = (stage / name).read_bytes()
    if content is None:
        (stage / name).unlink()
    else:
        (stage / name).write_bytes(content)
    assert run.done(stage) is None
    assert reason in run.damage[stage]
    (stage / name).write_bytes(original)
    assert run.done(stage) is not None
    assert run.damage == {}


def test_lost_checkpoints_do_not_undo_a_stage(tmp_path: Path) -> None:
    run, stage = finished(tmp_path)
    (stage / "checkpoints" / "step-1" / "x").unlink()
    assert run.done(stage) is not None


def test_checkpoints_of_repeats_are_left_out_too(tmp_path: Path) -> None:
    run, stage = finished(tmp_path)
    for name in ("model/weights", "checkpoints/step-1/x", "checkpoints-best/step-1/x"):
        path = stage / "repeat-2" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"0123")
    run.finish(stage, "f1", {}, {}, 1.0)
    record = run.done(stage)
    assert record is not None
    assert list(record["files"]) == ["log.jsonl", "model/weights", "repeat-2/model/weights"]
    # the name is no other thing's: a model may have a folder of it
    (stage / "model" / "checkpoints").mkdir()
    (stage / "model" / "checkpoints" / "config.json").write_text("{}")
    run.finish(stage, "f1", {}, {}, 1.0)
    record = run.done(stage)
    assert record is not None
    assert "model/checkpoints/config.json" in record["files"]
    drop_checkpoints(stage)
    assert run.done(stage) is not None
    assert [path.parent.name for path in tmp_path.rglob("checkpoints*")] == ["model"]


def test_what_a_stage_lists_is_on_the_disk_before_it_is_done(
    tmp_path: Path, flushed: list[Path]
) -> None:
    run, stage = finished(tmp_path)
    (stage / "DONE").unlink()
    (stage / "repeat-2/model").mkdir(parents=True)
    (stage / "repeat-2/model/weights").write_bytes(b"0123")
    flushed.clear()
    run.finish(stage, "f1", {}, {}, 1.0)
    before = set(flushed[: flushed.index(stage / "DONE")])
    files = ("log.jsonl", "model/weights", "repeat-2/model/weights")
    folders = ("", "model", "repeat-2", "repeat-2/model")
    assert {stage / name for name in (*files, *folders)} <= before
    assert {stage.parent, tmp_path} <= before  # which name the stage's folder
    assert flushed[-1] == stage  # which names DONE


# --- publishing -----------------------------------------------------------------------------------


def model(folder: Path, text: str) -> Path:
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text(text)
    (folder / "1_Pooling" / "config.json").write_text(text)
    return folder


def test_publish_replaces_the_model_and_keeps_the_source(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", "mine")
    old = model(tmp_path / "old", "old")
    (old / "only-in-old").touch()
    new = model(tmp_path / "new", "new")
    run.publish(old)
    assert manifest(run.model) == manifest(old)
    run.publish(new)
    assert manifest(run.model) == manifest(new)
    assert (new / "config.json").exists()
    assert os.listdir(run.path) == ["model"]


@pytest.mark.parametrize("name", ["notes", "README.md", "deep/down/notes"])
def test_a_link_is_not_published_as_what_it_leads_to(name: str, tmp_path: Path) -> None:
    run, secret = RunFolder(tmp_path / "run"), tmp_path / "secret"
    old, new = model(tmp_path / "old", "old"), model(tmp_path / "new", "new")
    run.publish(old)
    secret.mkdir()
    (secret / "file").write_text("secret")
    (new / name).parent.mkdir(parents=True, exist_ok=True)
    (new / name).symlink_to(secret if name == "notes" else secret / "file")
    with pytest.raises(ValueError, match=f"{name} is a link to a f"):
        run.publish(new)
    assert manifest(run.model) == manifest(old)
    assert not any("secret" in path.read_text() for path in run.path.rglob("*") if path.is_file())


def test_an_interrupted_publish_is_mended_under_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(tmp_path / "run", "mine")
    old, new = model(tmp_path / "old", "old"), model(tmp_path / "new", "new")
    run.publish(old)
    rename = os.rename
    calls = []

    def stop_at_the_second(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("potstill.storage.run_folder.os.rename", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run.publish(new)
    monkeypatch.undo()
    assert not run.model.exists()  # the worst moment: between the two renames
    with run.lock():
        assert manifest(run.model) == manifest(old)
        assert sorted(os.listdir(run.path)) == [".lock", "model"]
        run.publish(new)
        assert manifest(run.model) == manifest(new)


# --- environment ----------------------------------------------------------------------------------


def test_environment_tells_this_machine() -> None:
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["numpy"] == numpy.__version__
    assert found["versions"]["python"] == sys.version.split()[0]
    assert found["memory_bytes"] == psutil.virtual_memory().total
    assert found["cpu"]["logical_cores"] == os.cpu_count()
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert found["git_revision"] is None or revision.stdout.strip() in found["git_revision"]


def test_environment_does_not_import_torch() -> None:
    code = (
        "import sys, potstill.storage.machine as m; e = m.environment(); "
        "print(e['gpus'], e['threads']['torch'], 'torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "None None False\n"


def test_read_cpu_takes_the_first_core_and_manages_without(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(
        "processor\t: 0\nmodel name\t: Some CPU @ 3GHz\nflags\t\t: fpu avx2 avx512_vnni\n\n"
        "processor\t: 1\nmodel name\t: Other\nflags\t\t: fpu\n"
    )
    assert read_cpu(path) == ("Some CPU @ 3GHz", frozenset({"fpu", "avx2", "avx512_vnni"}))
    name, flags = read_cpu(tmp_path / "none")
    assert name
    assert flags == frozenset()


def test_installed_version() -> None:
    assert installed_version("numpy") == numpy.__version__
    assert installed_version("no-such-distribution") is None
