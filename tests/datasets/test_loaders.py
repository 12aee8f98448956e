"""Data sets: files read from each layout, their order, and errors for wrong layouts."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from skanomaly_vit._images.decoding import decode_image
from skanomaly_vit.datasets import (
    FASHION_MNIST_CLASSES,
    crop_objects,
    load_cats_vs_dogs,
    load_dior,
    load_elpv,
    load_fashion_mnist,
    load_idx,
    load_image_folder,
    load_mvtec,
)
from skanomaly_vit.datasets._idx import _read_idx


def write(root: Path, *names: str, content: bytes = b"pixels") -> Path:
    """Files of these names, which loaders that give paths do not open."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def below(root: Path, paths) -> list[str | None]:
    return [path and Path(path).relative_to(root).as_posix() for path in paths]


# --- class folders

TWO_PARTS = [
    f"{part}/{name}/{i}.jpg"
    for part in ("train", "test")
    for name in ("ship", "cat")
    for i in "abcd"
]


def test_classes_and_files_come_in_the_order_of_their_names(tmp_path):
    write(tmp_path, "b/2.png", "b/10.JPG", "a/z.tif", "b/1.webp")
    data = load_image_folder(tmp_path)
    assert below(tmp_path, data.images) == ["a/z.tif", "b/1.webp", "b/10.JPG", "b/2.png"]
    assert data.images.dtype == object
    assert all(type(path) is str for path in data.images)
    assert data.labels.tolist() == ["a", "b", "b", "b"]
    assert data.target_names.tolist() == ["a", "b"]
    assert "test_images" not in data


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    write(tmp_path, *TWO_PARTS)
    expected = load_image_folder(tmp_path)
    scandir = os.scandir

    class Reversed:
        def __init__(self, path):
            self.entries = list(scandir(path))[::-1]

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    orders = []
    for listing in (lambda path: Reversed(path), scandir):
        monkeypatch.setattr(os, "scandir", listing)
        orders.append(load_image_folder(tmp_path))
    for data in orders:
        assert data.images.tolist() == expected.images.tolist()
        assert data.labels.tolist() == expected.labels.tolist()


def test_parts_are_kept_apart(tmp_path):
    write(tmp_path, *TWO_PARTS, "val/other/1.png", "README.md")
    data = load_image_folder(tmp_path)
    assert data.target_names.tolist() == ["cat", "ship"]
    for prefix, part in (("", "train"), ("test_", "test")):
        images = below(tmp_path, data[f"{prefix}images"])
        assert images == [f"{part}/{name}/{i}.jpg" for name in ("cat", "ship") for i in "abcd"]
        assert data[f"{prefix}labels"].tolist() == ["cat"] * 4 + ["ship"] * 4


def test_what_is_no_image_is_left_out(tmp_path):
    write(tmp_path, "a/1.png", "a/.2.png", "a/.DS_Store", "a/Thumbs.db", "a/list.csv", "notes.txt")
    write(tmp_path, ".cache/1.png", "__MACOSX/a/._1.png", "a/.ipynb_checkpoints/1.png")
    assert below(tmp_path, load_image_folder(tmp_path).images) == ["a/1.png"]


def test_a_class_may_be_called_train(tmp_path):
    write(tmp_path, "train/1.png", "bus/1.png")
    assert load_image_folder(tmp_path).target_names.tolist() == ["bus", "train"]


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write(tmp_path, "data/a/1.png")
    assert below(tmp_path, load_image_folder("~/data").images) == ["data/a/1.png"]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["1.png", "2.png"], r"no class folders; found '1.png', '2.png' there"),
        (["a/1.png", "b/1.png", "2.png"], r"images beside its class folders \('2.png'\)"),
        (["a/1.png", "b/1.txt"], r"b' holds no images; found '1.txt' there"),
        (["a/1.png", "a/more/1.png"], r"a' holds folders among its images \('more'\)"),
        (["train/a/1.png", "val/a/1.png"], r"in 'train', but not both .*; found 'train/', 'val/'"),
        (["train/1.png", "test/1.png"], r"train' holds no class folders; found '1.png'"),
        (["train/a/1.png", "test/b/1.png"], r"the train part has no 'b', which the test part has"),
        (["train/a/1.png", "train/b/1.png", "test/a/1.png"], r"the test part has no 'b'"),
        ([f"{i}.png" for i in range(9)], r"'4.png' and 4 more there"),
        ([], r"found nothing there"),
    ],
)
def test_other_layouts_are_refused(tmp_path, names, found):
    with pytest.raises(ValueError, match=rf"(?s)^'{tmp_path}.*{found}.*Expected"):
        load_image_folder(write(tmp_path, *names))


LOADERS = [load_image_folder, load_cats_vs_dogs, load_dior, load_mvtec, load_idx, load_elpv]


@pytest.mark.parametrize("load", LOADERS)
def test_a_missing_folder_is_named_and_the_layout_described(tmp_path, load):
    write(tmp_path, "cifar/1.png")
    with pytest.raises(
        FileNotFoundError, match=r"cifar10'; found 'cifar/' there. Expected .*(/|ubyte)"
    ):
        load(tmp_path / "cifar10")
    with pytest.raises(NotADirectoryError, match=r"1.png' is a file, not a folder. Expected "):
        load(tmp_path / "cifar" / "1.png")


@pytest.mark.parametrize("load", LOADERS)
def test_an_empty_folder_is_an_error(tmp_path, load):
    with pytest.raises(
        (ValueError, FileNotFoundError), match=r"(found nothing|there is no).*Expected"
    ):
        load(tmp_path)


# --- drawing


def draw(root, **options) -> dict[str, list[str]]:
    data = load_image_folder(root, **options)
    images = below(root, [*data.images, *data.get("test_images", [])])
    drawn: dict[str, list[str]] = {}
    for image in images:
        drawn.setdefault(f"{Path(image).parent.as_posix()}/", []).append(image)
    return drawn


def test_as_many_of_each_class_and_part_are_drawn(tmp_path):
    write(tmp_path, *TWO_PARTS)
    drawn = draw(tmp_path, n_per_class=2, random_state=0)
    assert sorted(drawn) == ["test/cat/", "test/ship/", "train/cat/", "train/ship/"]
    assert all(len(images) == 2 and sorted(set(images)) == images for images in drawn.values())
    data = load_image_folder(tmp_path, n_per_class=2, random_state=0)
    assert data.labels.tolist() == ["cat", "cat", "ship", "ship"]


def test_a_draw_hangs_on_the_seed_alone(tmp_path):
    names = [f"a/{i}.png" for i in range(99)]
    write(tmp_path, *names)
    first = draw(tmp_path, n_per_class=9, random_state=0)
    assert draw(tmp_path, n_per_class=9, random_state=0) == first
    assert draw(tmp_path, n_per_class=9, random_state=1) != first
    rng = np.random.RandomState(0)
    draws = [draw(tmp_path, n_per_class=9, random_state=rng) for _ in range(2)]
    assert draws[0] == first
    assert draws[1] != first


def test_the_draw_of_a_class_does_not_depend_on_the_others(tmp_path):
    few, many = tmp_path / "few", tmp_path / "many"
    images = [f"b/{i}.png" for i in range(99)]
    write(few, *images)
    write(many, *images, *(f"{name}/{i}.png" for name in "ac" for i in range(99)))
    drawn = draw(many, n_per_class=9, random_state=0)
    assert drawn["b/"] == draw(few, n_per_class=9, random_state=0)["b/"]
    assert [image[2:] for image in drawn["a/"]] != [image[2:] for image in drawn["b/"]]


@pytest.mark.parametrize("n_per_class", [0, -1, 2.0, "3", True])
def test_a_number_that_is_none_is_refused(tmp_path, n_per_class):
    with pytest.raises(ValueError, match=f"n_per_class={n_per_class!r} is not None or an integer"):
        load_image_folder(write(tmp_path, "a/1.png"), n_per_class=n_per_class)


def test_more_than_there_are_cannot_be_drawn(tmp_path):
    write(tmp_path, "a/1.png", "a/2.png", "b/1.png")
    with pytest.raises(ValueError, match=r"b' holds 1 images, fewer than n_per_class=2$"):
        load_image_folder(tmp_path, n_per_class=2)


# --- cats and dogs


@pytest.mark.parametrize(
    ("names", "inner"),
    [
        (["train/cat.1.jpg", "train/dog.0.jpg", "train/cat.0.jpg", "test1/1.jpg"], "train"),
        (["cat.1.jpg", "dog.0.jpg", "cat.0.jpg"], ""),
        (["PetImages/Cat/1.jpg", "PetImages/Dog/0.jpg", "PetImages/Cat/0.jpg"], "PetImages"),
        (["Cat/1.jpg", "Dog/0.jpg", "Cat/0.jpg", "Dog/Thumbs.db"], ""),
    ],
)
def test_cats_and_dogs_of_both_layouts(tmp_path, names, inner):
    data = load_cats_vs_dogs(write(tmp_path, *names))
    images = below(tmp_path / inner, data.images)
    assert [image.replace("/", ".").lower() for image in images] == [
        "cat.0.jpg",
        "cat.1.jpg",
        "dog.0.jpg",
    ]
    assert data.labels.tolist() == ["cat", "cat", "dog"]
    assert data.target_names.tolist() == ["cat", "dog"]


def test_empty_files_of_cats_and_dogs_are_left_out(tmp_path):
    write(tmp_path, "PetImages/Cat/1.jpg", "PetImages/Dog/1.jpg")
    write(tmp_path, "PetImages/Cat/666.jpg", content=b"")
    assert len(load_cats_vs_dogs(tmp_path).images) == 2


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["train/cat.0.jpg"], "holds images 1 of 'cat'"),
        (["train/cat.0.jpg", "train/dog.0.jpg", "train/cow.0.jpg"], "1 of 'cow'"),
        (["Cat/1.jpg", "Dogs/1.jpg"], "1 of 'cat', 1 of 'dogs'; found 'Cat/', 'Dogs/' there"),
        (["test1/1.jpg"], "holds images 1 of 'test1'"),
    ],
)
def test_other_animals_are_refused(tmp_path, names, found):
    with pytest.raises(ValueError, match=rf"{found}.*Expected cats-vs-dogs as train/cat.0.jpg"):
        load_cats_vs_dogs(write(tmp_path, *names))


# --- DIOR


def annotation(*things: tuple) -> str:
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for label, box in things
    )
    return f"<annotation><filename>x.jpg</filename>{objects}</annotation>"


def annotate(root: Path, name: str, content: str | bytes) -> None:
    content = content.encode() if isinstance(content, str) else content
    write(root, f"Annotations/Horizontal Bounding Boxes/{name}.xml", content=content)


@pytest.fixture
def dior(tmp_path) -> Path:
    """Two training images and a test image with ships, dams and a small car."""
    images = {
        "JPEGImages-trainval/00001.jpg": [("ship", (0, 0, 20, 30)), ("dam", (5, 6, 45, 26))],
        "JPEGImages-trainval/00002.jpg": [("dam", (1, 2, 21, 22)), ("car", (1, 1, 20, 40))],
        "JPEGImages-test/00003.jpg": [("ship", (10, 10, 41, 50)), ("dam", (0, 0, 20, 20))],
    }
    rng = np.random.default_rng(0)
    for name, things in images.items():
        path = write(tmp_path, name) / name
        Image.fromarray(rng.integers(0, 256, (48, 40, 3), dtype=np.uint8)).save(path)
        annotate(tmp_path, path.stem, annotation(*things))
    return tmp_path


def test_objects_of_dior_are_boxes_in_images(dior):
    data = load_dior(dior, min_size=20, min_images=1)
    assert below(dior / "JPEGImages-trainval", data.images) == [
        "00001.jpg",
        "00002.jpg",
        "00001.jpg",
    ]
    assert data.boxes.tolist() == [[5, 6, 45, 26], [1, 2, 21, 22], [0, 0, 20, 30]]
    assert data.boxes.dtype.kind == "i"
    assert data.labels.tolist() == ["dam", "dam", "ship"]
    assert data.target_names.tolist() == ["dam", "ship"]
    assert below(dior / "JPEGImages-test", data.test_images) == ["00003.jpg", "00003.jpg"]
    assert data.test_boxes.tolist() == [[0, 0, 20, 20], [10, 10, 41, 50]]
    assert data.test_labels.tolist() == ["dam", "ship"]


def test_classes_of_dior_need_enough_large_objects(dior):
    data = load_dior(dior, min_size=20, min_images=2)
    assert data.target_names.tolist() == ["dam"]
    assert set(data.labels) == set(data.test_labels) == {"dam"}
    with pytest.raises(ValueError, match=r"at least min_images=3 objects of at least min_size=20 "):
        load_dior(dior, min_size=20, min_images=3)
    with pytest.raises(ValueError, match=r"min_size=21 pixels in its training part, of 0 objects"):
        load_dior(dior, min_size=21, min_images=1)
    with pytest.raises(ValueError, match=r"min_images=50 objects of at least min_size=120 "):
        load_dior(dior)


def test_classes_of_dior_have_to_be_in_both_parts(dior):
    with pytest.raises(ValueError, match=r"the test part has no 'car', which the train part has"):
        load_dior(dior, min_size=19, min_images=1)


@pytest.mark.parametrize("lists", [["trainval"], ["train", "val"]])
def test_lists_of_dior_are_followed(dior, lists):
    write(dior, *(f"ImageSets/Main/{name}.txt" for name in lists), content=b"00002\n")
    data = load_dior(dior, min_size=20, min_images=1)
    assert {Path(image).name for image in data.images} == {"00002.jpg"}
    assert {Path(image).name for image in data.test_images} == {"00003.jpg"}


def test_a_listed_image_of_dior_that_is_missing_is_an_error(dior):
    write(dior, "ImageSets/Main/test.txt", content=b"00003\n00004\n")
    with pytest.raises(
        FileNotFoundError, match=r"JPEGImages-test' lacks 1 of the 2 images .*: '00004'; found"
    ):
        load_dior(dior)


def test_an_image_of_dior_without_annotation_is_an_error(dior):
    write(dior, "JPEGImages-test/00009.jpg")
    with pytest.raises(
        FileNotFoundError, match=r"00009.xml'; found '00001.xml'.* an annotation of"
    ):
        load_dior(dior)


@pytest.mark.parametrize("folder", ["JPEGImages-trainval", "JPEGImages-test"])
def test_a_part_of_dior_that_is_missing_is_an_error(dior, folder):
    (dior / folder).rename(dior / "JPEGImages")
    with pytest.raises(FileNotFoundError, match=rf"no folder '{dior / folder}'; found .*DIOR's"):
        load_dior(dior)


BILLION_LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]><a>&c;</a>'


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("<annotation><object>", "no element found|mismatched"),
        ("", "no element found"),
        (BILLION_LAUGHS, r"declares a document type \(a\)"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', r"declares a document type \(a\)"),
        (BILLION_LAUGHS.encode("utf-16"), r"declares a document type \(a\)"),
        (annotation(("../up", (0, 0, 9, 9))), r"'../up' cannot name a folder"),
        (annotation((".hidden", (0, 0, 9, 9))), r"'.hidden' cannot name a folder"),
        (annotation(("", (0, 0, 9, 9))), r"'' cannot name a folder"),
        (annotation(("a", (9, 0, 9, 9))), r"\[9, 0, 9, 9\] is no rectangle"),
        (annotation(("a", (0, 5, 9, 4))), r"\[0, 5, 9, 4\] is no rectangle"),
        (annotation(("a", (-1, 0, 9, 9))), r"\[-1, 0, 9, 9\] is no rectangle"),
        (annotation(("a", ("left", 0, 9, 9))), "'left', '0', '9', '9'.* is not of numbers"),
        (annotation(("a", ("nan", 0, 9, 9))), "is not of numbers"),
        (annotation(("a", ("inf", 0, 9, 9))), "is not of numbers"),
        ("<a><object><name>ship</name></object></a>", "None, None.* is not of numbers"),
    ],
)
def test_annotations_of_dior_that_are_damaged_are_named(dior, content, found):
    annotate(dior, "00002", content)
    with pytest.raises(ValueError, match=rf"(?s)00002.xml' cannot be used: .*{found}.* Expected"):
        load_dior(dior, min_size=1, min_images=1)


def test_objects_of_dior_become_images(dior, tmp_path):
    data = load_dior(dior, min_size=20, min_images=1)
    folder = crop_objects(data, tmp_path / "objects")
    assert folder == str(tmp_path / "objects")
    cropped = load_image_folder(folder)
    assert below(folder, cropped.images) == [
        "train/dam/00001_5_6_45_26.png",
        "train/dam/00002_1_2_21_22.png",
        "train/ship/00001_0_0_20_30.png",
    ]
    assert cropped.labels.tolist() == data.labels.tolist()
    assert cropped.test_labels.tolist() == data.test_labels.tolist()
    original = decode_image(data.images[1])
    np.testing.assert_array_equal(decode_image(cropped.images[1]), original[2:22, 1:21])
    # Of 40 x 48 pixels: the boxes end beyond them.
    assert decode_image(cropped.images[0]).shape == (20, 35, 3)
    assert decode_image(cropped.test_images[1]).shape == (38, 30, 3)


def test_cropping_goes_on_where_it_stopped(dior, tmp_path, monkeypatch):
    data = load_dior(dior, min_size=20, min_images=1)
    save = Image.Image.save
    saved = []

    def fail_at_third(image, path, **options):
        saved.append(path)
        save(image, path, **options)
        if len(saved) == 3:
            raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail_at_third)
    with pytest.raises(OSError, match="disk full"):
        crop_objects(data, tmp_path / "objects")
    written = sorted((tmp_path / "objects").rglob("*.*"))
    assert len(written) == 2  # nothing unfinished
    times = [path.stat().st_mtime_ns for path in written]
    crop_objects(data, tmp_path / "objects")
    assert len(saved) == 6
    assert [path.stat().st_mtime_ns for path in written] == times
    assert len(load_image_folder(tmp_path / "objects").images) == 3


def test_objects_of_another_selection_are_not_mixed_in(dior, tmp_path):
    crop_objects(load_dior(dior, min_size=20, min_images=1), tmp_path / "objects")
    other = load_dior(dior, min_size=20, min_images=2)
    with pytest.raises(ValueError, match=r"holds 1 files that are not of .*00001_0_0_20_30.png'"):
        crop_objects(other, tmp_path / "objects")


def test_a_box_outside_its_image_is_named(dior, tmp_path):
    annotate(dior, "00001", annotation(("dam", (40, 0, 70, 30))))
    data = load_dior(dior, min_size=20, min_images=1)
    with pytest.raises(ValueError, match=r"\[40, 0, 70, 30\] is outside .*00001.jpg' of 40 x 48 p"):
        crop_objects(data, tmp_path / "objects")


def test_an_image_of_dior_that_cannot_be_read_is_named(dior, tmp_path):
    data = load_dior(dior, min_size=20, min_images=1)
    write(dior, "JPEGImages-trainval/00002.jpg")
    with pytest.raises(ValueError, match=r"00002.jpg' cannot be read: cannot identify"):
        crop_objects(data, tmp_path / "objects")


# --- MVTec

BOTTLE = [
    "train/good/1.png",
    "train/good/0.png",
    "test/good/0.png",
    "test/crack/0.png",
    "test/scratch/0.png",
    "ground_truth/crack/0_mask.png",
    "ground_truth/scratch/0_mask.png",
]


@pytest.mark.parametrize("by_category", [False, True])
def test_a_category_of_mvtec(tmp_path, by_category):
    root = write(tmp_path / "bottle", *BOTTLE, "license.txt")
    data = load_mvtec(tmp_path, "bottle") if by_category else load_mvtec(root)
    assert below(root, data.images) == ["train/good/0.png", "train/good/1.png"]
    assert below(root, data.test_images) == [
        "test/crack/0.png",
        "test/good/0.png",
        "test/scratch/0.png",
    ]
    assert data.test_labels.tolist() == ["crack", "good", "scratch"]
    assert data.test_y.tolist() == [-1, 1, -1]
    assert data.test_y.dtype.kind == "i"
    assert below(root, data.test_masks) == [
        "ground_truth/crack/0_mask.png",
        None,
        "ground_truth/scratch/0_mask.png",
    ]
    assert data.target_names.tolist() == ["crack", "good", "scratch"]


def test_mvtec_without_ground_truth_has_no_masks(tmp_path):
    data = load_mvtec(write(tmp_path, *BOTTLE[:5]))
    assert data.test_masks.tolist() == [None] * 3
    assert data.test_masks.dtype == object


def test_a_mask_that_is_missing_is_named(tmp_path):
    write(tmp_path, *BOTTLE, "test/crack/7.png")
    with pytest.raises(
        FileNotFoundError, match=r"7_mask.png'; found '0_mask.png' there. Expected .*crack/7.png'"
    ):
        load_mvtec(tmp_path)


def test_categories_of_mvtec_are_offered(tmp_path):
    write(tmp_path / "bottle", *BOTTLE)
    write(tmp_path / "pill", *BOTTLE)
    for category in (None, "pil"):
        with pytest.raises(ValueError, match=r"no folder 'train'.*category= one of 'bottle', 'pil"):
            load_mvtec(tmp_path, category)


def test_other_layouts_than_mvtec_are_refused(tmp_path):
    write(tmp_path, *BOTTLE, "train/crack/1.png")
    with pytest.raises(
        ValueError, match=r"train' holds the folders 'crack', 'good'. Expected a ca"
    ):
        load_mvtec(tmp_path)


def test_mvtec_needs_a_test_part(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"test'; found 'train/' there. Expected a categ"):
        load_mvtec(write(tmp_path, "train/good/1.png"))


# --- IDX


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(root: Path, *, suffix: str = "", **replaced: bytes | np.ndarray) -> Path:
    """Six images of 2 x 3 pixels to train, three to test."""
    pixels = np.arange(54, dtype=np.uint8).reshape(9, 2, 3)
    arrays = {
        "train_images": pixels[:6],
        "train_labels": np.array([0, 1, 2] * 2),
        "t10k_images": pixels[6:],
        "t10k_labels": np.array([2, 1, 0]),
    } | replaced
    for name, array in arrays.items():
        part, kind = name.split("_")
        content = idx(array) if isinstance(array, np.ndarray) else array
        path = f"{part}-{kind}-idx{3 if kind == 'images' else 1}-ubyte{suffix}"
        write(root, path, content=gzip.compress(content) if suffix else content)
    return root


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files(tmp_path, suffix):
    data = load_idx(write_idx(tmp_path, suffix=suffix))
    np.testing.assert_array_equal(data.images, np.arange(36).reshape(6, 2, 3))
    np.testing.assert_array_equal(data.test_images, np.arange(36, 54).reshape(3, 2, 3))
    assert data.images.dtype == np.uint8
    assert not data.images.flags.writeable
    assert isinstance(data.images, np.memmap) == (suffix == "")
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.test_labels.tolist() == [2, 1, 0]
    assert data.labels.dtype == int
    assert data.target_names.tolist() == [0, 1, 2]


def test_labels_of_idx_files_can_have_names(tmp_path):
    data = load_idx(write_idx(tmp_path), target_names=["a", "bc", "d"])
    assert data.labels.tolist() == ["a", "bc", "d"] * 2
    assert data.test_labels.tolist() == ["d", "bc", "a"]
    assert data.target_names.tolist() == ["a", "bc", "d"]
    with pytest.raises(ValueError, match=r"labels up to 2, target_names names 2\. Expected"):
        load_idx(tmp_path, target_names=["a", "b"])


def test_fashion_mnist_has_names(tmp_path):
    assert len(FASHION_MNIST_CLASSES) == 10
    data = load_fashion_mnist(write_idx(tmp_path, suffix=".gz"))
    assert data.labels[:3].tolist() == ["T-shirt/top", "Trouser", "Pullover"]
    assert data.target_names.tolist() == list(FASHION_MNIST_CLASSES)


@settings(max_examples=50, deadline=None)
@given(
    array=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)),
    zipped=st.booleans(),
)
def test_idx_files_give_back_what_was_written(tmp_path_factory, array, zipped):
    path = tmp_path_factory.mktemp("idx") / ("x.gz" if zipped else "x")
    path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    np.testing.assert_array_equal(_read_idx(path, n_dims=array.ndim), array, strict=True)


IMAGES = np.zeros((6, 2, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\x00\x00\x0d" + idx(IMAGES)[3:], "starts with the bytes '00 00 0d 03'. Expected '00 00"),
        (idx(IMAGES[0]), "'00 00 08 02'. Expected '00 00 08 03'.*3 dimension"),
        (b"GIF89a", "'47 49 46 38'. Expected"),
        (b"", "bytes ''. Expected"),
        (idx(IMAGES)[:9], "ends in its header. Expected 16 bytes"),
        (idx(IMAGES)[:-1], r"holds 35 bytes after its header. Expected 36, .*\(6, 2, 3\)"),
        (idx(IMAGES) + b"\x00", "holds 37 bytes after its header. Expected 36"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3), "holds 0 bytes.* Expected 7922"),
        (idx(IMAGES[:0]), r"is of shape \(0, 2, 3\). Expected at least one"),
    ],
)
def test_idx_files_that_are_damaged_are_named(tmp_path, suffix, content, found):
    write_idx(tmp_path, suffix=suffix, train_images=content)
    with pytest.raises(ValueError, match=f"train-images-idx3-ubyte{suffix}' .*{found}"):
        load_idx(tmp_path)


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"no" + b, lambda b: b[:15]])
def test_idx_files_that_cannot_be_decompressed_are_named(tmp_path, damage):
    write_idx(tmp_path, suffix=".gz")
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte.gz' cannot be decompressed"):
        load_idx(tmp_path)


@pytest.mark.parametrize(
    ("replaced", "found"),
    [
        ({"train_labels": np.zeros(5)}, "holds 6 images, .*train-labels.* holds 5 labels"),
        ({"t10k_labels": np.array([2, 1, 1])}, "the test part has no 0, which"),
        ({"t10k_images": np.zeros((3, 3, 2))}, r"\(2, 3\) pixels to train and of \(3, 2\) to test"),
    ],
)
def test_idx_files_have_to_fit_together(tmp_path, replaced, found):
    with pytest.raises(ValueError, match=f"{found}.*Expected"):
        load_idx(write_idx(tmp_path, **replaced))


def test_an_idx_file_that_is_missing_is_named(tmp_path):
    (write_idx(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte.gz'; found 't10k-images"):
        load_idx(tmp_path)


# --- solar cells


def test_solar_cells_are_those_of_the_package():
    from elpv_dataset.utils import load_dataset

    pixels, probability, module_type = load_dataset()
    cells = load_elpv()
    np.testing.assert_array_equal(cells.defect_probability, probability)
    np.testing.assert_array_equal(cells.module_type, module_type)
    np.testing.assert_array_equal(cells.y == 1, probability == 0)
    assert set(cells.y) == {1, -1}
    for i in (0, 1000, 2623):
        np.testing.assert_array_equal(decode_image(cells.images[i])[..., 0], pixels[i])


def write_cells(root: Path, table: str) -> Path:
    write(root, "images/1.png", "images/2.png")
    return write(root, "labels.csv", content=table.encode())


def test_solar_cells_of_a_folder(tmp_path):
    cells = load_elpv(write_cells(tmp_path, "images/2.png 0.3333 poly\n\nimages/1.png  0 mono\n"))
    assert below(tmp_path, cells.images) == ["images/2.png", "images/1.png"]
    assert cells.defect_probability.tolist() == [1 / 3, 0]
    assert cells.module_type.tolist() == ["poly", "mono"]
    assert cells.y.tolist() == [-1, 1]


@pytest.mark.parametrize(
    "line",
    [
        "images/2.png 0.5 mono",
        "images/2.png 1.3333 mono",
        "images/2.png -0.3333 mono",
        "images/2.png nan mono",
        "images/2.png inf mono",
        "images/2.png high mono",
        "images/2.png 1.0 thin",
        "images/2.png 1.0",
        "images/2.png,1.0,mono",
    ],
)
def test_a_line_that_describes_no_cell_is_named(tmp_path, line):
    write_cells(tmp_path, f"images/1.png 0.0 mono\n{line}\n")
    with pytest.raises(
        ValueError, match=rf"labels.csv', line 2, reads '{line}'. Expected the data"
    ):
        load_elpv(tmp_path)


def test_a_list_of_no_cells_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"labels.csv' is empty. Expected the data folder"):
        load_elpv(write_cells(tmp_path, "\n"))


def test_a_cell_that_is_missing_is_named(tmp_path):
    write_cells(tmp_path, "images/3.png 0.0 mono\n")
    with pytest.raises(FileNotFoundError, match=r"3.png'; found '1.png', '2.png' there"):
        load_elpv(tmp_path)


def test_without_the_package_of_cells_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("skanomaly_vit.datasets._elpv.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install elpv-dataset") as error:
        load_elpv()
    assert error.value.name == "elpv_dataset"


# --- the room


def test_the_room_imports_neither_torch_nor_the_cells():
    code = (
        "import sys; from skanomaly_vit.datasets import load_elpv; load_elpv()\n"
        "print([m for m in ('torch', 'elpv_dataset') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"


def test_paths_go_straight_into_a_detector(make_detector, images, tmp_path):
    for i, image in enumerate(images):
        path = write(tmp_path, f"good/{i:02}.png") / f"good/{i:02}.png"
        Image.fromarray(image).save(path)
    detector = make_detector().fit(load_image_folder(tmp_path).images)
    np.testing.assert_array_equal(
        detector.score_samples(load_image_folder(tmp_path).images), detector.score_samples(images)
    )


def test_broken_links_are_listed_for_whoever_opens_them(tmp_path):
    write(tmp_path, "data/a/1.png")
    (tmp_path / "data/a/2.png").symlink_to(tmp_path / "gone.png")
    assert below(tmp_path, load_image_folder(tmp_path / "data").images) == [
        "data/a/1.png",
        "data/a/2.png",
    ]
