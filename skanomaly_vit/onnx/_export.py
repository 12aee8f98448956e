"""Export of a fitted detector to an ONNX file."""

from __future__ import annotations

import copy
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

from skanomaly_vit._backbone.block_calls import to_numpy
from skanomaly_vit._backbone.patches import FEATURES, METHODS
from skanomaly_vit._backbone.teacher import Teacher, require_grid
from skanomaly_vit._utils.files import check_target
from skanomaly_vit._utils.provenance import versions
from skanomaly_vit._utils.settings import with_own_settings
from skanomaly_vit.density._row_sample import RowSample
from skanomaly_vit.detector import TransformalyDetector
from skanomaly_vit.detector._fixtures import Fixtures, spread_of
from skanomaly_vit.detector._fusion import sum_spaces
from skanomaly_vit.onnx._check_images import check_images
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
from skanomaly_vit.onnx._framing import describe_framing
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
    takes_regions: bool = False,
) -> Path:
    """Write a fitted detector into an ONNX file; see `skanomaly_vit.onnx.export_onnx`."""
    check_quantize(quantize, calibration_images, calibration_groups)
    if not isinstance(detector, TransformalyDetector):
        raise ValueError(
            f"only a TransformalyDetector can be exported, not a {type(detector).__name__}; pass "
            "the detector inside a pipeline or a search"
        )
    check_is_fitted(detector)
    if detector.tile_grid_ is not None:
        raise ValueError(
            "the detector has densities of places (tile_density='position'), and the graph of an "
            "ONNX file does not know the place of a tile; keep the .skanomaly file, or fit with "
            "tile_density='shared'"
        )
    takes_regions = takes_regions or not detector._fitted_framing.counts_all
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package)
    target = check_target(path, "model.onnx")
    teacher = detector._held_teacher()
    method = _map_method(detector, map_method)
    if takes_regions:
        require_grid(teacher.grid)
    if quantize is not None:
        _require_float32(teacher)
        detector = calibrated_anew(detector, calibration_images, calibration_groups)
    graph = _graph_of(detector, teacher, method, takes_regions)
    _require_size(graph)
    _verify_densities(detector, graph)
    spread = spread_of(detector)
    images = check_images(graph, teacher.preprocessing, spread, detector._fitted_framing.roi)
    proto = _export(graph, images[-2:])
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


def _graph_of(
    detector: Any, teacher: Teacher, method: str | None, takes_regions: bool
) -> DetectorGraph:
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
        takes_regions=takes_regions,
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
        "framing": describe_framing(detector._fitted_framing),
        "takes_regions": graph.takes_regions,
        "outputs": {
            name: _MEANING[name].format(**asdict(layout) if layout else {})
            for name in graph.output_names()
        },
        "fixtures": describe_fixtures(detector._fixtures or Fixtures.record(detector)),
    }
