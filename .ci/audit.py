"""Judges a report of pip-audit: `pip-audit --format json | python .ci/audit.py`.

pip-audit says that it found no known vulnerability even of packages that it could not look up.
"""

from __future__ import annotations

import json
import sys

#: Ours, which lies in no index.
OWN = "skanomaly-vit"


def judge(report: str) -> str:
    """Say what was found; SystemExit with a message if a package is weak, or was not looked up."""
    try:
        packages = json.loads(report)["dependencies"]
    except (ValueError, LookupError):
        raise SystemExit("pip-audit gave no report: NO advisories were read") from None
    packages = [package for package in packages if package["name"] != OWN]
    unread = [package["name"] for package in packages if "skip_reason" in package]
    weak = [
        f"{package['name']} {package['version']}: {', '.join(v['id'] for v in package['vulns'])}"
        for package in packages
        if package.get("vulns")
    ]
    problems = [f"known vulnerability in {line}" for line in weak]
    if unread or not packages:
        names = ", ".join(unread[:5]) + (", ..." if len(unread) > 5 else "")
        problems.append(
            f"NOT audited: {len(unread)} of {len(packages)} packages could not be looked up "
            f"({names}); for these NO advisories were read. Run it where they can be reached"
        )
    if problems:
        raise SystemExit("\n".join(problems))
    return f"no known vulnerability in {len(packages)} packages, all of which were looked up"


if __name__ == "__main__":
    sys.stdout.write(judge(sys.stdin.read()) + "\n")
