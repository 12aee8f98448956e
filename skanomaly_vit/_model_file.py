"""A fitted detector in a file: write it whole, load it, say what it is, bring it to a machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

import joblib
import torch
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from skanomaly_vit import __version__
from skanomaly_vit._backbones import WeightsUnavailableError
from skanomaly_vit._teacher import resolve_device
from skanomaly_vit.detector import TransformalyDetector

#: Parameters that are about a machine, not about what was learned.
MACHINE_DEFAULTS: dict[str, Any] = {"device": None, "n_jobs": None, "memory": None, "verbose": 0}

_PACKAGES = ("torch", "timm", "scikit-learn", "numpy", "pillow")


class ModelFileError(ValueError):
    """A file does not hold a fitted detector."""


class MachineError(RuntimeError):
    """A detector cannot run on this machine: other weights, no weights, no such device."""


def save_model(detector: TransformalyDetector, path: str) -> None:
    """Write a detector so that at no time there is half of one under `path`."""
    target = os.path.realpath(path)  # a link stays a link
    folder, name = os.path.split(target)
    part = os.path.join(folder, f".{name}.{os.getpid()}.part")
    try:
        # Not tempfile: its files are for their owner alone.
        with open(part, "xb") as stream:
            joblib.dump(detector, stream)
        os.replace(part, target)
    finally:
        if os.path.exists(part):
            os.unlink(part)


def load_model(path: str) -> TransformalyDetector:
    """Load a fitted detector; unpickling can run code.

    Raises
    ------
    ModelFileError
        If the file holds anything else.
    """
    expected = "expected a model that `skanomaly fit`, or joblib.dump of a fitted detector, wrote"
    try:
        loaded = joblib.load(path)
    except Exception as error:  # what an unpickler raises for other bytes is anything
        raise ModelFileError(
            f"{path!r} cannot be loaded ({type(error).__name__}: {error}); {expected}"
        ) from error
    if not isinstance(loaded, TransformalyDetector):
        raise ModelFileError(f"{path!r} holds {type(loaded).__name__}; {expected}")
    try:
        check_is_fitted(loaded)
    except NotFittedError as error:
        raise ModelFileError(f"{path!r} holds a detector that is not fitted; {expected}") from error
    return loaded


def set_machine(detector: TransformalyDetector, **values: Any) -> None:
    """Set parameters that are about a machine, on a fitted detector and its fitted parts."""
    for part in (detector, detector.features_, detector.distillation_):
        if part is not None:
            known = part.get_params(deep=False).keys()
            part.set_params(**{name: value for name, value in values.items() if name in known})


def try_backbone(detector: TransformalyDetector) -> None:
    """See that the backbone of a detector to be fitted can be had, and fits its parameters.

    Raises
    ------
    MachineError
        If the weights or the device are not there.
    ValueError
        If a parameter does not fit.
    """
    try:
        resolve_device(detector.device)
    except ValueError as error:
        raise MachineError(str(error)) from error
    try:
        detector._load_teacher(seed=0).last_blocks(detector.n_blocks)
    except (WeightsUnavailableError, RuntimeError, AssertionError) as error:
        raise MachineError(str(error)) from error


def bring_to_machine(detector: TransformalyDetector) -> None:
    """Find the backbone, and move it to the device, before any image is read.

    Raises
    ------
    MachineError
        If that cannot be done here.
    """
    try:
        detector.features_._held_teacher()
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        # torch asserts that it was compiled for a device, and has RuntimeErrors for missing ones.
        raise MachineError(str(error)) from error


def describe_model(detector: TransformalyDetector, path: str) -> dict[str, Any]:
    """What a model is, in values that JSON has."""
    defaults = TransformalyDetector().get_params(deep=False)
    parameters = detector.get_params(deep=False)
    fitted_on = getattr(detector, "n_samples_fit_", None)
    return {
        "path": path,
        "file_size": os.path.getsize(path),
        "backbone": _plain(detector.backbone),
        "backbone_fingerprint": detector.features_.backbone_fingerprint_,
        "n_images": fitted_on,
        "n_images_held_out": len(detector.validation_indices_),
        "threshold": detector.offset_,
        "spaces": sorted(detector.density_),
        "blocks": list(detector.distillation_.block_indices_) if detector.distillation_ else [],
        "parameters": {name: _plain(value) for name, value in parameters.items()},
        "changed_parameters": [
            name for name, value in parameters.items() if _plain(value) != _plain(defaults[name])
        ],
        "versions_here": {
            "skanomaly-vit": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
    }


def _plain(value: Any) -> Any:
    """A parameter as JSON has it; an object as its name or its text."""
    if isinstance(value, torch.nn.Module):
        return f"<{type(value).__name__}>"
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
