"""`ImageSource`: any accepted X, lazy images, batches of normalised tensors."""

from __future__ import annotations

import gc
import io
import os
import threading
import tracemalloc
import warnings
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import PIL
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.testing import assert_array_equal
from PIL import Image

import skanomaly_vit._images.source as images_module
from skanomaly_vit._images.opening import open_images
from skanomaly_vit._images.preprocessing import Preprocessing
from skanomaly_vit._images.source import ImageSource

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = Preprocessing((6, 5), MEAN, STD)
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (4, 7, 5, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (4, 7, 5), dtype=np.uint8)


def tensors(X, preprocessing=SMALL, *, batch_size=3, n_jobs=None, **kwargs):
    source = X if isinstance(X, ImageSource) else open_images(X, **kwargs)
    return torch.cat(list(source.batches(preprocessing, batch_size=batch_size, n_jobs=n_jobs)))


def plain(height, width):
    """No resizing of (height, width), mean 0 and std 1: tensors are pixels in [0, 1]."""
    return Preprocessing((height, width), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def same(a, b):
    return a.dtype == b.dtype == torch.float32 and torch.equal(a, b)


@pytest.fixture
def paths(tmp_path):
    files = [tmp_path / f"{k}.png" for k in range(len(RGB))]
    for file, image in zip(files, RGB, strict=True):
        Image.fromarray(image).save(file)
    return files


def nested(values):
    """1-D object array, also of arrays of one shape."""
    column = np.empty(len(values), dtype=object)
    column[:] = list(values)
    return column


# Values


def test_values_are_normalised_pixels():
    got = tensors(RGB, Preprocessing((7, 5), MEAN, STD))
    unit = RGB.astype(np.float32) / np.float32(255)
    expected = (unit - np.float32(MEAN)) / np.float32(STD)
    assert got.is_contiguous()
    assert same(got, torch.from_numpy(expected.transpose(0, 3, 1, 2).copy()))


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(3, 4), (20, 31), (7, 2)])
def test_resize_agrees_with_pillow(mode, size):
    pixels = RNG.random((12, 10, 3)).astype(np.float32)
    got = tensors([pixels], Preprocessing(size, (0.0,) * 3, (1.0,) * 3, mode))[0].numpy()
    for channel in range(3):
        resample = getattr(Image.Resampling, mode.upper())
        wanted = Image.fromarray(pixels[..., channel]).resize(size[::-1], resample)
        np.testing.assert_allclose(got[channel], np.clip(wanted, 0, 1), atol=1e-5)


def test_nearest():
    pixels = np.array([[0, 51], [102, 255]], np.uint8)
    got = tensors([pixels], Preprocessing((4, 4), (0.0,) * 3, (1.0,) * 3, "nearest"))
    expected = np.kron(pixels, np.ones((2, 2), np.uint8)).astype(np.float32) / np.float32(255)
    assert same(got, torch.from_numpy(expected).expand(1, 3, 4, 4))


def test_bicubic_overshoot_is_clamped():
    step = np.repeat(np.array([0, 255], np.uint8), 8)[None].repeat(16, axis=0)
    got = tensors(step[None], plain(40, 40))
    assert got.min() == 0
    assert got.max() == 1


def test_same_size_is_not_interpolated(monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "interpolate", None)
    assert len(tensors(RGB, plain(7, 5))) == 4
    with pytest.raises(TypeError):
        tensors(RGB, plain(5, 7))


@pytest.mark.parametrize("name", ["lanczos", "BICUBIC", "", None])
def test_unknown_interpolation(name):
    with pytest.raises(ValueError, match=r"interpolation=.*bicubic"):
        Preprocessing((6, 5), MEAN, STD, name)


@pytest.mark.parametrize("size", [(0, 5), (5,), (5, -1)])
def test_bad_image_size(size):
    with pytest.raises(ValueError, match="image_size"):
        Preprocessing(size, MEAN, STD)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_array_gives_finite_tensors_in_range(data):
    dtype = np.dtype(data.draw(st.sampled_from(["u1", "u2", ">u2", "f2", "<f4", ">f4", "f8"])))
    channels = data.draw(st.sampled_from([(), (1,), (3,)]))
    shape = data.draw(npst.array_shapes(min_dims=3, max_dims=3, max_side=9)) + channels
    if len(shape) == 3 and shape[2] in (3, 4):
        shape += (1,)  # else it looks like a single colour image
    elements = st.floats(0, 1, width=8 * dtype.itemsize) if dtype.kind == "f" else None
    X = data.draw(npst.arrays(dtype, shape, elements=elements))
    size = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    mode = data.draw(st.sampled_from(["bicubic", "bilinear", "nearest"]))
    got = tensors(X, Preprocessing(size, MEAN, STD, mode), batch_size=2)
    assert got.shape == (len(X), 3, *size)
    assert got.isfinite().all()
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    assert (got >= (0 - mean) / std).all()
    assert (got <= (1 - mean) / std).all()
    assert same(got, tensors(list(X), Preprocessing(size, MEAN, STD, mode)))
    assert_array_equal(open_images(X)[0].dtype, dtype.newbyteorder("="))


# Accepted forms: each gives the tensors of the plain uint8 array


def accepted_forms(paths):
    arrays, pil = list(RGB), [Image.fromarray(image) for image in RGB]
    strings = [str(path) for path in paths]
    fold = RGB.reshape(4, -1)
    channels_first = torch.from_numpy(RGB.transpose(0, 3, 1, 2).copy())
    wide = np.zeros((4, 7, 10, 3), np.uint8)
    wide[:, :, ::2] = RGB
    return {
        "uint8": RGB,
        "float32": RGB.astype(np.float32) / np.float32(255),
        "uint16": RGB.astype(np.uint16) * 257,
        "non-contiguous": wide[:, :, ::2],
        "fortran": np.asfortranarray(RGB),
        "reversed": RGB[::-1].copy()[::-1],
        "big-endian uint16": (RGB.astype(np.uint16) * 257).astype(">u2"),
        "big-endian float": (RGB.astype(np.float32) / np.float32(255)).astype(">f4"),
        "paths": paths,
        "str": strings,
        "tuple": tuple(strings),
        "str array": np.array(strings),
        "numpy str": list(np.array(strings)),
        "object array of paths": nested(paths),
        "column of paths": nested(paths)[:, None],
        "column of str": np.array(strings)[:, None],
        "series of str": pd.Series(strings, index=list("abcd")),
        "categorical": pd.Series(strings).astype("category"),
        "series of paths": pd.Series(paths),
        "index": pd.Index(strings),
        "frame": pd.DataFrame({"image": strings}),
        "frame, integer column": pd.DataFrame({7: pil}),
        "PIL": pil,
        "series of PIL": pd.Series(pil),
        "arrays": arrays,
        "object array of arrays": nested(arrays),
        "series of arrays": pd.Series(arrays),
        "frame of arrays": pd.DataFrame({"image": arrays}),
        "mixed": [strings[0], pil[1], arrays[2], paths[3]],
        "tensor": channels_first,
        "float tensor": channels_first.float() / 255,
        "tensor with gradient": (channels_first.float() / 255).requires_grad_(),
        "tensor, strided": torch.from_numpy(RGB).permute(0, 3, 1, 2),
        "rows": (fold, (7, 5, 3)),
        "fortran rows": (np.asfortranarray(fold), (7, 5, 3)),
        "frame of rows": (pd.DataFrame(fold), [7, 5, 3]),
        "float rows": (fold.astype(np.float32) / np.float32(255), (7, 5, 3)),
        "array-like": ArrayLike(RGB),
        "polars-like": PolarsLike(strings),
        "source": open_images(RGB),
    }


class ArrayLike:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class PolarsLike:
    """A frame without pandas' attributes: `columns` is a list, a column knows `to_numpy`."""

    columns = ("image",)

    def __init__(self, values):
        self.values = values

    def __getitem__(self, name):
        assert name == "image"
        return pd.Series(self.values)


@pytest.mark.parametrize("form", accepted_forms([""] * 4))
def test_accepted(form, paths):
    X = accepted_forms(paths)[form]
    X, shape = X if isinstance(X, tuple) and isinstance(X[1], tuple | list) else (X, None)
    source = open_images(X, image_shape=shape)
    assert len(source) == 4
    for got, expected in zip(source, RGB, strict=True):
        unit = 255 if got.dtype.kind == "f" else np.iinfo(got.dtype).max // 255
        expected = expected / np.float32(255) if unit == 255 else expected.astype(int) * unit
        assert_array_equal(got, expected)
    assert same(tensors(source), tensors(RGB))


def test_low_precision_floats():
    exact = torch.tensor([0.0, 0.25, 0.5, 1.0]).expand(2, 3, 4, 4)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert same(tensors(exact.to(dtype)), tensors(exact))
    array = exact.permute(0, 2, 3, 1).numpy()
    assert same(tensors(array.astype(np.float16)), tensors(exact))
    assert same(tensors(array.astype(np.longdouble)), tensors(exact))


@pytest.mark.parametrize("grey", [GREY, GREY[..., None], list(GREY), list(GREY[..., None])])
def test_grey_is_repeated(grey):
    assert same(tensors(grey), tensors(np.repeat(GREY[..., None], 3, axis=3)))


def test_grey_rows():
    assert same(tensors(GREY.reshape(4, -1), image_shape=(7, 5, 1)), tensors(GREY))


def test_sizes_may_be_mixed():
    small, large = RGB[0, :2, :3], RNG.integers(0, 256, (30, 20), dtype=np.uint8)
    got = tensors([small, large, Image.fromarray(large)])
    assert got.shape == (3, 3, 6, 5)
    assert same(got[:1], tensors(small[None]))
    assert same(got[1:2], tensors(large[None]))
    assert same(got[1], got[2])


def test_bytes_path_of_pathlike(paths):
    class BytesPath(os.PathLike):
        def __fspath__(self):
            return os.fsencode(paths[0])

    assert_array_equal(open_images([BytesPath()])[0], RGB[0])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_memmap_stays_on_disk(tmp_path, dtype):
    values = np.linspace(0, 1, 600 * 64 * 64).reshape(600, 64, 64, 1)
    array = (values * (1 if dtype is np.float32 else 255)).astype(dtype)
    array.tofile(tmp_path / "images.bin")
    X = np.memmap(tmp_path / "images.bin", dtype, mode="r", shape=array.shape)
    tracemalloc.start()
    source = open_images(X)
    rows = open_images(X.reshape(600, -1), image_shape=(64, 64, 1))
    first = next(source.batches(plain(64, 64), batch_size=2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < array.nbytes / 5
    assert same(first, tensors(array[:2], plain(64, 64)))
    assert_array_equal(rows[599], source[599])


def test_input_is_not_modified(paths):
    for X in (RGB.copy(), RGB.astype(np.float32) / 255, torch.rand(4, 3, 6, 5)):
        before = X.clone() if isinstance(X, torch.Tensor) else X.copy()
        tensors(X)
        tensors(X, plain(7, 5))
        assert_array_equal(X, before)


# File formats and colour modes: path = PIL image = array


def random_image(mode, size=(9, 8)):
    width, height = size
    if mode.startswith("I"):
        return Image.fromarray(RNG.integers(0, 65536, (height, width)).astype(np.uint16))
    if mode == "F":
        return Image.fromarray(RNG.random((height, width)).astype(np.float32))
    if mode == "1":
        return Image.fromarray(RNG.random((height, width)) < 0.5)
    if mode == "P":
        return random_image("RGB", size).quantize(16)
    bands = RNG.integers(0, 256, (height, width, len(Image.new(mode, (1, 1)).getbands())))
    return Image.frombytes(mode, size, bands.astype(np.uint8).tobytes())


FILES = [
    ("L", "png"), ("RGB", "png"), ("P", "png"), ("1", "png"), ("LA", "png"), ("RGBA", "png"),
    ("I;16", "png"), ("L", "jpg"), ("RGB", "jpg"), ("CMYK", "jpg"), ("1", "tif"), ("L", "tif"),
    ("LA", "tif"), ("P", "tif"), ("RGB", "tif"), ("RGBA", "tif"), ("CMYK", "tif"),
    ("YCbCr", "tif"), ("LAB", "tif"), ("I;16", "tif"), ("F", "tif"), ("L", "gif"), ("P", "gif"),
    ("RGB", "webp"), ("RGBA", "webp"), ("1", "bmp"), ("L", "bmp"), ("P", "bmp"), ("RGB", "bmp"),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "extension"), FILES)
def test_path_is_pil_is_array(mode, extension, tmp_path):
    path = tmp_path / f"image.{extension}"
    random_image(mode).save(path)
    with Image.open(path) as lazy, Image.open(path) as loaded:
        try:
            loaded.load()
        except OSError as error:
            assert (mode, extension) == ("YCbCr", "tif"), error
            pytest.skip(f"Pillow {PIL.__version__} cannot read what it has written: {error}")
        expected_mode = loaded.mode
        source = open_images([path, lazy, loaded, loaded.copy()])
        first = source[0]
        for k in range(1, 4):
            assert_array_equal(source[k], first)
            assert source[k].dtype == first.dtype
        assert first.shape == (8, 9, 3)
        assert loaded.mode == expected_mode
        got = tensors(source)
        arrays = [first]
        if expected_mode in ("L", "RGB", "I;16", "F"):
            arrays.append(np.asarray(loaded))
        elif expected_mode in ("P", "1", "CMYK", "YCbCr", "LAB"):
            arrays.append(np.asarray(loaded.convert("RGB")))
        for array in arrays:
            assert same(tensors([array]), got[:1])
    assert all(same(got[k], got[0]) for k in range(4))


def pixels_of(image):
    return open_images([image])[0]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("HSV", (0, 255, 255), (255, 0, 0)),
        ("YCbCr", (77, 128, 128), (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("L", 9, (9, 9, 9)),
        ("RGBX", (1, 2, 3, 0), (1, 2, 3)),
        # c * a / 255 + 255 - a, rounded to nearest
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (201, 100, 0, 128), (228, 177, 127)),
        ("RGBA", (0, 0, 0, 1), (254, 254, 254)),
        ("LA", (0, 51), (204, 204, 204)),
        ("LA", (9, 0), (255, 255, 255)),
        ("La", (0, 51), (204, 204, 204)),
        ("RGBa", (0, 0, 0, 51), (204, 204, 204)),
    ],
)
def test_colour(mode, colour, expected):
    pixels = pixels_of(Image.new(mode, (3, 2), colour))
    assert pixels.shape == (2, 3, 3)
    assert_array_equal(pixels, np.broadcast_to(np.array(expected, np.uint8), (2, 3, 3)))


def test_lab():
    white, black = (pixels_of(Image.new("LAB", (1, 1), (v, 128, 128))) for v in (255, 0))
    assert white.min() >= 253
    assert black.max() <= 2


def test_hidden_colours_do_not_matter():
    a, b = (Image.new("RGBA", (4, 4), (*colour, 0)) for colour in ((1, 2, 3), (200, 100, 50)))
    for image in (a, b):
        image.putpixel((1, 1), (5, 6, 7, 90))
    got = tensors([a, b])
    assert same(got[0], got[1])


@pytest.mark.parametrize("extension", ["png", "gif"])
def test_palette_transparency(extension, tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / f"a.{extension}", transparency=0)
    image.save(tmp_path / f"b.{extension}")
    opaque = [[[10, 20, 30], [40, 50, 60]]]
    assert_array_equal(open_images([tmp_path / f"b.{extension}"])[0], opaque)
    assert_array_equal(
        open_images([tmp_path / f"a.{extension}"])[0], [[[255, 255, 255], [40, 50, 60]]]
    )


def test_palette_with_alpha_per_colour(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=bytes([51, 255]))
    assert_array_equal(open_images([tmp_path / "a.png"])[0], [[[204, 204, 204], [40, 50, 60]]])


def test_pa_mode():
    image = Image.new("P", (1, 1))
    image.putpalette([0, 0, 0])
    with_alpha = image.convert("PA")
    with_alpha.putalpha(51)
    assert_array_equal(pixels_of(with_alpha), np.full((1, 1, 3), 204))


def test_transparent_colour_of_png(tmp_path):
    Image.fromarray(np.array([[7, 8]], np.uint8)).save(tmp_path / "L.png", transparency=7)
    colour = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    Image.fromarray(colour).save(tmp_path / "RGB.png", transparency=(1, 2, 3))
    deep = np.array([[1000, 1001]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "I16.png", transparency=1000)
    grey, rgb, grey16 = open_images([tmp_path / f"{m}.png" for m in ("L", "RGB", "I16")])
    assert_array_equal(grey, [[[255] * 3, [8] * 3]])
    assert_array_equal(rgb, [[[255] * 3, [4, 5, 6]]])
    assert_array_equal(grey16, [[[65535] * 3, [1001] * 3]])


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I;16N", "I"])
def test_16_bit_grey_keeps_its_precision(mode):
    values = np.array([[0, 1, 255, 256], [257, 40000, 65534, 65535]], np.uint16)
    native = Image.fromarray(values)
    if mode == "I":
        image = Image.fromarray(values.astype(np.int32))
    else:
        order = {"I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2")
        image = Image.frombytes(mode, native.size, values.astype(order).tobytes())
    assert image.mode == mode
    pixels = pixels_of(image)
    assert pixels.dtype == np.uint16
    assert pixels.dtype.isnative
    assert_array_equal(pixels, np.repeat(values[..., None], 3, axis=2))
    expected = torch.from_numpy(values.astype(np.float32) / np.float32(65535))
    assert same(tensors([image], plain(2, 4)), expected.expand(1, 3, 2, 4))


def test_16_bit_file(tmp_path):
    values = np.array([[0, 1, 256], [40000, 65534, 65535]], np.uint16)
    for name in ("a.png", "a.tif", "a.ppm"):
        Image.fromarray(values).save(tmp_path / name)
        pixels = open_images([tmp_path / name])[0]
        assert pixels.dtype == np.uint16
        assert_array_equal(pixels[..., 1], values)


@pytest.mark.parametrize("value", [-1, 65536])
def test_32_bit_grey_beyond_16_bits(value):
    image = Image.fromarray(np.array([[0, value]], np.int32))
    with pytest.raises(ValueError, match=f"sample 1.*mode 'I'.*{value}.*65535"):
        tensors([RGB[0], image])


@pytest.mark.parametrize("value", [-0.1, 1.1, 255.0, np.nan, np.inf])
def test_float_image_out_of_range(value, tmp_path):
    image = Image.fromarray(np.array([[0.5, value]], np.float32))
    image.save(tmp_path / "a.tif")
    for item in (image, tmp_path / "a.tif"):
        with pytest.raises(ValueError, match=r"sample 0.*mode 'F'.*rescale"):
            tensors([item])


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("extension", ["png", "tif", "webp", "jpg"])
def test_exif_orientation(orientation, extension, tmp_path):
    stored = RGB[0]
    path = tmp_path / f"a.{extension}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if extension == "webp" else {}
    Image.fromarray(stored).save(path, exif=exif, **lossless)
    if extension == "jpg":
        with Image.open(path) as image:
            stored = np.asarray(image)
    expected = UPRIGHT[orientation](stored)
    with Image.open(path) as image:
        source = open_images([path, image])
        assert_array_equal(source[0], expected)
        assert_array_equal(source[1], expected)
        assert_array_equal(source[1], expected)  # not turned twice
        turned = extension == "tif" and orientation > 4  # by Pillow, as it loads a TIFF
        assert image.size == ((7, 5) if turned else (5, 7))
        assert extension == "tif" or image.getexif()[0x0112] == orientation


def test_exif_orientation_of_16_bit_grey(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.arange(6, dtype=np.uint16).reshape(2, 3) * 9999
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    assert_array_equal(open_images([tmp_path / "a.png"])[0][..., 0], np.rot90(values, -1))


def test_malformed_exif_is_ignored(tmp_path, monkeypatch):
    Image.fromarray(RGB[0]).save(tmp_path / "a.png", exif=b"Exif\0\0not a TIFF header")
    assert_array_equal(open_images([tmp_path / "a.png"])[0], RGB[0])

    def broken(self):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    assert_array_equal(pixels_of(Image.fromarray(RGB[0])), RGB[0])


@pytest.mark.parametrize("extension", ["gif", "tif", "webp", "png"])
def test_first_frame(extension, tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    lossless = {"lossless": True} if extension == "webp" else {}
    path = tmp_path / f"a.{extension}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **lossless)
    with Image.open(path) as image:
        assert image.n_frames == 2
        for pixels in open_images([path, image]):
            assert_array_equal(pixels, np.broadcast_to([255, 0, 0], (3, 4, 3)))
        assert image.tell() == 0
        image.seek(1)  # not closed
        # The frame that the caller moved to is the image that the caller passed.
        assert_array_equal(pixels_of(image), np.broadcast_to([0, 0, 255], (3, 4, 3)))
        assert image.tell() == 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16", "F"])
def test_pil_images_are_not_modified(mode):
    image = random_image(mode)
    before = image.copy()
    tensors([image])
    assert image == before
    assert image.info == before.info


def test_files_are_closed(paths, tmp_path):
    (tmp_path / "bad.png").write_bytes(paths[0].read_bytes()[:60])
    (tmp_path / "text.png").write_text("text")
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    before = len(os.listdir("/proc/self/fd"))
    kept = []
    for path in (*paths, tmp_path / "bad.png", tmp_path / "text.png"):
        try:
            kept.append(open_images([path])[0])
        except ValueError as error:
            kept.append(error)  # its traceback keeps the frames alive
    assert sum(isinstance(result, ValueError) for result in kept) == 2
    assert len(os.listdir("/proc/self/fd")) == before


# Batches


@pytest.mark.parametrize("kind", ["array", "paths", "mixed"])
def test_batch_size_and_n_jobs_do_not_matter(kind, tmp_path):
    items = [random_image("RGB", (13 + k % 3, 11)) for k in range(11)]
    if kind == "array":
        items = RNG.random((11, 13, 17, 3)).astype(np.float32)
    elif kind == "paths":
        for k, image in enumerate(items):
            image.save(tmp_path / f"{k}.jpg")
        items = [tmp_path / f"{k}.jpg" for k in range(11)]
    source = open_images(items)
    expected = tensors(source, batch_size=1)
    for batch_size in (1, 2, 5, 11, 100):
        for n_jobs in (None, 1, 2, 4, -1):
            got = list(source.batches(SMALL, batch_size=batch_size, n_jobs=n_jobs))
            assert [len(b) for b in got[:-1]] == [batch_size] * (len(got) - 1)
            assert 1 <= len(got[-1]) <= batch_size
            assert same(torch.cat(got), expected)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_bad_batch_size(batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        open_images(RGB).batches(SMALL, batch_size=batch_size)


def test_n_jobs_decodes_in_threads(monkeypatch):
    names = set()
    original = images_module.decode_image
    both = threading.Barrier(2)

    def decode(item, max_pixels):
        names.add(threading.current_thread().name)
        return original(item, max_pixels)

    def decode_together(item, max_pixels):
        both.wait(300)  # for another thread that decodes at the same time
        return decode(item, max_pixels)

    monkeypatch.setattr(images_module, "decode_image", decode)
    tensors(RGB, n_jobs=None)
    assert names == {threading.current_thread().name}
    monkeypatch.setattr(images_module, "decode_image", decode_together)
    tensors(RGB, n_jobs=2, batch_size=len(RGB))
    assert len(names) > 1


def test_one_lazy_pil_image_in_many_threads(tmp_path):
    random_image("RGB", (300, 200)).save(tmp_path / "a.png")
    expected = tensors([tmp_path / "a.png"])
    for _ in range(5):
        with Image.open(tmp_path / "a.png") as image:
            got = tensors([image] * 16, batch_size=16, n_jobs=8)
        assert same(got, expected.expand(16, 3, 6, 5))


def test_nothing_is_decoded_before_its_batch(monkeypatch, paths):
    decoded = []
    original = images_module.decode_image
    monkeypatch.setattr(
        images_module,
        "decode_image",
        lambda item, max_pixels: decoded.append(item) or original(item, max_pixels),
    )
    source = open_images(paths).take([3, 1, 2])
    batches = source.batches(SMALL, batch_size=2)
    assert decoded == []
    next(batches)
    assert decoded == [str(paths[3]), str(paths[1])]
    next(batches)
    assert len(decoded) == 3
    with pytest.raises(StopIteration):
        next(batches)


def test_batches_do_not_accumulate():
    batches = open_images(RGB).batches(SMALL, batch_size=2)
    first = weakref.ref(next(batches))
    gc.collect()
    assert first() is None


def test_many_paths_are_opened_without_reading(monkeypatch, paths):
    calls = {"stat": 0, "open": 0}

    def counting(name, function):
        def call(*args, **options):
            calls[name] += 1
            return function(*args, **options)

        return call

    many = [str(paths[0])] * 100_000
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", counting("stat", os.stat))
        patch.setattr("builtins.open", counting("open", open))
        subset = open_images(many).take(range(50_000, 50_010))
    assert len(subset) == 10
    assert calls == {"stat": len(many), "open": 0}


def test_global_state_is_untouched(paths):
    def state():
        return (
            torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
            Image.MAX_IMAGE_PIXELS, np.geterr(), list(warnings.filters),
        )  # fmt: skip

    before = state()
    tensors(paths, n_jobs=2)
    assert state() == before


def test_defaults_of_torch_do_not_matter():
    expected = tensors(RGB)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            got = tensors(RGB)
    finally:
        torch.set_default_dtype(torch.float32)
    assert same(got, expected)


# take


def test_take():
    source = open_images(RGB)
    expected = tensors(RGB)
    mask = np.array([True, False, False, True])
    for indices in ([2, 0, 2], np.array([3, 1]), range(2), [], [-1], mask, torch.tensor([1, 2])):
        subset = source.take(indices)
        kept = np.arange(4)[np.asarray(indices, dtype=bool if indices is mask else int)]
        assert len(subset) == len(kept)
        if len(kept):
            assert same(tensors(subset), expected[torch.from_numpy(kept)])
    assert list(source.take([]).batches(SMALL, batch_size=2)) == []
    assert_array_equal(source.take([3, 2]).take([1])[0], RGB[2])
    rows = open_images(RGB.reshape(4, -1), image_shape=(7, 5, 3))
    assert_array_equal(rows.take([1])[0], RGB[1])
    with pytest.raises(IndexError):
        source.take([4])
    with pytest.raises(IndexError):
        source.take([1])[1]


def test_errors_after_take_name_the_original_sample(paths):
    paths[3].write_bytes(b"")
    subset = open_images(paths).take([1, 3, 2]).take([1])
    with pytest.raises(ValueError, match=r"sample 3 .*3\.png"):
        subset[0]


# Files that cannot be decoded


def truncated(extension, share):
    buffer = io.BytesIO()
    image = random_image("RGB", (60, 50))
    image.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(extension, extension.upper()))
    content = buffer.getvalue()
    return content[: int(len(content) * share)]


@pytest.mark.parametrize("extension", ["png", "jpg", "tif", "gif", "webp", "bmp"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.97])
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_truncated_file(extension, share, n_jobs, paths, tmp_path):
    path = tmp_path / f"bad.{extension}"
    path.write_bytes(truncated(extension, share))
    source = open_images([*paths, path])
    batches = source.batches(SMALL, batch_size=2, n_jobs=n_jobs)
    assert len(next(batches)) == 2
    assert len(next(batches)) == 2
    with pytest.raises(ValueError, match=rf"sample 4 \('.*bad\.{extension}'\).*decoded") as info:
        next(batches)
    cause = info.value.__cause__
    # A warning of Pillow's, if warnings are errors.
    assert isinstance(cause, (OSError, SyntaxError, ValueError, UserWarning))
    assert str(cause) in str(info.value)


def test_text_renamed(tmp_path):
    (tmp_path / "notes.png").write_text("just words")
    with pytest.raises(ValueError, match=r"sample 0 .*notes\.png.*cannot identify") as info:
        tensors([tmp_path / "notes.png"])
    assert isinstance(info.value.__cause__, OSError)


def test_deleted_file(paths):
    source = open_images(paths)
    paths[2].unlink()
    with pytest.raises(ValueError, match=r"sample 2 .*2\.png.*FileNotFoundError"):
        tensors(source)


def test_truncated_pil_image():
    image = Image.open(io.BytesIO(truncated("jpg", 0.5)))
    with pytest.raises(ValueError, match=r"sample 1: .*truncated"):
        tensors([RGB[0], image])


# Rejected before anything is decoded


@pytest.fixture
def no_decoding(monkeypatch):
    monkeypatch.setattr(images_module, "decode_image", None)
    monkeypatch.setattr("PIL.Image.open", None)


def in_one(value, dtype=np.float64, shape=(4, 6, 6, 3)):
    """Float images of 0.5, one of whose pixels (in sample 2) is `value`."""
    X = np.full(shape, 0.5, dtype)
    X[2, 1, 1] = value
    return X


REJECTED = {
    "None": (None, "X is None; pass"),
    "missing path": ("no/such.png", r"single path, .*pass a list of paths, \['no/such.png'\]"),
    "bytes": (b"a.png", "single file of 5 bytes"),
    "PIL image": (Image.new("L", (2, 2)), r"single PIL image.*\[image\]"),
    "number": (3, "unsupported type int; pass a uint8"),
    "dict": ({}, "unsupported type dict"),
    "set": ({"a.png"}, "unsupported type set"),
    "empty list": ([], r"0 sample\(s\).*minimum of 1 is required"),
    "empty tuple": ((), r"0 sample\(s\).*minimum of 1 is required"),
    "empty array": (np.empty((0, 4, 4, 3), np.uint8), r"0 sample\(s\).*minimum of 1 is required"),
    "empty 1-D": (np.array([]), r"0 sample\(s\).*minimum of 1 is required"),
    "empty object": (np.array([], object), r"0 sample\(s\).*minimum of 1 is required"),
    "empty frame": (pd.DataFrame({"a": []}), r"0 sample\(s\).*minimum of 1 is required"),
    "empty tensor": (torch.empty(0, 3, 4, 4), r"0 sample\(s\).*minimum of 1 is required"),
    "absent file": ([RGB[0], "absent.png"], "sample 1: no such file: 'absent.png'"),
    "null byte": (["a\0.png"], "sample 0: .*null"),
    "device": ([os.devnull], "sample 0: .*not a regular file"),
    "above 1": (in_one(254.5), r"sample 2 .*0.5 to 254.5, outside.*X / 255"),
    "below 0": (in_one(-0.25), r"sample 2 .*-0.25 to 0.5, outside"),
    "just above 1": (in_one(np.nextafter(np.float32(1), 2), np.float32), r"sample 2.*np\.clip"),
    "NaN": (in_one(np.nan), "sample 2 contains NaN"),
    "inf": (in_one(np.inf), "sample 2 contains inf"),
    "minus inf": (in_one(-np.inf, np.float16), "sample 2 contains inf"),
    "grey NaN": (in_one(np.nan, shape=(4, 6, 6)), "sample 2 contains NaN"),
    "NaN in a list": (list(in_one(np.nan)), "sample 2 contains NaN"),
    "above 1 in a list": (list(in_one(9)), "sample 2 .*outside"),
    "NaN in a tensor": (torch.from_numpy(in_one(np.nan, shape=(4, 3, 6, 6))), "sample 2.*NaN"),
    "255 in a tensor": (torch.from_numpy(in_one(255, shape=(4, 3, 6, 6))), "sample 2.*/ 255"),
    "bfloat16": (torch.full((1, 3, 2, 2), 2.0, dtype=torch.bfloat16), "sample 0.*outside"),
    "channels first": (RGB.transpose(0, 3, 1, 2), r"channels first; pass np\.moveaxis\(X, 1, -1\)"),
    "grey channel first": (GREY[:, None], r"np\.moveaxis\(X, 1, -1\)"),
    "channels first in a list": (
        [RGB[0], RGB[0].transpose(2, 0, 1)], r"sample 1 .*np\.moveaxis\(image, 0, -1\)",
    ),
    "4 channels": (np.zeros((2, 5, 5, 4), np.uint8), "4 channels; composite .* drop .* PIL"),
    "4 channels in a list": ([np.zeros((5, 5, 4), np.uint8)], "sample 0 .*4 channels"),
    "2 channels": (np.zeros((2, 5, 5, 2), np.uint8), "2 channels, where 1 or 3"),
    "int64": (RGB.astype(np.int64), r"int64, not uint8.*\.astype\(np\.uint8\)"),
    "int32": (RGB.astype(np.int32), r"int32.*\.astype\(np\.uint8\)"),
    "int8": (RGB.astype(np.int8), r"int8.*\.astype\(np\.uint8\)"),
    "uint32": (RGB.astype(np.uint32), r"uint32.*\.astype\(np\.uint8\)"),
    "bool": (GREY > 9, r"bool.*\.astype\(np\.uint8\) \* 255"),
    "complex": (RGB.astype(complex), "Complex data not supported"),
    "objects": (RGB.astype(object), r"dtype object.*\.astype\(np\.uint8\)"),
    "int64 in a list": ([RGB[0], RGB[0].astype(np.int64)], "sample 1 .*int64"),
    "2-D": (RGB.reshape(4, -1), r"2-D array .*image_shape=\(h, w, c\)"),
    "1-D": (np.arange(9, dtype=np.uint8), "1 dimension"),
    "0-D": (np.array(3, dtype=np.uint8), "0 dimension"),
    "0-D object": (np.array(None), r"shape \(\)"),
    "one colour image": (RGB[0], r"single colour image; pass X\[None\]"),
    "one RGBA image": (np.zeros((5, 5, 4), np.uint8), r"single colour image; pass X\[None\]"),
    "5-D": (RGB[None], "5 dimension"),
    "zero size": (np.empty((2, 0, 4, 3), np.uint8), r"\(0, 4, 3\): zero size"),
    "zero size float": (np.empty((2, 4, 0)), "zero size"),
    "zero channels": (np.empty((2, 4, 4, 0), np.uint8), "0 channels"),
    "zero size in a list": ([RGB[0], RGB[0, :, :0]], "sample 1 .*zero size"),
    "zero size PIL": ([RGB[0], Image.new("L", (0, 4))], "sample 1.*zero size"),
    "zero size tensor": (torch.zeros(2, 3, 0, 4), "zero size"),
    "element None": ([RGB[0], None], "sample 1 is of unsupported type NoneType; pass a path"),
    "element number": ([[0, 1], [2, 3]], "sample 0 is of unsupported type list"),
    "element 1-D": ([RGB[0, 0, 0]], r"sample 0 .*1 dimension"),
    "element tensor": ([torch.zeros(3, 4, 4)], r"sample 0 .*torch\.stack"),
    "missing in a Series": (pd.Series([np.nan, "a"]), "sample 0 is of unsupported type float"),
    "columns": (pd.DataFrame({"a": ["x"], "b": ["y"]}), r"2 columns, \['a', 'b'\]"),
    "object columns": (np.full((2, 2), "x", object), r"\(2, 2\) and dtype object.*one column"),
    "numeric column": (pd.DataFrame({"a": [1.0, 2.0]}), "1 dimension"),
    "channels last tensor": (torch.zeros(2, 5, 5, 3), r"X\.permute\(0, 3, 1, 2\)"),
    "grey tensor": (torch.zeros(2, 1, 5, 5), r"X\.expand\(-1, 3, -1, -1\)"),
    "single tensor": (torch.zeros(3, 5, 5), r"single image: pass X\[None\]"),
    "RGBA tensor": (torch.zeros(2, 4, 5, 5), r"\(n, 3, h, w\)"),
    "0-D tensor": (torch.tensor(1.0), r"\(n, 3, h, w\)"),
    "int64 tensor": (torch.zeros(2, 3, 5, 5, dtype=torch.int64), r"X\.to\(torch\.uint8\)"),
    "complex tensor": (torch.zeros(2, 3, 5, 5, dtype=torch.complex64), "Complex data"),
}  # fmt: skip


@pytest.mark.parametrize("name", REJECTED)
def test_rejected(name, no_decoding):
    X, message = REJECTED[name]
    with pytest.raises(ValueError, match=message):
        open_images(X)


def test_out_of_range_far_into_a_large_array(no_decoding):
    X = np.full((9, 1024, 1024), 0.5, np.float32)  # several chunks
    X[7, -1, -1] = 1.5
    with pytest.raises(ValueError, match=r"sample 7 holds floats from 0\.5 to 1\.5"):
        open_images(X)


def test_directory_and_single_file(tmp_path, paths, no_decoding):
    for folder in (tmp_path, str(tmp_path)):
        with pytest.raises(ValueError, match=r"directory .*sorted\(Path\(.*\)\.rglob"):
            open_images(folder)
    with pytest.raises(ValueError, match=r"sample 1: .*is a directory.*rglob"):
        open_images([paths[0], tmp_path])
    with pytest.raises(ValueError, match=r"single path.*pass a list of paths, \['.*0\.png'\]"):
        open_images(paths[0])


@pytest.mark.parametrize("X", [iter([1]), (x for x in RGB), map(str, [1]), zip([1], strict=True)])
def test_iterators(X, no_decoding):
    with pytest.raises(TypeError, match=r"iterator .*list\(X\)"):
        open_images(X)


@pytest.mark.parametrize(
    "X",
    [
        scipy.sparse.csr_matrix(np.eye(3)),
        scipy.sparse.coo_array(np.eye(3)),
        torch.zeros(2, 3, 4, 4).to_sparse(),
    ],
)
@pytest.mark.parametrize("image_shape", [None, (1, 3, 1)])
def test_sparse(X, image_shape, no_decoding):
    with pytest.raises(TypeError, match="sparse"):
        open_images(X, image_shape=image_shape)


@pytest.mark.parametrize(
    ("X", "shape", "message"),
    [
        (RGB.reshape(4, -1), (7, 5, 1), r"image_shape=\(7, 5, 1\) needs rows of 7 \* 5 \* 1 = 35"),
        (RGB.reshape(4, -1), (7, 5), "not .h, w, c."),
        (RGB.reshape(4, -1), (7, 15, 0), "not .h, w, c."),
        (RGB.reshape(4, -1), (105, 1, 2), "not .h, w, c."),
        (RGB.reshape(4, -1), (-7, -5, 3), "not .h, w, c."),
        (RGB.reshape(4, -1), (7.0, 5.0, 3), "not .h, w, c."),
        (RGB.reshape(4, -1), 105, "not .h, w, c."),
        (RGB, (7, 5, 3), r"2-D array .*has shape \(4, 7, 5, 3\)"),
        (list(RGB), (7, 5, 3), "2-D array .*list"),
        (["a.png"], (7, 5, 3), "2-D array .*list"),
        (pd.Series([1.0]), (1, 1, 1), r"2-D array .*\(1,\)"),
        (torch.zeros(2, 3), (1, 1, 3), "2-D array .*Tensor"),
        (np.empty((0, 105)), (7, 5, 3), r"0 sample\(s\).*minimum of 1"),
        (RGB.reshape(4, -1).astype(int), (7, 5, 3), "int64"),
        (np.full((2, 3), 9.0), (1, 1, 3), "sample 0 .*X / 255"),
        (np.array([[0.0], [np.nan]]), (1, 1, 1), "sample 1 contains NaN"),
    ],
)
def test_image_shape_rejected(X, shape, message, no_decoding):
    with pytest.raises(ValueError, match=message):
        open_images(X, image_shape=shape)


def test_one_column_of_rows_is_not_a_column_of_images():
    frame = pd.DataFrame({"pixel": np.array([0, 255], np.uint8)})
    got = tensors(frame, plain(1, 1), image_shape=(1, 1, 1))
    assert same(got, torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1))


def test_column_of_a_column_transformer(paths):
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import FunctionTransformer

    def means(X):
        return tensors(X).mean(dim=(1, 2, 3)).numpy()[:, None]

    frame = pd.DataFrame({"image": [str(path) for path in paths], "other": range(4)})
    for selection in ("image", ["image"]):
        columns = ColumnTransformer([("images", FunctionTransformer(means), selection)])
        assert_array_equal(columns.fit_transform(frame), means(RGB))
