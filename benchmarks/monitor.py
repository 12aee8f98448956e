"""Measure the alarms of `LineMonitor`: false ones at the promised rate, and the delay of true ones.

Without ``--cells`` the script simulates lines without a change. Every line has its own calibration
set, as deployments have. Beside the monitor it counts alarms of two other ways: `drift_test` on
every 100 images, and a simple jumper (Vovk et al. 2021) that takes p-values against one calibration
set for independent.

With ``--cells`` it fits a detector to solar cells, scores the other functional cells as they are
and darker, and makes lines of these scores: a calibration set, 100 to 149 cells as they are, then
darker ones, all drawn anew for each line and none twice. A line without a change has brightness 1.
`drift_test` looks at every 50 cells, at the level of the monitor for all looks together
(``drift_test, all looks``), or at that level in each of them.

`--fdr` measures `OnlineFDR` on simulated lines with anomalies.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from harness import merge_csv, not_negative, positive, print_circumstances
from PIL import Image
from scipy.stats import beta

from skanomaly_vit import TransformalyDetector, datasets
from skanomaly_vit.calibration import certified_p_values, conformal_p_values, drift_test
from skanomaly_vit.monitoring import LineMonitor, OnlineFDR

LEVEL = 0.01
KEY = ("lines", "calibration", "change", "method")

#: Number of the image at which a method gives an alarm, or None; and the estimate of the change.
Alarm: TypeAlias = tuple[int | None, int | None]
Method: TypeAlias = Callable[[np.ndarray, np.ndarray], Alarm]


def monitored(known: np.ndarray, scores: np.ndarray) -> Alarm:
    status = LineMonitor(known, level=LEVEL).update(scores)
    return status.alarm_at, status.since


def batch_tests(size: int, level: float) -> Method:
    """`drift_test` on one batch after the other."""

    def find(known: np.ndarray, scores: np.ndarray) -> Alarm:
        for start in range(0, len(scores) - size + 1, size):
            if drift_test(known, scores[start : start + size]).p_value <= level:
                return start + size - 1, start
        return None, None

    return find


def jumper(known: np.ndarray, scores: np.ndarray) -> Alarm:
    """The simple jumper on p-values against a fixed set."""
    sides = np.array([-1.0, 0.0, 1.0])
    capital = np.full(3, 1 / 3)
    for number, p_value in enumerate(conformal_p_values(known, scores)):
        capital = 0.99 * capital + 0.01 * capital.sum() / 3
        capital *= 1 + sides * (p_value - 0.5)
        if capital.sum() >= 1 / LEVEL:
            return number, None
    return None, None


def main() -> None:
    args = parse_args()
    print_circumstances(args.seed)
    if args.fdr:
        discoveries(args)
    elif args.cells:
        cells(args)
    else:
        simulate(args)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--lines", type=positive, default=10_000)
    add("--images", type=positive, default=1000, help="of a simulated line; default: 1000")
    add("--calibration", type=positive, default=200, help="calibration scores; default: 200")
    add("--anomalies", type=float, default=0.0, help="their share in simulated lines")
    add("--cells", action="store_true", help="lines of solar cells")
    add("--fdr", action="store_true", help="OnlineFDR on simulated lines")
    add("--brightness", type=float, nargs="+", default=[1.0, 0.9, 0.8, 0.7, 0.5])
    add("--seed", type=not_negative, default=0)
    add("--output", type=Path, required=True, metavar="CSV")
    return parser.parse_args()


def simulate(args: argparse.Namespace) -> None:
    """Lines without a change; with anomalies, a share of them in every line."""
    methods = {
        "LineMonitor": monitored,
        "simple jumper": jumper,
        "drift_test": batch_tests(100, LEVEL),
    }
    change = f"none, {args.anomalies:g} anomalies"
    for name, find in methods.items():
        found = [find(*simulated_line(args, line)) for line in range(args.lines)]
        record(args, "simulated", change, name, found)


def simulated_line(args: argparse.Namespace, line: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([args.seed, line])
    known, scores = rng.standard_t(3, args.calibration), rng.standard_t(3, args.images)
    scores[rng.random(args.images) < args.anomalies] -= 100
    return known, scores


def cells(args: argparse.Namespace) -> None:
    """Lines of polycrystalline cells that become darker after 100 of them."""
    size = 50
    scores = cell_scores(args)
    n_looks = (len(scores[1.0]) - args.calibration) // size
    methods = {
        "LineMonitor": monitored,
        "drift_test, all looks": batch_tests(size, LEVEL / n_looks),
        "drift_test": batch_tests(size, LEVEL),
    }
    for brightness, darker in scores.items():
        for name, find in methods.items():
            found: list[Alarm] = []
            for line in range(args.lines):
                before = 100 + line % size  # changes do not wait for a batch
                order = np.random.default_rng([args.seed, line]).permutation(len(darker))
                known, normal, changed = np.split(
                    order, [args.calibration, args.calibration + before]
                )
                stream = np.concatenate([scores[1.0][normal], darker[changed]])
                alarm, since = find(scores[1.0][known], stream)
                found.append((
                    None if alarm is None else alarm - before,
                    None if since is None else since - before,
                ))  # fmt: skip
            record(args, "solar cells", f"brightness {brightness:g}", name, found)


def cell_scores(args: argparse.Namespace) -> dict[float, np.ndarray]:
    """Brightness -> scores of the cells that the detector has not seen."""
    data = datasets.load_elpv()
    normal = (data.module_type == "poly") & (data.defect_probability == 0)
    order = np.random.default_rng(args.seed).permutation(np.flatnonzero(normal))
    pixels = [np.asarray(Image.open(path)) for path in data.images[order]]
    detector = TransformalyDetector(random_state=args.seed).fit(pixels[:300])
    return {
        brightness: detector.score_samples(
            [(brightness * image).astype(np.uint8) for image in pixels[300:]]
        )
        for brightness in dict.fromkeys([1.0, *args.brightness])
    }


def record(
    args: argparse.Namespace, lines: str, change: str, name: str, found: list[Alarm]
) -> None:
    """Shares of alarms before and after image 0, the change, and the delay in images."""
    alarms = np.array([np.inf if at is None else at for at, _ in found])
    delays = alarms[alarms >= 0] + 1
    errors = [since for at, since in found if at is not None and at >= 0 and since is not None]
    n, k = len(found), int(np.isfinite(alarms).sum())
    row = {
        "lines": lines, "calibration": args.calibration, "change": change, "method": name,
        "n": n, "alarms": k / n,
        "low": beta.ppf(0.025, k, n - k + 1) if k else 0.0,
        "high": beta.ppf(0.975, k + 1, n - k) if k < n else 1.0,
        "early": np.mean(alarms < 0),
        "delay": quantile(delays, 0.5), "delay_90": quantile(delays, 0.9),
        "since_error": float(np.median(np.abs(errors))) if errors else np.nan,
    }  # fmt: skip
    show(args, row)


def quantile(delays: np.ndarray, share: float) -> float:
    """Infinite if fewer lines gave an alarm."""
    return float(np.quantile(delays, share, method="higher")) if len(delays) else np.nan


def show(args: argparse.Namespace, row: dict[str, Any]) -> None:
    rounded = {k: round(float(v), 5) if isinstance(v, float) else v for k, v in row.items()}
    print(", ".join(f"{k} {v}" for k, v in rounded.items()), flush=True)
    merge_csv(args.output, rounded, KEY)


def discoveries(args: argparse.Namespace) -> None:
    """False discoveries among the flagged images, and anomalies found, at q = 10 %."""
    for share, shift in ((0.2, 6.0), (0.2, 4.0), (0.05, 6.0)):
        figures = np.array(list(discovered(args, share, shift)))
        row = {
            "lines": "simulated", "calibration": args.calibration,
            "change": f"{share:g} anomalies at {shift:g}", "method": "OnlineFDR",
            "n": args.lines, "false_share": float(figures[:, 0].mean()),
            "false_share_error": float(figures[:, 0].std() / np.sqrt(args.lines)),
            "found": float(figures[:, 1].mean()),
        }  # fmt: skip
        show(args, row)


def discovered(
    args: argparse.Namespace, share: float, shift: float
) -> Iterator[tuple[float, float]]:
    for line in range(args.lines):
        rng = np.random.default_rng([args.seed, line])
        known, is_anomaly = rng.normal(size=args.calibration), rng.random(args.images) < share
        scores = rng.normal(size=args.images) - shift * is_anomaly
        flagged = OnlineFDR(0.1, horizon=1 / share).update(certified_p_values(known, scores))
        n_false = np.sum(flagged & ~is_anomaly)
        yield n_false / max(flagged.sum(), 1), np.mean(flagged[is_anomaly])


if __name__ == "__main__":
    main()
