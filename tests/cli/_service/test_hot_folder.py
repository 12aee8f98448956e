"""A hot folder: complete files only, each content once, across restarts of any kind."""

from __future__ import annotations

import builtins
import csv
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from serving import Brightness, png, wait_until
from test_service import WITHOUT_TORCH

from skanomaly_vit.cli._service import arrivals as arriving
from skanomaly_vit.cli._service import notices as noticing
from skanomaly_vit.cli._service.arrivals import Arrivals
from skanomaly_vit.cli._service.flagged import copier, linker
from skanomaly_vit.cli._service.hot_folder import HotFolder
from skanomaly_vit.cli._service.score_log import COLUMNS, ScoreLog

BRIGHT, DARK = np.full((8, 8, 3), 120, np.uint8), np.full((8, 8, 3), 40, np.uint8)


@pytest.fixture
def inbox(tmp_path):
    folder = tmp_path / "inbox"
    (folder / "b").mkdir(parents=True)
    (folder / "a.png").write_bytes(png(BRIGHT))
    (folder / "b/dark.png").write_bytes(png(DARK))
    (folder / "b/.hidden.png").write_bytes(png(DARK))
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def table(tmp_path):
    return tmp_path / "scores.csv"


@contextmanager
def opened(inbox, table, scorer=None, **options):
    """A hot folder on a table; `unreadable` is what it has reported."""
    told = []
    with open(table, "r+b" if table.exists() else "w+b") as stream:
        settings = {"keep": None, "settle": 0, "poll": None, "batch_size": 4, "max_pixels": None}
        hot = HotFolder(
            str(inbox),
            scorer or Brightness(),
            ScoreLog(stream),
            on_unreadable=lambda path, cause: told.append((path, str(cause))),
            **settings | options,
        )
        hot.unreadable = told
        yield hot


def once(inbox, table, **options):
    with opened(inbox, table, **options) as hot:
        hot.run(threading.Event(), once=True)
    return hot


def rows(table):
    with open(table, newline="", encoding="utf-8", errors="surrogateescape") as stream:
        return list(csv.DictReader(stream))


def paths(table):
    return [row["path"] for row in rows(table)]


# Rows


def test_each_image_gets_a_row(inbox, table):
    hot = once(inbox, table)
    bright, dark = rows(table)
    assert tuple(bright) == COLUMNS
    assert (bright["path"], bright["score"], bright["decision"]) == ("a.png", "120.0", "20.0")
    assert (dark["path"], dark["flag"], dark["p_value"]) == (
        os.path.join("b", "dark.png"),
        "True",
        "",
    )
    assert int(dark["size"]) == (inbox / "b/dark.png").stat().st_size
    assert (hot.counts.scored, hot.counts.flagged, hot.counts.unreadable) == (2, 1, 0)


def test_an_image_that_the_region_does_not_fit_gets_a_row_with_the_cause(inbox, table):
    scorer = Brightness()
    scorer.roi = np.eye(8, dtype=bool)
    (inbox / "wide.png").write_bytes(png(BRIGHT[:5]))
    once(inbox, table, scorer=scorer)
    causes = {row["path"]: row["cause"] for row in rows(table)}
    assert "has 8 x 5 pixels, which the region of interest of the model, 8 x 8" in (
        causes.pop("wide.png")
    )
    assert set(causes.values()) == {""}


def test_an_unreadable_image_gets_a_row_with_the_cause(inbox, table):
    (inbox / "half.png").write_bytes(png(BRIGHT)[:60])
    hot = once(inbox, table)
    (row,) = [row for row in rows(table) if row["path"] == "half.png"]
    assert row["cause"]
    assert row["score"] == row["flag"] == ""
    assert hot.unreadable == [(str(inbox / "half.png"), row["cause"])]
    assert once(inbox, table).counts.unreadable == 0


def test_odd_names_are_kept(inbox, table):
    names = ['new\nline ".png', "comma, 'quote'.png", os.fsdecode(b"\xff.png"), "=1+1.png"]
    for name in names:
        (inbox / name).write_bytes(png(BRIGHT))
    once(inbox, table)
    assert set(paths(table)) >= set(names)
    assert once(inbox, table).counts.scored == 0


# Restarts


def test_a_restart_scores_nothing_twice(inbox, table):
    once(inbox, table)
    before = table.read_bytes()
    os.utime(inbox / "a.png", (1, 1))  # another time, the same content
    scorer = Brightness()
    once(inbox, table, scorer=scorer)
    assert scorer.batches == []
    assert table.read_bytes() == before


def test_another_content_of_the_same_name_is_scored(inbox, table):
    once(inbox, table)
    (inbox / "a.png").write_bytes(png(DARK))
    once(inbox, table)
    assert [row["score"] for row in rows(table) if row["path"] == "a.png"] == ["120.0", "40.0"]
    shutil.copy(inbox / "a.png", inbox / "c.png")  # another name of the same content
    assert once(inbox, table).counts.scored == 1


@pytest.mark.parametrize("left", [1, 30, 150, 300, 420])
def test_half_a_row_is_written_again(inbox, table, left):
    (inbox / 'new\nline ".png').write_bytes(png(BRIGHT))
    once(inbox, table)
    whole = table.read_bytes()
    table.write_bytes(whole[:left])
    once(inbox, table)
    assert sorted(paths(table)) == sorted(
        ["a.png", os.path.join("b", "dark.png"), 'new\nline ".png']
    )
    assert table.read_bytes().count(b"\n") == whole.count(b"\n")


def test_half_a_row_of_a_file_that_has_gone_is_cut_off(inbox, table):
    once(inbox, table)
    lines = table.read_bytes().splitlines(keepends=True)
    table.write_bytes(b"".join(lines)[:-20])
    (inbox / "b/dark.png").unlink()
    once(inbox, table)
    assert table.read_bytes() == b"".join(lines[:-1])


def test_a_crash_before_the_row_does_all_again(inbox, table, tmp_path, monkeypatch):
    suspects = tmp_path / "suspects"

    def crash(self, rows):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ScoreLog, "append", crash)
        with pytest.raises(KeyboardInterrupt):
            once(inbox, table, keep=copier(str(suspects)))
    assert (suspects / "b/dark.png").exists()
    once(inbox, table, keep=copier(str(suspects)))
    assert len(paths(table)) == 2
    assert [path.name for path in suspects.rglob("*.*")] == ["dark.png"]


def test_a_file_that_cannot_be_opened_is_tried_again(inbox, table, monkeypatch):
    attempts = []

    def refuse(path, *args, **options):
        if str(path).endswith("a.png"):
            attempts.append(path)
            raise PermissionError(13, "Permission denied", path)
        return builtins.open(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr("skanomaly_vit.cli._service.hot_folder.open", refuse, raising=False)
        for _ in range(2):  # the second run adds no second row
            once(inbox, table)
        assert len(attempts) == 6
    (row,) = [row for row in rows(table) if row["path"] == "a.png"]
    assert row["cause"] == "Permission denied"
    once(inbox, table)
    assert rows(table)[-1]["score"] == "120.0"
    assert once(inbox, table).counts.scored == 0


def test_another_table_is_refused(inbox, table):
    for text in ("path,score\na.png,1\n", f"{','.join(COLUMNS)}\na.png,1,2\n", "no table\n"):
        table.write_text(text)
        with pytest.raises(ValueError, match="is none of a table of `skanomaly watch`"):
            once(inbox, table)
        assert table.read_text() == text


def test_the_table_knows_the_threshold(inbox, table):
    with opened(inbox, table) as hot:
        assert hot._log.is_of(123)
    once(inbox, table)
    with opened(inbox, table) as hot:
        assert hot._log.is_of(100 + 1e-9)
        assert not hot._log.is_of(101)


def test_a_killed_process_loses_nothing_and_does_nothing_twice(line, tmp_path, table):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    for index in range(40):
        image = np.roll(line.good[index % 6], index, axis=0)
        Image.fromarray(image).save(inbox / f"{index:02}.png")
    command = [
        sys.executable, "-W", "error", "-c", WITHOUT_TORCH, "watch", str(line.path), str(inbox),
        "-o", str(table), "--settle", "0", "--batch-size", "1",
    ]  # fmt: skip
    for n_lines in (5, 12):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        with process:
            wait_until(lambda n=n_lines: table.exists() and table.read_bytes().count(b"\n") >= n)
            process.send_signal(signal.SIGKILL)
        assert table.read_bytes().count(b"\n") < 41
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    with process:
        wait_until(lambda: table.read_bytes().count(b"\n") == 41)
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert process.returncode == 0, said
    assert sorted(paths(table)) == [f"{index:02}.png" for index in range(40)]


# Flagged images


def test_flagged_images_are_copied(inbox, table, tmp_path):
    suspects = tmp_path / "suspects"
    once(inbox, table, keep=copier(str(suspects)))
    assert (suspects / "b/dark.png").read_bytes() == png(DARK)
    (inbox / "b/dark.png").write_bytes(png(DARK // 2))
    once(inbox, table, keep=copier(str(suspects)))
    assert {path.read_bytes() for path in suspects.rglob("dark*.png")} == {
        png(DARK),
        png(DARK // 2),
    }
    assert (suspects / "b/dark.png").read_bytes() == png(DARK)


def test_flagged_images_are_linked(inbox, table, tmp_path):
    suspects = tmp_path / "suspects"
    keep = linker(str(suspects))
    once(inbox, table, keep=keep)
    link = suspects / "b/dark.png"
    assert link.is_symlink()
    assert link.samefile(inbox / "b/dark.png")
    keep(os.path.join("b", "dark.png"), str(inbox / "b/dark.png"), b"")  # after a crash


# Complete files


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(arriving.time, "monotonic", clock)
    return clock


@pytest.fixture
def files(inbox):
    return Arrivals(str(inbox), lambda *_: False, settle=2, on_error=lambda *_: None)


def names(taken):
    return [name for name, _ in taken]


def test_a_file_is_complete_once_it_does_not_change(inbox, files, clock):
    files.scan()
    assert files.take(9) == []
    clock.now = 1.5
    with open(inbox / "a.png", "ab") as stream:
        stream.write(b"more")
    files.scan()
    clock.now = 2.5
    assert names(files.take(9)) == [os.path.join("b", "dark.png")]
    clock.now = 4
    assert names(files.take(9)) == ["a.png"]
    assert len(files) == 0


def test_a_closed_file_is_complete_until_somebody_writes(inbox, files, clock):
    path = str(inbox / "a.png")
    files.see(path, is_complete=True)
    files.see(path, is_complete=False)
    assert files.take(9) == []
    files.see(path, is_complete=True)
    assert names(files.take(9)) == ["a.png"]
    for other in ("notes.txt", "b/.hidden.png", "gone.png"):
        files.see(str(inbox / other), is_complete=True)
    assert files.take(9) == []


def test_a_file_that_changes_while_it_is_read_waits(inbox, table, monkeypatch):
    with opened(inbox, table, settle=100) as hot:
        (name, stamp) = "a.png", arriving.stamp_of(str(inbox / "a.png"))
        (inbox / "a.png").write_bytes(png(DARK) + b"x")
        assert hot._open(name, stamp) is None
        assert len(hot._arrivals) == 1


@contextmanager
def running(inbox, table, **options):
    stop = threading.Event()
    with opened(inbox, table, **options) as hot:
        thread = threading.Thread(target=hot.run, args=[stop])
        thread.start()
        try:
            yield hot
        finally:
            stop.set()
            thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell of a close")
def test_files_are_scored_when_their_writer_closes_or_renames_them(inbox, table, monkeypatch):
    started = threading.Event()
    enter = noticing.Notices.__enter__
    monkeypatch.setattr(noticing.Notices, "__enter__", lambda self: (enter(self), started.set())[0])
    # Nothing settles during this test, and no second look at the folder comes.
    with running(inbox, table, settle=10_000):
        started.wait()
        (inbox / "new").mkdir()
        time.sleep(0)
        with open(inbox / "closed.png", "wb") as stream:
            stream.write(png(BRIGHT)[:50])
            stream.flush()
            os.fsync(stream.fileno())
            stream.write(png(BRIGHT)[50:])
        wait_until(lambda: paths(table) == ["closed.png"])
        (inbox / ".part").write_bytes(png(DARK))
        os.rename(inbox / ".part", inbox / "renamed.png")
        wait_until(lambda: paths(table) == ["closed.png", "renamed.png"])


def test_polling_sees_what_arrives(inbox, table):
    with running(inbox, table, poll=0.02):
        wait_until(lambda: len(paths(table)) == 2)
        (inbox / "late.png").write_bytes(png(DARK))
        wait_until(lambda: paths(table)[2:] == ["late.png"])


def test_a_folder_that_vanishes_is_told_once_and_comes_back(inbox, table):
    away = inbox.with_name("away")
    with running(inbox, table, poll=0.02) as hot:
        wait_until(lambda: len(paths(table)) == 2)
        inbox.rename(away)
        wait_until(lambda: hot.unreadable)
        (away / "late.png").write_bytes(png(DARK))
        away.rename(inbox)
        wait_until(lambda: paths(table)[2:] == ["late.png"])
    assert hot.unreadable == [(str(inbox), "No such file or directory")]


def test_a_system_that_cannot_tell_points_to_polling(inbox, table, monkeypatch):
    def refuse(self):
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr(noticing.Observer, "start", refuse)
    with opened(inbox, table) as hot, pytest.raises(OSError, match="--poll SECONDS"):
        hot.run(threading.Event())
