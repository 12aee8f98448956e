"""What each hard dependency weighs on the disk, and who else needs it: for the page on platforms.

Run: python benchmarks/dependencies.py
"""

from __future__ import annotations

import configparser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SETUP = Path(__file__).parents[1] / "setup.cfg"


def requirements_of(name: str) -> set[str]:
    """Names of what a distribution needs without an extra."""
    found = map(Requirement, distribution(name).requires or [])
    return {
        canonicalize_name(each.name)
        for each in found
        if each.marker is None or each.marker.evaluate({"extra": ""})
    }


def megabytes(name: str) -> float:
    files = distribution(name).files or []
    paths = (Path(str(file.locate())) for file in files if file.suffix != ".pyc")
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def all_below(name: str) -> set[str]:
    found: set[str] = set()
    waiting = {canonicalize_name(name)}
    while waiting:
        each = waiting.pop()
        try:
            waiting |= requirements_of(each) - found
        except PackageNotFoundError:  # of another platform
            continue
        found.add(each)
    return found


def main() -> None:
    metadata = configparser.ConfigParser()
    metadata.read(SETUP)
    lines = metadata["options"]["install_requires"].split("\n")
    own = [canonicalize_name(Requirement(line).name) for line in lines if line]
    print("| package | version | MB | needed anyway by |\n|---|---|---|---|")
    for name in own:
        others = [each for each in own if each != name and name in all_below(each)]
        print(
            f"| {name} | {distribution(name).version} | {megabytes(name):.1f} | "
            f"{', '.join(others) or '-'} |"
        )
    closure = set().union(*map(all_below, own))
    rest = sum(megabytes(each) for each in closure - set(own))
    print(f"\nWhat these need beyond themselves: {len(closure) - len(own)} packages, {rest:.0f} MB")


if __name__ == "__main__":
    main()
