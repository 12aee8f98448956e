"""Saving and loading of fitted detectors."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from skanomaly_vit._backbone.discrepancy import DISCREPANCY
from skanomaly_vit._backbone.image_estimator import share_out
from skanomaly_vit._backbone.loading import load_backbone
from skanomaly_vit._backbone.precision import cast
from skanomaly_vit._backbone.teacher import Teacher, positions_of
from skanomaly_vit._backbone.views import parse_views
from skanomaly_vit._images.preprocessing import Preprocessing
from skanomaly_vit._utils.files import check_target
from skanomaly_vit.density._saving import build_density, describe_density
from skanomaly_vit.detector._fit_summary import read_summary, write_summary
from skanomaly_vit.detector._fixtures import Fixtures
from skanomaly_vit.detector._old_formats import upgrade
from skanomaly_vit.detector._recipes import describe_recipe, resolve
from skanomaly_vit.detector._saved_densities import read_any_scorer, write_any_scorer
from skanomaly_vit.detector._saved_fixtures import read_fixtures, write_fixtures
from skanomaly_vit.detector._saved_framing import describe_roi, read_framing, write_framing
from skanomaly_vit.detector._saved_patches import read_patches, write_patches
from skanomaly_vit.detector._update_log import read_updates, write_updates
from skanomaly_vit.distillation._saving import (
    build_student,
    describe_student,
    read_distillation,
    write_distillation,
)
from skanomaly_vit.features import ViTFeatures
from skanomaly_vit.persistence._card import make_card
from skanomaly_vit.persistence._container import read, refusal, write
from skanomaly_vit.persistence._record import StateRecord, name_of

# torch and timm raise any of these for parameters that fit no network.
_FAILURES = (
    ValueError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    MemoryError,
)

#: Largest side in pixels, so that a network of a forged size cannot fill the memory.
LARGEST_SIDE = 8192

#: Fitted attributes that a file holds.
_ATTRIBUTES = {
    "features_",
    "dtype_",
    "roi_",
    "tile_grid_",
    "distillation_",
    "density_",
    "fusion_",
    "fusion_weights_",
    "calibration_scores_",
    "offset_",
    "validation_indices_",
    "n_samples_fit_",
    "recipe_",
    "contamination_",
    "calibration_units_",
    "threshold_confidence_",
    "n_features_in_",
    "feature_names_in_",
}


def save_detector(detector: Any, path: str | os.PathLike[str]) -> None:
    """Write a fitted detector to one file; see `TransformalyDetector.save`.

    Parameters
    ----------
    detector : TransformalyDetector
        Fitted.
    path : str or path-like
        The file, in an existing folder. It replaces an older one.
    """
    check_is_fitted(detector)
    _require_savable(detector)
    target = check_target(path, "model.skanomaly")
    record = StateRecord({}, {}, "detector")
    record.write_parameters(
        detector,
        {"density": describe_density, "student": describe_student, "roi": describe_roi},
    )
    write_framing(record, detector._fitted_framing)
    _write_features(record, detector)
    if detector.distillation_ is not None:
        write_distillation(record.write_part("distillation"), detector.distillation_)
        _write_choosing(record, detector)
    if detector.tile_grid_ is not None:
        record.write(tile_grid=list(detector.tile_grid_))
    for space, scorer in detector.density_.items():
        write_any_scorer(record.write_part("density").write_part(space), scorer)
    write_patches(record, detector._normal_patches)
    write_summary(record, detector._fit_summary)
    record.write(
        offset=float(detector.offset_),
        fusion={space: list(map(float, values)) for space, values in detector.fusion_.items()},
        n_samples_fit=int(detector.n_samples_fit_),
        n_held_out=len(detector.validation_indices_),
        recipe={
            "views": list(detector.recipe_.views),
            "pooling": detector.recipe_.pooling,
            "pca_variance": detector.recipe_.pca_variance,
            "fusion": detector.recipe_.fusion,
            "density": {s: describe_density(d) for s, d in detector.recipe_.density.items()},
        },
    )
    if detector.contamination_ is not None:
        rates = (detector.contamination_, detector._contamination_then)
        record.write(false_alarm_rate=[float(rate) for rate in rates])
    record.write_tensor("validation_indices", detector.validation_indices_.astype(np.int64))
    if detector.calibration_scores_ is not None:
        record.write(n_calibrating=len(detector.calibration_scores_))
        record.write_tensor("calibration_scores", detector.calibration_scores_)
    if detector._calibration_ids is not None:
        record.write(n_calibration_units=len(np.unique(detector._calibration_ids)))
        record.write_tensor("calibration_units", detector._calibration_ids)
    if detector._is_cross_calibrated:
        record.write(cross_calibrated=True)
    if detector.threshold_confidence_ is not None:
        record.write(threshold_confidence=float(detector.threshold_confidence_))
    if hasattr(detector, "n_features_in_"):
        record.write(n_features_in=int(detector.n_features_in_))
    if hasattr(detector, "feature_names_in_"):
        record.write(feature_names_in=[str(name) for name in detector.feature_names_in_])
    if set(detector.fusion_weights_.values()) != {1.0}:
        record.write(fusion_weights=detector.fusion_weights_)
    write_updates(record, detector._updates)
    if detector._fixtures is None:
        detector._fixtures = Fixtures.record(detector)
    write_fixtures(record, detector._fixtures)
    card = make_card(detector, record.values)
    write(target, {"card": card, "detector": record.values}, record.tensors)


def load_detector(detector_class: type[Any], path: str | os.PathLike[str]) -> Any:
    """Read a detector from a file; see `TransformalyDetector.load`.

    Parameters
    ----------
    detector_class : type
        `TransformalyDetector`, or a subclass.
    path : str or path-like
        A file that `save_detector` wrote.

    Returns
    -------
    detector : TransformalyDetector
        Fitted.

    Raises
    ------
    ModelFileError
        If the file is no model, or not a complete one.
    """
    name = os.path.expanduser(os.fsdecode(path))
    values, tensors, version = read(name)
    try:
        upgrade(values, tensors, version)
        root = StateRecord(values, tensors, "model")
        root.read("card", dict)
        record = root.read_part("detector")
        record.name = "detector"
        detector = _build(detector_class, record)
        for part in (record, root):
            part.close()
        if tensors:
            raise ValueError(f"it holds the unknown tensor {next(iter(tensors))!r}")
    except _FAILURES as error:
        raise refusal(name, str(error) or type(error).__name__) from error
    return detector


def _require_savable(detector: Any) -> None:
    if isinstance(detector.backbone, torch.nn.Module):
        raise ValueError(
            f"backbone=<{type(detector.backbone).__name__}> is a network, and a model file cannot "
            "hold its code. Fit with the name of a timm model, and with pretrained='its weights"
            ".safetensors' if they are your own; or use joblib.dump after reading SECURITY.md."
        )
    _require_image_size(detector)
    _require_image_size(detector.features_)
    fitted = {name for name in vars(detector) if name.endswith("_") and not name.startswith("_")}
    if unknown := sorted(fitted - _ATTRIBUTES):
        raise ValueError(
            f"the detector has the attribute {unknown[0]}, which no model file holds; delete it, "
            "or use joblib.dump after reading SECURITY.md"
        )


def _require_image_size(estimator: Any) -> None:
    sides = np.ravel([estimator.image_size or 1])
    if sides.max() > LARGEST_SIDE:
        raise ValueError(
            f"image_size={estimator.image_size!r} is too large for a model file: a side has at "
            f"most {LARGEST_SIDE} pixels"
        )


def _build(detector_class: type[Any], record: StateRecord) -> Any:
    detector = record.read_parameters(
        detector_class, {"density": build_density, "student": build_student}
    )
    if not isinstance(detector.backbone, str):
        raise ValueError("its backbone has no name")
    features, blueprint = _read_features(record)
    distillation = None
    if "distillation" in record.values:
        part = record.read_part("distillation")
        distillation = read_distillation(part, blueprint)
        for name in ("_teacher", "_teacher_seed", "_positions", "backbone_fingerprint_", "dtype_"):
            setattr(distillation, name, getattr(features, name))
    blocks = distillation.block_indices_ if distillation else []
    n_features = {**features._n_features(), DISCREPANCY: len(blocks)}
    detector._fitted_framing = read_framing(record)
    detector.tile_grid_ = _read_grid(record)
    if detector.tile_grid_ is not None and detector._fitted_framing.tiles is None:
        raise ValueError("it has densities of tiles, and no tiles")
    density = _read_densities(record, n_features, detector.tile_grid_)
    fusion = _read_fusion(record, density)
    detector._fit_summary = read_summary(record, n_features)
    detector._updates = read_updates(record)
    n_samples, n_held_out = record.read_int("n_samples_fit", 1), record.read_int("n_held_out")
    held_out = record.read_array("validation_indices", n_held_out, dtype=np.int64)
    if ((held_out < 0) | (held_out >= n_samples)).any():
        raise ValueError("its held-out images are not among the images of its fit")
    detector.features_, detector.distillation_ = features, distillation
    detector.dtype_ = features.dtype_
    detector.roi_ = detector._fitted_framing.roi
    if detector.roi is None:  # an array, of which the file holds the fitted form
        detector.roi = detector.roi_
    detector.density_, detector.fusion_ = density, fusion
    detector.fusion_weights_ = _read_weights(record, density)
    detector.offset_ = record.read_number("offset")
    detector.validation_indices_, detector.n_samples_fit_ = held_out, n_samples
    detector._set_calibration(None, None)
    detector.threshold_confidence_ = None
    detector._is_cross_calibrated = "cross_calibrated" in record.values and record.read(
        "cross_calibrated", bool
    )
    if "threshold_confidence" in record.values:
        detector.threshold_confidence_ = record.read_number("threshold_confidence", positive=True)
    if "n_calibrating" in record.values:
        n_calibrating = record.read_int("n_calibrating", 1)
        scores = record.read_array("calibration_scores", n_calibrating)
        detector._set_calibration(scores, _read_calibration_units(record, n_calibrating))
    detector.recipe_ = _read_recipe(record, detector)
    detector.contamination_, detector._contamination_then = _read_rates(record, detector)
    detector._normal_patches = read_patches(record, blocks)
    detector._fixtures = read_fixtures(record, len(density))
    if distillation is not None:
        distillation.validation_indices_ = _read_choosing(record, detector)
    if "n_features_in" in record.values:
        detector.n_features_in_ = record.read_int("n_features_in", 1)
    if "feature_names_in" in record.values:
        names = record.read_list("feature_names_in", str)
        if len(names) != getattr(detector, "n_features_in_", None):
            raise ValueError(f"it has {len(names)} column names, but another number of columns")
        detector.feature_names_in_ = np.asarray(names, dtype=object)
    return detector


def _read_calibration_units(record: StateRecord, n_calibrating: int) -> np.ndarray | None:
    if "n_calibration_units" not in record.values:  # in older files, if each image is a unit
        return None
    units = record.read_array("calibration_units", n_calibrating)
    if len(np.unique(units)) != record.read_int("n_calibration_units", 1):
        raise ValueError("its calibration has another number of units than it says")
    return units


def _read_recipe(record: StateRecord, detector: Any) -> Bunch:
    if "recipe" not in record.values:  # in files of formats 1 and 2
        return describe_recipe(resolve(detector), detector.density_, detector.distillation_)
    part = record.read_part("recipe")
    densities = part.read_part("density")
    found = {space: build_density(densities.read_part(space)) for space in detector.density_}
    densities.close()
    values = {
        "views": part.read_list("views", str),
        "pooling": part.read("pooling", (str, float)),
        "pca_variance": part.read("pca_variance", (float, type(None))),
        "fusion": part.read("fusion", str),
    }
    part.close()
    return describe_recipe(values, found, detector.distillation_)


def _read_rates(record: StateRecord, detector: Any) -> tuple[float | None, float]:
    """False-alarm rate of the threshold, and `contamination` when it was set."""
    if "false_alarm_rate" not in record.values:
        return float(detector.contamination), detector.contamination
    rates = record.read_list("false_alarm_rate", float)
    if len(rates) != 2 or not all(0 < rate < 1 for rate in rates):
        raise ValueError(f"{record.name}.false_alarm_rate is {rates}")
    return rates[0], rates[1]


def _choosing(detector: Any) -> np.ndarray:
    """Held-out images that choose students' epochs in a fit without groups."""
    chooses = detector.distillation_._student._chooses
    return share_out(detector.validation_indices_, None, chooses=chooses)[0]


def _write_choosing(record: StateRecord, detector: Any) -> None:
    """Write the images that chose students' epochs, unless the held-out ones imply them."""
    choosing = detector.distillation_.validation_indices_
    if not np.array_equal(choosing, _choosing(detector)):
        record.write(n_choosing=len(choosing))
        record.write_tensor("choosing_indices", choosing.astype(np.int64))


def _read_choosing(record: StateRecord, detector: Any) -> np.ndarray:
    held_out = detector.validation_indices_
    if "n_choosing" not in record.values:
        return _choosing(detector)
    choosing = record.read_array("choosing_indices", record.read_int("n_choosing"), dtype=np.int64)
    if not np.isin(choosing, held_out).all():
        raise ValueError("the images that chose its students' epochs were not held out")
    return choosing


def _write_features(record: StateRecord, detector: Any) -> None:
    features, part = detector.features_, record.write_part("features")
    teacher = features._held_teacher()
    part.write_parameters(features)
    part.write(
        n_features_out=[int(width) for width in features._widths],
        teacher_seed=int(features._teacher_seed),
        fingerprint=features.backbone_fingerprint_,
        dtype=features.dtype_,
        preprocessing=asdict(teacher.preprocessing),
        has_backbone=bool(detector.store_backbone),
    )
    positions = positions_of(teacher.model)
    if positions is not None:
        part.write(positions=[*positions.shape], positions_dtype=name_of(positions.dtype))
        part.write_tensor("positions", positions)
    if detector.store_backbone:
        backbone = part.write_part("backbone")
        for name, value in teacher.model.state_dict().items():
            backbone.write_tensor(name, value)


class _Blueprint:
    """Backbone of the architecture that its name states, with random weights, built on first use.

    Parameters
    ----------
    features : ViTFeatures
        Holds the parameters of the backbone.
    """

    def __init__(self, features: ViTFeatures) -> None:
        self._features = features
        self._model: torch.nn.Module | None = None

    @property
    def model(self) -> torch.nn.Module:
        """The network."""
        if self._model is None:
            model, _ = load_backbone(
                self._features.backbone,
                pretrained=False,
                image_size=self._features.image_size,
                seed=0,
            )
            self._model = cast(model, self._features.dtype_)
        return self._model

    def block(self, index: int) -> torch.nn.Module:
        """One of its blocks."""
        blocks: Any = self.model.blocks
        if index >= len(blocks):
            raise ValueError(
                f"it has a student of block {index}; the backbone has {len(blocks)} blocks"
            )
        return blocks[index]


def _read_features(record: StateRecord) -> tuple[ViTFeatures, _Blueprint]:
    part = record.read_part("features")
    features = part.read_parameters(ViTFeatures)
    _require_image_size(features)
    features._widths = part.read_list("n_features_out", int)
    if len(features._widths) != len(parse_views(features.views)) or min(features._widths) < 1:
        raise ValueError(f"{part.name}.n_features_out is {features._widths}")
    features._teacher_seed = part.read_int("teacher_seed")
    features.backbone_fingerprint_ = part.read("fingerprint", str)
    preprocessing = _read_preprocessing(part.read_part("preprocessing"))
    blueprint = _Blueprint(features)
    features._teacher, features._positions, dtype = None, None, torch.float32
    if "positions" in part.values:
        shape, dtype = part.read_list("positions", int), part.read_dtype("positions_dtype")
        features._positions = part.read_tensor("positions", *shape, dtype=dtype)
    features.dtype_ = name_of(dtype)
    if "dtype" in part.values:  # not in files of older versions
        features.dtype_ = name_of(part.read_dtype("dtype"))
        if features._positions is not None and features.dtype_ != name_of(dtype):
            raise ValueError(f"{part.name}.dtype is {features.dtype_}, its positions {dtype}")
    if part.read("has_backbone", bool):
        features._teacher = _read_teacher(part.read_part("backbone"), features, preprocessing)
    part.close()
    return features, blueprint


def _read_preprocessing(part: StateRecord) -> Preprocessing:
    size = part.read_list("image_size", int)
    mean, std = (part.read_list(name, float) for name in ("mean", "std"))
    if (len(size), len(mean), len(std)) != (2, 3, 3) or not np.isfinite([*mean, *std]).all():
        raise ValueError(f"{part.name} describes no preprocessing of RGB images")
    preprocessing = Preprocessing(
        image_size=(size[0], size[1]),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        interpolation=part.read("interpolation", str),
    )
    part.close()
    return preprocessing


def _read_teacher(
    part: StateRecord, features: ViTFeatures, preprocessing: Preprocessing
) -> Teacher:
    """Rebuild the backbone that a file holds."""
    model = _Blueprint(features).model
    state = {
        name: part.read_tensor(name, *value.shape, dtype=value.dtype)
        for name, value in model.state_dict().items()
    }
    part.close()
    model.load_state_dict(state)
    teacher = Teacher(model, preprocessing, torch.device("cpu"), readout=features._readout())
    if not teacher.has_fingerprint(features.backbone_fingerprint_):
        raise ValueError(
            f"the backbone in it has the fingerprint {teacher.fingerprint[:12]}..., not "
            f"{features.backbone_fingerprint_[:12]}... as the file states"
        )
    return teacher


def _read_grid(record: StateRecord) -> tuple[int, int] | None:
    if "tile_grid" not in record.values:
        return None
    grid = record.read_list("tile_grid", int)
    if len(grid) != 2 or min(grid) < 1:
        raise ValueError(f"{record.name}.tile_grid is {grid}, not a number of rows and columns")
    return grid[0], grid[1]


def _read_densities(
    record: StateRecord, n_features: dict[str, int], grid: tuple[int, int] | None
) -> dict[str, Any]:
    part, density = record.read_part("density"), {}
    for space in list(part.values):
        if space not in n_features:
            raise ValueError(f"{part.name} names the unknown space {space!r}")
        density[space], n_taken = read_any_scorer(part.read_part(space), grid)
        if n_taken != n_features[space]:
            raise ValueError(
                f"its density of the {space} space takes {n_taken} features; the space "
                f"has {n_features[space]}"
            )
    if not density:
        raise ValueError("it has no density")
    if grid is not None and len({tuple(scorer.densities) for scorer in density.values()}) > 1:
        raise ValueError("its densities are of other places in each space")
    return density


def _read_fusion(record: StateRecord, density: dict[str, Any]) -> dict[str, tuple[float, float]]:
    part, fusion = record.read_part("fusion"), {}
    for space in density:
        values = part.read_list(space, float)
        if len(values) != 2 or not np.isfinite(values).all() or values[1] <= 0:
            raise ValueError(f"{part.name}.{space} is {values}, not a location and a scale")
        fusion[space] = (values[0], values[1])
    part.close()
    return fusion


def _read_weights(record: StateRecord, density: dict[str, Any]) -> dict[str, float]:
    if "fusion_weights" not in record.values:
        return dict.fromkeys(density, 1.0)
    part = record.read_part("fusion_weights")
    weights = {space: part.read_number(space, positive=True) for space in density}
    part.close()
    return weights
