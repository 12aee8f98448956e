"""Files in int8: their own scores set threshold and p-values."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from backbones import family
from images import blobs
from onnx import TensorProto, helper, numpy_helper
from sklearn.base import clone

from skanomaly_vit import TransformalyDetector
from skanomaly_vit.calibration import conformal_p_values, conformal_threshold
from skanomaly_vit.exceptions import ModelFileError
from skanomaly_vit.onnx import OnnxDetector, export_onnx
from skanomaly_vit.onnx import _recalibrating as recalibrating
from skanomaly_vit.onnx._int8 import compute_in_int8

IMAGES = blobs(np.random.default_rng(0), 24)
MORE = blobs(np.random.default_rng(5), 30)
NEW = np.concatenate(
    [
        blobs(np.random.default_rng(1), 8),
        np.random.default_rng(2).integers(0, 256, (4, 32, 32, 3), np.uint8),
    ]
)
RATE = 0.2


@pytest.fixture(scope="module")
def detector():
    network = family("class token")
    with torch.no_grad():  # so small that int8 suits whatever a version of timm has drawn
        for parameter in network.blocks.parameters():
            parameter.mul_(0.5)
    quick = {"backbone": network, "n_blocks": 2, "random_state": 0}
    return TransformalyDetector(contamination=RATE, **quick).fit(IMAGES)


@pytest.fixture(scope="module")
def path(detector, tmp_path_factory):
    target = tmp_path_factory.mktemp("int8") / "parts.onnx"
    return export_onnx(detector, target, quantize="int8", calibration_images=MORE)


@pytest.fixture(scope="module")
def exported(path):
    return OnnxDetector.load(path)


def test_threshold_and_p_values_are_those_of_its_own_scores(exported, detector):
    known = exported.score_samples(MORE)
    assert not np.allclose(known, detector.score_samples(MORE), atol=1e-3)
    assert exported.offset_ == pytest.approx(conformal_threshold(known, RATE))
    assert exported.contamination_ == RATE
    scores = exported.score_samples(NEW)
    np.testing.assert_allclose(exported.p_values(NEW), conformal_p_values(known, scores))
    np.testing.assert_allclose(exported._run(NEW, "decision")[0], scores - exported.offset_)
    assert exported.predict(NEW).tolist() == np.where(scores < exported.offset_, -1, 1).tolist()
    assert exported.card["n_calibrating"] == len(MORE)


def test_its_scores_are_near_those_of_float32(exported, detector):
    scores, expected = exported.score_samples(NEW), detector.score_samples(NEW)
    assert np.corrcoef(scores, expected)[0, 1] > 0.95
    assert scores[8:].max() < scores[:8].min()
    known = detector.score_samples(MORE)
    noise = np.std(exported.score_samples(MORE) - known) / np.std(known)
    assert exported.card["noise"] == pytest.approx(noise, rel=1e-3)
    assert 0 < noise < 0.5


def test_the_metadata_say_that_it_is_int8(exported, detector, tmp_path):
    assert exported.card["quantization"] == "int8"
    plain = OnnxDetector.load(export_onnx(detector, tmp_path / "a.onnx"))
    assert (plain.card["quantization"], plain.card["noise"]) == (None, None)
    assert plain.contamination_ == RATE


def test_a_score_does_not_depend_on_the_batch(path, exported):
    alone = OnnxDetector.load(path, batch_size=1)
    np.testing.assert_allclose(alone.score_samples(NEW), exported.score_samples(NEW), rtol=1e-5)


def test_backbone_and_students_multiply_integers(path, detector):
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    weights = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    integers = [
        weights[node.input[1]] for node in model.graph.node if node.op_type == "MatMulInteger"
    ]
    n_blocks = len(detector.features_._teacher.model.blocks)
    # Four products of each block, two of each student.
    assert len(integers) == 4 * n_blocks + 2 * len(detector.distillation_.students_)
    # Sums of two products fit into 16 bits.
    assert max(np.abs(each.astype(int)).max() for each in integers) * 2 * 255 < 2**15
    left = [
        node.input[1]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights
    ]
    assert all(weights[n].dtype == np.float64 or n.startswith("maps.") for n in left)


def test_a_product_in_int8_is_that_in_float32():
    rng = np.random.default_rng(0)
    given, weight = rng.normal(size=(3, 5, 16)), rng.normal(size=(16, 7))
    given[1] *= 1000  # no matter to the others
    given[2, 0], weight[:, 0] = 0, 0
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5, 7])],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    compute_in_int8(proto)
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(["y"], {"x": given.astype(np.float32)})
    scale = np.abs(given).max(axis=2, keepdims=True) + 1e-12
    np.testing.assert_allclose(found / scale, given @ weight / scale, atol=0.1)
    assert (found[2, 0] == 0).all()
    assert (found[..., 0] == 0).all()


def test_a_detector_without_held_out_images_gets_p_values(detector, tmp_path):
    plain = clone(detector).set_params(validation_fraction=0).fit(IMAGES)
    target = tmp_path / "a.onnx"
    export_onnx(plain, target, quantize="int8", calibration_images=MORE)
    # That of the lowest score among all 30, itself included.
    assert OnnxDetector.load(target).p_values(MORE).min() == pytest.approx(2 / 31)
    assert plain.calibration_scores_ is None


def test_groups_are_units(detector, tmp_path):
    groups = np.repeat(np.arange(6), 5)
    target = tmp_path / "a.onnx"
    export_onnx(
        detector, target, quantize="int8", calibration_images=MORE, calibration_groups=groups
    )
    found = OnnxDetector.load(target)
    known = found.score_samples(MORE)
    assert found.offset_ == pytest.approx(conformal_threshold(known, RATE, groups=groups))
    expected = conformal_p_values(known, found.score_samples(NEW), groups=groups)
    np.testing.assert_allclose(found.p_values(NEW), expected)


def test_the_detector_stays_as_it_is(detector, path):
    assert len(detector.calibration_scores_) == len(detector.validation_indices_)
    known = detector.calibration_scores_
    assert detector.offset_ == pytest.approx(conformal_threshold(known, RATE))
    assert detector._updates == []


def test_a_damaged_file_is_refused(path, tmp_path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    target = tmp_path / "damaged.onnx"
    target.write_bytes(content)
    with pytest.raises(ModelFileError):
        OnnxDetector.load(target)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quantize": "int4", "calibration_images": MORE}, "quantize='int4' is neither"),
        ({"quantize": "int8"}, "pass calibration_images"),
        ({"calibration_images": MORE}, "are for quantize='int8'"),
        ({"calibration_groups": [1]}, "are for quantize='int8'"),
        ({"quantize": "int8", "calibration_images": MORE[:3]}, "3 different .* at least 4"),
        (
            {"quantize": "int8", "calibration_images": np.repeat(MORE[:3], 5, axis=0)},
            "3 different .* at least 4",
        ),
        ({"quantize": "int8", "calibration_images": IMAGES}, "learned from"),
    ],
)
def test_what_calibrates_nothing_is_refused(detector, tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        export_onnx(detector, tmp_path / "a.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_a_backbone_that_does_not_bear_int8_is_refused(detector, tmp_path, monkeypatch):
    monkeypatch.setattr(recalibrating, "_MOST_NOISE", 1e-6)
    with pytest.raises(ValueError, match="does not bear it"):
        export_onnx(detector, tmp_path / "a.onnx", quantize="int8", calibration_images=MORE)
    assert not list(tmp_path.iterdir())


def test_a_graph_without_products_is_refused():
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "abs", [], [])
    with pytest.raises(ValueError, match="nothing to compute in int8"):
        compute_in_int8(helper.make_model(graph))
