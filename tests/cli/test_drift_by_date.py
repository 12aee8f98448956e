"""`skanomaly drift --by`: days, weeks and months, from tables and from files."""

from __future__ import annotations

import csv
import json
import os
import shutil
from datetime import datetime

import pytest
from PIL import Image

MONDAY = datetime(2025, 3, 31, 22)
TUESDAY = datetime(2025, 4, 1, 6)


@pytest.fixture
def dated(plant, tmp_path):
    """Five images of Monday and three of Tuesday, the last day of a month and the next one."""
    folder = tmp_path / "line"
    folder.mkdir()
    for index, path in enumerate(sorted(plant.new.iterdir())[:8]):
        copy = shutil.copy(path, folder)
        moment = (MONDAY if index < 5 else TUESDAY).timestamp()
        os.utime(copy, (moment, moment))
    return folder


@pytest.fixture
def drift(command, plant):
    def run(*args):
        done = command("drift", plant.model, *args, "--json")
        assert done.exit_code == 0, done.stderr
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        return {row["batch"]: row for row in rows}, " ".join(done.stderr.split())

    return run


def scored(command, plant, images, table, **columns):
    """A table of scores with more columns."""
    command("score", plant.model, images, "-o", table)
    with open(table, newline="") as stream:
        rows = list(csv.DictReader(stream))
    for i, row in enumerate(rows):
        row |= {name: values[i] for name, values in columns.items()}
    with open(table, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("day", ["2025-03-31", "2025-04-01"]),
        ("week", ["2025-W14"]),
        ("month", ["2025-03", "2025-04"]),
    ],
)
def test_files_have_the_date_of_their_time(by, names, plant, dated, drift):
    found, told = drift(dated, "--by", by)
    assert list(found) == names
    assert "dates are the times of the images' files" in told
    paths = sorted(map(str, dated.iterdir()))
    if by == "day":
        wanted = plant.detector.drift(paths[:5])
        assert {key: found["2025-03-31"][key] for key in wanted} == wanted
        assert found["2025-04-01"]["n_images"] == 3


def test_periods_join_the_batches_in_the_order_of_time(plant, dated, drift, command, tmp_path):
    table = scored(
        command, plant, plant.new, tmp_path / "s.csv", date=["2025-03-31"] * 19 + ["2024-12-30"]
    )
    found, told = drift(dated, table, "--by", "day")
    assert list(found) == ["2024-12-30", "2025-03-31", "2025-04-01"]
    assert [row["n_images"] for row in found.values()] == [1, 24, 3]
    assert f"{table}: dates are those of the column 'date'" in told
    assert list(drift(table, "--by", "week")[0]) == ["2025-W01", "2025-W14"]


def test_a_column_of_dates_can_be_named(plant, dated, drift, command, tmp_path):
    local = datetime(2025, 1, 1, 23, 30).astimezone().isoformat()
    table = scored(
        command, plant, dated, tmp_path / "s.csv", time=["2025-02-02T10:00"] * 8, shift=[local] * 8
    )
    assert list(drift(table, "--by", "day")[0]) == ["2025-02-02"]
    found, told = drift(table, "--by", "day", "--date-column", "shift")
    assert list(found) == ["2025-01-01"]
    assert "the column 'shift'" in told


def test_a_table_without_dates_has_the_times_of_its_files(plant, dated, drift, command, tmp_path):
    table = tmp_path / "s.jsonl"
    command("score", plant.model, dated, "-o", table)
    found, told = drift(table, "--by", "day")
    assert list(found) == ["2025-03-31", "2025-04-01"]
    assert "dates are the times of the images' files" in told


def test_a_table_of_a_watch_has_dates(plant, dated, drift, command, tmp_path):
    table = tmp_path / "scores.csv"
    done = command("watch", plant.model, dated, "-o", table, "--once", "--settle", 0)
    assert done.exit_code == 0, done.stderr
    found, told = drift(table, "--by", "day")
    assert list(found) == ["2025-03-31", "2025-04-01"]
    assert "'mtime_ns'" in told


def test_a_chart_in_time_is_wider_than_high(plant, dated, command, tmp_path):
    picture = tmp_path / "days.png"
    done = command("drift", plant.model, dated, "--by", "day", "--picture", picture)
    assert done.exit_code == 0, done.stderr
    with Image.open(picture) as drawn:
        assert drawn.size[0] > drawn.size[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("TABLE", "--date-column", "date"), "--date-column is for --by"),
        (("TABLE", "--by", "day", "--date-column", "shift"), "has no column 'shift'; it has"),
        (("TABLE", "--by", "day"), "holds 'yesterday' in the column 'date'"),
        (("GONE", "--by", "day"), "Name the column with --date-column"),
        (("TABLE", "--by", "year"), "'year' is not one of"),
    ],
)
def test_wrong_dates_are_refused(args, message, plant, dated, command, tmp_path):
    table = scored(
        command, plant, dated, tmp_path / "s.csv", date=["2025-02-02"] * 7 + ["yesterday"]
    )
    gone = tmp_path / "gone.csv"
    command("score", plant.model, dated, "-o", gone)
    shutil.rmtree(dated)
    named = {"TABLE": table, "GONE": gone}
    done = command("drift", plant.model, *(named.get(arg, arg) for arg in args))
    assert done.exit_code == 1
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""
