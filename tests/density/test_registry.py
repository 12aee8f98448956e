"""A new density is one class and one line in `DENSITIES`: it fits, saves, loads and scores."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import numpy as np
import pytest
from images import blobs

from skanomaly_vit import TransformalyDetector
from skanomaly_vit._utils.compat import Interval, StrOptions
from skanomaly_vit.density._base import StandardizedDensity
from skanomaly_vit.density._by_name import DENSITIES
from skanomaly_vit.exceptions import ModelFileError

IMAGES = blobs(np.random.default_rng(0), 20)


class MedianDensity(StandardizedDensity):
    """Independent Laplace distributions around the median: a state of its own, one parameter."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "softness": [Interval(Real, 0, None, closed="neither")]
    }

    def __init__(self, *, softness: float = 1.0) -> None:
        self.softness = softness

    def _fit_rows(self, rows):
        X = rows.gather()
        self._set_units(X.mean(axis=0), X.std(axis=0))
        self.median_ = np.median((X - self.location_) / self.scale_, axis=0)
        return self

    def _log_density(self, Z):
        return -np.abs(Z - self.median_).sum(axis=1) / self.softness

    def _write_state(self, record):
        super()._write_state(record)
        record.write_tensor("median", self.median_)

    def _read_state(self, record):
        super()._read_state(record)
        self.median_ = record.read_array("median", self.n_features_in_)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(DENSITIES, "median", MedianDensity)
    # Made of DENSITIES when the module is imported.
    options = [StrOptions(set(DENSITIES)), StandardizedDensity]
    monkeypatch.setitem(TransformalyDetector._parameter_constraints, "density", options)


def fit(density, **parameters):
    quick = {"backbone": "skanomaly_tiny", "pretrained": False, "image_size": 32, "n_blocks": 2}
    return TransformalyDetector(density=density, random_state=0, **quick | parameters).fit(IMAGES)


@pytest.mark.parametrize("density", ["median", MedianDensity(softness=2.0)], ids=str)
@pytest.mark.parametrize("pca_variance", [None, 0.9])
def test_a_registered_density_comes_back_from_a_file(density, pca_variance, tmp_path):
    detector = fit(density, pca_variance=pca_variance)
    detector.save(tmp_path / "m")
    loaded = TransformalyDetector.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.score_samples(IMAGES), detector.score_samples(IMAGES))
    assert repr(loaded.density) == repr(detector.density)
    found = loaded.density_["discrepancy"]
    assert type(found) is MedianDensity
    np.testing.assert_array_equal(found.median_, detector.density_["discrepancy"].median_)


def test_a_density_that_is_registered_no_more_is_rejected(monkeypatch, tmp_path):
    detector = fit("median")
    detector.save(tmp_path / "m")
    monkeypatch.delitem(DENSITIES, "median")
    with pytest.raises(ModelFileError, match="unknown class 'MedianDensity'"):
        TransformalyDetector.load(tmp_path / "m")
    with pytest.raises(ValueError, match="density=MedianDensity cannot be saved"):
        detector.save(tmp_path / "m")


def test_a_density_without_a_graph_is_rejected_by_name():
    from skanomaly_vit.onnx._density_graphs import density_graph

    with pytest.raises(ValueError, match="density=MedianDensity cannot be exported to ONNX"):
        density_graph(MedianDensity())
