"""Export of a fitted detector to an ONNX file."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skanomaly_vit._backbone.patches import FEATURES, METHODS
from skanomaly_vit._backbone.teacher import Teacher, to_numpy
from skanomaly_vit._images.preprocessing import Preprocessing
from skanomaly_vit._utils.files import check_target
from skanomaly_vit._utils.provenance import versions
from skanomaly_vit._utils.settings import with_own_settings
from skanomaly_vit.density._row_sample import RowSample
from skanomaly_vit.detector import TransformalyDetector
from skanomaly_vit.detector._fixtures import Fixtures, spread_of
from skanomaly_vit.detector._fusion import sum_spaces
from skanomaly_vit.onnx._detector import OnnxDetector
from skanomaly_vit.onnx._file import (
    DECISION,
    LARGEST_FILE,
    MAP,
    P_VALUE,
    PIXELS,
    SCORE,
    require,
    write,
)
from skanomaly_vit.onnx._fixtures import describe_fixtures, own_scores
from skanomaly_vit.onnx._graph import Calibration, DetectorGraph
from skanomaly_vit.onnx._int8 import compute_in_int8
from skanomaly_vit.onnx._recalibrating import (
    INT8,
    calibrated_anew,
    check_quantize,
    use_own_scores,
)

# The lowest that the exporters of all supported torch versions write; runtimes since 2023 read it.
_OPSET = 18

#: Largest accepted difference of a score from torch, in standard deviations of the scores of normal
#: images, and in addition relative to its distance from the threshold: float32 rounds by it.
_TOLERANCE = 0.005

_ROUNDING = 2e-5

#: Largest accepted difference of a map, in standard deviations of normal patches and relative.
_MAP_TOLERANCE = 1e-3

#: Steps at most in which images of the check become normal ones; most take a dozen.
_MOST_STEPS = 40

#: Where the scores of these images are to lie, in standard deviations from the threshold.
_LEVELS = (-1.0, 0.0, 2.0)

_MEANING = {
    "score": "float64 (n,): score_samples, higher = more normal",
    "decision": "float64 (n,): score - threshold, negative = anomaly",
    "p_value": "float64 (n,): share of normal images that are as abnormal, small = abnormal",
    MAP: "float32 (n, {rows}, {columns}): a value a patch, higher = more abnormal",
}


@with_own_settings
def write_onnx(
    detector: Any,
    path: str | os.PathLike[str],
    map_method: str | None,
    quantize: str | None = None,
    calibration_images: Any = None,
    calibration_groups: Any = None,
) -> Path:
    """Write a fitted detector into an ONNX file; see `skanomaly_vit.onnx.export_onnx`."""
    check_quantize(quantize, calibration_images, calibration_groups)
    if not isinstance(detector, TransformalyDetector):
        raise ValueError(
            f"only a TransformalyDetector can be exported, not a {type(detector).__name__}; pass "
            "the detector inside a pipeline or a search"
        )
    check_is_fitted(detector)
    if not detector._fitted_framing.is_plain:
        raise ValueError(
            "the detector frames images (roi, keep_aspect or tiles), which ONNX files do not do; "
            "keep the .skanomaly file, or fit without them to images that you have cropped or "
            "padded yourself"
        )
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package)
    target = check_target(path, "model.onnx")
    teacher = detector._held_teacher()
    method = _map_method(detector, map_method)
    if quantize is not None:
        _require_float32(teacher)
        detector = calibrated_anew(detector, calibration_images, calibration_groups)
    graph = _graph_of(detector, teacher, method)
    _require_size(graph)
    height, width = teacher.preprocessing.image_size
    # Noise, since the exporter may take values that all images share for constants.
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(3, 3, height, width, generator=generator)
    _verify_densities(detector, graph)
    spread = spread_of(detector)
    images = torch.cat([_near_the_threshold(graph, teacher.preprocessing, spread), example[:2]])
    proto = _export(graph, example[:2])
    _verify(proto, graph, images, spread)
    values = _values(detector, teacher, graph, method)
    if quantize is not None:
        compute_in_int8(proto)
        scores = _scorer(proto, values, detector).score_samples(calibration_images)
        noise = use_own_scores(proto, detector, scores)
        values |= {"threshold": float(detector.offset_), "quantization": INT8, "noise": noise}
        own = _scorer(proto, values, detector)
        _verify_own(own, detector, calibration_images)
        values["fixtures"] |= own_scores(own, values["fixtures"])
    write(target, proto, values)
    return target


def _scorer(proto: Any, values: Mapping[str, Any], detector: TransformalyDetector) -> OnnxDetector:
    """The scorer of a file that is not written yet."""
    session = _session(proto)
    options = {name: getattr(detector, name) for name in ("image_shape", "max_pixels", "n_jobs")}
    return OnnxDetector(session, values, **options)


def _session(proto: Any) -> Any:
    return require("onnxruntime").InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def _verify_own(found: OnnxDetector, detector: TransformalyDetector, images: Any) -> None:
    """Compare decisions and p-values of a graph with those of its own scores."""
    score, decision, p_value = found._run(images, SCORE, DECISION, P_VALUE)
    expected = Calibration(detector._require_calibration(), detector.calibration_units_)
    same = np.allclose(p_value, expected(torch.from_numpy(score)).numpy(), atol=1e-9)
    if not same or not np.allclose(decision, score - detector.offset_, atol=1e-9):
        raise ValueError(
            "the graph in int8 gives other p-values or decisions than its scores have; export "
            "without quantize"
        )


def _map_method(detector: Any, method: str | None) -> str | None:
    """Source of the maps; None if the detector has no maps and the caller asked for none."""
    if method not in (None, *METHODS):
        raise ValueError(f"map_method={method!r} is not one of {METHODS}, or None")
    if detector._normal_patches is None and method is None:
        return None
    return detector._map_collector(method)._method


def _graph_of(detector: Any, teacher: Teacher, method: str | None) -> DetectorGraph:
    _require_float32(teacher)
    students = {}
    if detector.distillation_ is not None:
        parts = detector.distillation_
        students = dict(zip(parts.block_indices_, parts.students_, strict=True))
    graph = DetectorGraph(
        teacher.copy_model(),
        teacher.readout,
        teacher.grid,
        copy.deepcopy(students),
        detector.density_,
        detector.fusion_,
        offset=float(detector.offset_),
        calibration_scores=detector.calibration_scores_,
        calibration_units=detector.calibration_units_,
        normal=None if method is None else detector._normal_patches,
        map_method=method or FEATURES,
    )
    return graph.cpu().eval()


def _require_float32(teacher: Teacher) -> None:
    if teacher.dtype != torch.float32:
        raise ValueError(
            f"the backbone is of {teacher.dtype}, for which ONNX Runtime has no convolution on "
            "a CPU; fit with dtype='float32', or with a network of torch.float32"
        )


def _require_size(graph: nn.Module) -> None:
    n_bytes = sum(value.nbytes for value in graph.state_dict().values())
    if n_bytes > LARGEST_FILE - 2**24:  # leaves room for the graph itself
        raise ValueError(
            f"the model has {n_bytes} bytes of weights; an ONNX file of one piece holds 2 GiB. "
            "Fit with a smaller backbone."
        )


# Bounds that torch before 2.10 sets itself, and then finds violated; graphs take one image too.
_N_IMAGES = torch.export.Dim("n", min=2, max=2**31 - 1)


def _export(graph: DetectorGraph, example: torch.Tensor) -> Any:
    try:
        # The exporter warns of its own internals.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                input_names=[PIXELS],
                output_names=graph.output_names(),
                dynamic_shapes=({0: _N_IMAGES},),
                opset_version=_OPSET,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(
            f"the backbone {type(graph.model).__name__} cannot be exported to ONNX: {error}"
        ) from error
    return program.model_proto  # type: ignore[union-attr]


# The check


def _stored(sample: Mapping[str, RowSample]) -> dict[str, np.ndarray]:
    return {space: rows.rows for space, rows in sample.items()}


@torch.inference_mode()
def _verify_densities(detector: Any, graph: DetectorGraph) -> None:
    """Compare the graph's densities with the detector's, on features of the images of the fit."""
    summary = detector._fit_summary
    for sample in () if summary is None else (summary.learned, summary.held_out):
        features = _stored(sample)
        if not features or not len(next(iter(features.values()))):
            continue
        expected = sum_spaces(detector._score([features]))
        found = graph.score_features(features)
        differences = abs(found - expected)
        if not (differences <= _TOLERANCE * spread_of(detector)).all():
            raise ValueError(
                f"the graph gives images of the fit other scores than the detector, by up to "
                f"{differences.max():.3g}: a density in it cannot be written as a graph"
            )


def _near_the_threshold(
    graph: DetectorGraph, preprocessing: Preprocessing, spread: float
) -> torch.Tensor:
    """Images that score as normal ones do: grey ones, changed until they do.

    The images of the fit are not kept. The scores of noise are so far off that float32 rounds them
    by more than what normal images differ by.
    """
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    black, white = (0 - mean) / std, (1 - mean) / std
    n = len(_LEVELS)
    noise = torch.randn(n, 3, *preprocessing.image_size, generator=torch.Generator().manual_seed(1))
    images = (black + white) / 2 + 0.05 * noise * (white - black)
    targets = float(graph.offset) + spread * torch.tensor(_LEVELS, dtype=torch.float64)
    best, nearest = images, torch.full((n,), math.inf, dtype=torch.float64)
    step = torch.full((n, 1, 1, 1), 0.02)
    for _ in range(_MOST_STEPS):
        try:
            # What a network of one's own warns of here is not about the detector.
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                images = images.detach().requires_grad_()
                distance = (graph(images)[0] - targets).abs()
                (slope,) = torch.autograd.grad(distance.sum(), images)
        except RuntimeError:  # it has no derivative
            break
        distance = distance.detach()
        is_nearer = distance < nearest
        best = torch.where(is_nearer[:, None, None, None], images.detach(), best)
        nearest = torch.where(is_nearer, distance, nearest)
        if not torch.isfinite(slope).all() or (nearest <= spread).all():
            break
        # From the nearest so far, in steps that shrink where they lead too far.
        step = torch.where(is_nearer[:, None, None, None], step * 1.1, step / 2)
        scale = slope.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-30)
        images = best - step * (white - black) * (slope / scale).sign()
        images = torch.minimum(torch.maximum(images, black), white)
    return best.detach()


@torch.inference_mode()
def _verify(proto: Any, graph: DetectorGraph, images: torch.Tensor, spread: float) -> None:
    """Compare the export with torch, on batches of other sizes than the exporter traced."""
    expected = dict(zip(graph.output_names(), map(to_numpy, graph(images)), strict=True))
    name = type(graph.model).__name__
    try:
        session = _session(proto)
        names = graph.output_names()
        found = dict(zip(names, session.run(names, {PIXELS: images.numpy()}), strict=True))
    except Exception as error:  # the runtime has an error class for each cause
        raise ValueError(
            f"the backbone {name} cannot be run once it is exported to ONNX: {error}"
        ) from error
    offset = float(graph.offset)
    tolerance = _TOLERANCE * spread + _ROUNDING * abs(expected["score"] - offset)
    problem = None
    if not _agree(found["score"], expected["score"], tolerance):
        problem = "scores"
    elif not _agree(found["decision"], found["score"] - offset, 1e-6 * tolerance):
        problem = "decisions"
    elif "p_value" in found and not _agree(found["p_value"], graph.p_values_of(found["score"]), 0):
        problem = "p-values"
    elif MAP in found and not _agree(
        found[MAP], expected[MAP], _MAP_TOLERANCE * (1 + abs(expected[MAP]))
    ):
        problem = "maps"
    if problem is not None:
        raise ValueError(
            f"the backbone {name} gives other {problem} once it is exported to ONNX: scores "
            f"{found['score'].tolist()} in place of {expected['score'].tolist()}, where those of "
            f"normal images have a standard deviation of {spread:.3g}. Its output depends on pixel "
            "values or batch size in a way the exporter cannot trace."
        )


def _agree(found: np.ndarray, expected: np.ndarray, tolerance: Any) -> bool:
    return found.shape == expected.shape and bool((abs(found - expected) <= tolerance).all())


def _values(
    detector: Any, teacher: Teacher, graph: DetectorGraph, method: str | None
) -> dict[str, Any]:
    """The metadata of the file."""
    backbone, known = detector.backbone, detector.calibration_scores_
    layout = detector._normal_patches.layout if method is not None else None
    shape: Sequence[int] | None = detector.image_shape
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions("onnx", "onnxscript", "onnxruntime"),
        "backbone": backbone if isinstance(backbone, str) else type(backbone).__name__,
        "backbone_fingerprint": detector.features_.backbone_fingerprint_,
        "preprocessing": asdict(teacher.preprocessing),
        "image_shape": None if shape is None else [int(side) for side in shape],
        "threshold": float(detector.offset_),
        "false_alarm_rate": detector.contamination_,
        "n_calibrating": 0 if known is None else len(known),
        "map_method": method,
        "quantization": None,
        "noise": None,
        "outputs": {
            name: _MEANING[name].format(**asdict(layout) if layout else {})
            for name in graph.output_names()
        },
        "fixtures": describe_fixtures(detector._fixtures or Fixtures.record(detector)),
    }
