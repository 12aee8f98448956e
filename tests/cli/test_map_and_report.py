"""`skanomaly map` and `report`: p-values beside maps, one range of values, bars."""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone

from skanomaly_vit.cli import _terminal
from skanomaly_vit.display._overlay import Scale, overlay


@pytest.fixture
def chosen(plant):
    return [*sorted(plant.new.iterdir())[:2], sorted((plant.defect / "noise").iterdir())[0]]


def rows_of(done):
    assert done.exit_code == 0, done.stderr
    return list(csv.DictReader(done.stdout.splitlines()))


def test_a_table_beside_maps_has_scores_and_p_values(plant, command, chosen, tmp_path):
    rows = rows_of(command("map", plant.model, *chosen, "-o", tmp_path, "--format", "npy"))
    paths = list(map(str, chosen))
    assert [row["path"] for row in rows] == paths
    for column, wanted in (
        ("score", plant.detector.score_samples(paths)),
        ("decision", plant.detector.decision_function(paths)),
        ("p_value", plant.detector.p_values(paths)),
        ("highest", [np.load(row["map"]).max() for row in rows]),
    ):
        assert [float(row[column]) for row in rows] == pytest.approx(list(wanted), rel=1e-5)
    assert [row["flag"] for row in rows] == [
        str(label == -1) for label in plant.detector.predict(paths)
    ]
    np.testing.assert_allclose(
        np.load(rows[2]["map"]), plant.detector.anomaly_map(paths)[2], rtol=1e-4, atol=1e-4
    )


def test_a_model_without_calibration_has_maps_without_p_values(plant, command, chosen, tmp_path):
    detector = clone(plant.detector).set_params(validation_fraction=0)
    detector.fit(sorted(map(str, plant.good.iterdir()))).save(tmp_path / "a")
    rows = rows_of(command("map", tmp_path / "a", *chosen, "-o", tmp_path / "maps"))
    assert {row["p_value"] for row in rows} == {""}


@pytest.mark.parametrize(("options", "ends"), [((), (2, 8)), (("--map-range", -1, 3), (-1, 3))])
def test_pictures_of_several_calls_have_one_range(options, ends, plant, command, chosen, tmp_path):
    (row,) = rows_of(command("map", plant.model, chosen[2], "-o", tmp_path, *options))
    (values,) = plant.detector.anomaly_map([str(chosen[2])])
    wanted = overlay(Image.open(chosen[2]).convert("RGB"), values, Scale(*ends))
    np.testing.assert_allclose(np.asarray(Image.open(row["map"])), np.asarray(wanted), atol=1)


@pytest.mark.parametrize("name", ["map", "report"])
def test_a_range_without_values_is_refused(name, plant, command, chosen, tmp_path):
    output = tmp_path / "o.html"
    done = command(name, plant.model, chosen[0], "-o", output, "--map-range", 3, 3)
    assert done.exit_code == 1
    assert "--map-range (3.0, 3.0) has to be finite, with low below high" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_report_has_the_range_asked_for(plant, command, chosen, tmp_path):
    output = tmp_path / "o.html"
    done = command("report", plant.model, *chosen, "-o", output, "--map-range", 1, 6)
    assert done.exit_code == 0, done.stderr
    key = re.search(r'<p class="key">.*?</p>', output.read_text(), re.S)[0]
    assert re.findall(r'class="number">([^<]*)<', key) == ["up to 1.0", "6.0 and above"]


def test_a_bar_shows_the_steps_of_a_report(plant, command, chosen, tmp_path, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, **options):
            self.n, self.total = 0, None
            bars.append((options["desc"], options["unit"], self))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def update(self, n=1):
            self.n += n

    monkeypatch.setattr(_terminal, "tqdm", Bar)
    monkeypatch.setattr(Bar, "write", staticmethod(lambda *args, **options: None), raising=False)
    done = command("report", plant.model, *chosen, "-o", tmp_path / "o.html", "--n-maps", 1)
    assert done.exit_code == 0, done.output
    name, unit, bar = bars[-1]
    assert (name, unit) == ("reporting", " steps")
    assert bar.n == bar.total == 2 * len(chosen) + 2
