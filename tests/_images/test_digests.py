"""Digests of images: equal for equal content, different otherwise."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

import skanomaly_vit._images.digests as digests_module
from skanomaly_vit._images.decoding import decode_image
from skanomaly_vit._images.digests import digest_image
from skanomaly_vit._utils.hashing import combine

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
WIDE = np.repeat(RGB, 2, axis=1)
CHANNELS_FIRST = torch.from_numpy(RGB.transpose(2, 0, 1).copy())


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "image.bin"
    file.write_bytes(b"one")
    return file


# Images in memory


@pytest.mark.parametrize(
    "form",
    [
        RGB.copy(),
        WIDE[:, ::2],
        np.asfortranarray(RGB),
        RGB[::-1].copy()[::-1],
        Image.fromarray(RGB),
        CHANNELS_FIRST,
        torch.from_numpy(RGB).permute(2, 0, 1),
    ],
    ids=["copy", "non-contiguous", "fortran", "reversed", "PIL", "tensor", "strided tensor"],
)
def test_equal_pixels_have_one_digest(form):
    assert digest_image(form) == digest_image(RGB)
    assert len(digest_image(form)) == 32


@pytest.mark.parametrize(
    "form",
    [GREY[..., None], np.repeat(GREY[..., None], 3, axis=2), Image.fromarray(GREY)],
    ids=["one channel", "three channels", "PIL"],
)
def test_equal_grey_pixels_have_one_digest(form):
    assert digest_image(form) == digest_image(GREY)


def test_byte_order_does_not_matter():
    pixels = RGB.astype("<u2") * 257
    assert digest_image(pixels.astype(">u2")) == digest_image(pixels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float_tensors_are_like_their_arrays(dtype):
    tensor = (CHANNELS_FIRST / 255).to(dtype).requires_grad_()
    assert digest_image(tensor) == digest_image(decode_image(tensor))


def test_equal_bytes_in_another_shape_differ():
    shapes = [(6, 8, 3), (8, 6, 3), (48, 1, 3), (1, 48, 3)]
    assert len({digest_image(RGB.reshape(shape)) for shape in shapes}) == len(shapes)


def test_equal_bytes_of_another_type_differ():
    pixels = RGB.astype(np.float16) / np.float16(255)
    assert digest_image(pixels) != digest_image(pixels.view(np.uint16))


def test_equal_values_of_another_type_differ():
    pixels = RGB.astype(np.float32) / np.float32(255)
    assert digest_image(pixels) != digest_image(pixels.astype(np.float64))


@given(data=st.data())
def test_every_pixel_counts(data):
    shape = data.draw(npst.array_shapes(min_dims=2, max_dims=2, max_side=6))
    first, second = (
        data.draw(npst.arrays(np.uint8, (*shape, 3), elements=st.integers(0, 3))) for _ in range(2)
    )
    assert (digest_image(first) == digest_image(second)) == np.array_equal(first, second)


# Files


def test_equal_content_under_two_names(file, tmp_path):
    other = tmp_path / "other.png"
    other.write_bytes(b"one")
    assert digest_image(str(file)) == digest_image(str(other))
    other.write_bytes(b"two")
    assert digest_image(str(file)) != digest_image(str(other))


def rewrite(file, content):
    """In place, and with the former time of modification."""
    stamp = file.stat()
    with file.open("r+b") as stream:
        stream.write(content)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def test_a_file_rewritten_again_and_again(file, tmp_path):
    # Faster than the file system's clock ticks.
    other = tmp_path / "other"
    for k in range(200):
        rewrite(file, b"%03d" % k)
        other.with_suffix(f".{k}").write_bytes(b"%03d" % k)
        assert digest_image(str(file)) == digest_image(str(other.with_suffix(f".{k}")))


@pytest.fixture
def later(monkeypatch):
    """Two hours on, all files are old; in truth, more than a tick of the file system's clock."""
    now = time.time_ns() + 2 * 3600 * 10**9
    monkeypatch.setattr(digests_module, "time", SimpleNamespace(time_ns=lambda: now))
    return lambda: time.sleep(0.05)


def test_an_old_file_rewritten_in_place(file, later):
    before = digest_image(str(file))
    later()
    rewrite(file, b"two")
    after = digest_image(str(file))
    assert after != before
    later()
    rewrite(file, b"one")
    assert digest_image(str(file)) == before


def test_an_old_file_replaced(file, tmp_path, later):
    before = digest_image(str(file))
    later()
    other = tmp_path / "other"
    other.write_bytes(b"two")
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    os.replace(other, file)
    assert digest_image(str(file)) != before


def test_a_link_to_another_file(file, tmp_path, later):
    other, link = tmp_path / "other", tmp_path / "link"
    other.write_bytes(b"two")
    for target in (file, other, file):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert digest_image(str(link)) == digest_image(str(target))


@pytest.fixture
def pretend(monkeypatch):
    """Gives files other stamps, such as those of file systems that this one is not."""

    def pretend(change):
        def stat(path):
            stamp = os.stat(path)
            fields = {name: getattr(stamp, name) for name in dir(stamp) if name.startswith("st_")}
            return SimpleNamespace(**fields | change(stamp))

        monkeypatch.setattr(digests_module, "os", SimpleNamespace(stat=stat))

    return pretend


def test_a_change_that_only_the_time_of_modification_shows(file, later, pretend):
    # As on Windows, where ctime is that of the file's creation.
    pretend(lambda stamp: {"st_ctime_ns": 10**18})
    before = digest_image(str(file))
    later()
    file.write_bytes(b"two")
    assert digest_image(str(file)) != before


def test_two_changes_in_one_tick_of_a_slow_clock(file, pretend):
    tick = 2 * 10**9
    now = time.time_ns() // tick * tick
    pretend(lambda stamp: {"st_ctime_ns": now, "st_mtime_ns": now})
    before = digest_image(str(file))
    file.write_bytes(b"two")
    assert digest_image(str(file)) != before


def test_changes_that_no_time_shows(file, tmp_path, later, pretend):
    pretend(lambda stamp: {"st_ctime_ns": 10**18, "st_mtime_ns": 10**18})
    other, link = tmp_path / "other", tmp_path / "link"
    other.write_bytes(b"two")
    link.symlink_to(file)
    digests = [digest_image(str(link))]
    link.unlink()
    link.symlink_to(other)
    digests.append(digest_image(str(link)))
    other.write_bytes(b"longer")
    digests.append(digest_image(str(link)))
    assert len(set(digests)) == 3


def test_an_old_file_is_read_once(file, later):
    for _ in range(3):
        hits = digests_module._read_digest.cache_info().hits
        digest_image(str(file))
    assert digests_module._read_digest.cache_info().hits == hits + 1


def test_a_file_and_its_pixels_differ(tmp_path):
    file = tmp_path / "image.png"
    Image.fromarray(RGB).save(file)
    assert digest_image(str(file)) != digest_image(RGB)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        digest_image(str(tmp_path / "missing.png"))


def test_a_file_that_is_gone(file, later):
    digest_image(str(file))
    file.unlink()
    with pytest.raises(OSError, match="No such file"):
        digest_image(str(file))


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(OSError):  # noqa: PT011  (its message is the system's)
        digest_image(str(tmp_path))


# Combinations

PARTS = st.lists(st.text(max_size=3) | st.integers(-20, 20) | st.binary(max_size=3), max_size=4)


def typed(parts):
    return [(type(part), part) for part in parts]


@given(first=PARTS, second=PARTS)
def test_combinations_differ_where_their_parts_do(first, second):
    assert (combine(*first) == combine(*second)) == (typed(first) == typed(second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("ab", "c"), ("a", "bc")),
        ((b"ab", b"c"), (b"a", b"bc")),
        (("ab",), ("a", "b")),
        (("a",), ("a", "")),
        ((), ("",)),
        (("",), (b"",)),
        ((1,), ("1",)),
        ((1,), (b"1",)),
        (("1",), (b"1",)),
        ((1,), (1.0,)),
        ((1,), (True,)),
        ((None,), ("None",)),
        (("a", "b"), ("b", "a")),
        ((b"a", b"bytes 1\nb"), (b"abytes 1\n", b"b")),
        ((b"abytes 1\nb",), (b"a", b"b")),
        ((b"abytes\nb",), (b"a", b"b")),
        (("\udc80",), ("\udc81",)),  # of file names that are no UTF-8
        ((1, 23), (12, 3)),
    ],
)
def test_ambiguous_combinations_differ(first, second):
    assert combine(*first) != combine(*second)


def test_a_combination_is_the_same_in_every_process():
    # Were it not, nothing that was kept on disk would be found again.
    expected = "e4d247df1d31d18d8ea043ac9673dfb40288e9051c662ed858f149d3ec2dbc03"
    assert combine("a", 1, b"b").hex() == expected
