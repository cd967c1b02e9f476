"""Find what another configuration left in a run folder, and set it aside."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from potstill.recipe import Stage, published_chain
from potstill.storage import RunFolder
from potstill.storage.files import read_json
from potstill.storage.manifest import model_part, sha256, verify_manifest
from potstill.storage.onnx_files import ONNX

RESULTS = ("metrics.json", "report.html")
SUITE = "suite.json"


def published_problem(run: RunFolder, stages: Sequence[Stage]) -> str | None:
    """Explain why a run's model/ is not what the last finished stage that makes it wrote.

    Returns:
        What is wrong; None if nothing is, and for a recipe that makes no model.
    """
    chain = published_chain(stages)
    if not chain:
        return None
    folders = {number: run.stage_folder(number, stages[number - 1].kind) for number in chain}
    finished = [number for number in chain if (folders[number] / "DONE").is_file()]
    if chain[0] not in finished:
        main = stages[chain[0] - 1].kind
        return f"stage {chain[0]} ({main}), which makes its model, is not finished"
    number = finished[-1]
    folder, name = folders[number], f"stage {number} ({stages[number - 1].kind})"
    try:
        files = read_json(folder / "DONE")["files"]
        below = f"model/{ONNX}/"
        graphs = {n.removeprefix("model/"): e for n, e in files.items() if n.startswith(below)}
        expected = model_part(files, "model") | graphs
        differing = verify_manifest(run.model, expected)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{folder / 'DONE'} can't be read"
    there = [path.relative_to(run.model).as_posix() for path in run.model.glob(f"{ONNX}/*")]
    differing += [name for name in there if name not in expected]  # of an older export
    if not differing:
        return None
    return f"{run.model / differing[0]} is not what {name} wrote"


def set_aside_stages(run: RunFolder, expected: Mapping[Path, str]) -> list[str]:
    """Set aside stages that are not the recipe's, or were begun with another configuration.

    Args:
        run: The run folder.
        expected: The folder of each stage of the recipe, with its fingerprint.

    Returns:
        What was moved where, one sentence each.
    """
    said = []
    for folder in sorted(run.path.glob("stages/*/")):
        former = begun_as(folder)
        if folder not in expected:
            what = "is no longer a stage of it and is now"
        elif former is not None and former != expected[folder]:
            what = "runs again; its former result is now"
        else:
            continue
        target = _vacant(run, f"{folder.name}-{(former or 'unfinished')[:8]}", "DONE")
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
        said.append(f"{folder.name} {what} in {target}")
    return said


def set_aside_results(run: RunFolder, *, model: bool) -> list[str]:
    """Set aside the former results together, with their recipe and environment.

    Args:
        run: The run folder.
        model: Whether the published model is a former one, too.

    Returns:
        As `set_aside_stages`.
    """
    # a suite's scores, if there are some, are of the published model
    wanted = [*(["model", SUITE] if model else []), *RESULTS]
    names = [name for name in wanted if (run.path / name).exists()]
    if not names:
        return []
    recipe = run.path / "recipe.yaml"
    digest = sha256(recipe if recipe.is_file() else b"")
    target = _vacant(run, f"results-{digest[:8]}", "")
    target.mkdir()
    for name in ("recipe.yaml", "environment.json"):
        if (run.path / name).is_file():
            shutil.copy2(run.path / name, target / name)
    for name in names:
        (run.path / name).rename(target / name)
    return [f"the former {', '.join(names)} are now in {target}"]


def begun_as(folder: Path) -> str | None:
    """Return the fingerprint that a stage's folder was last used for; None if it is not known."""
    try:
        config = read_json(folder / "config.json")
    except ValueError:
        return None
    return config.get("fingerprint") if isinstance(config, dict) else None


def _vacant(run: RunFolder, name: str, unless: str) -> Path:
    """Return a path below replaced/ that holds nothing finished: no file `unless`, or nothing."""
    target = run.path / "replaced" / name
    target.parent.mkdir(exist_ok=True)
    number = 1
    while (target / unless).exists():
        number += 1
        target = target.with_name(f"{name}-{number}")
    return target
