"""Masks of defects: which pixels count, whatever a tool has drawn them with."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image

from skanomaly_vit.datasets import read_mask
from skanomaly_vit.evaluation import per_region_overlap, pixel_auroc
from skanomaly_vit.exceptions import AmbiguousImageWarning

DEFECT = np.zeros((32, 40), bool)
DEFECT[8:24, 16:32] = True

VALUES = DEFECT.astype(np.uint8)


def on_transparent(colour, alpha=255):
    rgba = np.zeros((*DEFECT.shape, 4), np.uint8)
    rgba[DEFECT] = (*colour, alpha)
    return Image.fromarray(rgba)


def palette(indices, colours):
    image = Image.fromarray(np.asarray(indices, np.uint8)).convert("P")
    image.putdata(np.asarray(indices, np.uint8).ravel().tolist())
    image.putpalette([value for colour in colours for value in colour])
    return image


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def two_labels():
    labels = VALUES.copy()
    labels[8:12, 16:20] = 2
    return labels


RIGHT = {
    "bool": DEFECT,
    "0 and 1": VALUES,
    "0 and 1 of int64": VALUES.astype(np.int64),
    "0 and 255": VALUES * 255,
    "0 and 1.0": VALUES.astype(np.float32),
    "0 and 100": VALUES * 100,
    "0 and 65535": VALUES.astype(np.uint16) * 65535,
    "channels": np.repeat(VALUES[..., None], 3, axis=2) * 255,
    "one channel": VALUES[..., None],
    "a tensor": torch.from_numpy(VALUES),
    "labels": two_labels(),
    "labels of 16 bits": two_labels().astype(np.uint16) * 300,
    "PNG of 0 and 1": saved(Image.fromarray(VALUES)),
    "PNG of 1 bit": saved(Image.fromarray(DEFECT)),
    "PNG of 16 bits, 0 and 1": saved(Image.fromarray(VALUES.astype(np.uint16))),
    "PNG of 16 bits": saved(Image.fromarray(VALUES.astype(np.uint16) * 65535)),
    "TIFF of 32 bits": saved(Image.fromarray(VALUES.astype(np.int32)), "TIFF"),
    "mode I": Image.fromarray(VALUES.astype(np.int32)),
    "red on transparent": saved(on_transparent((255, 0, 0))),
    "black on transparent": saved(on_transparent((0, 0, 0))),
    "white on transparent": on_transparent((255, 255, 255)),
    "grey on transparent": on_transparent((200, 200, 200)).convert("LA"),
    "white and black, both opaque, on transparent": "filled below",
    "red on black": saved(Image.fromarray(VALUES[..., None] * np.array([255, 0, 0], np.uint8))),
    "dark red on black": Image.fromarray(VALUES[..., None] * np.array([100, 0, 0], np.uint8)),
    "palette of colours": saved(palette(two_labels(), [(0, 0, 0), (128, 0, 0), (0, 128, 0)])),
    "palette, black and white": saved(palette(VALUES, [(0, 0, 0), (255, 255, 255)])),
    "palette, white first": saved(palette(1 - VALUES, [(255, 255, 255), (0, 0, 0)])),
    "palette, first is transparent": saved(
        palette(VALUES, [(255, 255, 255), (255, 0, 0)]), transparency=0
    ),
    "lossless WebP": saved(Image.fromarray(VALUES * 255), "WEBP", lossless=True),
}  # fmt: skip

_both = np.zeros((*DEFECT.shape, 4), np.uint8)
_both[:28] = 0, 0, 0, 255
_both[DEFECT] = 255
RIGHT["white and black, both opaque, on transparent"] = Image.fromarray(_both)


@pytest.mark.parametrize("name", RIGHT)
def test_defects_are_what_was_drawn(name):
    assert_array_equal(read_mask(RIGHT[name]), DEFECT)


def test_a_mask_without_a_defect():
    for empty in (np.zeros((4, 4), np.uint8), Image.new("RGBA", (4, 4)), Image.new("P", (4, 4))):
        assert not read_mask(empty).any()


@pytest.mark.parametrize("quality", [75, 30])
def test_noise_of_jpeg_is_no_defect_and_told(quality, tmp_path):
    path = tmp_path / "mask.jpg"
    shifted = np.roll(DEFECT, 3, axis=1)  # not aligned with the blocks of JPEG: noise
    Image.fromarray(shifted.astype(np.uint8) * 255).save(path, quality=quality)
    with pytest.warns(AmbiguousImageWarning, match=r"mask\.jpg.*half of white.*normal") as caught:
        found = read_mask(path)
    assert_array_equal(found, shifted)
    assert caught[0].filename == __file__
    assert_array_equal(read_mask(path, defect="bright"), shifted)
    assert read_mask(path, defect="nonzero").sum() > shifted.sum()
    # An array does not say that it was a JPEG: of few values, they may be labels.
    with Image.open(path) as image, pytest.raises((AmbiguousImageWarning, ValueError)):
        read_mask(np.asarray(image))


DOUBTFUL = {
    "shades": (VALUES * 255 - two_labels() // 2 * 200, r"values 55, 255 beside 0.*defect="),
    "no 0": (VALUES + 1, r"values 1, 2 and no 0.*defect="),
    "below 0": (VALUES.astype(int) - 1, "below 0"),
    "NaN": (np.where(DEFECT, np.nan, 0), "NaN"),
    "masked": (np.ma.masked_array(VALUES, DEFECT), "masked array"),
    "white ground": (Image.fromarray(np.where(DEFECT[..., None], [255, 0, 0], 255).astype("u1")),
                     "no pixel is black"),
    "palette with a white ground": (palette(VALUES, [(255, 255, 255), (255, 0, 0)]), "palette"),
    "soft floats": (np.where(DEFECT, 0.9, 0.0) + np.eye(32, 40) * 0.1, "labels or shades"),
    "pages": (saved(Image.fromarray(VALUES), "TIFF", save_all=True,
                    append_images=[Image.fromarray(VALUES)]), "several pages"),
    "text": (np.array([["a"]]), "dtype"),
    "layout": (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\)"),
    "no image": (b"abc", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", DOUBTFUL)
def test_doubtful_masks_are_refused(name):
    mask, message = DOUBTFUL[name]
    with pytest.raises(ValueError, match=message):
        read_mask(mask)


def test_what_counts_as_a_defect_can_be_told():
    labels = two_labels()
    assert_array_equal(read_mask(labels, defect=2), labels == 2)
    assert_array_equal(read_mask(labels + 1, defect=[2, 3]), DEFECT)
    ground = palette(VALUES, [(255, 255, 255), (255, 0, 0)])
    assert_array_equal(read_mask(ground, defect=1), DEFECT)
    assert_array_equal(read_mask(saved(ground), defect="nonzero"), DEFECT)
    for wrong in ("defect", [1.5], ["a"], [], 1.5, True):
        with pytest.raises(ValueError, match="defect="):
            read_mask(labels, defect=wrong)


def test_metrics_read_masks_alike():
    rng = np.random.default_rng(0)
    maps = [DEFECT + rng.normal(0, 0.1, DEFECT.shape), rng.normal(0, 0.1, DEFECT.shape)]
    for metric in (pixel_auroc, per_region_overlap):
        exact = metric([DEFECT, None], maps)
        assert exact > 0.9
        assert metric([saved(on_transparent((255, 0, 0))), None], maps) == exact
        assert metric([two_labels() + 1, None], maps, defect=[2, 3]) == exact
        with pytest.raises(ValueError, match=r"mask 0: .*no 0"):
            metric([two_labels() + 1, None], maps)
        with pytest.raises(ValueError, match="map 0 is a masked"):
            metric([DEFECT, None], [np.ma.masked_array(maps[0], DEFECT), maps[1]])
