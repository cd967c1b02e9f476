"""Numbers in README and docs come from committed JSON: this collects and renders them.

    python benchmarks/render_docs.py collect runs/quickstart quickstart
    python benchmarks/render_docs.py render

The first writes benchmarks/results/quickstart.json, the second the tables of README.md and docs/
and the picture in docs/images/. `render --check` changes nothing and fails where a text differs
from its JSON. The tables themselves are in doc_*.py.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import doc_ablations
import doc_costs
import doc_quickstart
import doc_scores
from doc_tables import RESULTS

ROOT = Path(__file__).resolve().parent.parent
TEXTS = (
    "README.md",
    "docs/benchmark.md",
    "docs/cached-teacher.md",
    "docs/masked-lm.md",
    "docs/LOG.md",
    "docs/ablation.md",
    "docs/compress.md",
    "docs/suites.md",
    "docs/tasks.md",
    "src/potstill/recipe/shipped/README.md",
)
TABLES = {
    "quickstart": doc_quickstart.quickstart,
    "masked_lm_ablation": doc_ablations.masked_lm_ablation,
    "distill_step": doc_costs.distill_step,
    "training_speed": doc_costs.training_speed,
    "cached_teacher": doc_costs.cached_teacher,
    "shipped_quickstart": doc_quickstart.shipped_quickstart,
    "ablation_embeddings": doc_ablations.ablation_embeddings,
    "ablation_sst2": doc_ablations.ablation_sst2,
    "ablation_positions": doc_ablations.ablation_positions,
    "tasks": doc_scores.tasks,
    "reached": doc_scores.reached,
    "bert_base_shapes": doc_costs.bert_base_shapes,
    "compress_embeddings": doc_costs.compress_embeddings,
    "compress_sst2": doc_costs.compress_sst2,
    "glue": doc_scores.glue,
}
MARKER = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def collect(run: Path, name: str) -> Path:
    """One JSON of what a run measured and on what machine; examples and raw samples stay behind."""
    stages = []
    for folder in sorted((run / "stages").iterdir()):
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        done = json.loads((folder / "DONE").read_text(encoding="utf-8"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["stage"]
        for key in [key for key in result if key in ("examples", "softened") or key[:3] == "raw"]:
            del result[key]
        stages.append(
            {
                "kind": config["kind"],
                "writes": config.get("writes"),
                "seconds": round(done["seconds"], 1),
                "result": result,
            }
        )
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    value = {"environment": environment, "stages": stages}
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    return path


def render(check: bool) -> list[str]:
    """Fill the marked tables and draw the picture; returns the names of texts that differed."""
    changed = []
    for name in TEXTS:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = MARKER.sub(lambda match: f"{match[1]}{_table(match[2])}{match[3]}", before)
        if after != before:
            changed.append(name)
            if not check:
                path.write_text(after, encoding="utf-8")
    if not check:
        doc_quickstart.draw(ROOT / "docs" / "images" / "quickstart.svg")
    return changed


def _table(name: str) -> str:
    try:
        return TABLES[name]()
    except FileNotFoundError:  # where there was one, its table differs now
        return "Not measured yet.\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect")
    collecting.add_argument("run", type=Path)
    collecting.add_argument("name")
    rendering = commands.add_parser("render")
    rendering.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.command == "collect":
        print(collect(arguments.run, arguments.name))
        return 0
    changed = render(arguments.check)
    print("\n".join(changed) or "nothing differs")
    return int(arguments.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
