"""Draw the pictures of the tutorial, docs/_static/tutorial_*.webp, by its own code.

Runs the Python blocks of docs/tutorial.md one after the other in a temporary folder; each picture
that they save becomes a small one of the page. Says the values that the page quotes. It takes half
a minute.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
from PIL import Image

DOCS = Path(__file__).parent
LONGEST = 1100  # pixels
QUALITY = 80


def main() -> None:
    """Run the page, shrink its pictures, tell its values."""
    mpl.use("Agg")
    names: dict[str, Any] = {}
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for block in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S):
            exec(block, names)  # code of the page, which a test runs as well
        for drawn in Path(folder).glob("*.png"):
            shrink(drawn, DOCS / "_static" / f"tutorial_{drawn.stem}.webp")
        os.chdir(DOCS)
    ends = names["scores"][[0, 1, 2, -3, -2, -1]].round(1)
    p_values = names["detector"].p_values(names["new"])[-3:].round(3)
    sys.stdout.write(f"scores {ends}, p-values {p_values}\n")


def shrink(drawn: Path, target: Path) -> None:
    """Write a picture as a small WebP."""
    with Image.open(drawn) as picture:
        picture.thumbnail((LONGEST, LONGEST))
        picture.convert("RGB").save(target, quality=QUALITY, method=6)


if __name__ == "__main__":
    main()
