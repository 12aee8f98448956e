"""Device and backbone of a detector on this machine."""

from __future__ import annotations

from typing import Any

from skanomaly_vit._backbone.devices import resolve_device
from skanomaly_vit.detector import TransformalyDetector
from skanomaly_vit.detector._recipes import readout_of, resolve
from skanomaly_vit.exceptions import WeightsUnavailableError


class MachineError(RuntimeError):
    """A detector cannot run on this machine: other weights, no weights, no such device."""


def set_machine(detector: TransformalyDetector, **values: Any) -> None:
    """Set the machine parameters of a fitted detector and its fitted parts."""
    for part in (detector, detector.features_, detector.distillation_):
        if part is not None:
            known = part.get_params(deep=False).keys()
            part.set_params(**{name: value for name, value in values.items() if name in known})


def try_backbone(detector: TransformalyDetector) -> None:
    """Check, before a fit, that the backbone is available and suits the parameters.

    Raises
    ------
    MachineError
        If the weights or the device are unavailable.
    ValueError
        If a parameter does not suit the backbone.
    """
    try:
        resolve_device(detector.device)
    except ValueError as error:
        raise MachineError(str(error)) from error
    try:
        values = resolve(detector)
        teacher = detector._load_teacher(seed=0).reading(readout_of(values))
        teacher.last_blocks(values["n_blocks"])
    except (WeightsUnavailableError, RuntimeError, AssertionError) as error:
        raise MachineError(str(error)) from error


def bring_to_machine(detector: TransformalyDetector) -> None:
    """Load the backbone onto the device, before any image is read.

    Raises
    ------
    MachineError
        If this machine cannot do that.
    """
    try:
        detector._held_teacher()
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        # torch asserts that it is compiled for a device, and raises RuntimeError for a missing one.
        raise MachineError(str(error)) from error
