"""The part that two timing scripts share: their arguments, and the result as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from potstill.storage.files import write_text


def arguments(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the arguments that both have.

    Args:
        doc: The script's docstring, whose first line describes it.
        rounds: The default of --rounds.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the script")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--output", type=Path, help="also write the JSON here, indented")
    return parser


def finish(found: dict[str, Any], output: Path | None) -> None:
    """Print a result as one line of JSON, and write it where --output says."""
    if output is not None:
        write_text(output, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))
