"""Summary of a fit: features of a sample of its images, for `partial_fit`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from skanomaly_vit._backbone.discrepancy import PRETRAINED, Embedded
from skanomaly_vit.density._row_sample import RowSample, draw_keys
from skanomaly_vit.density._statistics import SHARD, Statistics
from skanomaly_vit.detector._feature_store import FeatureStore, in_float64
from skanomaly_vit.persistence._record import StateRecord

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
    more images. An update computes them again from this sample.

    Attributes
    ----------
    learned, held_out : dict of str to RowSample
        Images that the densities learned from, and images that calibrate.
    statistics : Statistics or None
        Statistics of the pre-trained features of all learned images, if they have a PCA.
    """

    learned: ImageSample
    held_out: ImageSample
    statistics: Statistics | None

    @classmethod
    def of(
        cls,
        store: FeatureStore,
        learned: np.ndarray,
        held_out: np.ndarray,
        statistics: Statistics | None,
    ) -> FitSummary:
        """Sample the rows that two masks choose."""
        return cls(_sample(store, learned), _sample(store, held_out), statistics)

    def merge(self, other: FitSummary, statistics: Statistics | None) -> FitSummary:
        """Merge the samples of two summaries; `statistics` are those of both."""
        return FitSummary(
            _merge(self.learned, other.learned), _merge(self.held_out, other.held_out), statistics
        )


def n_images(sample: ImageSample) -> int:
    """Number of images whose features a sample holds."""
    return min(map(len, sample.values()))


def shards_of_sample(sample: ImageSample) -> Iterator[Embedded]:
    """Features of the images of a sample, in float64."""
    for start in range(0, n_images(sample), SHARD):
        yield in_float64({s: each.rows[start : start + SHARD] for s, each in sample.items()})


def draw_held_out(store: FeatureStore, fraction: float) -> np.ndarray:
    """Mask of the images to hold out, each with a probability of `fraction`.

    The draw depends on the features of an image alone: the same image is never on both sides, and
    the parts in which images come change nothing.
    """
    everyone = np.ones(len(store), dtype=bool)
    keys = [_keys(embedded, _HELD_OUT_SALT) for embedded in store.stored(everyone)]
    return np.concatenate(keys) < fraction * 2.0**64


def _sample(store: FeatureStore, chosen: np.ndarray) -> ImageSample:
    sample = _smallest(store.empty())
    for embedded in store.stored(chosen):
        sample = _merge(sample, _smallest(embedded))
    return sample


def _smallest(embedded: Embedded) -> ImageSample:
    keys = _keys(embedded, _SALT)
    return {space: RowSample.smallest(rows, keys, N_KEPT) for space, rows in embedded.items()}


def _merge(sample: ImageSample, other: ImageSample) -> ImageSample:
    return {space: each.merge(other[space]) for space, each in sample.items()}


def _keys(embedded: Mapping[str, np.ndarray], salt: bytes) -> NDArray[np.uint64]:
    """Key of each image, determined by its features in all spaces."""
    return draw_keys(np.concatenate(list(embedded.values()), axis=1), salt)


def write_summary(record: StateRecord, kept: FitSummary | None) -> None:
    """Write a summary as a part of `record`; None writes nothing."""
    if kept is None:
        return
    part = record.write_part("kept")
    for side, sample in (("learned", kept.learned), ("held_out", kept.held_out)):
        for space, rows in sample.items():
            rows.write_state(part.write_part(side).write_part(space))
    if kept.statistics is not None:
        kept.statistics.write_state(part.write_part("statistics"))


def read_summary(record: StateRecord, n_features: dict[str, int]) -> FitSummary | None:
    """The inverse of `write_summary`; files of format 1 hold no summary."""
    if "kept" not in record.values:
        return None
    part = record.read_part("kept")
    learned, held_out = (
        _read_images(part.read_part(side), n_features) for side in ("learned", "held_out")
    )
    statistics = None
    if "statistics" in part.values:
        statistics = Statistics.read_state(part.read_part("statistics"), n_features[PRETRAINED])
    kept = FitSummary(learned, held_out, statistics)
    part.close()
    return kept


def _read_images(part: StateRecord, n_features: dict[str, int]) -> ImageSample:
    if "n_rows" in part.values:  # format 2 has the features of all spaces side by side
        return _cut(RowSample.read_state(part, sum(n_features.values())), n_features)
    sample = {s: RowSample.read_state(part.read_part(s), n) for s, n in n_features.items() if n}
    part.close()
    if any(not np.array_equal(each.keys, sample[PRETRAINED].keys) for each in sample.values()):
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
