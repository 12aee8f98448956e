"""What `write_report` returns."""

from __future__ import annotations

import html
import os
import webbrowser

import pytest

from skanomaly_vit.report import Report


@pytest.fixture
def report(tmp_path):
    path = tmp_path / "a&b.html"
    path.write_text('<!doctype html><p class="x">19 µm</p>', encoding="utf-8")
    return Report(path)


def test_a_report_shows_itself_in_a_cell(report):
    shown = report._repr_html_()
    page = shown.partition('srcdoc="')[2].partition('"')[0]
    assert html.unescape(page) == report.path.read_text(encoding="utf-8")
    assert 'sandbox="allow-scripts allow-downloads"' in shown
    assert "a&amp;b.html" in shown


def test_large_reports_and_those_with_a_folder_are_linked(report, monkeypatch):
    monkeypatch.setattr("skanomaly_vit.report._written._LARGEST_IN_A_CELL", 10)
    assert "iframe" not in report._repr_html_()
    monkeypatch.undo()
    report.path.with_name("a&b_files").mkdir()
    assert "iframe" not in report._repr_html_()
    report.path.unlink()
    assert "is gone" in report._repr_html_()


def test_a_report_is_a_path_and_opens(report, monkeypatch):
    asked = []
    monkeypatch.setattr(webbrowser, "open", lambda uri: asked.append(uri) or True)
    assert report.open()
    assert asked == [report.path.as_uri()]
    assert os.fspath(report) == str(report.path)


def test_a_copy_of_a_report(report, tmp_path):
    copy = report.save(tmp_path / "copy.html")
    assert copy.path.read_bytes() == report.path.read_bytes()
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        report.save(tmp_path / "no" / "copy.html")


def test_a_copy_takes_its_pictures_along(report, tmp_path):
    report.path.with_name("a&b_files").mkdir()
    (report.path.with_name("a&b_files") / "1.png").write_bytes(b"png")
    with pytest.raises(ValueError, match=r"save it as .* in another folder"):
        report.save(tmp_path / "copy.html")
    (tmp_path / "other").mkdir()
    copy = report.save(tmp_path / "other" / "a&b.html")
    assert (copy.path.parent / "a&b_files" / "1.png").read_bytes() == b"png"
