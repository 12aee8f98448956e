"""Scores beside the images that they are of, in tables of pandas, Dask and Arrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from skanomaly_vit._utils.compat import is_missing
from skanomaly_vit.calibration import conformal_p_values

#: Rows of an Arrow dataset that are read at once: with images in them a file's default is too many.
_ROWS = 512

_ACCEPTED = (
    "a DataFrame of pandas or Dask, or a Table, RecordBatch, RecordBatchReader or Dataset of Arrow"
)


class Scorer(Protocol):
    """A fitted detector."""

    calibration_scores_: np.ndarray | None
    offset_: float

    def score_samples(self, X: Any) -> np.ndarray:
        """See `TransformalyDetector`."""


def p_values_of(known: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Conformal p-values of scores, of which some may be NaN, among known ones."""
    scored = ~np.isnan(scores)
    p_values = np.full(len(scores), np.nan)
    p_values[scored] = conformal_p_values(known, scores[scored])
    return p_values


def score_frame(detector: Scorer, frame: Any, column: str) -> Any:
    """See `TransformalyDetector.score_dataframe`."""
    library = type(frame).__module__.partition(".")[0]
    if library == "pyarrow" and hasattr(frame, "schema"):
        return _score_arrow(detector, frame, column)
    if library not in ("pandas", "dask") or not hasattr(frame, "columns"):
        raise TypeError(f"frame is of type {type(frame).__name__}; pass {_ACCEPTED}")
    _check_columns(detector, list(frame.columns), column)
    if library == "pandas":
        return _score_pandas(frame, detector, column)
    return _score_dask(detector, frame, column)


def _check_columns(detector: Scorer, columns: Sequence[str], column: str) -> None:
    if column not in columns:
        raise ValueError(f"there is no column {column!r} in the table, which has {list(columns)}")
    there = [name for name in _dtypes(detector) if name in columns]
    if there:
        raise ValueError(
            f"the table has the column(s) {there} already, which scoring adds; rename or drop them"
        )


def _dtypes(detector: Scorer) -> dict[str, str]:
    """The columns that are added."""
    dtypes = {"score": "float64", "decision": "float64", "flag": "bool"}
    return dtypes if detector.calibration_scores_ is None else dtypes | {"p_value": "float64"}


def _score(detector: Scorer, images: Iterable[Any]) -> dict[str, np.ndarray]:
    """The columns that are added, for the images of some rows."""
    # What is missing is an image of no bytes, which cannot be read.
    items = [b"" if is_missing(image) else image for image in images]
    scores = detector.score_samples(items) if items else np.empty(0)
    decision = scores - detector.offset_
    # Written so that NaN is no normal image.
    columns = {"score": scores, "decision": decision, "flag": ~(decision >= 0)}
    if detector.calibration_scores_ is not None:
        columns["p_value"] = p_values_of(detector.calibration_scores_, scores)
    return columns


def _score_pandas(frame: Any, detector: Scorer, column: str) -> Any:
    return frame.assign(**_score(detector, frame[column].tolist()))


def _score_dask(detector: Scorer, frame: Any, column: str) -> Any:
    from dask import delayed

    meta = frame._meta.assign(
        **{name: np.empty(0, dtype) for name, dtype in _dtypes(detector).items()}
    )
    # One node of the graph, which goes to each worker once.
    there = delayed(detector, pure=False)
    return frame.map_partitions(_score_pandas, there, column, meta=meta)


def _score_arrow(detector: Scorer, frame: Any, column: str) -> Any:
    import pyarrow as pa

    _check_columns(detector, frame.schema.names, column)
    schema = frame.schema
    for name, dtype in _dtypes(detector).items():
        schema = schema.append(pa.field(name, pa.from_numpy_dtype(dtype)))

    def score(batch: Any) -> Any:
        added = _score(detector, batch.column(column).to_pylist())
        columns = [*batch.columns, *(pa.array(values) for values in added.values())]
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    if isinstance(frame, pa.RecordBatch):
        return score(frame)
    if isinstance(frame, pa.Table):
        return pa.Table.from_batches(map(score, frame.to_batches()), schema)
    return pa.RecordBatchReader.from_batches(schema, map(score, _batches(frame)))


def _batches(frame: Any) -> Iterator[Any]:
    """Batches of a reader, or of a dataset, of which few are read ahead."""
    if hasattr(frame, "to_batches"):
        return frame.to_batches(batch_size=_ROWS, batch_readahead=1, fragment_readahead=1)
    return frame
