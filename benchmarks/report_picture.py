"""A picture of a run's report, as README shows it.

    python benchmarks/report_picture.py runs/quickstart docs/images/report.png

Takes the upper part of the page by a headless Chromium (on Debian: apt-get install chromium), and
keeps it small: few colours are enough for text and plots.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MOST_BYTES = 300_000
GAP = 24  # rows of nothing between parts of a page


def take(page: Path, path: Path, width: int, height: int) -> None:
    """Write the upper part of a page, in the light theme, as PNG.

    Raises:
        ValueError: no page, no browser, or a picture that is too large for a repository.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise ValueError("no Chromium was found: install it (on Debian: apt-get install chromium)")
    if not page.is_file():
        raise ValueError(f"{page} is not there: write it with potstill report {page.parent}")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        command = [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", "--hide-scrollbars", f"--user-data-dir={folder}/profile"),
            *(f"--window-size={width},{height}", f"--screenshot={shot}", page.resolve().as_uri()),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        picture = whole_lines(Image.open(shot).convert("RGB"))
        picture = picture.quantize(256, dither=Image.Dither.NONE)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes: give a smaller --height")


def whole_lines(picture: Image.Image) -> Image.Image:
    """The picture without what is cut at its lower edge: it ends in its last band of background."""
    pixels = np.asarray(picture)
    blank = (pixels == pixels[0, 0]).all(axis=(1, 2))
    bands = [end for end in range(GAP, len(blank)) if blank[end - GAP : end].all()]
    return picture.crop((0, 0, picture.width, bands[-1])) if bands else picture


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1100)
    parser.add_argument("--height", type=int, default=1500)
    arguments = parser.parse_args()
    try:
        take(arguments.run / "report.html", arguments.picture, arguments.width, arguments.height)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {arguments.picture} ({arguments.picture.stat().st_size:,} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
