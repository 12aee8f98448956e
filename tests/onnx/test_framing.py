"""Detectors that frame images, in ONNX files: regions, padding and tiles score as in torch."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from backbones import family
from images import blobs
from onnx_files import rewritten
from PIL import Image
from scipy.stats import spearmanr

from skanomaly_vit import MaskedImages, TransformalyDetector
from skanomaly_vit._images.regions import Framing
from skanomaly_vit.calibration import conformal_p_values, conformal_threshold
from skanomaly_vit.exceptions import ModelFileError, UnreadableImageWarning
from skanomaly_vit.onnx import OnnxDetector, export_onnx
from skanomaly_vit.onnx import _export as writing
from skanomaly_vit.onnx import _graph as graphs
from skanomaly_vit.onnx import _recalibrating as recalibrating
from skanomaly_vit.onnx._file import KEY

N_NORMAL = 8


def scenes(n, seed):
    """Pictures of 48 x 64 pixels, of twelve parts of blobs."""
    parts = blobs(np.random.default_rng(seed), 4 * n).reshape(n, 2, 2, 32, 32, 3)
    return parts.transpose(0, 1, 3, 2, 4, 5).reshape(n, 64, 64, 3)[:, :48].copy()


IMAGES, MORE = scenes(24, 0), scenes(30, 3)
NEW = np.concatenate([scenes(N_NORMAL, 1), scenes(4, 2)])
NEW[N_NORMAL:, 12:30, 20:34] = 255
NEW[N_NORMAL + 1, 14:20] //= 2

#: It cuts patches, and some tiles lie outside of it.
ROI = np.zeros((48, 64), bool)
ROI[6:33, 10:43] = True

FRAMINGS = {
    "roi": {"roi": ROI},
    "padding": {"keep_aspect": True},
    "padding and roi": {"roi": ROI, "keep_aspect": True, "views": ("mean_patch", "max_patch:-2")},
    "tiles": {"tiles": (2, 3)},
    "tiles and roi": {"tiles": 20, "roi": ROI, "pooling": 0.3, "feature_spaces": "discrepancy"},
    "tiles and padding": {"tiles": "auto", "keep_aspect": True, "pooling": "mean"},
}
WITH_REGIONS = [name for name, parameters in FRAMINGS.items() if set(parameters) - {"tiles"}]


def fit(**parameters):
    quick = {"n_blocks": 2, "random_state": 0, "contamination": 0.2}
    quick["backbone"] = family("class token", patch_size=8)
    return TransformalyDetector(**quick | parameters).fit(IMAGES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("framing")


@pytest.fixture(scope="module")
def detectors():
    return {name: fit(**parameters) for name, parameters in FRAMINGS.items()}


@pytest.fixture(scope="module")
def files(detectors, folder):
    return {
        name: export_onnx(detector, folder / f"{name}.onnx") for name, detector in detectors.items()
    }


@pytest.fixture(scope="module")
def plain():
    return fit()


def assert_alike_scores(found, expected):
    """Within 1e-4 of the spread of normal images, and in the same order; far off, of the score."""
    assert found.dtype == expected.dtype
    tolerance = 1e-4 * expected[:N_NORMAL].std()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=tolerance)
    assert spearmanr(found, expected).statistic == 1


def assert_alike(found, detector, X=NEW):
    scores, maps = detector.score_samples(X, return_map=True)
    new_scores, new_maps = found.score_samples(X, return_map=True)
    assert_alike_scores(new_scores, scores)
    assert (new_maps.dtype, new_maps.shape) == (maps.dtype, maps.shape)
    np.testing.assert_allclose(new_maps, maps, rtol=1e-4, atol=2e-4)


# What is the same


@pytest.mark.parametrize("name", FRAMINGS)
def test_scores_and_maps_are_those_of_torch(name, detectors, files):
    detector, found = detectors[name], OnnxDetector.load(files[name], batch_size=5)
    assert_alike(found, detector)
    np.testing.assert_allclose(found.p_values(NEW), detector.p_values(NEW))
    np.testing.assert_array_equal(found.predict(NEW), detector.predict(NEW))
    assert set(found.predict(NEW)) == {1, -1}
    scores = found.score_samples(NEW)
    np.testing.assert_allclose(found.decision_function(NEW), scores - found.offset_)
    streamed = list(found.iter_scores(iter(NEW), chunk_size=7))
    np.testing.assert_allclose([image.score for image in streamed], scores)
    np.testing.assert_allclose([image.p_value for image in streamed], found.p_values(NEW))


@pytest.mark.parametrize("name", FRAMINGS)
def test_images_of_other_sizes(name, detectors, files):
    large = [np.kron(image, np.ones((2, 2, 1), np.uint8)) for image in NEW[:2]]
    X = [*large, *NEW[2:4]]
    scores, maps = detectors[name].score_samples(X, return_map=True)
    new_scores, new_maps = OnnxDetector.load(files[name], n_jobs=2).score_samples(
        X, return_map=True
    )
    np.testing.assert_allclose(new_scores, scores, rtol=1e-4, atol=1e-4)
    for found, expected in zip(new_maps, maps, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("name", FRAMINGS)
def test_a_file_verifies_itself(name, files):
    found = OnnxDetector.load(files[name])
    verified = found.verify()
    assert verified["same"]
    assert verified["first"] is None


def test_another_region_differs_in_resizing(files):
    found = OnnxDetector.load(files["roi"])
    found._framing = Framing(~ROI)
    assert found.verify()["first"] == "resizing"


def test_pixels_outside_change_no_score_and_no_map(files):
    changed = NEW.copy()
    changed[:, ~ROI] = np.random.default_rng(4).integers(0, 256, changed[:, ~ROI].shape)
    for name in ("roi", "padding and roi", "tiles and roi"):
        found = OnnxDetector.load(files[name])
        scores, maps = found.score_samples(NEW, return_map=True)
        again, new_maps = found.score_samples(changed, return_map=True)
        np.testing.assert_array_equal(again, scores)
        np.testing.assert_array_equal(new_maps, maps)
        assert not maps[:, ~ROI].any()


class PatchOnly(torch.nn.Module):
    """A network whose patches do not see each other: 4 x 4 patches of 8 pixels."""

    def __init__(self):
        super().__init__()
        self.patch_embed = torch.nn.Conv2d(3, 12, 8, 8)
        self.patch_embed.patch_size = 8
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(12, 12), torch.nn.GELU()) for _ in range(3)
        )

    def forward(self, images):
        tokens = self.patch_embed(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.mean(1)


def test_patches_outside_take_no_part_in_the_graph(tmp_path):
    torch.manual_seed(0)
    views = ("mean_patch", "max_patch:-2")
    detector = fit(
        backbone=PatchOnly(), image_size=32, roi=ROI, student="block", views=views, pooling="mean"
    )
    found = OnnxDetector.load(export_onnx(detector, tmp_path / "a.onnx", map_method="both"))
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(2, 4, 32, 32)).astype(np.float32)
    pixels[:, 3] = 0
    pixels[:, 3, 7:17, 8:25] = 1  # patches of rows 0 to 2 and columns 1 to 3
    pixels[1, :3, 0:24, 8:32] = pixels[0, :3, 0:24, 8:32]
    names = list(found.card["outputs"])
    score, decision, p_value, maps = found._session.run(names, {"pixels": pixels})
    assert (pixels[0, :3] != pixels[1, :3]).any()
    for values in (score, decision, p_value, maps):
        np.testing.assert_allclose(values[0], values[1], rtol=1e-5)
    # Outside, a map goes on with the nearest patch inside.
    np.testing.assert_array_equal(maps[:, 3], maps[:, 2])
    np.testing.assert_array_equal(maps[:, :, 0], maps[:, :, 1])
    pixels[1, 0, 10, 10] += 5
    assert found._run_graph(pixels)[1] != score[1]


# Regions of images


def test_masked_images_need_a_graph_that_takes_regions(plain, tmp_path):
    masked = MaskedImages(NEW, [ROI, None, ~ROI] * 4)
    found = OnnxDetector.load(export_onnx(plain, tmp_path / "plain.onnx"))
    with pytest.raises(ValueError, match=r"X is MaskedImages.*takes_regions=True"):
        found.score_samples(masked)
    target = export_onnx(plain, tmp_path / "regions.onnx", takes_regions=True)
    found = OnnxDetector.load(target)
    for X in (masked, NEW):
        assert_alike(found, plain, X)
    assert found.verify()["first"] is None


def test_own_and_common_regions_both_count(detectors, files):
    half = np.zeros((48, 64), bool)
    half[:, :30] = True
    masked = MaskedImages(NEW, [half, None] * 6)
    for name in ("roi", "padding", "tiles and roi"):
        assert_alike(OnnxDetector.load(files[name]), detectors[name], masked)
    masked = MaskedImages(NEW[:2], [None, ~ROI])
    with pytest.raises(ValueError, match="sample 1: its region of interest leaves no pixel"):
        OnnxDetector.load(files["roi"]).score_samples(masked)


def test_a_region_of_another_ratio_of_sides_is_refused(files):
    with pytest.raises(ValueError, match=r"sample 0: 64 x 40 .* region of interest, 64 x 48"):
        OnnxDetector.load(files["roi"]).score_samples(NEW[:, :40])


def test_a_backbone_that_does_not_tell_its_patches_takes_no_regions(tmp_path):
    model = family("class token")
    del model.patch_embed.patch_size
    with pytest.raises(ValueError, match=r"patch_embed\.patch_size.*no region can count"):
        export_onnx(fit(backbone=model), tmp_path / "a.onnx", takes_regions=True)
    assert not list(tmp_path.iterdir())


# Unreadable images


@pytest.mark.parametrize("name", FRAMINGS)
def test_an_unreadable_image_has_no_score_and_no_map(name, files, tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(5)]
    for path, image in zip(paths, NEW, strict=False):
        Image.fromarray(image).save(path)
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "4.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"sample [14]"):
        OnnxDetector.load(files[name]).score_samples(paths)
    found = OnnxDetector.load(files[name], on_error="nan", batch_size=4)
    with pytest.warns(UnreadableImageWarning, match="2 of 5"):
        scores, maps = found.score_samples(paths, return_map=True)
    assert np.isnan(scores).tolist() == [False, True, False, False, True]
    np.testing.assert_allclose(scores[[0, 2, 3]], found.score_samples(NEW[[0, 2, 3]]), rtol=1e-5)
    assert [plane.size > 0 for plane in maps] == [True, False, True, True, False]
    streamed = list(found.iter_scores(paths))
    np.testing.assert_allclose([image.score for image in streamed], scores)
    assert [image.cause is not None for image in streamed] == np.isnan(scores).tolist()
    with pytest.warns(UnreadableImageWarning):
        p_values = found.p_values(paths)
    np.testing.assert_allclose([image.p_value for image in streamed], p_values)


# int8


@pytest.mark.parametrize("name", ["padding and roi", "tiles and roi"])
def test_a_file_in_int8_is_calibrated_by_framed_images(name, detectors, tmp_path, monkeypatch):
    monkeypatch.setattr(recalibrating, "_MOST_NOISE", 2.0)  # a tiny network of random weights
    target = tmp_path / "a.onnx"
    export_onnx(detectors[name], target, quantize="int8", calibration_images=MORE)
    found = OnnxDetector.load(target)
    known = found.score_samples(MORE)
    assert not np.allclose(known, detectors[name].score_samples(MORE), atol=1e-3)
    assert found.offset_ == pytest.approx(conformal_threshold(known, 0.2))
    scores = found.score_samples(NEW)
    np.testing.assert_allclose(found.p_values(NEW), conformal_p_values(known, scores))
    assert np.corrcoef(scores, detectors[name].score_samples(NEW))[0, 1] > 0.9
    assert found.verify()["difference"] < 1e-6


# What is in a file


def card_of(path):
    (entry,) = (e for e in onnx.load(path).metadata_props if e.key == KEY)
    return json.loads(entry.value)


def test_only_files_that_older_versions_would_score_wrongly_have_a_new_format(
    plain, files, tmp_path
):
    card = card_of(export_onnx(plain, tmp_path / "plain.onnx"))
    assert (card["format_version"], card["framing"], card["takes_regions"]) == (1, None, False)
    for name, path in files.items():
        card = card_of(path)
        assert card["format_version"] == 2
        assert card["takes_regions"] == (name in WITH_REGIONS)
        assert card["framing"]["keep_aspect"] == ("padding" in name)
    assert card_of(files["tiles"])["framing"] == {
        "keep_aspect": False, "tiles": [2, 3], "roi_shape": None, "roi": None
    }  # fmt: skip


def test_a_file_of_an_older_version_frames_nothing(plain, tmp_path):
    path = export_onnx(plain, tmp_path / "new.onnx")

    def as_before(proto, values):
        del values["framing"], values["takes_regions"]

    target = tmp_path / "old.onnx"
    target.write_bytes(rewritten(path, as_before))
    expected = OnnxDetector.load(path).score_samples(NEW)
    np.testing.assert_array_equal(OnnxDetector.load(target).score_samples(NEW), expected)


DAMAGES = {
    "no shape": {"roi_shape": [48]},
    "a huge shape": {"roi_shape": [2**20, 2**20]},
    "a negative shape": {"roi_shape": [-48, -64]},
    "a shape of text": {"roi_shape": "48"},
    "another shape": {"roi_shape": [48, 72]},
    "fewer bits": {"roi": "AAAA"},
    "no bits": {"roi": None},
    "no base64": {"roi": "?" * 512},
    "nothing counts": {"roi": "A" * 512},
    "tiles of text": {"tiles": "many"},
    "tiles of nothing": {"tiles": [0, 2]},
    "tiles of a fraction": {"tiles": [1.5, 2]},
    "padding of a number": {"keep_aspect": 1},
    "nothing at all": {"roi_shape": None, "tiles": None},
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_framing_is_refused(name, files, tmp_path):
    target = tmp_path / "bad.onnx"
    change = DAMAGES[name]
    target.write_bytes(rewritten(files["roi"], lambda _, v: v["framing"].update(change)))
    with pytest.raises(ModelFileError, match="its framing of images is damaged"):
        OnnxDetector.load(target)


def test_a_framing_that_lacks_a_part_is_refused(files, tmp_path):
    target = tmp_path / "bad.onnx"
    target.write_bytes(rewritten(files["roi"], lambda _, v: v["framing"].pop("tiles")))
    with pytest.raises(ModelFileError, match="its framing of images is damaged"):
        OnnxDetector.load(target)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("roi", {"takes_regions": False}, "its graph takes no regions, and its framing has some"),
        ("roi", {"framing": None, "takes_regions": False}, r"does not take pixels .* \(n, 3,"),
        ("tiles", {"takes_regions": True}, r"does not take pixels of shape \(n, 4, 32, 32\)"),
        ("roi", {"framing": [1]}, "its metadata has no framing"),
        ("roi", {"takes_regions": "yes"}, "its metadata has no takes_regions"),
    ],
)
def test_a_framing_that_does_not_fit_the_graph_is_refused(name, change, said, files, tmp_path):
    target = tmp_path / "bad.onnx"
    target.write_bytes(rewritten(files[name], lambda _, values: values.update(change)))
    with pytest.raises(ModelFileError, match=said):
        OnnxDetector.load(target)


# The check of an export


@pytest.mark.parametrize("name", ["roi", "padding and roi"])
def test_a_graph_that_does_not_mind_regions_is_not_written(name, detectors, tmp_path, monkeypatch):
    export, split = writing._export, graphs.split_regions

    def ignoring(images, grid):
        images, inside = split(images, grid)
        return images, torch.ones_like(inside)

    def broken(graph, example):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(graphs, "split_regions", ignoring)
            return export(graph, example)

    monkeypatch.setattr(writing, "_export", broken)
    with pytest.raises(ValueError, match="gives other scores once it is exported"):
        export_onnx(detectors[name], tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


# Without torch

WITHOUT_TORCH = """
import sys

blocked = ["torch", "torchvision", "timm", "sklearn", "scipy", "onnxscript", "safetensors"]
sys.modules.update(dict.fromkeys(blocked))  # whoever imports them gets an error
import numpy as np
from skanomaly_vit.onnx import OnnxDetector

detector = OnnxDetector.load(sys.argv[1])
scores, maps = detector.score_samples(np.load(sys.argv[2]), return_map=True)
assert detector.verify()["same"]
np.savez(sys.argv[3], scores=scores, maps=maps)
print([name for name in blocked if sys.modules.get(name) is not None])
"""


@pytest.mark.parametrize("name", ["padding and roi", "tiles and roi"])
def test_images_are_framed_without_torch(name, files, tmp_path):
    np.save(tmp_path / "new.npy", NEW)
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, files[name]]
    arguments = [tmp_path / "new.npy", tmp_path / "found.npz"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    scores, maps = OnnxDetector.load(files[name]).score_samples(NEW, return_map=True)
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_allclose(found["scores"], scores, rtol=1e-6)
        np.testing.assert_allclose(found["maps"], maps, atol=1e-5)
