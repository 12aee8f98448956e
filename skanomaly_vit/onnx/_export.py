"""Export of a fitted detector to an ONNX file."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skanomaly_vit._backbone.patches import FEATURES, METHODS
from skanomaly_vit._backbone.teacher import Teacher
from skanomaly_vit._utils.files import check_target
from skanomaly_vit._utils.provenance import versions
from skanomaly_vit._utils.settings import with_own_settings
from skanomaly_vit.detector import TransformalyDetector
from skanomaly_vit.onnx._file import LARGEST_FILE, MAP, PIXELS, require, write
from skanomaly_vit.onnx._graph import DetectorGraph

# The lowest that the exporters of all supported torch versions write; runtimes since 2023 read it.
_OPSET = 18

#: Largest accepted difference from torch, relative to the score.
_TOLERANCE = 1e-4

_MEANING = {
    "score": "float64 (n,): score_samples, higher = more normal",
    "decision": "float64 (n,): score - threshold, negative = anomaly",
    "p_value": "float64 (n,): share of normal images that are as abnormal, small = abnormal",
    MAP: "float32 (n, {rows}, {columns}): a value a patch, higher = more abnormal",
}


@with_own_settings
def write_onnx(detector: Any, path: str | os.PathLike[str], map_method: str | None) -> Path:
    """Write a fitted detector into an ONNX file; see `skanomaly_vit.onnx.export_onnx`."""
    if not isinstance(detector, TransformalyDetector):
        raise ValueError(
            f"only a TransformalyDetector can be exported, not a {type(detector).__name__}; pass "
            "the detector inside a pipeline or a search"
        )
    check_is_fitted(detector)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package)
    target = check_target(path, "model.onnx")
    teacher = detector._held_teacher()
    method = _map_method(detector, map_method)
    graph = _graph_of(detector, teacher, method)
    _require_size(graph)
    height, width = teacher.preprocessing.image_size
    # Noise, since the exporter may take values that all images share for constants.
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(3, 3, height, width, generator=generator)
    proto = _export(graph, example[:2])
    _verify(proto, graph, example)
    write(target, proto, _values(detector, teacher, graph, method))
    return target


def _map_method(detector: Any, method: str | None) -> str | None:
    """Source of the maps; None if the detector has no maps and the caller asked for none."""
    if method not in (None, *METHODS):
        raise ValueError(f"map_method={method!r} is not one of {METHODS}, or None")
    if detector._normal_patches is None and method is None:
        return None
    return detector._map_collector(method)._method


def _graph_of(detector: Any, teacher: Teacher, method: str | None) -> DetectorGraph:
    if teacher.dtype != torch.float32:
        raise ValueError(
            f"the backbone is of {teacher.dtype}, for which ONNX Runtime has no convolution on "
            "a CPU; fit with one of torch.float32"
        )
    students = {}
    if detector.distillation_ is not None:
        parts = detector.distillation_
        students = dict(zip(parts.block_indices_, parts.students_, strict=True))
    graph = DetectorGraph(
        teacher.copy_model(),
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


def _require_size(graph: nn.Module) -> None:
    n_bytes = sum(value.nbytes for value in graph.state_dict().values())
    if n_bytes > LARGEST_FILE - 2**24:  # leaves room for the graph itself
        raise ValueError(
            f"the model has {n_bytes} bytes of weights; an ONNX file of one piece holds 2 GiB. "
            "Fit with a smaller backbone."
        )


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
                dynamic_shapes=({0: torch.export.Dim("n")},),
                opset_version=_OPSET,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(
            f"the backbone {type(graph.model).__name__} cannot be exported to ONNX: {error}"
        ) from error
    return program.model_proto  # type: ignore[union-attr]


@torch.inference_mode()
def _verify(proto: Any, graph: DetectorGraph, images: torch.Tensor) -> None:
    """Compare the export with torch, on a batch of another size than the exporter traced."""
    expected = graph(images)[0].numpy()
    name = type(graph.model).__name__
    try:
        session = require("onnxruntime").InferenceSession(
            proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        found = session.run(["score"], {PIXELS: images.numpy()})[0]
    except Exception as error:  # the runtime has an error class for each cause
        raise ValueError(
            f"the backbone {name} cannot be run once it is exported to ONNX: {error}"
        ) from error
    if not np.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
        raise ValueError(
            f"the backbone {name} gives other scores once it is exported to ONNX: "
            f"{found.tolist()} in place of {expected.tolist()}. Its output depends on pixel values "
            "or batch size in a way the exporter cannot trace."
        )


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
        "n_calibrating": 0 if known is None else len(known),
        "map_method": method,
        "outputs": {
            name: _MEANING[name].format(**asdict(layout) if layout else {})
            for name in graph.output_names()
        },
    }
