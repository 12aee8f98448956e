"""Read mutated images of many encodings, and count what becomes of them; see README.md here."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/helpers"))

from mutated_images import FOREIGN, OUTCOMES, REFUSED, SILENT, Mutant, corpus, judge, mutants

from skanomaly_vit import TransformalyDetector


def main() -> None:
    args = parse_args()
    detector = fitted()
    counts: Counter[tuple[str, str]] = Counter()
    for number, mutant in enumerate(mutants(args.n, args.seed)):
        outcome, said = judge(mutant)
        if number % args.score_every == 0:
            outcome, said = score(detector, mutant, outcome, said)
        counts[mutant.original.form, outcome] += 1
        if outcome in (SILENT, FOREIGN):
            print(f"{number}: {mutant.original.name}, {mutant.mutation}: {outcome}: {said}")
    report(counts, args)
    sys.exit(any(outcome in (SILENT, FOREIGN) for _, outcome in counts))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=10_000, help="mutants; default: 10,000")
    parser.add_argument("--score-every", type=int, default=50, metavar="N",
                        help="pass every N-th through a detector; default: 50")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def fitted() -> TransformalyDetector:
    normal = np.random.default_rng(0).integers(60, 250, (40, 26, 31, 3), dtype=np.uint8)
    return TransformalyDetector(
        backbone="test_vit", pretrained=False, n_blocks=2, random_state=0, contamination=0.2
    ).fit(normal)


def score(
    detector: TransformalyDetector, mutant: Mutant, outcome: str, said: str
) -> tuple[str, str]:
    """The outcome, unless the detector's own does not go with it."""
    try:
        (value,) = detector.score_samples([mutant.item])
    except ValueError as error:
        is_ours = outcome == REFUSED and "sample 0" in str(error)
        return (outcome, said) if is_ours else (FOREIGN, str(error))
    if outcome == REFUSED or not np.isfinite(value):
        return SILENT, f"its score is {value}"
    return outcome, said


def report(counts: Counter[tuple[str, str]], args: argparse.Namespace) -> None:
    forms = sorted({form for form, _ in counts})
    print(f"{len(corpus(args.seed))} originals, {args.n} mutants, seed {args.seed}")
    print(f"{'':<10}" + "".join(f"{outcome:>15}" for outcome in OUTCOMES))
    for form in forms:
        print(f"{form:<10}" + "".join(f"{counts[form, each]:>15}" for each in OUTCOMES))
    total = [sum(counts[form, each] for form in forms) for each in OUTCOMES]
    print(f"{'all':<10}" + "".join(f"{each:>15}" for each in total))


if __name__ == "__main__":
    main()
