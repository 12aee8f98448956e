"""The tutorial: small pictures, and the live report of the site."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

import skanomaly_vit

pytest.importorskip("sphinx", reason="sphinx is not installed")
DOCS = Path(skanomaly_vit.__file__).parents[1] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the package is not run from a checkout")


@pytest.fixture
def live_report():
    """The extension that makes it."""
    path = DOCS / "_ext/live_report.py"
    spec = importlib.util.spec_from_file_location("live_report", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["live_report"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["live_report"]


def test_the_live_report_is_small_and_as_strict_as_any(live_report, tmp_path):
    target = tmp_path / "live.html"
    live_report.write_live_report(target)
    page = target.read_text(encoding="utf-8")
    assert len(page) < 400_000
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    policy = policy.replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert page.count('"score":') == 12


def test_the_tutorial_has_a_place_for_the_live_report(live_report):
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    assert page.count(live_report.MARK) == 1
    source = [page]
    live_report._on_read(None, "tutorial", source)
    assert '<iframe class="live-report" src="live_report.html"' in source[0]


def test_its_pictures_are_small():
    pictures = list(DOCS.glob("_static/tutorial_*.webp"))
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    assert {picture.name for picture in pictures} == set(re.findall(r"tutorial_\w+\.webp", page))
    assert sum(picture.stat().st_size for picture in pictures) < 300_000
