"""Bring a detector to a machine: its device, its backbone."""

from __future__ import annotations

from typing import Any

from skanomaly_vit._backbone.teacher import resolve_device
from skanomaly_vit.detector import TransformalyDetector
from skanomaly_vit.exceptions import WeightsUnavailableError


class MachineError(RuntimeError):
    """A detector cannot run on this machine: other weights, no weights, no such device."""


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
        detector._held_teacher()
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        # torch asserts that it was compiled for a device, and has RuntimeErrors for missing ones.
        raise MachineError(str(error)) from error
