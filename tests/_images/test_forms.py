"""Forms of X that other libraries give: accepted, or refused with what to pass instead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from skanomaly_vit import TransformalyDetector
from skanomaly_vit._images.opening import open_images

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 8, 9, 3), dtype=np.uint8)


@pytest.fixture
def paths(tmp_path):
    found = [str(tmp_path / f"{index}.png") for index in range(len(PIXELS))]
    for path, image in zip(found, PIXELS, strict=True):
        Image.fromarray(image).save(path)
    return found


def contents(paths):
    return [Path(path).read_bytes() for path in paths]


FORMS = {
    "Array": pa.array,
    "dictionary Array": lambda values: pa.array(values).dictionary_encode(),
    "ChunkedArray": lambda values: pa.chunked_array([values[:1], values[1:]]),
    "dictionary ChunkedArray": lambda v: pa.chunked_array([v[:1], v[1:]]).dictionary_encode(),
    "large text": lambda values: pa.array(values, pa.large_string()),
    "Table": lambda values: pa.table({"path": values}),
    "RecordBatch": lambda values: pa.record_batch({"path": pa.array(values)}),
    "Polars Series": pl.Series,
    "Polars Categorical": lambda values: pl.Series(values, dtype=pl.Categorical),
    "Polars DataFrame": lambda values: pl.DataFrame({"path": values}),
    "pandas Categorical": pd.Categorical,
    "pandas of Arrow": lambda values: pd.Series(values, dtype=pd.ArrowDtype(pa.string())),
}


@pytest.mark.parametrize("form", FORMS)
def test_columns_of_paths(form, paths):
    source = open_images(FORMS[form](paths))
    assert len(source) == len(paths)
    for index, image in enumerate(PIXELS):
        assert_array_equal(source[index], image)
        assert source.path(index) == paths[index]


@pytest.mark.parametrize("form", ["Array", "ChunkedArray", "Table", "Polars Series"])
def test_columns_of_contents(form, paths):
    source = open_images(FORMS[form](contents(paths)))
    assert_array_equal(source[2], PIXELS[2])


def test_tensors_of_arrow():
    X = pa.FixedShapeTensorArray.from_numpy_ndarray(PIXELS)
    assert_array_equal(open_images(X)[1], PIXELS[1])


REFUSED = {
    "two columns of Arrow": (pa.table({"a": ["x"], "b": ["y"]}), r"2 columns.*select"),
    "numbers of Arrow": (pa.array([1, 2]), "type int64.*sample 0 is of type int.*column of paths"),
    "structs of Arrow": (pa.array([{"bytes": b"x"}]), "of type dict; pass a column of paths"),
    "missing in Arrow": (pa.array(["a.png", None]), "sample 1 .*None is a missing value"),
    "a reader of Arrow": (pa.table({"a": ["x"]}).to_reader(), r"X\.to_table\(\)|list\(X\)"),
    "a lazy frame": (pl.LazyFrame({"a": ["x"]}), r"lazy.*X\.collect\(\)"),
    "bytes of NumPy": (np.array([b"a.png", b"b.png"]), r"NumPy's bytes.*os\.fsdecode"),
    "a column of bytes": (np.array([[b"a.png"]]), r"NumPy's bytes.*os\.fsdecode"),
    "a list of NumPy's bytes": (list(np.array([b"a.png"])), r"sample 0 .*NumPy's.*os\.fsdecode"),
    "objects that are paths": (np.array([b"a.png"], object), r"sample 0: .*os\.fsdecode"),
    "a list of bytes of a path": ([b"x/y.JPG"], r"sample 0: .*looks like a path.*os\.fsdecode"),
    "records": (np.zeros(3, [("a", "u1")]), r"pass arrays of numbers, paths as text"),
    "times": (np.zeros((2, 4, 4), "M8[s]"), r"pass arrays of numbers, paths as text"),
    "void": (np.zeros((2, 4, 4), "V3"), r"pass arrays of numbers, paths as text"),
    "masked": (np.ma.masked_array(PIXELS, PIXELS > 250), r"X is a masked.*X\.filled\(0\)"),
    "masked rows": (
        [PIXELS[0], np.ma.masked_array(PIXELS[1], PIXELS[1] > 250)], "sample 1 is a masked array",
    ),
    "missing in a list": (["a.png", float("nan")], "sample 1 .*nan is a missing value"),
    "NA": (["a.png", pd.NA], "sample 1 .*<NA> is a missing value"),
    "a pattern": ("parts/*.png", r"looks like a pattern.*sorted\(glob\.glob\('parts/\*\.png'"),
    "a pattern in a list": (["parts/**/*.png"], r"sample 0: .*pattern: pass sorted\(glob\.glob"),
    "home": (["~/a.png"], r"pass os\.path\.expanduser\('~/a\.png'\)"),
    "an address": (["https://example.org/a.png"], "download the file"),
    "nothing": ([], "0 sample.*a folder or a pattern, none match"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_advice(name):
    X, message = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message):
        open_images(X)


def test_an_array_that_will_not_be_converted():
    class OnDevice:
        def __array__(self, dtype=None, copy=None):
            raise TypeError("Implicit conversion is not allowed")

    with pytest.raises(ValueError, match=r"type OnDevice, cannot be made an array \(Implicit"):
        open_images(OnDevice())


def test_a_masked_array_without_a_masked_value_is_an_array():
    assert_array_equal(open_images(np.ma.masked_array(PIXELS))[0], PIXELS[0])
    filled = np.ma.masked_array(PIXELS, PIXELS > 250).filled(0)
    assert_array_equal(open_images(filled)[0], filled[0])


def test_masked_rows_of_an_image_shape():
    rows = np.ma.masked_array(PIXELS.reshape(4, -1), PIXELS.reshape(4, -1) > 250)
    with pytest.raises(ValueError, match=r"X is a masked array"):
        open_images(rows, image_shape=(8, 9, 3))


@pytest.mark.parametrize("kind", ["png", "gif", "tif", "jpg", "bmp", "webp", "avif"])
def test_pil_images_whose_file_was_closed(kind, tmp_path):
    path = tmp_path / f"a.{kind}"
    Image.fromarray(PIXELS[0]).save(path)
    with Image.open(path) as unread:
        pass
    with Image.open(path) as read:
        read.load()
    assert open_images([read])[0].shape == (8, 9, 3)
    if kind in ("webp", "avif"):  # Pillow has read the whole file
        assert open_images([unread])[0].shape == (8, 9, 3)
        return
    with pytest.raises(ValueError, match=r"^sample 1: PIL image whose file was closed.*load\(\)"):
        open_images([read, unread])


def test_a_pil_image_that_is_closed_later(paths):
    with Image.open(paths[0]) as image:
        source = open_images([image])
    with pytest.raises(ValueError, match=r"sample 0: .*file was closed"):
        source[0]


def test_closed_images_score_nan_where_that_is_asked_for(paths):
    with Image.open(paths[0]) as image:
        pass
    source = open_images([image, paths[1]], on_error="nan")
    assert list(source.unreadable) == [0]


def test_one_image_and_nothing_held_out():
    detector = TransformalyDetector(
        backbone="test_vit", pretrained=False, n_blocks=2, validation_fraction=0
    )
    with pytest.raises(ValueError, match=r"at least 2 must be left.*Pass more images") as info:
        detector.fit(PIXELS[:1])
    assert "validation_fraction=0." not in str(info.value)
    with pytest.raises(ValueError, match=r"or validation_fraction=0"):
        detector.set_params(validation_fraction=0.5).fit(PIXELS[:2])


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, np.datetime64("NaT")])
@pytest.mark.parametrize("fraction", [0, 0.2])
def test_missing_groups(missing, fraction):
    detector = TransformalyDetector(
        backbone="test_vit", pretrained=False, n_blocks=2, validation_fraction=fraction
    )
    with pytest.raises(ValueError, match=r"sample 2 has no group: groups holds .* there"):
        detector.fit(PIXELS, groups=["lot 1", "lot 2", missing, "lot 2"])
