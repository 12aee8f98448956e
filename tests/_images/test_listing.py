"""Which files of a folder are images."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, features

from skanomaly_vit._images.listing import LeftOut, has_image_suffix, walk_images
from skanomaly_vit._images.opening import open_images
from skanomaly_vit.datasets import list_images

KINDS = {
    "a.jfif": "JPEG", "b.jpe": "JPEG", "c.tga": "TGA", "d.png": "PNG", "e.QOI": "QOI",
    "f.pnm": "PPM", "g.mpo": "MPO", "h.dib": "DIB", "i.webp": "WEBP",
}  # fmt: skip
KINDS |= {"j.avif": "AVIF"} if features.check("avif") else {}
KINDS |= {"k.jp2": "JPEG2000"} if features.check("jpg_2000") else {}

NO_IMAGES = ("a.txt", "b.txt", "c.pdf", "d.eps", "e.h5", "f", "g.mpg", ".hidden.png")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, kind in KINDS.items():
        Image.new("RGB", (9, 9), "red").save(tmp_path / "sub" / name, format=kind)
    for name in NO_IMAGES:
        (tmp_path / name).touch()
    return tmp_path


def test_what_pillow_opens_is_listed(folder):
    paths = list_images(folder)
    assert [Path(path).name for path in paths] == sorted(KINDS)
    source = open_images(paths)
    assert all(source[index].shape == (9, 9, 3) for index in range(len(source)))


def test_a_codec_that_is_missing_is_not_listed(monkeypatch):
    monkeypatch.setattr(features, "check_codec", lambda name: False)
    assert not has_image_suffix("a.jp2")
    monkeypatch.delitem(Image.OPEN, "PNG")
    assert not has_image_suffix("a.png")


def test_files_that_are_left_out_are_counted(folder):
    left_out = LeftOut()
    assert not left_out
    list(walk_images(str(folder), lambda *_: None, left_out))
    said = str(left_out)
    assert said.startswith("7 files, which are no image by the suffix: 2 .txt, 1 ")
    assert "1 without a suffix" in said


def test_folders_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        list_images(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"hold no images$"):
        list_images(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"hold no images; there are 1 file.*1 \.txt"):
        list_images(tmp_path)


def test_advice_names_the_suffixes_that_are_there(tmp_path):
    def advice():
        with pytest.raises(ValueError, match="directory") as single:
            open_images(tmp_path)
        with pytest.raises(ValueError, match="directory") as among:
            open_images([tmp_path])
        return str(single.value), str(among.value)

    assert all("hold no images" in said for said in advice())
    (tmp_path / "a.JPG").touch()
    assert all('.rglob("*.JPG"))' in said for said in advice())
    (tmp_path / "b.tif").touch()
    assert all(f"datasets.list_images({str(tmp_path)!r})" in said for said in advice())
