"""Broken and hostile images: an error that names them, or NaN; never a wrong score."""

from __future__ import annotations

import io
import os
import pickle
import struct
import threading
import types
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image, ImageFile

from skanomaly_vit._backbone.teacher import Teacher
from skanomaly_vit._images import strict_loading
from skanomaly_vit._images.opening import open_images
from skanomaly_vit._images.pillow_rules import MAX_PIXELS
from skanomaly_vit._images.preprocessing import Preprocessing
from skanomaly_vit.exceptions import UnreadableImageWarning

SMALL = Preprocessing((6, 5), (0.5,) * 3, (0.25,) * 3)
RGB = np.random.default_rng(0).integers(0, 256, (11, 9, 3), dtype=np.uint8)


def encoded(kind, image=None, **options):
    buffer = io.BytesIO()
    (Image.fromarray(RGB) if image is None else image).save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb(width=60_000, height=60_000):
    """A PNG of a few bytes that declares a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100))
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def gif_of_a_large_frame():
    """A GIF whose screen is small and whose first frame is not."""
    data = bytearray(encoded("GIF"))
    frame = data.index(b"\x2c" + struct.pack("<HHHH", 0, 0, 9, 11))
    data[frame + 5 : frame + 9] = struct.pack("<HH", 65_000, 65_000)
    return bytes(data)


def tiff_bomb():
    """A TIFF whose tags declare a size."""
    data = encoded("TIFF", Image.fromarray(RGB[:, :, 0]))
    for tag, pixels in ((256, 9), (257, 11)):
        entries = [struct.pack("<HHIHH", tag, 3, 1, pixels, 0)]
        entries.append(struct.pack("<HHII", tag, 4, 1, pixels))
        (entry,) = {entry for entry in entries if entry in data}
        data = data.replace(entry, struct.pack("<HHII", tag, 4, 1, 2**30))
    return data


BROKEN = {
    "truncated.jpg": (encoded("JPEG")[:-200], "truncated"),
    "empty.png": (b"", "cannot identify image file"),
    "text.png": (b"just words", "cannot identify image file"),
    "bomb.png": (bomb(), "more than max_pixels=134217728"),
    "zero.png": (bomb(0, 5), "cannot identify image file|zero size|width"),
    "bomb.bmp": (encoded("BMP")[:18] + struct.pack("<ii", 2**30, 2**30) + encoded("BMP")[26:],
                 "max_pixels"),
    "bomb.tif": (tiff_bomb(), "max_pixels"),
    "frame.gif": (gif_of_a_large_frame(), "max_pixels"),
    "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nloop\n",
                   "PostScript is a program"),
    "lying.png": (bomb(900, 900), "truncated|broken"),
    "wrong.webp": (encoded("WEBP")[:40], "cannot identify|WebP|truncated|decode"),
    "name\nof two lines.png": (b"", "cannot identify"),
    "not utf-8 \udcff.png": (b"", "cannot identify"),
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(name, data):
        path = str(tmp_path / name)
        with open(path, "wb") as file:
            file.write(data)
        return path

    return write


@pytest.mark.parametrize("n_jobs", [None, 2])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_an_error_that_names_it(name, n_jobs, write):
    data, cause = BROKEN[name]
    path, sound = write(name, data), write("sound.png", encoded("PNG"))
    source = open_images([sound, sound, path])
    with pytest.raises(ValueError, match=rf"^sample 2 \(.*({cause})") as info:
        list(source.batches(SMALL, batch_size=3, n_jobs=n_jobs))
    assert repr(path) in str(info.value)
    assert "\n" not in str(info.value)
    image = source.unreadable[2]
    assert (image.index, image.path) == (2, path)
    assert "\n" not in image.cause
    str(info.value).encode()  # can be shown, whatever the name


def test_all_broken_files_of_a_batch_are_named(write):
    paths = [write(f"{i}.png", b"" if i in (1, 3) else encoded("PNG")) for i in range(4)]
    with pytest.raises(ValueError, match=r"(?s)sample 1 .*1\.png.*either.*sample 3 .*3\.png"):
        list(open_images(paths).batches(SMALL, batch_size=4))


def test_all_that_shows_without_decoding_is_named_at_once(write, tmp_path):
    paths = [write("a.png", b""), "absent.png", str(tmp_path)]
    with pytest.raises(ValueError, match=r"(?s)sample 1: no such file.*sample 2 .*directory"):
        open_images(paths)
    floats = np.full((4, 3, 5), 0.5)
    floats[1, 0, 0], floats[3, 0, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"(?s)sample 1 contains NaN.*sample 3: contains inf"):
        open_images(floats)


def test_a_loop_of_links(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"sample 0: .*symbolic links.*a\.png"):
        open_images([tmp_path / "a.png"])


def test_a_pipe_in_place_of_a_file_does_not_wait(write):
    path = write("a.png", encoded("PNG"))
    source = open_images([path])
    os.unlink(path)
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"sample 0 .*not a regular file"):
        source[0]


def test_a_lazy_pil_image_is_held_to_the_limit(write):
    with (
        Image.open(write("a.png", encoded("PNG"))) as image,
        pytest.raises(ValueError, match=r"sample 0: .*9 x 11 = 99 pixels.*max_pixels=98"),
    ):
        open_images([image], max_pixels=98)[0]


# The limit


def test_the_limit_counts_pixels_exactly(write):
    path = write("a.png", encoded("PNG"))
    assert_array_equal(open_images([path], max_pixels=99)[0], RGB)
    source = open_images([path], max_pixels=98)
    for ask in (source.__getitem__, source.size):
        with pytest.raises(ValueError, match="max_pixels=98"):
            ask(0)
    assert_array_equal(open_images([path], max_pixels=None)[0], RGB)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP"])
def test_the_limit_is_looked_at_before_decoding(kind, write, monkeypatch):
    path = write("a", encoded(kind))
    monkeypatch.setattr("PIL.Image.Image.load", None)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(ValueError, match="max_pixels=98"):
        open_images([path], max_pixels=98)[0]


@pytest.mark.parametrize("pillows", [10, 60, None])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "WEBP"])
def test_pillows_own_limit_does_not_matter(pillows, kind, write, monkeypatch):
    frames = {"save_all": True, "append_images": [Image.fromarray(RGB)]} if kind == "GIF" else {}
    path = write("a", encoded(kind, **frames))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows)
    for limit in (99, MAX_PIXELS, None):
        assert open_images([path], max_pixels=limit)[0].shape == RGB.shape
        assert pillows == Image.MAX_IMAGE_PIXELS
    with pytest.raises(ValueError, match="max_pixels=98"):
        open_images([path], max_pixels=98)[0]
    assert pillows == Image.MAX_IMAGE_PIXELS


#: Kinds of files of which Pillow lets a half pass where the application says so.
HALVES = {
    "PNG": {},
    "JPEG": {},
    "JPEG progressive": {"progressive": True},
    "MPO": {"save_all": True, "append_images": [Image.fromarray(RGB)]},
    "TIFF": {},
    "TIFF deflated": {"compression": "tiff_adobe_deflate"},
    "BMP": {},
    "GIF": {},
    "PPM": {},
    "TGA": {},
    "PCX": {},
    "SGI": {},
    "WEBP": {},
    "JPEG2000": {},
    "DDS": {},
}


#: Of these Pillow tells when it opens the file.
TOLD_EARLY = ("TIFF deflated", "WEBP")


@pytest.mark.parametrize("form", ["path", "bytes", "image"])
@pytest.mark.parametrize("kind", HALVES)
def test_half_a_file_is_refused_and_pillows_flag_left_alone(kind, form, write, monkeypatch):
    seen = []

    class Watched(types.ModuleType):
        def __setattr__(self, name, value):
            seen.append(name)
            super().__setattr__(name, value)

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8))
    whole = encoded(kind.split()[0], picture, **HALVES[kind])
    half = whole[: len(whole) * (6 if kind == "MPO" else 9) // 10]
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(ImageFile, "__class__", Watched)

    def read(data):
        if form == "image" and kind not in TOLD_EARLY:
            with Image.open(io.BytesIO(data)) as image:
                return open_images([image])[0]
        return open_images([write("a", data) if form == "path" else data])[0]

    if kind == "DDS" and strict_loading._PILLOW < (12, 3):
        with pytest.raises(ValueError, match="half a DDS file from a whole one"):
            read(whole)
        return
    assert read(whole).shape[2] == 3
    if kind == "MPO":  # its second picture may end early
        half = whole[: len(encoded("JPEG", picture)) // 2]
    with pytest.raises(ValueError, match="sample 0"):
        read(half)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert seen == []


def test_an_ico_file_is_refused_where_pillow_lets_halves_pass(monkeypatch):
    data = encoded("ICO", Image.fromarray(RGB.repeat(4, 0).repeat(4, 1)))
    assert open_images([data])[0].shape[2] == 3
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ValueError, match="half an ICO file from a whole one"):
        open_images([data])[0]


@pytest.mark.parametrize("form", ["bytes", "image"])
def test_a_dds_file_is_refused_by_a_pillow_that_lets_halves_pass(form, monkeypatch):
    monkeypatch.setattr(strict_loading, "_PILLOW", (12, 2))
    data = encoded("DDS")
    image = Image.open(io.BytesIO(data))
    with pytest.raises(ValueError, match="half a DDS file from a whole one; upgrade it to"):
        open_images([data if form == "bytes" else image])[0]
    monkeypatch.setattr(strict_loading, "_PILLOW", (12, 3))
    image.load()
    assert open_images([data if form == "bytes" else image])[0].shape[2] == 3


def test_an_image_of_the_caller_keeps_its_class():
    image = Image.open(io.BytesIO(encoded("JPEG")))
    own = type(image)
    open_images([image])[0]
    assert type(image) is own


def test_limits_of_several_threads(write):
    path = write("a.png", encoded("PNG"))
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    wrong = []

    def read(limit, is_refused):
        for _ in range(50):
            try:
                open_images([path], max_pixels=limit)[0]
                wrong.extend([limit] if is_refused else [])
            except ValueError:
                wrong.extend([] if is_refused else [limit])

    cases = [(98, True), (99, False), (None, False), (1, True)]
    threads = [threading.Thread(target=read, args=case) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_flipped_bit_in_the_pixels_of_a_png_is_found(place, bit, write):
    y, x = np.mgrid[:64, :64]
    data = bytearray(encoded("PNG", Image.fromarray((x * 3 + y).astype(np.uint8))))
    start, end = data.index(b"IDAT") + 4, data.index(b"IEND") - 8
    data[start + int(place * (end - start))] ^= 1 << bit
    with pytest.raises(ValueError, match=r"sample 0 .*(broken|checksum|CRC)"):
        open_images([write("a", bytes(data))])[0]


# Odd and sound all the same


def broken_profile():
    return encoded("PNG", icc_profile=b"no profile"), encoded("JPEG", icc_profile=b"no profile")


def test_a_broken_colour_profile_does_not_matter(write):
    png, jpeg = broken_profile()
    assert_array_equal(open_images([write("a.png", png)])[0], RGB)
    plain = open_images([write("b.jpg", encoded("JPEG"))])[0]
    assert_array_equal(open_images([write("a.jpg", jpeg)])[0], plain)


def test_the_first_frame_of_an_animation_is_the_image(write):
    frames = [Image.new("RGB", (9, 11), colour) for colour in ("red", "blue")]
    path = write("a.gif", encoded("GIF", frames[0], save_all=True, append_images=frames[1:]))
    assert_array_equal(open_images([path])[0][5, 5], [255, 0, 0])


def odd_arrays(tmp_path):
    float_images = np.random.default_rng(0).random((5, 32, 32, 3)).astype(np.float32)
    float_images.tofile(tmp_path / "images.bin")
    mapped = np.memmap(tmp_path / "images.bin", np.float32, "r", shape=float_images.shape)
    wide = np.zeros((5, 32, 64, 3), np.float32)
    wide[:, :, ::2] = float_images
    forms = {
        "big-endian": float_images.astype(">f4"),
        "not contiguous": wide[:, :, ::2],
        "reversed": float_images[::-1].copy()[::-1],
        "read-only map": mapped,
    }
    return float_images, forms


def test_arrays_of_odd_layout_have_the_scores_of_plain_ones(fitted, tmp_path):
    plain, forms = odd_arrays(tmp_path)
    expected = fitted.score_samples(plain)
    for form in forms.values():
        assert_array_equal(fitted.score_samples(form), expected)
        assert_array_equal(fitted.score_samples(list(form)), expected)


@pytest.mark.filterwarnings("ignore:.*CMYK:skanomaly_vit.exceptions.AmbiguousImageWarning")
@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
@pytest.mark.parametrize("mode", ["RGB", "I;16", "CMYK", "P"])
def test_any_size_and_mode_has_a_finite_score_and_map(fitted, size, mode, write):
    image = Image.new("I;16", size, 60_000) if mode == "I;16" else Image.new("RGB", size, "red")
    options = {"transparency": 0} if mode == "P" else {}
    image = image if mode == "I;16" else image.convert(mode)
    path = write("a", encoded("TIFF" if mode == "CMYK" else "PNG", image, **options))
    scores, (anomaly_map,) = fitted.score_samples([path], return_map=True)
    assert np.isfinite(scores).all()
    assert anomaly_map.shape == size[::-1]
    assert np.isfinite(anomaly_map).all()


# on_error="nan"


@pytest.fixture
def files(images, write):
    return [
        write(f"{i}.png", encoded("PNG", Image.fromarray(image)))
        for i, image in enumerate(images[:7])
    ]


@pytest.fixture
def bad(write):
    return [write(f"bad-{i}", data) for i, (data, _) in enumerate(BROKEN.values())]


def woven(files, bad, gaps):
    """Files with broken ones at some places, and which places are those of sound ones."""
    sound, broken = iter(files), iter(bad * 9)
    mixed = [next(broken) if i in gaps else next(sound) for i in range(len(files) + len(gaps))]
    return mixed, [i for i in range(len(mixed)) if i not in gaps]


def score(detector, X, n_unreadable):
    with pytest.warns(UnreadableImageWarning) as caught:
        scores, maps = detector.score_samples(X, return_map=True)
        alone = detector.score_samples(X)
    assert_array_equal(scores, alone)
    assert [len(warning.message.images) for warning in caught] == [n_unreadable] * 2
    assert {warning.filename for warning in caught} == {__file__}
    return scores, maps


GAPS = [{0}, {2}, {7}, {0, 1, 2}, {0, 3, 4, 5, 6, 10}, {1, 3, 5, 7, 9, 11}]


@pytest.mark.parametrize("gaps", GAPS, ids=str)
@pytest.mark.parametrize("kept", ["nowhere", "on disk", "by joblib"])
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_the_others_are_scored_as_without_the_broken(
    gaps, kept, n_jobs, make_detector, images, files, bad, tmp_path
):
    import joblib

    memory = {"nowhere": None, "on disk": tmp_path / "c"}.get(
        kept, joblib.Memory(tmp_path / "c", verbose=0)
    )
    detector = make_detector(batch_size=3, n_jobs=n_jobs, on_error="nan", memory=memory).fit(images)
    expected, expected_maps = detector.score_samples(files, return_map=True)
    mixed, sound = woven(files, bad, gaps)
    for _ in range(2 if kept != "nowhere" else 1):
        scores, maps = score(detector, mixed, len(gaps))
        assert_array_equal(scores[sound], expected)
        assert np.isnan(scores[list(gaps)]).all()
        for i, plane in zip(sound, expected_maps, strict=True):
            assert_array_equal(maps[i], plane)
        assert {maps[i].shape for i in gaps} == {(0, 0)}
        assert isinstance(maps, list)


def test_the_first_scoring_of_a_mix_through_a_memory(make_detector, images, files, bad, tmp_path):
    mixed, sound = woven(files, bad, {1, 4})
    plain = make_detector(batch_size=3).fit(images)
    memory = make_detector(batch_size=3, on_error="nan", memory=tmp_path / "c").fit(images)
    scores, _ = score(memory, mixed, 2)
    assert_array_equal(scores[sound], plain.score_samples(files))
    assert_array_equal(memory.score_samples(files), plain.score_samples(files))


def test_what_was_remembered_of_all_is_not_mixed_with_what_is_left(
    make_detector, images, files, tmp_path, monkeypatch
):
    memory, quick = tmp_path / "c", {"batch_size": 3, "on_error": "nan"}
    make_detector(**quick, memory=memory).fit(images).score_samples(files)
    # Other students: the features of all images are known, their discrepancies are not.
    detector = make_detector(**quick, memory=memory, alpha=9.0).fit(images)
    expected = make_detector(**quick, alpha=9.0).fit(images).score_samples(files[1:])
    original = type(detector)._open

    def opening(self, X, **options):
        source = original(self, X, **options)
        digest = source.digest

        def then_delete(position):
            found = digest(position)
            if position == 0 and os.path.exists(files[0]):
                os.unlink(files[0])
            return found

        source.digest = then_delete
        return source

    from skanomaly_vit._backbone.activations import StoredActivations

    monkeypatch.setattr(StoredActivations, "find", lambda self, positions, levels: {})
    monkeypatch.setattr(type(detector), "_open", opening)
    with pytest.warns(UnreadableImageWarning):
        scores = detector.score_samples(files)
    assert np.isnan(scores[0])
    assert_array_equal(scores[1:], expected)


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("return_map", [False, True])
def test_files_deleted_in_the_middle_of_a_pass(
    memory, return_map, make_detector, images, files, tmp_path, monkeypatch
):
    options = {"memory": tmp_path / "c"} if memory else {}
    detector = make_detector(batch_size=2, on_error="nan", **options).fit(images)
    clean = make_detector(batch_size=2).fit(images)
    run = Teacher.__call__

    def deleting(self, batch, **options):
        for path in files[3:5]:
            if os.path.exists(path):
                os.unlink(path)
        return run(self, batch, **options)

    with monkeypatch.context() as patch, pytest.warns(UnreadableImageWarning, match="No such file"):
        patch.setattr(Teacher, "__call__", deleting)
        result = detector.score_samples(files, return_map=return_map)
    scores = result[0] if return_map else result
    left = [0, 1, 2, 5, 6]
    assert np.isnan(scores[3:5]).all()
    assert_array_equal(scores[left], clean.score_samples([files[i] for i in left]))


def test_a_file_deleted_before_its_size_is_known(make_detector, images, files, tmp_path):
    detector = make_detector(on_error="nan", memory=tmp_path / "c").fit(images)
    expected = detector.score_samples(files, return_map=True)[0]  # now the tokens are known
    source_class = type(open_images(files))
    size = source_class.size

    def delete_first(self, position):
        if position == 2 and os.path.exists(files[2]):
            os.unlink(files[2])
        return size(self, position)

    with pytest.MonkeyPatch.context() as patch, pytest.warns(UnreadableImageWarning):
        patch.setattr(source_class, "size", delete_first)
        scores, maps = detector.score_samples(files, return_map=True)
    assert np.isnan(scores[2])
    assert maps[2].shape == (0, 0)
    left = [0, 1, 3, 4, 5, 6]
    assert_array_equal(scores[left], expected[left])
    assert [maps[i].shape for i in left] == [(32, 32)] * 6


def test_nothing_readable_at_all(make_detector, images, bad):
    detector = make_detector(on_error="nan").fit(images)
    scores, maps = score(detector, bad, len(bad))
    assert np.isnan(scores).all()
    assert scores.dtype == np.float64
    assert [plane.shape for plane in maps] == [(0, 0)] * len(bad)


@pytest.mark.parametrize("spaces", ["both", "pretrained", "discrepancy"])
def test_labels_decisions_and_spaces(spaces, make_detector, images, files):
    detector = make_detector(on_error="nan", feature_spaces=spaces).fit(images)
    X = [files[0], "absent.png", files[1]]
    with pytest.warns(UnreadableImageWarning):
        labels, decision = detector.predict(X), detector.decision_function(X)
        found = detector.score_spaces(X)
    assert labels.dtype.kind == "i"
    assert labels[1] == -1
    assert_array_equal(labels[[0, 2]], detector.predict(files[:2]))
    assert_array_equal(np.isnan(decision), [False, True, False])
    for values in found.values():
        assert_array_equal(np.isnan(values), [False, True, False])


def test_values_that_are_no_pixels(make_detector, images):
    detector = make_detector(on_error="nan").fit(images)
    floats = images[:5].astype(np.float32) / np.float32(255)
    expected = detector.score_samples(floats[[0, 2, 3]])
    floats[1, 3, 3], floats[4, 0, 0] = np.nan, np.inf
    for X in (floats, list(floats)):
        with pytest.warns(UnreadableImageWarning, match=r"(?s)sample 1: .*NaN.*sample 4: .*inf"):
            scores = detector.score_samples(X)
        assert_array_equal(scores[[0, 2, 3]], expected)
        assert_array_equal(np.isnan(scores), [False, True, False, False, True])


def test_an_x_that_is_none_is_refused_all_the_same(make_detector, images):
    detector = make_detector(on_error="nan").fit(images)
    for X in (images.astype(np.int64), [images[0], None], [], images[:, 0, 0, 0]):
        with pytest.raises(ValueError, match=r"int64|NoneType|0 sample|1 dimension"):
            detector.score_samples(X)


def test_fit_raises_whatever_on_error_says(make_detector, images, files, bad):
    for X in ([*files, "absent.png", "gone.png"], [*files, bad[0]]):
        with pytest.raises(ValueError, match=r"sample 7"):
            make_detector(on_error="nan").fit(X)
    with pytest.raises(ValueError, match=r"(?s)sample 7.*absent.*sample 8.*gone"):
        make_detector(on_error="nan").fit([*files, "absent.png", "gone.png"])


def test_by_default_scoring_raises(fitted, files, bad):
    with pytest.raises(ValueError, match=r"sample 1 \('.*bad-0'\): .*[Tt]runcated"):
        fitted.score_samples([files[0], bad[0]])


def test_the_warning_says_which_and_why(make_detector, images, files, write):
    detector = make_detector(on_error="nan").fit(images)
    path = write("a\n\udcff.png", b"words")
    with pytest.warns(UnreadableImageWarning, match="2 of 3 images") as caught:
        detector.score_samples([files[0], path, "absent.png"])
    warning = caught[0].message
    assert repr(path) in str(warning)
    assert "sample 2 ('absent.png'): No such file or directory" in str(warning)
    assert [(image.index, image.path) for image in warning.images] == [(1, path), (2, "absent.png")]
    assert pickle.loads(pickle.dumps(warning)).images == warning.images


def test_of_many_unreadable_images_the_message_lists_some(make_detector, images):
    detector = make_detector(on_error="nan").fit(images)
    with pytest.warns(UnreadableImageWarning, match="and 70 more") as caught:
        detector.predict([f"absent-{i}.png" for i in range(120)])
    assert len(caught[0].message.images) == 120


def test_the_error_survives_a_process():
    with pytest.raises(ValueError, match="no such file") as info:
        open_images(["absent.png"])
    copy = pickle.loads(pickle.dumps(info.value))
    assert str(copy) == str(info.value)
    assert copy.images == info.value.images


@pytest.mark.parametrize(
    "parameters", [{"on_error": "skip"}, {"on_error": None}, {"max_pixels": 0}, {"max_pixels": "9"}]
)
def test_bad_parameters(parameters, make_detector, images):
    with pytest.raises(ValueError, match=f"'{next(iter(parameters))}' parameter"):
        make_detector(**parameters).fit(images)


def test_max_pixels_of_a_detector(make_detector, images, files):
    detector = make_detector(max_pixels=32 * 32 - 1, on_error="nan").fit(images)  # arrays are here
    with pytest.warns(UnreadableImageWarning, match="max_pixels=1023"):
        assert np.isnan(detector.score_samples(files)).all()
    with pytest.raises(ValueError, match="max_pixels=1023"):
        detector.features_.transform(files)


def test_good_images_are_decoded_once(make_detector, images, files, monkeypatch):
    import skanomaly_vit._images.source as images_module

    detector = make_detector(on_error="nan", batch_size=3).fit(images)
    decoded, decode = [], images_module.decode_image

    def counting(item, max_pixels):
        decoded.append(item)
        return decode(item, max_pixels)

    monkeypatch.setattr(images_module, "decode_image", counting)
    detector.score_samples(files, return_map=True)
    assert sorted(decoded) == sorted(files)


# Any bytes at all


def real_cells():
    """Solar cells, if they are installed."""
    try:
        from skanomaly_vit.datasets import load_elpv

        paths = load_elpv().images[:2]
    except ImportError:
        return []
    return [Image.open(path).resize((40, 40)) for path in paths]


def originals():
    drawn = Image.fromarray(RGB)
    seeds = [drawn, drawn.convert("P"), drawn.convert("L"), drawn.convert("RGBA"), *real_cells()]
    encodings = []
    for image in seeds:
        for kind in ("PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP"):
            if (kind, image.mode) not in {("JPEG", "P"), ("JPEG", "RGBA"), ("WEBP", "P")}:
                encodings.append(encoded(kind, image))
    exif = Image.Exif()
    exif[0x0112] = 6
    return [*encodings, encoded("PNG", exif=exif), encoded("JPEG", exif=exif)]


ORIGINALS = originals()
EDITS = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert"]), st.floats(0, 1), st.binary(max_size=8)),
    min_size=1,
    max_size=4,
)


def mutate(data, edits):
    data = bytearray(data)
    for kind, place, extra in edits:
        # Headers are short and matter most.
        start = int(place**3 * len(data))
        if kind == "cut":
            del data[start : start + 1 + len(extra) ** 3]
        elif kind == "insert":
            data[start:start] = extra
        else:
            data[start : start + len(extra)] = extra[: max(0, len(data) - start)]
    return bytes(data)


@given(data=st.sampled_from(ORIGINALS), edits=EDITS)
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_mutated_bytes_are_an_image_or_one_error(data, edits, write):
    path = write("mutated", mutate(data, edits))
    source = open_images([path], max_pixels=2**20)
    try:
        (batch,) = source.batches(SMALL, batch_size=1)
    except ValueError as error:
        assert str(error).startswith(f"sample 0 ({path!r}): the image cannot be decoded: ")
        assert source.unreadable[0].cause
    else:
        assert batch.isfinite().all()
        assert source.size(0) == source[0].shape[:2]
