"""Images that can be read in more than one way: read right, refused, or told once."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image, ImageCms

from skanomaly_vit import TransformalyDetector
from skanomaly_vit._images.opening import open_images
from skanomaly_vit.datasets import paste_defects
from skanomaly_vit.exceptions import AmbiguousImageWarning

RNG = np.random.default_rng(0)
GREY = RNG.integers(60, 200, (12, 16, 20), dtype=np.uint8)
GREY[:, 0, 0] = 240


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels_of(item):
    return open_images([item])[0]


def doubts(*items):
    """What is told of images, in one call."""
    source = open_images(list(items))
    for index in range(len(source)):
        source[index]
    with warnings.catch_warnings(record=True, action="always") as caught:
        source.warn_of_doubts()
        source.warn_of_doubts()
    assert all(warning.category is AmbiguousImageWarning for warning in caught)
    return [str(warning.message) for warning in caught]


@pytest.fixture(scope="module")
def detector():
    return TransformalyDetector(
        backbone="test_vit", pretrained=False, n_blocks=2, random_state=0
    ).fit(GREY)


# The range of values


def test_mode_i_of_8_bits_is_refused_with_both_ways_out(detector):
    image = Image.fromarray(GREY[0].astype(np.int32))
    assert image.mode == "I"
    with pytest.raises(ValueError, match=r"sample 0: .*mode 'I'.*60 to 240.*uint8.*uint16"):
        detector.score_samples([image])
    tiff = encoded(image, "TIFF")
    with pytest.raises(ValueError, match=r"mode 'I'.*uint8.*uint16"):
        detector.score_samples([tiff])
    advised = np.asarray(image).astype(np.uint8)
    assert_array_equal(detector.score_samples([advised]), detector.score_samples(GREY[:1]))


def test_black_in_mode_i_is_black():
    assert not pixels_of(Image.new("I", (3, 2), 0)).any()


def test_a_pgm_of_16_bits_is_known_to_have_them():
    dark = encoded(Image.fromarray(np.full((3, 2), 9, np.uint16)), "PPM")
    assert_array_equal(pixels_of(dark), np.full((3, 2, 3), 9))


DIM = {
    "12 bits": (
        GREY.astype(np.uint16) << 4,
        r"uint16 .*sample 0.*is 3840, .*white is 65535.*/ 4095",
    ),
    "14 bits": (GREY.astype(np.uint16) << 6, "is 15360, .*/ 16383"),
    "8 bits in 16": (GREY.astype(np.uint16), "is 240, .*/ 255"),
    "a mask of 0 and 1": ((GREY > 100).astype(np.uint8), "uint8 .*is 1, .*white is 255.*/ 1$"),
    "divided twice": (GREY / 255 / 255, "float64 .*is 0.00369, where white is 1.*divided twice"),
}


@pytest.mark.parametrize("name", DIM)
def test_values_of_another_range_are_told_once_a_call(name, detector):
    X, message = DIM[name]
    told = doubts(*X)
    assert len(told) == 1
    with pytest.warns(AmbiguousImageWarning, match=f"12 image.*{message}") as caught:
        detector.score_samples(X)
    assert caught[0].filename == __file__
    assert len(caught) == 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_12_bits_in_a_file_are_told(kind):
    X = [encoded(Image.fromarray(image), kind) for image in DIM["12 bits"][0]]
    (told,) = doubts(*X)
    assert "is 3840, where white is 65535" in told


def test_a_fit_tells_once(detector):
    fresh = TransformalyDetector(**detector.get_params())
    with pytest.warns(AmbiguousImageWarning) as caught:
        fresh.fit(DIM["12 bits"][0])
    of_range = [w for w in caught if issubclass(w.category, AmbiguousImageWarning)]
    assert len(of_range) == 1
    assert of_range[0].filename == __file__


def test_an_image_counts_once_however_often_it_is_read():
    X = DIM["12 bits"][0]
    with pytest.warns(AmbiguousImageWarning, match=r"of 1 image\(s\) of uint16") as caught:
        paste_defects(X[:1], random_state=0)
    assert len(caught) == 1
    source = open_images([encoded(Image.fromarray(image), "PPM") for image in X])
    for index in (2, 1, 1, 2):
        source.take([index])[0]
    with pytest.warns(AmbiguousImageWarning, match=r"of 2 image\(s\) .*the first is sample 1\)"):
        source.warn_of_doubts()


def test_a_remark_counts_images_of_both_processes_once():
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("white", "blue")]
    source = open_images([encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])] * 4)
    part = source.subset(np.arange(1, 4))
    for index in (2, 1):
        part[index]
    source[3]
    source.merge_findings(np.arange(1, 4), part.without_pixels())
    with pytest.warns(AmbiguousImageWarning, match="^sample 2 and 1 more: holds several pages"):
        source.warn_of_doubts()


def test_workers_leave_the_telling_to_the_caller():
    source = open_images(DIM["12 bits"][0])
    part = source.subset(np.arange(3, 6))
    part[1]
    with warnings.catch_warnings(action="error"):
        part.warn_of_doubts()
    source.merge_findings(np.arange(3, 6), part.without_pixels())
    with pytest.warns(AmbiguousImageWarning, match=r"1 image\(s\).*sample 4"):
        source.warn_of_doubts()


def test_what_is_dark_here_and_there_is_not_told():
    assert doubts(GREY[0], np.zeros((4, 4), np.uint8), np.full((4, 4), 9, np.uint8)) == []
    assert doubts(np.zeros((4, 4), np.uint16)) == []
    assert doubts(np.full((4, 4), 20000, np.uint16), np.full((4, 4), 5, np.uint16)) == []


def tiff_of_grey(bits, photometric, data, size):
    """A TIFF of one strip, little-endian."""
    width, height = size
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric),
            (273, 8), (277, 1), (278, height), (279, len(data))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    ifd = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + ifd


def test_a_tiff_that_says_12_bits_has_its_white():
    tiff = tiff_of_grey(12, 1, bytes([0xFF, 0xF0, 0x00, 0x80, 0x00, 0x00]), (4, 1))
    assert_array_equal(pixels_of(tiff)[0, :, 0], [65535, 0, 32776, 0])


def test_16_bit_grey_of_which_white_is_zero():
    values = np.array([[0, 1000, 65535]], "<u2")
    tiff = tiff_of_grey(16, 0, values.tobytes(), (3, 1))
    assert_array_equal(pixels_of(tiff)[..., 0], [[65535, 64535, 0]])
    upright = tiff_of_grey(16, 1, values.tobytes(), (3, 1))
    assert_array_equal(pixels_of(upright)[..., 0], values)


# Pages


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG", "WEBP"])
def test_several_pages_are_told(kind):
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("white", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert_array_equal(pixels_of(data), np.full((9, 9, 3), 255))
    (told,) = doubts(data, data)
    assert told.startswith("sample 0 and 1 more: holds several pages")
    with Image.open(io.BytesIO(data)) as lazy:
        (told,) = doubts(lazy)
        assert "several pages" in told
        assert lazy.tell() == 0
        lazy.seek(1)
        assert doubts(lazy) == []  # as the caller wants it
        assert_array_equal(pixels_of(lazy)[0, 0], [0, 0, 255])


def test_one_page_and_its_smaller_copies_are_not_told():
    page, copy = Image.fromarray(GREY[0]), Image.fromarray(GREY[0]).resize((8, 8))
    copy.encoderinfo = {"tiffinfo": {254: 1}}
    assert doubts(encoded(page, "TIFF", save_all=True, append_images=[copy])) == []
    assert doubts(encoded(page, "TIFF"), encoded(page, "GIF"), encoded(page, "PNG")) == []


# Colour profiles


def swapped_profile():
    """sRGB whose red and blue are exchanged: any viewer shows (255, 0, 0) as blue."""
    profile = bytearray(srgb_profile())
    n_tags = struct.unpack(">I", profile[128:132])[0]
    places = range(132, 132 + 12 * n_tags, 12)
    at = {bytes(profile[place : place + 4]): place for place in places}
    red, blue = (slice(at[tag] + 4, at[tag] + 12) for tag in (b"rXYZ", b"bXYZ"))
    profile[red], profile[blue] = profile[blue], profile[red]
    return bytes(profile)


def srgb_profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_an_embedded_profile_is_applied(kind, mode):
    image = Image.new("RGB", (8, 8), (255, 0, 0)).convert(mode)
    data = encoded(image, kind, icc_profile=swapped_profile())
    assert_allclose(pixels_of(data)[0, 0], [0, 0, 255], atol=2)
    assert doubts(data) == []
    with Image.open(io.BytesIO(data)) as lazy:
        assert_array_equal(pixels_of(lazy), pixels_of(data))


def test_jpeg_agrees_with_imagecms():
    rgb = Image.fromarray(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    data = encoded(rgb, "JPEG", icc_profile=swapped_profile())
    with Image.open(io.BytesIO(data)) as lazy:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(swapped_profile()))
        managed = ImageCms.profileToProfile(lazy, profile, ImageCms.createProfile("sRGB"))
    assert_array_equal(pixels_of(data), np.asarray(managed))


def test_a_profile_of_srgb_changes_no_bit():
    rgb = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(rgb), "PNG", icc_profile=srgb_profile())
    assert_array_equal(pixels_of(data), rgb)
    assert doubts(data) == []


def test_transparency_stays_where_a_profile_is_applied():
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (255, 0, 0, 0))
    pixels = pixels_of(encoded(rgba, "PNG", icc_profile=swapped_profile()))
    assert_allclose(pixels, [[[0, 0, 255], [255, 255, 255]]], atol=2)


def test_a_profile_of_colours_on_grey_moves_no_hue():
    data = encoded(Image.fromarray(GREY[0]), "PNG", icc_profile=swapped_profile())
    assert_allclose(pixels_of(data)[..., 1].astype(int), GREY[0], atol=2)


def test_profiles_that_cannot_be_applied_are_told():
    image = Image.fromarray(RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    (told,) = doubts(encoded(image, "PNG", icc_profile=b"no profile"))
    assert "colour profile cannot be applied" in told
    (told,) = doubts(encoded(image.convert("CMYK"), "JPEG"))
    assert "CMYK without a colour profile" in told
    assert len(doubts(encoded(image.convert("CMYK"), "TIFF", icc_profile=srgb_profile()))) == 2


def test_a_gamma_that_is_left_out_is_told():
    png = encoded(Image.fromarray(GREY[0]), "PNG")
    linear, usual = (
        png[:33] + png_chunk(b"gAMA", struct.pack(">I", gamma)) + png[33:]
        for gamma in (100_000, 45_455)
    )
    (told,) = doubts(linear)
    assert "gamma of 1" in told
    assert doubts(usual) == []


def png_chunk(name, data):
    import zlib

    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
