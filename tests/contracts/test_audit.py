"""`make audit` tells what it has read, and fails if that is not all."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

import skanomaly_vit

SCRIPT = Path(skanomaly_vit.__file__).parents[1] / ".ci/audit.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="not run from a checkout")

READ = {"name": "click", "version": "8.3.0", "vulns": []}
WEAK = {"name": "torch", "version": "2.0.0", "vulns": [{"id": "PYSEC-1"}, {"id": "PYSEC-2"}]}
UNREAD = {"name": "scipy", "skip_reason": "not found"}
OWN = {"name": "skanomaly-vit", "skip_reason": "editable"}


def judge(*packages):
    return runpy.run_path(str(SCRIPT))["judge"](json.dumps({"dependencies": packages}))


def test_all_packages_were_looked_up():
    assert judge(READ, OWN) == "no known vulnerability in 1 packages, all of which were looked up"


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        ([READ, UNREAD, OWN], r"NOT audited: 1 of 2 packages .*\(scipy\)"),
        ([UNREAD] * 7, r"7 of 7 .*scipy, \.\.\.\)"),
        ([], "NOT audited: 0 of 0"),
        ([READ, WEAK], r"^known vulnerability in torch 2\.0\.0: PYSEC-1, PYSEC-2$"),
    ],
)
def test_what_is_weak_or_was_not_looked_up_fails(packages, message):
    with pytest.raises(SystemExit, match=message):
        judge(*packages)


def test_no_report_fails():
    with pytest.raises(SystemExit, match="NO advisories were read"):
        runpy.run_path(str(SCRIPT))["judge"]("")
