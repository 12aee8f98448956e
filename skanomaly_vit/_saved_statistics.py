"""What `partial_fit` goes on from, taken apart for a model file and rebuilt from it."""

from __future__ import annotations

import numpy as np
import torch

from skanomaly_vit._discrepancy import PRETRAINED
from skanomaly_vit._kept import FitSummary, ImageSample
from skanomaly_vit._record import Record, name_of, take_dtype
from skanomaly_vit._samples import RowSample
from skanomaly_vit._statistics import Kind, Statistics

#: Kind -> square matrices that statistics of it hold.
_MATRICES: dict[Kind, tuple[str, ...]] = {
    Kind.VARIANCE: (),
    Kind.COVARIANCE: ("scatter",),
    Kind.SHRINKAGE: ("scatter", "cubes", "fourths"),
}

#: No float64 has a larger one, and statistics none that is lower than this below 0.
_LARGEST_EXPONENT = 2048


def put_statistics(record: Record, statistics: Statistics | None) -> None:
    """Write statistics as a part of `record`; nothing if there are none."""
    if statistics is None:
        return
    part = record.put_part("statistics")
    part.put(n_samples=int(statistics.n_samples), kind=int(statistics.kind))
    part.put_tensor("exponent", statistics.exponent.astype(np.float64))
    for name in ("mean", "square", *_MATRICES[statistics.kind]):
        part.put_tensor(name, getattr(statistics, name))


def take_statistics(record: Record, n_features: int) -> Statistics | None:
    """The inverse of `put_statistics`; files of format 1 hold none."""
    if "statistics" not in record.values:
        return None
    part = record.take_part("statistics")
    n_samples, kind = part.take_int("n_samples", 1), part.take_int("kind", 1)
    if kind not in list(Kind):
        raise ValueError(f"{part.name}.kind is {kind}")
    exponent = part.take_array("exponent", n_features)
    if (np.abs(exponent) > _LARGEST_EXPONENT).any() or (exponent % 1).any():
        raise ValueError(f"{part.name}.exponent holds what is no exponent of a float64")
    statistics = Statistics(
        n_samples,
        part.take_array("mean", n_features),
        exponent.astype(np.int32),
        part.take_array("square", n_features),
        **{n: part.take_array(n, n_features, n_features) for n in _MATRICES[Kind(kind)]},
    )
    part.close()
    return statistics


def put_sample(part: Record, sample: RowSample) -> None:
    """Write a sample of rows."""
    rows = torch.from_numpy(sample.rows)
    part.put(n_rows=len(sample), limit=int(sample.limit), dtype=name_of(rows.dtype))
    part.put_tensor("rows", rows)
    part.put_tensor("keys", sample.keys.view(np.int64))


def take_sample(part: Record, n_features: int) -> RowSample:
    """The inverse of `put_sample`."""
    limit = part.take_int("limit", 1)
    n_rows = part.take_int("n_rows")
    if n_rows > limit:
        raise ValueError(f"{part.name} holds {n_rows} rows; at most {limit} were to be kept")
    rows = part.take_tensor("rows", n_rows, n_features, dtype=take_dtype(part, "dtype")).numpy()
    keys = part.take_array("keys", n_rows, dtype=np.int64).view(np.uint64)
    if (keys[1:] < keys[:-1]).any():
        raise ValueError(f"{part.name} is in another order than that of its keys")
    part.close()
    return RowSample(rows, keys, limit)


def put_kept(record: Record, kept: FitSummary | None) -> None:
    """Write what is kept of a detector's images as a part of `record`; nothing if nothing is."""
    if kept is None:
        return
    part = record.put_part("kept")
    for side, sample in (("learned", kept.learned), ("held_out", kept.held_out)):
        for space, rows in sample.items():
            put_sample(part.put_part(side).put_part(space), rows)
    put_statistics(part, kept.statistics)


def take_kept(record: Record, n_features: dict[str, int]) -> FitSummary | None:
    """The inverse of `put_kept`; files of format 1 hold nothing of the kind."""
    if "kept" not in record.values:
        return None
    part = record.take_part("kept")
    learned, held_out = (
        _take_images(part.take_part(side), n_features) for side in ("learned", "held_out")
    )
    kept = FitSummary(learned, held_out, take_statistics(part, n_features[PRETRAINED]))
    part.close()
    return kept


def _take_images(part: Record, n_features: dict[str, int]) -> ImageSample:
    if "n_rows" in part.values:  # format 2 has the features of all spaces side by side
        return _cut(take_sample(part, sum(n_features.values())), n_features)
    sample = {s: take_sample(part.take_part(s), n) for s, n in n_features.items() if n}
    part.close()
    if any(not np.array_equal(each.keys, sample[PRETRAINED].keys) for each in sample.values()):
        raise ValueError(f"{part.name} holds other images in each feature space")
    return sample


def _cut(glued: RowSample, n_features: dict[str, int]) -> ImageSample:
    sample, start = {}, 0
    for space, n in n_features.items():
        if n:
            rows = np.ascontiguousarray(glued.rows[:, start : start + n])
            sample[space] = RowSample(rows, glued.keys, glued.limit)
        start += n
    return sample
