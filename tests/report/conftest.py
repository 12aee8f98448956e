"""Fixtures of reports, and a browser that opens them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from reports import Brightness, Calibrated

from skanomaly_vit.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SWITCHES = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture
def detector(images):
    return Brightness().fit(images)


@pytest.fixture
def mixed(images, odd_images):
    return [*images, *odd_images]


@pytest.fixture
def y(images, odd_images):
    return np.repeat([1, -1], [len(images), len(odd_images)])


@pytest.fixture
def target(tmp_path):
    return tmp_path / "report.html"


@pytest.fixture
def calibrated(images):
    """A detector with 40 calibration scores, as many above its threshold as below."""
    detector = Calibrated().fit(images)
    return detector.calibrate(detector.offset_ + (np.arange(40) - 19.5) / 300)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on the PATH")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, calibrated, mixed, y, target):
    """Open a report; complaints of the browser and its requests fail the test."""
    contexts, complaints, requests = [], [], []

    def visit(X=mixed, labels=y, *, report=None, init="", **options):
        write_report(calibrated, X, labels, target, **{"n_maps": 4} | (report or {}))
        contexts.append(browser.new_context(**options))
        contexts[-1].add_init_script(init)
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(target.as_uri())
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []
    assert requests
    allowed = ("file:", "data:", "blob:")  # a blob is a table of the page itself
    assert [url for url in requests if not url.startswith(allowed)] == []
