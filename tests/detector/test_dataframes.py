"""Scores as columns of pandas, Polars, Dask and Arrow tables."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skanomaly_vit import ViTFeatures
from skanomaly_vit.exceptions import UnreadableImageWarning

pa = pytest.importorskip("pyarrow")
ds = pytest.importorskip("pyarrow.dataset")
dd = pytest.importorskip("dask.dataframe")
pl = pytest.importorskip("polars")


def encode(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


@pytest.fixture
def detector(make_detector, images):
    return make_detector(contamination=0.2).fit(images)


@pytest.fixture
def frame(images, odd_images, tmp_path) -> pd.DataFrame:
    """Ten images, the last four odd, as paths and as bytes, with an index of its own."""
    chosen = [*images[:6], *odd_images[:4]]
    paths = [tmp_path / f"{i}.png" for i in range(10)]
    for path, image in zip(paths, chosen, strict=True):
        Image.fromarray(image).save(path)
    columns = {"path": [str(path) for path in paths], "data": [encode(image) for image in chosen]}
    return pd.DataFrame(columns, index=range(100, 110))


def for_dask(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of the types that Dask has: it takes one of objects for text."""
    return frame.astype({"data": pd.ArrowDtype(pa.binary()), "path": "string[pyarrow]"})


@pytest.fixture
def expected(detector, frame) -> pd.DataFrame:
    X = frame["path"]
    return frame.assign(
        score=detector.score_samples(X),
        decision=detector.decision_function(X),
        flag=detector.predict(X) == -1,
        p_value=detector.p_values(X),
    )


@pytest.mark.parametrize("column", ["path", "data"])
def test_a_frame_of_pandas_gets_columns(detector, frame, expected, column):
    scored = detector.score_dataframe(frame, column)
    pd.testing.assert_frame_equal(scored, expected, check_exact=True)
    assert scored["flag"].tolist()[-4:] == [True] * 4
    assert list(frame.columns) == ["path", "data"]  # the caller's own is as it was


def test_a_frame_of_pandas_keeps_its_attrs(detector, frame):
    frame.attrs["camera"] = "left"
    assert detector.score_dataframe(frame, "path").attrs == {"camera": "left"}
    scored = detector.score_dataframe(dd.from_pandas(for_dask(frame), npartitions=2), "path")
    assert scored._meta.attrs == {"camera": "left"}


@pytest.mark.parametrize("column", ["path", "data"])
def test_a_frame_of_polars_gets_columns(detector, frame, expected, column):
    table = pl.DataFrame(frame.to_dict("list"))
    scored = detector.score_dataframe(table, column)
    assert isinstance(scored, pl.DataFrame)
    assert scored.to_dict(as_series=False) == expected.to_dict("list")
    assert scored["flag"].to_list()[-4:] == [True] * 4
    assert table.columns == ["path", "data"]  # the caller's own is as it was


def test_a_frame_of_polars_keeps_its_schema(detector, frame):
    schema = {"path": pl.String, "data": pl.Binary, "line": pl.Categorical, "day": pl.Date}
    table = pl.DataFrame(frame.to_dict("list") | {"line": ["a"] * 10, "day": [None] * 10}, schema)
    added = {"score": pl.Float64, "decision": pl.Float64, "flag": pl.Boolean, "p_value": pl.Float64}
    for rows in (table, table.clear()):
        scored = detector.score_dataframe(rows, "data")
        assert scored.schema == pl.Schema(rows.schema | added)
        assert scored.select(rows.columns).equals(rows)


@pytest.mark.parametrize("column", ["path", "data"])
def test_a_missing_value_of_polars_is_an_unreadable_image(detector, frame, expected, column):
    cells = frame[column].tolist()
    cells[2] = None
    table = pl.DataFrame({column: cells})
    with pytest.raises(ValueError, match=r"sample 2.*no bytes: the image is missing"):
        detector.score_dataframe(table, column)
    detector.set_params(on_error="nan")
    with pytest.warns(UnreadableImageWarning, match=r"sample 2: .*the image is missing") as caught:
        scored = detector.score_dataframe(table, column)
    assert caught[0].filename == __file__
    assert scored[column].to_list() == cells
    wanted = expected.reset_index(drop=True).drop(index=2)
    for name in ("score", "p_value"):
        assert scored[name].is_nan().arg_true().to_list() == [2]  # NaN, as of pandas, and no null
        assert scored[name].to_numpy()[wanted.index].tolist() == wanted[name].tolist()
    assert scored["flag"][2] is True


def test_rows_of_an_arrow_table_are_named_by_their_place_in_the_table(detector, frame):
    frame.iloc[7, 1] = None
    table = pa.Table.from_pandas(frame)
    chunks = pa.concat_tables([table.slice(0, 5), table.slice(5)])
    with pytest.raises(ValueError, match=r"sample 7.*no bytes: the image is missing"):
        detector.score_dataframe(chunks, "data")


def test_an_arrow_table_keeps_its_schema(detector, frame):
    table = pa.Table.from_pandas(frame).replace_schema_metadata({"camera": "left"})
    scored = detector.score_dataframe(table, "data")
    assert scored.schema.metadata == {b"camera": b"left"}
    assert scored.select(table.column_names).equals(table)


def test_without_held_out_images_there_are_no_p_values(make_detector, images, frame):
    detector = make_detector(validation_fraction=0).fit(images)
    scored = detector.score_dataframe(frame, "path")
    assert list(scored.columns) == ["path", "data", "score", "decision", "flag"]


@pytest.mark.parametrize("column", ["path", "data"])
def test_a_frame_of_dask_is_scored_partition_by_partition_when_it_is_computed(
    detector, frame, expected, column, embedded
):
    parts = dd.from_pandas(for_dask(frame), npartitions=3)
    embedded.clear()
    scored = detector.score_dataframe(parts, column)
    assert embedded == []
    assert scored.npartitions == 3
    assert scored.dtypes.to_dict() == for_dask(expected).dtypes.to_dict()
    result = scored.compute(scheduler="synchronous")
    pd.testing.assert_frame_equal(result, for_dask(expected), check_exact=True)
    assert len(embedded) == 3


def test_an_empty_partition_stays_empty(detector, frame, expected):
    parts = dd.from_pandas(for_dask(frame), npartitions=2)
    chosen = parts[parts["path"] == frame["path"].iloc[0]]
    result = detector.score_dataframe(chosen, "path").compute(scheduler="synchronous")
    pd.testing.assert_frame_equal(result, for_dask(expected).iloc[:1], check_exact=True)


@pytest.mark.parametrize("column", ["path", "data"])
def test_tables_and_batches_of_arrow_get_columns(detector, frame, expected, column):
    table = pa.Table.from_pandas(frame, preserve_index=False)
    scored = detector.score_dataframe(table, column)
    assert isinstance(scored, pa.Table)
    wanted = expected.reset_index(drop=True)
    pd.testing.assert_frame_equal(scored.to_pandas(), wanted, check_exact=True)
    (batch,) = table.to_batches()
    scored = detector.score_dataframe(batch, column)
    assert isinstance(scored, pa.RecordBatch)
    pd.testing.assert_frame_equal(scored.to_pandas(), wanted, check_exact=True)


def test_a_dataset_of_arrow_is_scored_as_it_is_read(detector, frame, expected, tmp_path, embedded):
    table = pa.Table.from_pandas(frame, preserve_index=False)
    ds.write_dataset(table.slice(0, 5), tmp_path / "a", format="parquet")
    dataset = ds.dataset(tmp_path / "a")
    embedded.clear()
    reader = detector.score_dataframe(dataset, "data")
    assert isinstance(reader, pa.RecordBatchReader)
    assert embedded == []
    ds.write_dataset(reader, tmp_path / "b", format="parquet")
    written = ds.dataset(tmp_path / "b").to_table().to_pandas()
    pd.testing.assert_frame_equal(
        written, expected.reset_index(drop=True).iloc[:5], check_exact=True
    )
    again = detector.score_dataframe(table.to_reader(max_chunksize=4), "data").read_all()
    assert again["score"].to_pylist() == expected["score"].tolist()


def test_rows_that_cannot_be_read_follow_on_error(detector, frame, expected):
    frame.iloc[2, 1] = None
    frame.iloc[7, 1] = b"no image"
    with pytest.raises(ValueError, match=r"sample 2.*no bytes: the image is missing"):
        detector.score_dataframe(frame, "data")
    detector.set_params(on_error="nan")
    with pytest.warns(UnreadableImageWarning, match="8 bytes that are no image") as caught:
        scored = detector.score_dataframe(frame, "data")
    assert caught[0].filename == __file__
    gaps = [2, 7]
    assert scored["score"].isna().to_numpy().nonzero()[0].tolist() == gaps
    assert scored["p_value"].isna().to_numpy().nonzero()[0].tolist() == gaps
    assert scored["flag"].iloc[gaps].all()
    others = scored["score"].drop(scored.index[gaps])
    pd.testing.assert_series_equal(others, expected["score"].drop(expected.index[gaps]))


@pytest.mark.parametrize("missing", [None, np.nan, np.float32("nan"), pd.NA], ids=repr)
def test_every_kind_of_missing_value_is_an_unreadable_image(detector, frame, missing):
    frame["path"] = frame["path"].astype(object)
    frame.iloc[2, 0] = missing
    detector.set_params(on_error="nan")
    with pytest.warns(UnreadableImageWarning, match=r"sample 2: .*the image is missing"):
        scored = detector.score_dataframe(frame, "path")
    assert scored["score"].isna().to_numpy().nonzero()[0].tolist() == [2]


@pytest.mark.parametrize(
    ("column", "form"),
    [("path", Path), ("data", bytearray), ("data", memoryview), ("path", Image.open)],
)
def test_a_cell_may_have_any_form_of_an_image(detector, frame, expected, column, form):
    frame["image"] = [form(cell) for cell in frame[column]]
    detector.set_params(on_error="nan")
    scored = detector.score_dataframe(frame, "image")
    pd.testing.assert_series_equal(scored["score"], expected["score"])


def test_a_cell_that_is_no_image_is_not_taken_for_a_missing_one(detector, frame):
    detector.set_params(on_error="nan")
    with pytest.raises(ValueError, match="sample 0 is of unsupported type float"):
        detector.score_dataframe(frame.assign(label=0.5), "label")


def test_columns_are_checked_before_any_work(detector, frame):
    tables = (frame, pl.DataFrame(frame.to_dict("list")), pa.Table.from_pandas(frame))
    for table in (*tables, tables[-1].to_batches()[0]):
        with pytest.raises(ValueError, match=r"no column 'image'; it has \['path'"):
            detector.score_dataframe(table, "image")
    with pytest.raises(ValueError, match=r"already has the column\(s\) \['score'\]"):
        detector.score_dataframe(
            dd.from_pandas(frame[["path"]].assign(score=0), npartitions=1), "path"
        )
    lazy = pl.LazyFrame({"path": ["a.png"]})
    for other in ([1, 2], frame["path"], frame["path"].to_numpy(), lazy, lazy.collect()["path"]):
        with pytest.raises(TypeError, match="pass a DataFrame of pandas, Polars or Dask"):
            detector.score_dataframe(other, "path")


@pytest.mark.parametrize(
    ("module", "method"),
    [
        ("pyspark.sql.classic.dataframe", "call `mapInArrow` or `mapInPandas` of it"),
        ("ray.data.dataset", "call `map_batches` of it"),
    ],
)
def test_tables_of_ray_and_spark_are_told_where_to_be_scored(detector, module, method):
    table = type("Table", (), {"__module__": module})()
    with pytest.raises(TypeError, match=rf"of type {module}\.Table, .*{method}") as caught:
        detector.score_dataframe(table, "path")
    (page,) = re.findall(r"(docs/\S+\.md) \((.*)\)", str(caught.value))
    source = Path(__file__).parents[2] / page[0]
    assert f"# {page[1]}\n" in source.read_text()


def test_what_dask_sends_holds_no_backbone_that_has_a_name(images):
    from skanomaly_vit import TransformalyDetector

    small = {"pretrained": False, "image_size": 28, "n_blocks": 1, "contamination": 0.2}
    detector = TransformalyDetector(**small).fit(images)
    data = {"data": [encode(image) for image in images]}
    frame = dd.from_pandas(pd.DataFrame(data, dtype=pd.ArrowDtype(pa.binary())))
    scored = detector.score_dataframe(frame, "data")
    of_backbone = sum(value.nbytes for value in detector.features_._teacher.model.parameters())
    assert len(pickle.dumps(scored.optimize())) < of_backbone / 3


# Bytes as a form of images, wherever images are taken


def test_bytes_are_the_file_that_they_are_of(tiny, frame, tmp_path):
    features = ViTFeatures(backbone=tiny, memory=str(tmp_path / "cache")).fit(frame["path"])
    by_path = features.transform(frame["path"])
    forms = [
        frame["data"],
        frame["data"].tolist(),
        [bytearray(data) for data in frame["data"]],
        frame[["data"]],
        frame["data"].astype(pd.ArrowDtype(pa.binary())),
    ]
    for form in forms:
        np.testing.assert_array_equal(features.transform(form), by_path)


@pytest.mark.parametrize(
    ("data", "cause"), [(b"", "no bytes"), (b"GIF89a", "6 bytes that are no image")]
)
def test_bytes_that_are_no_image_are_named_by_their_place(tiny, frame, data, cause):
    features = ViTFeatures(backbone=tiny).fit(frame["data"])
    with pytest.raises(ValueError, match=f"sample 1: the image cannot be decoded: .*{cause}"):
        features.transform([frame["data"].iloc[0], data])


def test_a_single_file_of_bytes_is_no_list_of_images(tiny, frame):
    with pytest.raises(ValueError, match=r"single file of \d+ bytes; pass a list"):
        ViTFeatures(backbone=tiny).fit(frame["data"].iloc[0])
