"""Summary of a fit: features of a sample of its images, for `partial_fit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from skanomaly_vit._backbone.discrepancy import Embedded
from skanomaly_vit._images.tiles import PLACE
from skanomaly_vit._images.units import CONTENT, IDS, IMAGE, UNIT, Units
from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.density._row_sample import RowSample, draw_keys
from skanomaly_vit.density._statistics import SHARD, Statistics
from skanomaly_vit.detector._feature_store import FeatureStore, in_float64
from skanomaly_vit.exceptions import CalibrationWarning
from skanomaly_vit.persistence._record import StateRecord

#: `fit` warns of fewer images to learn from.
FEW_IMAGES = 20

#: Largest sample, of images that densities learned from and of held-out images alike.
N_KEPT = 2048

# Salts of two independent draws: the samples, and the new images to hold out. Any fixed values
# will do; the draws do not depend on the user's `random_state`.
_SALT = b"kept"

_HELD_OUT_SALT = b"held out"

#: Space -> features of some images, the same ones in each space.
ImageSample: TypeAlias = dict[str, RowSample]


@dataclass(frozen=True)
class FitSummary:
    """Features of a sample of images, in the type of the backbone.

    Scale and threshold depend on the scores of a density, which change once it has learned from
    more images. An update computes them again from this sample. Where images have tiles, a row is
    a tile, and a sample holds all tiles of an image or none, but for the last image of a full one.

    Attributes
    ----------
    learned, held_out : dict of str to RowSample
        Images that the densities learned from, and images that calibrate.
    statistics : dict of str to Statistics
        Statistics of the features of all learned images in each view that has a PCA.
    learned_units, held_out_units : ndarray of float64
        Ids of the units and contents of all images that the densities learned from, and of all
        that calibrate.
    """

    learned: ImageSample
    held_out: ImageSample
    statistics: dict[str, Statistics]
    learned_units: np.ndarray
    held_out_units: np.ndarray

    @classmethod
    def of(
        cls,
        store: FeatureStore,
        learned: np.ndarray,
        held_out: np.ndarray,
        statistics: dict[str, Statistics],
    ) -> FitSummary:
        """Sample the rows that two masks choose."""
        units = [
            np.union1d(store.column(UNIT, mask), store.column(CONTENT, mask))
            for mask in (learned, held_out)
        ]
        return cls(_sample(store, learned), _sample(store, held_out), statistics, *units)

    def merge(self, other: FitSummary, statistics: dict[str, Statistics]) -> FitSummary:
        """Merge the samples of two summaries; `statistics` are those of both."""
        return FitSummary(
            _merge(self.learned, other.learned),
            _merge(self.held_out, other.held_out),
            statistics,
            np.union1d(self.learned_units, other.learned_units),
            np.union1d(self.held_out_units, other.held_out_units),
        )

    def scaled(self, space: str, learned: np.ndarray, held_out: np.ndarray) -> FitSummary:
        """The same summary with the features of a space times factors, for each side."""
        return dataclasses.replace(
            self,
            learned=_scaled(self.learned, space, learned),
            held_out=_scaled(self.held_out, space, held_out),
        )

    def without_held_out(self) -> FitSummary:
        """The same summary without the images that calibrate."""
        none = {s: RowSample(r.rows[:0], r.keys[:0], r.limit) for s, r in self.held_out.items()}
        return dataclasses.replace(self, held_out=none, held_out_units=np.empty(0))


def _scaled(sample: ImageSample, space: str, factor: np.ndarray) -> ImageSample:
    known = sample[space]
    rows = (known.rows * factor).astype(known.rows.dtype)
    return sample | {space: dataclasses.replace(known, rows=rows)}


def warn_about_few_images(contents: np.ndarray) -> None:
    """Say what scores are worth if there are few different images to learn from."""
    n_different = len(np.unique(contents))
    if n_different < FEW_IMAGES:
        warn_user(
            f"the detector learns from {n_different} different images, fewer than {FEW_IMAGES}: "
            "its scores rank new images roughly, differ much from one set of training images to "
            "another, and have no meaningful size. Fit on more images, or let each of them count "
            "with calibration='cross'.",
            CalibrationWarning,
        )


def n_images(sample: ImageSample) -> int:
    """Number of images, or of tiles, whose features a sample holds."""
    return min(map(len, sample.values()))


def is_full(sample: ImageSample) -> bool:
    """Whether a sample has left images out."""
    return any(len(each) == each.limit for each in sample.values())


def holds_whole_images(sample: ImageSample, *, of_tiles: bool) -> bool:
    """Whether no image of a sample lacks a tile; a file of an older version tells no images."""
    return not of_tiles or not n_images(sample) or (IMAGE in sample and not is_full(sample))


def whole_images(sample: ImageSample) -> ImageSample:
    """A sample without an image of which it may have left tiles out."""
    if IMAGE not in sample or not is_full(sample):
        return sample
    keys = sample[IMAGE].keys
    kept = keys < keys[-1]
    return {s: RowSample(r.rows[kept], r.keys[kept], r.limit) for s, r in sample.items()}


def shards_of_sample(sample: ImageSample) -> Iterator[Embedded]:
    """Features of the images of a sample, in float64."""
    for start in range(0, n_images(sample), SHARD):
        yield in_float64({s: each.rows[start : start + SHARD] for s, each in sample.items()})


def draw_held_out(units: Units, summary: FitSummary, fraction: float) -> np.ndarray:
    """Mask of the images to hold out: whole units, each with a probability of `fraction`.

    A unit that the densities have learned from never calibrates, and one that calibrates is never
    learned from. Of others, the id of the unit decides: neither the order nor the parts in which
    images come matter.
    """
    drawn = draw_keys(units.units[:, np.newaxis], _HELD_OUT_SALT) < fraction * 2.0**64
    is_learned = units.any_in(summary.learned_units)
    return ~is_learned & (drawn | units.any_in(summary.held_out_units))


def _sample(store: FeatureStore, chosen: np.ndarray) -> ImageSample:
    sample = _smallest(store.empty())
    for embedded in store.stored(chosen):
        sample = _merge(sample, _smallest(embedded))
    return sample


def _smallest(embedded: Embedded) -> ImageSample:
    columns = {space: rows for space, rows in embedded.items() if space not in (CONTENT, IMAGE)}
    if IMAGE in embedded:  # positions begin anew in each call, and contents do not
        columns[IMAGE] = embedded[CONTENT]
        keys = draw_keys(embedded[CONTENT], _SALT)
    else:
        keys = _keys(embedded, _SALT)
    return {space: RowSample.smallest(rows, keys, N_KEPT) for space, rows in columns.items()}


def _merge(sample: ImageSample, other: ImageSample) -> ImageSample:
    # A sample of an older file has no units, so that the merged one has none.
    return {s: each.merge(other[s]) for s, each in sample.items() if s in other}


def _keys(embedded: Mapping[str, np.ndarray], salt: bytes) -> NDArray[np.uint64]:
    """Key of each image, determined by its features in all spaces."""
    features = [rows for space, rows in embedded.items() if space not in IDS]
    return draw_keys(np.concatenate(features, axis=1), salt)


def write_summary(record: StateRecord, kept: FitSummary | None) -> None:
    """Write a summary as a part of `record`; None writes nothing."""
    if kept is None:
        return
    part = record.write_part("kept")
    for side, sample in (("learned", kept.learned), ("held_out", kept.held_out)):
        for space, rows in sample.items():
            rows.write_state(part.write_part(side).write_part(space))
    for view, statistics in kept.statistics.items():
        statistics.write_state(part.write_part("statistics").write_part(view))
    for side, units in (("learned", kept.learned_units), ("held_out", kept.held_out_units)):
        part.write(**{f"n_{side}_units": len(units)})
        part.write_tensor(f"{side}_units", units)


def read_summary(record: StateRecord, n_features: dict[str, int]) -> FitSummary | None:
    """The inverse of `write_summary`; files of format 1 hold no summary."""
    if "kept" not in record.values:
        return None
    part = record.read_part("kept")
    learned, held_out = (
        _read_images(part.read_part(side), n_features) for side in ("learned", "held_out")
    )
    statistics = {}
    if "statistics" in part.values:
        of_views = part.read_part("statistics")
        for view in list(of_views.values):
            statistics[view] = Statistics.read_state(of_views.read_part(view), n_features[view])
        of_views.close()
    units = [_read_units(part, side) for side in ("learned", "held_out")]
    kept = FitSummary(learned, held_out, statistics, *units)
    part.close()
    return kept


def _read_units(part: StateRecord, side: str) -> np.ndarray:
    """Units of a side; format 2 has none."""
    if f"n_{side}_units" not in part.values:
        return np.empty(0)
    return part.read_array(f"{side}_units", part.read_int(f"n_{side}_units"))


def _read_images(part: StateRecord, n_features: dict[str, int]) -> ImageSample:
    if "n_rows" in part.values:  # format 2 has the features of all spaces side by side
        return _cut(RowSample.read_state(part, sum(n_features.values())), n_features)
    widths = n_features | {name: 1 for name in (UNIT, IMAGE, PLACE) if name in part.values}
    sample = {s: RowSample.read_state(part.read_part(s), n) for s, n in widths.items() if n}
    part.close()
    first = next(iter(sample.values()))
    if any(not np.array_equal(each.keys, first.keys) for each in sample.values()):
        raise ValueError(f"{part.name} holds different images in each feature space")
    return sample


def _cut(glued: RowSample, n_features: dict[str, int]) -> ImageSample:
    sample, start = {}, 0
    for space, n in n_features.items():
        if n:
            rows = np.ascontiguousarray(glued.rows[:, start : start + n])
            sample[space] = RowSample(rows, glued.keys, glued.limit)
        start += n
    return sample
