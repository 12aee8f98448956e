"""What a fitted detector keeps of its images, so that more can be added to them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from skanomaly_vit._samples import RowSample, draw_keys
from skanomaly_vit._spool import Embedded, FeatureSpool, by_space
from skanomaly_vit._statistics import SHARD, Statistics

#: Images whose features are kept, at most: so many that densities learned from, and so many others.
N_KEPT = 2048

# Of the samples, and of which new images are held out: draws that have nothing to do with each
# other. Any fixed ones will do; they do not take part in the user's `random_state`.
_SALT = b"kept"
_HELD_OUT_SALT = b"held out"


@dataclass(frozen=True)
class KeptFeatures:
    """Features of some images, both spaces side by side, in the type of the backbone.

    The scores that scale and threshold rest on are those of a density; once it has learned from
    more images, they have to be computed again.

    Attributes
    ----------
    learned, held_out : RowSample
        Of images that the densities learned from, and of those that calibrate.
    n_pretrained : int
        How many of the features are pre-trained ones.
    statistics : Statistics or None
        Of the pre-trained features of all images learned from, if there is a PCA of them.
    """

    learned: RowSample
    held_out: RowSample
    n_pretrained: int
    statistics: Statistics | None

    @classmethod
    def of(
        cls,
        spool: FeatureSpool,
        learned: np.ndarray,
        held_out: np.ndarray,
        statistics: Statistics | None,
    ) -> KeptFeatures:
        """Keep some of the rows that two masks choose."""
        samples = [_sample(spool.raw(mask), spool.empty()) for mask in (learned, held_out)]
        return cls(samples[0], samples[1], spool.n_pretrained, statistics)

    def merge(self, other: KeptFeatures, statistics: Statistics | None) -> KeptFeatures:
        """What is kept of the images of both, with the statistics of both."""
        return KeptFeatures(
            self.learned.merge(other.learned),
            self.held_out.merge(other.held_out),
            self.n_pretrained,
            statistics,
        )

    def embedded(self, sample: RowSample) -> Iterator[Embedded]:
        """Shards of a sample's rows, space by space."""
        for start in range(0, len(sample), SHARD):
            yield by_space(sample.rows[start : start + SHARD], self.n_pretrained)


def draw_held_out(spool: FeatureSpool, fraction: float) -> np.ndarray:
    """A mask of the images that are held out, each with a probability of `fraction`.

    It is the features of an image that decide, not what else comes with it: the same image is
    never on both sides, and the parts in which images come do not matter.
    """
    everyone = np.ones(len(spool), dtype=bool)
    keys = [draw_keys(rows, _HELD_OUT_SALT) for rows in spool.raw(everyone)]
    return np.concatenate(keys) < fraction * 2.0**64


def _sample(shards: Iterable[np.ndarray], none: np.ndarray) -> RowSample:
    return RowSample.of_shards(itertools.chain([none], shards), N_KEPT, _SALT)
