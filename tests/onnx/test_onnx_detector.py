"""Detectors in ONNX files: the scores of torch without torch, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from backbones import FAMILIES, family
from hypothesis import example, given, settings
from hypothesis import strategies as st
from images import blobs
from onnx_files import rewritten
from PIL import Image
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from students import with_student

from skanomaly_vit import (
    ExcessDensity,
    GaussianDensity,
    GaussianMixtureDensity,
    KNNDensity,
    TransformalyDetector,
    WhitenedKNNDensity,
)
from skanomaly_vit.density._rows import Rows
from skanomaly_vit.density._statistics import Kind, Statistics
from skanomaly_vit.density._whitening import whiten
from skanomaly_vit.detector._space_density import fit_density
from skanomaly_vit.exceptions import ModelFileError, UnreadableImageWarning
from skanomaly_vit.onnx import OnnxDetector, export_onnx
from skanomaly_vit.onnx import _export as writing
from skanomaly_vit.onnx._density_graphs import density_graph
from skanomaly_vit.onnx._file import KEY

IMAGES = blobs(np.random.default_rng(0), 24)
N_NORMAL = 8
NEW = np.concatenate(
    [
        blobs(np.random.default_rng(1), N_NORMAL),
        np.random.default_rng(2).integers(0, 256, (4, 32, 32, 3), np.uint8),
    ]
)

#: What differs between detectors, one for each family of backbones.
SETTINGS = {
    "class token": {"density": "gaussian", "n_blocks": None},
    "register tokens": {"recipe": "paper", "max_epochs": 1, "density": "knn"},
    "no class token": {"feature_spaces": "pretrained", "density": "knn", "pca_variance": 0.8},
    "rotary embeddings (EVA-02)": {"student": "block", "max_epochs": 1},
    "rotary embeddings (DINOv3)": {"feature_spaces": "discrepancy", "density": "gmm"},
    "relative position bias (BEiT)": {"student": "block", "max_epochs": 1},
    "shared relative position bias (relpos)": {"student": "block", "max_epochs": 1},
    "distillation token (DeiT)": {"density": GaussianMixtureDensity(regularization=0.1)},
}


def fit(name="class token", **parameters):
    quick = {"backbone": family(name), "n_blocks": 2, "random_state": 0}
    return TransformalyDetector(**with_student(**quick | parameters)).fit(IMAGES)


@pytest.fixture(scope="module")
def detector():
    return fit(contamination=0.2)


@pytest.fixture(scope="module")
def path(detector, tmp_path_factory):
    return export_onnx(detector, tmp_path_factory.mktemp("onnx") / "parts.onnx")


@pytest.fixture(scope="module")
def exported(path):
    return OnnxDetector.load(path)


def assert_alike_scores(found, expected):
    """Within 1e-4 of the spread of normal images, and in the same order; far off, of the score."""
    assert found.dtype == expected.dtype
    tolerance = 1e-4 * expected[:N_NORMAL].std()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=tolerance)
    gaps = expected[:, np.newaxis] - expected
    is_apart = gaps > 2 * (tolerance + 1e-5 * np.abs(expected))
    assert (found[:, np.newaxis] - found)[is_apart].min() > 0


def assert_alike(found, detector, X=NEW):
    scores, maps = detector.score_samples(X, return_map=True)
    new_scores, new_maps = found.score_samples(X, return_map=True)
    assert_alike_scores(new_scores, scores)
    assert new_maps.dtype == maps.dtype
    np.testing.assert_allclose(new_maps, maps, rtol=1e-4, atol=1e-4)


# What is the same


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_and_maps_of_any_family_are_those_of_torch(name, tmp_path):
    detector = fit(name, **SETTINGS[name])
    assert_alike(OnnxDetector.load(export_onnx(detector, tmp_path / "a.onnx")), detector)


def test_scores_of_the_embedded_backbone_are_those_of_torch(tmp_path):
    detector = TransformalyDetector(n_blocks=2, image_size=56, random_state=0).fit(IMAGES)
    assert_alike(OnnxDetector.load(export_onnx(detector, tmp_path / "a.onnx")), detector)


def test_decisions_are_those_of_torch(exported, detector):
    assert_alike_scores(exported.decision_function(NEW), detector.decision_function(NEW))
    graph = exported._run(NEW, "decision")[0]
    np.testing.assert_array_equal(exported.decision_function(NEW), graph)
    np.testing.assert_array_equal(exported.predict(NEW), detector.predict(NEW))
    assert set(exported.predict(NEW)) == {1, -1}
    np.testing.assert_allclose(exported.p_values(NEW), detector.p_values(NEW))
    np.testing.assert_array_equal(exported.anomaly_map(NEW), exported.score_samples(
        NEW, return_map=True)[1])  # fmt: skip
    assert exported.offset_ == detector.offset_


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_of_any_size(path, exported, batch_size):
    found = OnnxDetector.load(path, batch_size=batch_size, n_threads=1)
    expected = exported.score_samples(NEW)
    np.testing.assert_allclose(found.score_samples(NEW), expected, atol=1e-5 * expected.std())


def test_maps_by_another_method_than_the_score(detector, tmp_path):
    path = export_onnx(detector, tmp_path / "a.onnx", map_method="features")
    np.testing.assert_allclose(
        OnnxDetector.load(path).anomaly_map(NEW),
        detector.anomaly_map(NEW, method="features"),
        atol=1e-4,
    )


MIXTURES = [
    GaussianMixtureDensity(covariance_type=kind, regularization=0.1, random_state=0)
    for kind in ("full", "tied", "diag", "spherical")
]


@pytest.mark.parametrize("pca_variance", [None, 0.9])
@pytest.mark.parametrize(
    "density",
    [
        GaussianDensity(),
        ExcessDensity(),
        KNNDensity(n_neighbors=3),
        WhitenedKNNDensity(),
        WhitenedKNNDensity(n_neighbors=1, whitening_exponent=0.25, max_samples=20, random_state=0),
        *MIXTURES,
    ],
    ids=repr,
)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-6, 1.0, 1e4]))
def test_densities_are_those_of_numpy(density, pca_variance, seed, scale):
    rng = np.random.default_rng(seed)
    features = scale * (rng.normal(size=(60, 6)) @ rng.normal(size=(6, 6)) + 3)
    new = np.concatenate([features, scale * rng.normal(0, 30, (20, 6))])
    rows, statistics, pca = Rows.of(features), None, None
    if pca_variance is not None:
        statistics = Statistics.of_shards(rows, Kind.COVARIANCE)
        pca = whiten(statistics, pca_variance)
    fitted = fit_density(density, rows, seed=0, pca=pca, statistics=statistics)
    found = density_graph(fitted)(torch.from_numpy(new)).numpy()
    # A sample is its own neighbour at a distance that is all rounding.
    expected = fitted.score_samples(new)
    is_own = isinstance(density, KNNDensity | WhitenedKNNDensity)
    seen = slice(len(features), None) if is_own else slice(None)
    np.testing.assert_allclose(found[seen], expected[seen], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("density", [KNNDensity, WhitenedKNNDensity])
def test_equal_samples_are_at_a_finite_distance(density):
    features = np.random.default_rng(0).normal(size=(20, 3))
    density = density(n_neighbors=1).fit(features)
    found = density_graph(density)(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(found, density.score_samples(features), atol=1e-9)


# Images


def test_images_of_any_form_get_the_same_scores(exported, detector, tmp_path):
    paths = []
    for index, image in enumerate(NEW):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
        paths.append(tmp_path / f"{index}.png")
    expected = exported.score_samples(NEW)
    pictures = [Image.fromarray(image) for image in NEW]
    tensor = torch.from_numpy(NEW).permute(0, 3, 1, 2)
    for X in (paths, np.array(paths, dtype=str), pictures, list(NEW), tensor):
        np.testing.assert_array_equal(exported.score_samples(X), expected)
    for X in (NEW.astype(np.uint16) * 257, NEW / 255):
        np.testing.assert_allclose(exported.score_samples(X), expected, atol=1e-4)


def test_images_of_other_sizes_are_resized_as_by_torch(exported, detector, rng):
    sizes = [(31, 32), (200, 150), (9, 500), (3, 4)]
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    scores, maps = detector.score_samples(images, return_map=True)
    new_scores, new_maps = exported.score_samples(images, return_map=True)
    np.testing.assert_allclose(new_scores, scores, rtol=1e-4)
    assert [plane.shape for plane in new_maps] == sizes
    for plane, expected in zip(new_maps, maps, strict=True):
        np.testing.assert_allclose(plane, expected, atol=1e-3)


def test_flattened_images(path, exported, tmp_path):
    rows, target = NEW.reshape(len(NEW), -1), tmp_path / "rows.onnx"
    target.write_bytes(
        rewritten(path, lambda proto, values: values.update(image_shape=(32, 32, 3)))
    )
    for found in (
        OnnxDetector.load(target),  # as the detector that was exported
        OnnxDetector.load(path, image_shape=(32, 32, 3)),
    ):
        np.testing.assert_array_equal(found.score_samples(rows), exported.score_samples(NEW))
    with pytest.raises(ValueError, match="2-D array"):
        exported.score_samples(rows)


def test_an_unreadable_image_is_an_error_or_a_gap(path, exported, tmp_path):
    broken, paths = tmp_path / "broken.png", []
    broken.write_bytes(b"no image")
    for index, image in enumerate(NEW[:3]):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
        paths.append(tmp_path / f"{index}.png")
    X = [paths[0], broken, *paths[1:], tmp_path / "missing.png"]
    with pytest.raises(ValueError, match=r"sample 4: no such file"):
        exported.score_samples(X)
    with pytest.raises(ValueError, match=r"sample 1 \('.*broken.png'\)"):
        exported.score_samples(X[:4])
    lenient = OnnxDetector.load(path, on_error="nan", batch_size=2)
    with pytest.warns(UnreadableImageWarning, match="2 of 5 images"):
        scores, maps = lenient.score_samples(X, return_map=True)
    assert np.isnan(scores).tolist() == [False, True, False, False, True]
    np.testing.assert_allclose(scores[[0, 2, 3]], exported.score_samples(NEW[:3]), atol=1e-4)
    assert [plane.shape for plane in maps] == [(32, 32), (0, 0), (32, 32), (32, 32), (0, 0)]
    with pytest.warns(UnreadableImageWarning):
        assert lenient.predict(X)[[1, 4]].tolist() == [-1, -1]
    with pytest.warns(UnreadableImageWarning):
        assert np.isnan(lenient.p_values([broken])).all()


def test_images_decoded_in_threads_get_the_same_scores(path, exported):
    found = OnnxDetector.load(path, n_jobs=3)
    np.testing.assert_array_equal(found.score_samples(NEW), exported.score_samples(NEW))


# Without torch

WITHOUT_TORCH = """
import sys

blocked = ["torch", "torchvision", "timm", "sklearn", "scipy", "onnxscript", "safetensors"]
sys.modules.update(dict.fromkeys(blocked))  # whoever imports them gets an error
import numpy as np
from skanomaly_vit.onnx import OnnxDetector

detector = OnnxDetector.load(sys.argv[1])
scores, maps = detector.score_samples(np.load(sys.argv[2]), return_map=True)
np.savez(sys.argv[3], scores=scores, maps=maps)
print([name for name in blocked if sys.modules.get(name) is not None])
"""


def test_a_file_is_scored_without_torch(path, exported, tmp_path):
    np.save(tmp_path / "new.npy", NEW)
    command = [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, path]
    arguments = [tmp_path / "new.npy", tmp_path / "found.npz"]
    done = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
    scores, maps = exported.score_samples(NEW, return_map=True)
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_allclose(found["scores"], scores, rtol=1e-6)
        np.testing.assert_allclose(found["maps"], maps, atol=1e-5)


# What is in a file


def test_the_metadata_say_what_a_caller_has_to_know(path, detector):
    (entry,) = (e for e in onnx.load(path).metadata_props if e.key == KEY)
    card = json.loads(entry.value)
    preprocessing = detector.features_._held_teacher().preprocessing
    assert card["preprocessing"] == {
        "image_size": list(preprocessing.image_size),
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "interpolation": preprocessing.interpolation,
    }
    assert card["threshold"] == detector.offset_
    assert card["backbone_fingerprint"] == detector.features_.backbone_fingerprint_
    assert card["versions"].keys() >= {"torch", "timm", "onnx", "skanomaly-vit"}
    assert card["n_calibrating"] == len(detector.calibration_scores_)
    assert list(card["outputs"]) == ["score", "decision", "p_value", "anomaly_map"]
    assert "2, 2" in card["outputs"]["anomaly_map"]


def test_a_graph_is_a_plain_one_that_any_checker_passes(path):
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}


def test_what_a_detector_does_not_give_is_not_in_its_graph(tmp_path):
    model = family("class token")
    del model.patch_embed.patch_size
    detector = fit(backbone=model, validation_fraction=0)
    found = OnnxDetector.load(export_onnx(detector, tmp_path / "a.onnx"))
    assert list(found.card["outputs"]) == ["score", "decision"]
    assert_alike_scores(found.score_samples(NEW), detector.score_samples(NEW))
    with pytest.raises(ValueError, match="validation_fraction=0"):
        found.p_values(NEW)
    for ask in (found.anomaly_map, lambda X: found.score_samples(X, return_map=True)):
        with pytest.raises(ValueError, match="no anomaly maps"):
            ask(NEW)
    with pytest.raises(ValueError, match=r"patch_embed\.patch_size"):
        export_onnx(detector, tmp_path / "b.onnx", map_method="both")


def test_an_export_leaves_the_detector_as_it_is(detector, path):
    assert not any(block._forward_hooks for block in detector.features_._teacher.blocks)


# What cannot be exported


def test_a_foreign_density_is_refused_by_name(tmp_path):
    detector = fit(density=KernelDensity())
    with pytest.raises(ValueError, match=r"density=KernelDensity.*GaussianDensity"):
        export_onnx(detector, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_other_objects_are_refused(detector, tmp_path):
    with pytest.raises(NotFittedError):
        export_onnx(TransformalyDetector(), tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="not a Pipeline"):
        export_onnx(make_pipeline(detector), tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"map_method='mean' is not one of"):
        export_onnx(detector, tmp_path / "a.onnx", map_method="mean")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        export_onnx(detector, tmp_path / "no" / "a.onnx")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_than_float32_are_refused(detector, tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(detector.features_._teacher, "model", family("class token").to(dtype))
    with pytest.raises(ValueError, match=f"the backbone is of {dtype}"):
        export_onnx(detector, tmp_path / "a.onnx")


def test_more_weights_than_a_file_holds_are_refused(detector, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "LARGEST_FILE", 2**24)
    with pytest.raises(ValueError, match="2 GiB"):
        export_onnx(detector, tmp_path / "a.onnx")


class Reckoning(torch.nn.Module):
    """A network whose features hang on the number of its images."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))
        self.embed = torch.nn.Conv2d(3, 8, 8, 8)

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return self.pool(tokens)

    def pool(self, tokens):
        return tokens.mean(1)


class OfTheBatch(Reckoning):
    def pool(self, tokens):
        return tokens.mean(1) + len(tokens)


class OfTheValues(Reckoning):
    def pool(self, tokens):
        return tokens.mean(1) * (2 if float(tokens.sum()) > 0 else 1)


@pytest.mark.parametrize("backbone", [OfTheBatch, OfTheValues])
def test_what_the_exporter_cannot_follow_is_refused(backbone, tmp_path):
    torch.manual_seed(0)
    detector = fit(backbone=backbone(), feature_spaces="pretrained", density="gaussian")
    with pytest.raises(
        ValueError, match=f"the backbone {backbone.__name__} (cannot be (exported|run)|gives)"
    ):
        export_onnx(detector, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_gives_other_scores_is_not_written(detector, path, tmp_path, monkeypatch):
    proto = onnx.load(path)
    for weight in proto.graph.initializer:
        if weight.data_type == onnx.TensorProto.DOUBLE and len(weight.raw_data) > 100:
            weight.raw_data = bytes(len(weight.raw_data))
    monkeypatch.setattr(writing, "_export", lambda graph, example: proto)
    with pytest.raises(ValueError, match="gives other scores"):
        export_onnx(detector, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def off(graph, output, amount):
    """Have a graph give one output off by some amount, but for what is derived from it."""
    if output == "score":
        own = graph._score
        graph._score = lambda features, errors: own(features, errors) + amount
        return
    place, own = graph.output_names().index(output), graph.forward

    def forward(pixels):
        outputs = list(own(pixels))
        outputs[place] = outputs[place] + amount
        return tuple(outputs)

    graph.forward = forward


@pytest.mark.parametrize(
    ("output", "amount"),
    [("score", 0.01), ("score", -3), ("decision", 0.01), ("p_value", 0.01), ("anomaly_map", 0.01)],
)
@pytest.mark.parametrize("backbone", ["small", "embedded"])
def test_a_graph_that_is_off_by_a_hundredth_of_what_normal_images_differ_by_is_not_written(
    output, amount, backbone, detector, tmp_path, monkeypatch
):
    if backbone == "embedded":
        detector = TransformalyDetector(image_size=56, n_blocks=2, random_state=0).fit(IMAGES)
    unit = detector.calibration_scores_.std() if output in ("score", "decision") else 1
    export = writing._export

    def broken(graph, example):
        off(graph, output, amount * unit)
        try:
            return export(graph, example)
        finally:
            vars(graph).pop("_score", None)
            vars(graph).pop("forward", None)

    monkeypatch.setattr(writing, "_export", broken)
    told = {
        "score": "scores",
        "decision": "decisions",
        "p_value": "p-values",
        "anomaly_map": "maps",
    }
    with pytest.raises(ValueError, match=f"gives other {told[output]} once it is exported"):
        export_onnx(detector, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_a_density_that_the_graph_has_wrong_is_not_written(detector, tmp_path, monkeypatch):
    make = writing._graph_of

    def wrong(*args):
        graph = make(*args)
        off(graph, "score", 0.01 * detector.calibration_scores_.std())
        return graph

    monkeypatch.setattr(writing, "_graph_of", wrong)
    with pytest.raises(ValueError, match="gives images of the fit other scores than the detector"):
        export_onnx(detector, tmp_path / "a.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(detector, path, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package},.*skanomaly-vit\[onnx\]"):
        export_onnx(detector, tmp_path / "a.onnx")
    if package != "onnxscript":
        with pytest.raises(ImportError, match=rf"{package},.*skanomaly-vit\[onnx\]"):
            OnnxDetector.load(path)


# What is not loaded


def refused(content, tmp_path, match):
    target = tmp_path / "bad.onnx"
    target.write_bytes(content)
    with pytest.raises(ModelFileError, match=f"bad.onnx' cannot be loaded as a model: {match}"):
        OnnxDetector.load(target)


def test_files_of_other_kinds_are_refused(path, tmp_path):
    with pytest.raises(ModelFileError, match="No such file"):
        OnnxDetector.load(tmp_path / "missing.onnx")
    with pytest.raises(ModelFileError, match="it is a directory"):
        OnnxDetector.load(tmp_path)
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ModelFileError, match="no regular file"):
        OnnxDetector.load(tmp_path / "pipe.onnx")
    refused(b"", tmp_path, "it is empty")
    refused(b"no model at all", tmp_path, "it is cut off, damaged or another kind")
    foreign = onnx.load(path)
    del foreign.metadata_props[:]
    refused(foreign.SerializeToString(), tmp_path, "it is an ONNX model of another program")


@settings(max_examples=40, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(place=0.0, bit=0)
def test_no_flipped_bit_goes_unseen(path, place, bit):
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    target = path.parent / "flipped.onnx"
    target.write_bytes(content)
    with pytest.raises(ModelFileError):
        OnnxDetector.load(target)


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_off_is_refused(path, share):
    content = path.read_bytes()
    target = path.parent / "cut.onnx"
    target.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelFileError):
        OnnxDetector.load(target)


def test_a_rewritten_file_is_loaded_if_all_fits(path, exported, tmp_path):
    target = tmp_path / "same.onnx"
    target.write_bytes(rewritten(path, lambda proto, values: None))
    np.testing.assert_array_equal(
        OnnxDetector.load(target).score_samples(NEW), exported.score_samples(NEW)
    )


def test_weights_in_another_file_are_refused(path, tmp_path, monkeypatch):
    def move(proto, values):
        weight = max(proto.graph.initializer, key=lambda weight: len(weight.raw_data))
        (tmp_path / "secret.bin").write_bytes(weight.raw_data)
        onnx.external_data_helper.set_external_data(weight, "secret.bin")
        weight.ClearField("raw_data")

    monkeypatch.chdir(tmp_path)
    refused(rewritten(path, move), tmp_path, "it refers to weights in another file")


def test_weights_in_another_file_are_found_in_nested_graphs(path, tmp_path):
    def hide(proto, values):
        inner = onnx.helper.make_tensor("inner", onnx.TensorProto.FLOAT, [1], bytes(4), raw=True)
        onnx.external_data_helper.set_external_data(inner, "/etc/hostname")
        graph = onnx.helper.make_graph([], "g", [], [], [inner])
        proto.graph.node[0].attribute.append(onnx.helper.make_attribute("then_branch", graph))

    refused(rewritten(path, hide), tmp_path, "it refers to weights in another file")


CHANGES = {
    "a newer format": (lambda p, v: v.update(format_version=3), "it has format 3"),
    "no format": (lambda p, v: v.update(format_version=0), "its format_version is 0"),
    "no threshold": (lambda p, v: v.pop("threshold"), "its metadata has no threshold"),
    "another type": (lambda p, v: v.update(versions=1), "its metadata has no versions"),
    "a std of 0": (
        lambda p, v: v["preprocessing"].update(std=[0, 1, 1]),
        "it describes no preprocessing",
    ),
    "an interpolation": (
        lambda p, v: v["preprocessing"].update(interpolation="magic"),
        "it describes no preprocessing",
    ),
    "a huge image": (
        lambda p, v: v["preprocessing"].update(image_size=[2**40, 2]),
        "it describes no preprocessing",
    ),
    "another image size": (
        lambda p, v: v["preprocessing"].update(image_size=[64, 64]),
        r"it does not take pixels of shape \(n, 3, 64, 64\)",
    ),
    "fewer outputs": (lambda p, v: p.graph.output.pop(), "it gives score, decision, p_value"),
    "an unknown operator": (
        lambda p, v: setattr(p.graph.node[0], "op_type", "Launch"),
        "ONNX Runtime does not take it",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_fit_together_is_refused(path, tmp_path, name):
    change, match = CHANGES[name]
    refused(rewritten(path, change), tmp_path, match)


def test_options_are_checked(path):
    with pytest.raises(ValueError, match="on_error='skip'"):
        OnnxDetector.load(path, on_error="skip")
    with pytest.raises(ValueError, match="batch_size=0"):
        OnnxDetector.load(path, batch_size=0)
