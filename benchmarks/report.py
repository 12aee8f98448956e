"""Measure the size of a report, the seconds to write and to open it, and how fluid it is.

The images are solar cells of `elpv-dataset`, each a file of its own. If the arguments ask for more
than it has, cells are turned and mirrored. A browser opens the report from the disk several times,
each time in a new context. It measures the time from the start of the navigation to the end of the
load event, to the first picture on the screen, and to the end of the script, which has then drawn
the list; and the time of actions in the open page, until the browser has painted their result.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from harness import positive, print_circumstances
from PIL import Image

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.datasets import load_elpv
from skanomaly_vit.report import write_report

N_TRAIN = 100
SWITCHES = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SCREEN: Any = {"width": 1280, "height": 900}
#: Times that the browser measured, in milliseconds.
TIMES = """() => {
    const [navigation] = performance.getEntriesByType("navigation");
    const [paint] = performance.getEntriesByName("first-contentful-paint");
    return {load: navigation.loadEventEnd, paint: paint ? paint.startTime : NaN,
        interactive: navigation.domInteractive};
}"""
#: Actions in an open page.
ACTIONS = {
    "move the threshold": "setThreshold(candidates[Math.floor(candidates.length / 3)])",
    "show flagged images": "byId('filter-verdict').value = 'flagged'; refilter()",
    "move it meanwhile": "setThreshold(candidates[Math.floor(candidates.length / 2)])",
    "search a name": "byId('filter-verdict').value = '';"
    "byId('filter-name').value = '42'; refilter()",
    "sort by name": "byId('filter-name').value = ''; sortBy('name')",
    "turn the page": "turnPage(1)",
    "mark an image": "toggleMark(images[7], 'fine')",
    "enlarge an image": "openViewer(images[9], images)",
    "go to the next": "step(1)",
}
#: Milliseconds of an action and of painting it.
TIMED = """async action => {
    const start = performance.now();
    (0, eval)(action);
    await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
    return performance.now() - start;
}"""


def main() -> None:
    args = make_parser().parse_args()
    print_circumstances(seed=0)
    cells = load_elpv()
    rng = np.random.default_rng(0)
    functional = rng.permutation(np.flatnonzero(cells.y == 1))
    detector = TransformalyDetector(n_blocks=1, image_size=args.size, random_state=0)
    detector.fit(cells.images[functional[:N_TRAIN]])
    rest = rng.permutation(np.setdiff1d(np.arange(len(cells.y)), functional[:N_TRAIN]))
    with tempfile.TemporaryDirectory() as folder:
        paths, y = make_images(cells, rest, args.images, Path(folder))
        target = args.output or Path(folder, "report.html")
        start = perf_counter()
        write_report(detector, paths, y, target, title="Solar cells", folder=args.folder)
        written = perf_counter() - start
        print(f"{args.images} images: {size_of(target)} in {written:.1f} s")
        times = open_often(target, args.repeats)
    for name in times[0]:
        values = sorted(each[name] / 1000 for each in times)
        print(f"{name}: median {statistics.median(values):.3f} s, highest {values[-1]:.3f} s")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=positive, default=1000, help="default: 1000")
    parser.add_argument(
        "--size", type=positive, default=112, help="pixels that the detector sees; default: 112"
    )
    parser.add_argument("--folder", action="store_true", help="pictures in files beside the page")
    parser.add_argument("--repeats", type=positive, default=5, help="default: 5")
    parser.add_argument("--output", type=Path, help="keep the report under this path")
    return parser


def make_images(cells: Any, chosen: np.ndarray, n: int, folder: Path) -> tuple[list[Path], Any]:
    """Files of n images; a cell that repeats is turned in another way each time."""
    paths, labels = [], []
    for i in range(n):
        cell, turn = chosen[i % len(chosen)], (i // len(chosen)) % len(Image.Transpose)
        with Image.open(cells.images[cell]) as image:
            turned = image.transpose(Image.Transpose(turn)) if i >= len(chosen) else image
            paths.append(folder / f"cell-{i:05d}.png")
            turned.save(paths[-1])
        labels.append(cells.y[cell])
    return paths, labels


def size_of(target: Path) -> str:
    page = f"{target.stat().st_size / 1e6:.1f} MB"
    files = list(target.with_name(f"{target.stem}_files").glob("*"))
    if not files:
        return page
    total = sum(file.stat().st_size for file in files)
    return f"{page} and {len(files)} files of {total / 1e6:.1f} MB"


def open_often(target: Path, repeats: int) -> list[dict[str, float]]:
    from playwright.sync_api import sync_playwright

    browser_path = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser_path is None:
        raise SystemExit("no chromium on the PATH, so the report was not opened")
    times = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=SWITCHES)
        for _ in range(repeats):
            context = browser.new_context(viewport=SCREEN, bypass_csp=True)  # for eval
            tab = context.new_page()
            tab.goto(target.resolve().as_uri())
            tab.wait_for_function("performance.timing.loadEventEnd > 0")
            times.append(tab.evaluate(TIMES))
            times[-1] |= {name: tab.evaluate(TIMED, action) for name, action in ACTIONS.items()}
            context.close()
        browser.close()
    return times


if __name__ == "__main__":
    main()
