"""Scores as columns of pandas, Polars, Dask and Arrow tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import narwhals as nw
import numpy as np

from skanomaly_vit._utils.missing import is_missing
from skanomaly_vit.calibration._p_values import CalibrationScores

#: Rows of an Arrow dataset to read at once; Arrow's default is too many for rows of images.
_ROWS = 512

_ACCEPTED = (
    "a DataFrame of pandas, Polars or Dask, "
    "or a Table, RecordBatch, RecordBatchReader or Dataset of Arrow"
)


#: How engines that keep their tables to themselves call a function on parts of them.
_OWN_METHODS = {"pyspark": "`mapInArrow` or `mapInPandas`", "ray": "`map_batches`"}


class Scorer(Protocol):
    """A fitted detector."""

    calibration_scores_: np.ndarray | None
    calibration_units_: np.ndarray | None
    offset_: float

    def score_samples(self, X: Any) -> np.ndarray:
        """See `TransformalyDetector`."""


def score_frame(detector: Scorer, frame: Any, column: str) -> Any:
    """See `TransformalyDetector.score_dataframe`."""
    eager = nw.from_native(frame, eager_only=True, pass_through=True)
    if isinstance(eager, nw.DataFrame):
        _check_columns(detector, eager.columns, column)
        return _score_eager(frame, detector, column)
    if nw.dependencies.is_dask_dataframe(frame):
        _check_columns(detector, list(frame.columns), column)
        return _score_dask(detector, frame, column)
    if type(frame).__module__.partition(".")[0] == "pyarrow" and hasattr(frame, "schema"):
        _check_columns(detector, frame.schema.names, column)
        return _score_batches(detector, frame, column)
    raise TypeError(_describe_other(frame))


def _describe_other(frame: Any) -> str:
    module = type(frame).__module__
    found = f"frame is of type {module}.{type(frame).__qualname__}"
    methods = _OWN_METHODS.get(module.partition(".")[0])
    if methods is None:
        return f"{found}; pass {_ACCEPTED}."
    return (
        f"{found}, whose rows lie on workers; call {methods} of it with a function that calls "
        "`score_dataframe` there. docs/how_to/distributed.md (Tables of Ray and Spark) has code."
    )


def _check_columns(detector: Scorer, columns: Sequence[str], column: str) -> None:
    if column not in columns:
        raise ValueError(f"the table has no column {column!r}; it has {list(columns)}")
    taken = [name for name in _dtypes(detector) if name in columns]
    if taken:
        raise ValueError(
            f"the table already has the column(s) {taken}, which `score_dataframe` adds; "
            "rename or drop them"
        )


def _dtypes(detector: Scorer) -> dict[str, str]:
    """Types of the columns to add."""
    dtypes = {"score": "float64", "decision": "float64", "flag": "bool"}
    return dtypes if detector.calibration_scores_ is None else dtypes | {"p_value": "float64"}


def _score(detector: Scorer, images: Iterable[Any]) -> dict[str, np.ndarray]:
    """Score the images of some rows; return the columns to add."""
    # Empty bytes stand for a missing image; the detector cannot read them either.
    items = [b"" if is_missing(image) else image for image in images]
    scores = detector.score_samples(items) if items else np.empty(0)
    decision = scores - detector.offset_
    # Negated, so that NaN counts as an anomaly.
    columns = {"score": scores, "decision": decision, "flag": ~(decision >= 0)}
    known = CalibrationScores.of(detector)
    if known is not None:
        columns["p_value"] = known.p_values(scores)
    return columns


def _score_eager(frame: Any, detector: Scorer, column: str) -> Any:
    return _append(frame, _score(detector, nw.from_native(frame)[column].to_list()))


def _append(frame: Any, columns: dict[str, np.ndarray]) -> Any:
    table = nw.from_native(frame, eager_only=True)
    new = (
        nw.new_series(name, values, backend=table.implementation)
        for name, values in columns.items()
    )
    appended = table.with_columns(*new).to_native()
    # narwhals drops the `attrs` and flags of pandas.
    return appended.__finalize__(frame) if table.implementation.is_pandas() else appended


def _score_dask(detector: Scorer, frame: Any, column: str) -> Any:
    from dask import delayed

    new = {name: np.empty(0, dtype) for name, dtype in _dtypes(detector).items()}
    # Dask sends a node of its graph to each worker once.
    shared = delayed(detector, pure=False)
    return frame.map_partitions(_score_eager, shared, column, meta=_append(frame._meta, new))


def _score_batches(detector: Scorer, frame: Any, column: str) -> Any:
    import pyarrow as pa

    schema = frame.schema
    for name, dtype in _dtypes(detector).items():
        schema = schema.append(pa.field(name, pa.from_numpy_dtype(dtype)))

    def score(batch: Any) -> Any:
        added = _score(detector, batch.column(column).to_pylist())
        columns = [*batch.columns, *(pa.array(values) for values in added.values())]
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    if isinstance(frame, pa.RecordBatch):
        return score(frame)
    return pa.RecordBatchReader.from_batches(schema, map(score, _batches(frame)))


def _batches(frame: Any) -> Iterator[Any]:
    """Batches of a reader or a dataset; Arrow reads one batch of a dataset ahead."""
    if hasattr(frame, "to_batches"):
        return frame.to_batches(batch_size=_ROWS, batch_readahead=1, fragment_readahead=1)
    return frame
