"""Compare runs side by side: recipes, scores, speeds and sizes, and whether they are comparable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from potstill.reporting import figures
from potstill.reporting.metrics_json import Metrics, finite, metrics_of
from potstill.reporting.pages import flat, render
from potstill.reporting.phrases import title_of
from potstill.reporting.results import Results, read_results
from potstill.reporting.suites import suites_of_runs
from potstill.reporting.table import Row, comparison_rows, retentions, side_by_side
from potstill.reporting.verdict import verdict
from potstill.storage.files import write_text
from potstill.tasks.score_names import label_of

# Says nothing of what a run does.
UNTOLD = ("description", "stages.report")
SAME = 1e-6  # scores of one model on the same texts, on one machine
NEAR = 2e-3  # and on two machines: a tie may fall to the other side


@dataclass(frozen=True)
class _ComparedRun:
    label: str
    results: Results
    metrics: Metrics
    rows: Sequence[Row]

    @property
    def models(self) -> list[str | None]:
        """Return the student, the last artifact made of it, and the baseline."""
        return [self.results.student, self.results.last, self.results.baseline]

    def setting(self, name: str) -> Any:
        """Return a setting of metrics.json."""
        return self.metrics["settings"].get(name)


def compare_runs(folders: Sequence[Path]) -> dict[str, Any]:
    """Compare finished runs of one task side by side.

    Returns:
        `task`; `runs`, each with its name, folder, recipe, seed, and the names of its models;
        `differences`: key of a recipe -> its value in each run, null where it is not there;
        `environment`: the same of machines and versions; `comparable`: whether `scores`,
        `retention` and `speed` can be compared; `warnings` and `notes`: what a reader must know, in
        sentences; `tables`: of the students, of the last artifacts made of them, of the baselines
        and of public suites, rows with a cell (`value`, `text`, `note`) for each run, null where it
        has none;
        `kept`: score -> what students and last artifacts keep of it.

    Raises:
        ValueError: Fewer than two runs are given, one is given twice, or their tasks differ.
    """
    if len(folders) < 2:
        raise ValueError(
            f"RUN: a comparison needs two runs, and {len(folders)} is given. Give two or more."
        )
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"RUN: {folder} is given twice. Give different runs.")
    runs = [_read(folder, label) for folder, label in zip(folders, _labels(places), strict=True)]
    tasks = [str(run.setting("task")) for run in runs]
    if len(set(tasks)) > 1:
        told = ", ".join(f"{run.label}: {task}" for run, task in zip(runs, tasks, strict=True))
        raise ValueError(f"RUN: the runs have different tasks ({told}). Give runs of one task.")
    suites, doubts = suites_of_runs({run.label: run.results.suite for run in runs})
    comparable = _comparable(runs)
    found: dict[str, Any] = finite(
        {
            "task": tasks[0],
            "runs": [_told(run) for run in runs],
            "differences": _differences([run.results.recipe for run in runs]),
            "environment": _differing([dict(flat(run.results.environment)) for run in runs]),
            **comparable,
            "warnings": [*comparable["warnings"], *doubts],
            "tables": [*_tables(runs), *suites],
            "kept": _kept(runs),
        }
    )
    return found


def write_comparison(found: Mapping[str, Any], path: Path) -> None:
    """Write what `compare_runs` found as one HTML page that opens offline.

    Raises:
        ValueError: matplotlib is not installed, or the path is a folder or in none.
        OSError: The page can't be written there.
    """
    figures.require_matplotlib()
    if path.is_dir():
        raise ValueError(f"--output: {path} is a folder. Give the name of a file.")
    if not path.parent.is_dir():
        raise ValueError(
            f"--output: the folder {path.parent} does not exist. Create it with `mkdir -p`."
        )
    groups = {
        label_of(score): [(bar["run"], bar["value"], bar["interval"]) for bar in bars]
        for score, bars in found["kept"].items()
    }
    recipes, environments = (
        [(key, [_shown(value) for value in values]) for key, values in found[part].items()]
        for part in ("differences", "environment")
    )
    page = {
        **found,
        "title": " and ".join(run["name"] for run in found["runs"]),
        "recipes": recipes,
        "environments": environments,
        "figure": figures.retention(groups, "the baseline's", key="kept") if groups else "",
    }
    write_text(path, render("compare.html.j2", page))


# --- reading --------------------------------------------------------------------------------------


def _read(folder: Path, label: str) -> _ComparedRun:
    results = read_results(folder)
    metrics = metrics_of(results)
    rows = comparison_rows(results, metrics)
    rows = [replace(row, group=_GROUPS.get(row.group.split()[0], row.group)) for row in rows]
    return _ComparedRun(label, results, metrics, rows)


# How a group of rows is called in all runs.
_GROUPS = {"Scores": "Scores on held-out text", "Against": "Against the baseline"}


def _labels(places: Sequence[Path]) -> list[str]:
    """Return each folder's name, with those above it where names are the same."""
    for count in range(1, max(len(place.parts) for place in places) + 1):
        labels = ["/".join(place.parts[-count:]) for place in places]
        if len(set(labels)) == len(labels):
            break
    return labels


def _told(run: _ComparedRun) -> dict[str, Any]:
    results = run.results
    return {
        "name": run.label,
        "folder": str(results.run),
        "recipe": results.recipe.get("name"),
        "title": title_of(results),
        "seed": results.recipe.get("seed"),
        "baseline": results.baseline,
        "student": results.student,
        "last": results.last,
        "verdict": verdict(results, run.metrics),
        "findings": results.findings,
        "records": run.setting("records"),
    }


# --- what differs ---------------------------------------------------------------------------------


def _differences(recipes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    found = _differing([dict(_leaves(recipe)) for recipe in recipes])
    told = {key: values for key, values in found.items() if not key.startswith(UNTOLD)}
    return {key.removeprefix("stages."): values for key, values in told.items()}


def _differing(leaves: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return key -> its value in each run, for keys whose values differ."""
    keys = dict.fromkeys(key for each in leaves for key in each)
    found = {key: [each.get(key) for each in leaves] for key in keys}
    return {key: values for key, values in found.items() if not _all_same(values)}


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of each leaf; entries of a list are named by their kind or their number.

    The keys are those of overrides on the command line, but for several entries of one kind.
    """
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        seen: list[str] = []
        for number, item in enumerate(value):
            kind = str(item.get("kind", number))
            seen.append(kind)
            again = f"-{seen.count(kind)}" if seen.count(kind) > 1 else ""
            rest = {key: each for key, each in item.items() if key != "kind"}
            yield f"{name}.{kind}{again}", "there"
            yield from _leaves(rest, f"{name}.{kind}{again}")
    else:
        yield name, value


def _shown(value: Any) -> str:
    if value is None:
        return "\N{EN DASH}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


# --- what can be compared -------------------------------------------------------------------------


def _comparable(runs: Sequence[_ComparedRun]) -> dict[str, Any]:
    """Judge what can be compared, with warnings and notes in sentences."""
    warnings, notes = list[str](), list[str]()
    teachers = [run.results.recipe.get("teacher", {}).get("model") for run in runs]
    one_teacher = _all_same(teachers)
    if not one_teacher:
        warnings.append(
            f"The teachers differ ({_shown(teachers)}): what is kept, and speedups, "
            "are against different models."
        )
    scores, why = _same_texts(runs, one_teacher)
    (notes if scores else warnings).extend(why)
    seeds = [run.results.recipe.get("seed") for run in runs]
    if scores and not _all_same(seeds):
        warnings.append(
            f"The seeds differ ({_shown(seeds)}): a part of each difference is the "
            "chance of training."
        )
    speed, why = _same_machine(runs)
    (notes if speed else warnings).extend(why)
    noisy = [run.label for run in runs if run.setting("noisy")]
    if noisy:
        warnings.append(f"Speed was measured on a noisy machine: {_shown(noisy)}.")
    notes.append(
        "Intervals are of each run alone. Where those of two runs overlap widely, nothing is said "
        "of which is better."
    )
    known = {"scores": scores, "retention": scores and one_teacher, "speed": speed and one_teacher}
    return {"comparable": known, "warnings": warnings, "notes": notes}


def _same_texts(runs: Sequence[_ComparedRun], one_teacher: bool) -> tuple[bool, list[str]]:
    """Judge by settings and by one teacher's scores whether runs were scored on the same texts."""
    unscored = [run.label for run in runs if not run.results.evaluation]
    if unscored:
        return False, [f"Scores can't be compared: there are none in {_shown(unscored)}."]
    settings = [dict(_leaves(_scored_on(run.results))) for run in runs]
    differing = list(_differing(settings))
    records = [run.setting("records") for run in runs]
    apart = _apart(runs) if one_teacher else None
    if not differing and _all_same(records) and (apart is None or apart <= NEAR):
        return True, []
    if _all_same(records) and apart is not None and apart <= SAME:
        return True, [
            f"The data settings differ ({_shown(differing)}), but the teacher scores the same "
            "in all: the held-out texts are the same."
        ]
    if differing:
        why = f"the data settings differ ({_shown(differing)})"
    elif not _all_same(records):
        why = f"they hold {_shown(records)} records"
    else:
        why = f"the same teacher scores differently in them, by up to {apart:.3f}"
    return False, [f"Scores can't be compared, nor what is kept: {why}."]


def _scored_on(results: Results) -> dict[str, Any]:
    """Return the settings that decide which texts are scored on, and how."""
    recipe, seed = results.recipe, {"seed": results.recipe.get("seed")}
    corpus, data = recipe.get("corpus") or {}, recipe.get("data") or {}
    last = next((s.settings for s in reversed(results.stages) if s.kind == "evaluate"), {})
    evaluate = {k: v for k, v in last.items() if k not in ("kind", "models", "baseline")}
    found: dict[str, Any] = {"evaluate": evaluate}
    if data:
        own = next((key for key in ("test", "dev") if data.get(key)), None)
        keys = [own] if own else ["train", "heldout", "max_train"]
        found["data"] = {key: data.get(key) for key in (*keys, "text", "label", "metric")}
        return found | ({} if own else seed)
    keys = ["columns"]
    if corpus.get("heldout_sources"):
        keys += ["heldout_sources"]
    else:
        keys += ["sources", "heldout", "group_by", "drop_duplicates"]
        found |= seed
    if recipe.get("task") == "masked_lm":  # whose masks hang on the seed too
        keys += ["max_length", "min_length", "max_unknown"]
        found |= seed
    return found | {"corpus": {key: corpus.get(key) for key in keys}}


def _apart(runs: Sequence[_ComparedRun]) -> float | None:
    """Return the largest difference of the baselines' scores; None: they share no score."""
    scored = [
        dict(_leaves(run.metrics["models"].get(run.results.baseline, {}).get("scores", {})))
        for run in runs
    ]
    values = [list[Any](each.get(key) for each in scored) for key in scored[0]]
    numbers = [each for each in values if all(isinstance(v, (int, float)) for v in each)]
    return max((max(each) - min(each) for each in numbers), default=None)


def _same_machine(runs: Sequence[_ComparedRun]) -> tuple[bool, list[str]]:
    timed = [run for run in runs if run.results.benchmark]
    if len(timed) < 2:
        return False, []
    processors = [run.results.environment.get("cpu", {}).get("model") for run in timed]
    threads = [run.setting("threads") for run in timed]
    for what, values in (("processors", processors), ("threads", threads)):
        if not _all_same(values):
            return False, [f"Speed can't be compared: the {what} differ ({_shown(values)})."]
    return True, [
        "Milliseconds are of different sessions: compare speedups, each of which is against the "
        "baseline in the same session."
    ]


def _all_same(values: Iterable[Any]) -> bool:
    first, *rest = list(values)
    return all(value == first for value in rest)


# --- tables ---------------------------------------------------------------------------------------


def _tables(runs: Sequence[_ComparedRun]) -> list[dict[str, Any]]:
    """Make tables of the students, of the last artifacts made of them, and of the baselines."""
    roles = ("The student", "The last artifact made of it", "The baseline")
    rows = [run.rows for run in runs]
    found = [
        {"role": role, "models": list(names), "rows": side_by_side(rows, names)}
        for role, names in zip(roles, zip(*(run.models for run in runs), strict=True), strict=True)
    ]
    return [table for table in found if table["rows"]]


def _kept(runs: Sequence[_ComparedRun]) -> dict[str, list[dict[str, Any]]]:
    """Return score -> what each run's student retains of it, and its last artifact."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        student, last, _ = run.models
        shares = retentions(run.results, run.metrics)
        for name, label in ((student, run.label), (last, f"{run.label}: {last}")):
            for score, models in shares.items():
                if name in models:
                    value, span = models[name]
                    bar = {"run": label, "model": name, "value": value, "interval": span}
                    found.setdefault(score, []).append(bar)
    return found
