"""Files whose header and data disagree: refused, or told, where Pillow says nothing."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from strict_png import chunk, chunks, join_chunks

from skanomaly_vit._images.opening import open_images
from skanomaly_vit.exceptions import AmbiguousImageWarning

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (40, 36, 3), dtype=np.uint8)
VALUES = np.array([[0, 1, 2, 3]], np.uint8)


def encoded(kind, image=None, **options):
    file = io.BytesIO()
    (Image.fromarray(RGB) if image is None else image).save(file, kind, **options)
    return file.getvalue()


def read(data):
    return open_images([data])[0]


def doubts(item):
    source = open_images([item])
    source[0]
    with warnings.catch_warnings(record=True, action="always") as caught:
        source.warn_of_doubts()
    assert all(warning.category is AmbiguousImageWarning for warning in caught)
    return [str(warning.message) for warning in caught]


def refused(data, cause):
    with pytest.raises(ValueError, match=rf"^sample 0: .*{cause}"):
        read(data)


def png(raw, width, height, *, depth=8, color=0, interlaced=0, extra=()):
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    parts = [(b"IHDR", head), *extra, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return join_chunks(parts)


# PNG


@pytest.mark.parametrize("size", [(36, 39), (36, 41), (35, 40), (37, 40), (12, 40)])
def test_a_png_of_another_size_than_its_data(size):
    (name, head), *others = chunks(encoded("PNG"))
    data = join_chunks([(name, struct.pack(">II", *size) + head[8:]), *others])
    refused(data, r"header declares \d+ bytes of pixels")


def test_a_png_of_wrong_data_under_a_right_checksum():
    data = bytearray(zlib.compress(b"\0\1\2\3" * 4))
    for end, cause in ((len(data) - 4, "without an end"), (len(data), "incorrect data check")):
        data[-1] ^= 1
        parts = [(b"IHDR", struct.pack(">IIBBBBB", 3, 4, 8, 0, 0, 0, 0))]
        refused(join_chunks([*parts, (b"IDAT", bytes(data[:end])), (b"IEND", b"")]), cause)
        data[-1] ^= 1


def test_chunks_that_are_missing_unknown_or_twice():
    palette = encoded("PNG", Image.fromarray(RGB).quantize(9))
    head, *others = chunks(palette)
    without = [part for part in others if part[0] != b"PLTE"]
    refused(join_chunks([head, *without]), "no chunk.*PLTE")
    refused(join_chunks([head, (b"ABCD", b""), *others]), "ABCD.*unknown")
    refused(join_chunks([head, head, *others]), "IHDR.*out of place")
    refused(palette[:-8], "cut off")
    text = join_chunks([head, (b"teXt", b"x"), *others])
    assert_array_equal(read(text), read(palette))


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 5), (5, 3), (9, 8), (17, 11)])
@pytest.mark.parametrize("depth", [1, 8])
def test_an_interlaced_png_is_sound(size, depth):
    width, height = size
    values = RNG.integers(0, 2**depth, (height, width))
    raw = b""
    for left, top, across, down in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4),
                                    (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)):  # fmt: skip
        for row in values[top::down, left::across]:
            packed = np.packbits(row) if depth == 1 else row.astype(np.uint8)
            raw += b"\0" + packed.tobytes() if len(row) else b""
    found = read(png(raw, width, height, depth=depth, interlaced=1))
    assert_array_equal(found[..., 0], values * (255 if depth == 1 else 1))
    refused(png(raw + b"\0", width, height, depth=depth, interlaced=1), "header declares")


def test_the_transparent_value_of_few_bits():
    packed = {2: bytes([0b00011011]), 4: bytes([0x01, 0x23])}
    for depth, row in packed.items():
        data = png(b"\0" + row, 4, 1, depth=depth, extra=[(b"tRNS", struct.pack(">H", 2))])
        expected = np.where(VALUES == 2, 255, VALUES * (255 // (2**depth - 1)))
        assert_array_equal(read(data)[..., 0], expected)
        with Image.open(io.BytesIO(data)) as lazy:
            for _ in range(2):
                assert_array_equal(read(lazy)[..., 0], expected)
    refused(png(b"\0" + VALUES.tobytes(), 4, 1, extra=[(b"tRNS", struct.pack(">H", 256))]),
            "above 255 is transparent")  # fmt: skip


def test_the_transparent_colour_of_16_bits_is_told():
    raw = b"\0" + struct.pack(">6H", 1000, 2000, 3000, 40000, 50000, 60000)
    clear = [(b"tRNS", struct.pack(">3H", 40000, 50000, 60000))]
    data = png(raw, 2, 1, depth=16, color=2, extra=clear)
    assert_array_equal(read(data), [[[3, 7, 11], [255, 255, 255]]])
    assert any("16-bit colours" in each for each in doubts(data))


def test_colours_that_a_palette_lacks():
    palette = [(b"PLTE", bytes([9, 9, 9, 200, 0, 0, 4, 4, 4]))]
    raw = b"\0" + VALUES.tobytes()
    refused(png(raw, 4, 1, color=3, extra=palette), "color 3 of a palette of 3")
    image = Image.frombytes("P", (4, 1), VALUES.tobytes())
    image.putpalette([9, 9, 9, 200, 0, 0])
    refused(image, "color 2 of a palette of 2")
    image.info["transparency"] = 2
    refused(image, "color 3")


def test_colour_spaces_of_png_are_told():
    grey = b"\0" + bytes([0, 100, 200, 250])
    wide = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    srgb = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    for name, told, usual in ((b"cHRM", wide, srgb), (b"cICP", b"\x0c\x0d\0\1", b"\1\x0d\0\1")):
        (doubt,) = doubts(png(grey, 4, 1, extra=[(name, told)]))
        assert name.decode() in doubt
        assert doubts(png(grey, 4, 1, extra=[(name, usual)])) == []


# JPEG


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 2}], ids=str)
def test_a_jpeg_that_was_cut_off_and_ended(mode, options):
    data = encoded("JPEG", Image.fromarray(RGB).convert(mode), **options)
    for share in (0.5, 0.8, 0.9):
        refused(data[: int(len(data) * share)] + b"\xff\xd9", "truncated")


def test_a_jpeg_that_declares_more_rows_than_it_has():
    data = bytearray(encoded("JPEG"))
    struct.pack_into(">H", data, data.index(b"\xff\xc0") + 5, 90)
    refused(bytes(data), "truncated")


def test_a_progressive_jpeg_that_lacks_scans_is_told():
    data = encoded("JPEG", progressive=True)
    scans = data.split(b"\xff\xda")
    for kept in range(2, len(scans)):
        (told,) = doubts(b"\xff\xda".join(scans[:kept]) + b"\xff\xd9")
        assert "progressive JPEG" in told
    assert doubts(data) == []


def test_a_sound_jpeg_is_read_as_pillow_reads_it():
    rng = np.random.default_rng(1)
    for number in range(300):
        height, width = rng.integers(1, 50, 2)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels // (1 + 254 * (number % 3 == 0))).convert(
            str(rng.choice(["RGB", "L"]))
        )
        options = {"quality": int(rng.choice([1, 75, 100])), "optimize": bool(number % 2)}
        options |= {"subsampling": int(rng.integers(3))} if image.mode == "RGB" else {}
        options |= {"restart_marker_blocks": 3} if number % 5 == 0 else {}
        options |= {"progressive": True} if number % 7 == 0 else {}
        data = encoded("JPEG", image, **options)
        with Image.open(io.BytesIO(data)) as found:
            expected = np.asarray(found.convert("RGB"))
        assert_array_equal(read(data), expected)
        assert_array_equal(read(data + b"behind the end \xff\xd9"), expected)


# Plain pixels


def test_a_ppm_that_disagrees_with_its_header():
    pixels = bytes([50, 100, 200])
    refused(b"P5\n3 1\n100\n" + pixels, "white is 100, and a value is 200")
    refused(b"P5\n3 1\n1000\n" + struct.pack(">3H", 5, 1000, 1001), "a value is 1001")
    refused(b"P5\n3 1\n255\n" + pixels * 2, "3 x 1 pixels, and more data")
    refused(b"P4\n8 1\n" + b"\x55\x55", "8 x 1 pixels, and more data")
    refused(b"P5\n3 2\n255\n" + pixels, "truncated|not enough")
    first = b"P6\n1 1\n255\n" + pixels
    assert_array_equal(read(first + b"\n"), [[list(pixels)]])
    (told,) = doubts(first + first)
    assert "several images" in told


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_a_bmp_that_disagrees_with_its_header(mode):
    data = encoded("BMP", Image.fromarray(RGB).convert(mode))
    assert read(data).shape == RGB.shape
    for place, side in ((22, 30), (22, 50), (18, 4)):
        changed = bytearray(data)
        struct.pack_into("<i", changed, place, side)
        refused(bytes(changed), "pixels, which take|truncated")


def test_a_bmp_without_a_size_of_its_data():
    data = bytearray(encoded("BMP"))
    struct.pack_into("<I", data, 34, 0)
    assert_array_equal(read(bytes(data)), RGB)


def test_chunk_is_what_other_readers_expect():
    assert chunk(b"IEND", b"") == bytes.fromhex("0000000049454e44ae426082")
