"""Model cards: summaries of model files, read without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from skanomaly_vit._utils.provenance import versions
from skanomaly_vit.persistence._container import read_values, refusal

#: Key -> type of each entry of a card.
_CONTENT: dict[str, type | tuple[type, ...]] = {
    "created": str,
    "versions": dict,
    "backbone": str,
    "backbone_fingerprint": str,
    "dtype": (str, type(None)),
    "has_backbone": bool,
    "preprocessing": dict,
    "region_share": (float, type(None)),
    "n_images": int,
    "n_images_held_out": int,
    "threshold": float,
    "false_alarm_rate": (float, type(None)),
    "threshold_confidence": (float, type(None)),
    "n_calibrating": (int, type(None)),
    "n_calibration_units": (int, type(None)),
    "false_alarm_bound": (float, type(None)),
    "false_alarm_bound_confidence": (float, type(None)),
    "spaces": list,
    "densities": dict,
    "blocks": list,
    "student": (str, type(None)),
    "history": list,
    "updates": (list, type(None)),
    "parameters": dict,
    "changed_parameters": list,
}


def make_card(detector: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The card of a detector, from the values that its file will hold."""
    features, parameters = values["features"], values["parameters"]
    distillation = values.get("distillation", {})
    certificate = detector._certificate()
    defaults = type(detector)().get_params(deep=False)
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "backbone": parameters["backbone"],
        "backbone_fingerprint": features["fingerprint"],
        "dtype": features["dtype"],
        "has_backbone": features["has_backbone"],
        "preprocessing": features["preprocessing"],
        "region_share": None if detector.roi_ is None else float(detector.roi_.mean()),
        "n_images": values["n_samples_fit"],
        "n_images_held_out": values["n_held_out"],
        "threshold": values["offset"],
        "false_alarm_rate": values.get("false_alarm_rate", [None])[0],
        "threshold_confidence": values.get("threshold_confidence"),
        "n_calibrating": certificate.n_images,
        "n_calibration_units": certificate.n_units,
        "false_alarm_bound": certificate.bound,
        "false_alarm_bound_confidence": certificate.bound_confidence,
        "spaces": sorted(values["density"]),
        "densities": {space: part["class"] for space, part in values["density"].items()},
        "blocks": distillation.get("block_indices", []),
        "student": distillation.get("fitted_student", {}).get("class"),
        "history": distillation.get("history", []),
        "updates": values.get("updates", []),
        "parameters": parameters,
        "changed_parameters": [
            name for name, value in parameters.items() if value != defaults[name]
        ],
    }


def model_card(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the card of a model file, without torch and without its backbone.

    Parameters
    ----------
    path : str or path-like
        A file that `TransformalyDetector.save` wrote. `model_card` checks the whole file.

    Returns
    -------
    card : dict
        Values that JSON has: ``path``, ``file_size`` (bytes), ``created`` (ISO 8601),
        ``versions`` (of the packages that wrote it), ``backbone``,
        ``backbone_fingerprint``, ``dtype`` (floating type of the backbone; None in older files),
        ``has_backbone``, ``preprocessing``, ``region_share`` (share of the pixels that count; None
        without a region of interest), ``n_images``, ``n_images_held_out``, ``threshold``,
        ``false_alarm_rate`` (of the threshold; None in formats 1 and 2),
        ``threshold_confidence`` (None if the rate holds on average), ``n_calibrating``,
        ``n_calibration_units`` (groups), ``false_alarm_bound`` and
        ``false_alarm_bound_confidence`` (see `skanomaly_vit.calibration.threshold_bound`; these
        five are None in older files), ``spaces``,
        ``densities``, ``blocks``, ``student``, ``history`` (losses; null after a student has
        stopped), ``updates`` (what was added since the fit: a list of objects with ``date``,
        ``what`` (``"partial_fit"``, ``"calibrate"``, or ``"defects"`` that were put beside the
        model), ``n_images``, ``n_calibrating`` and ``digest``, the SHA-256 of their contents in any
        order; None in older files), ``parameters`` and ``changed_parameters`` (names of those that
        differ from their defaults).

    Raises
    ------
    ModelFileError
        If the file is damaged, newer, or of another kind.
    """
    name = os.path.expanduser(os.fsdecode(path))
    values = read_values(name)
    card = values.get("card")
    if not isinstance(card, dict) or any(
        not isinstance(card.get(key), kind) for key, kind in _CONTENT.items()
    ):
        raise refusal(name, "it has no model card")
    return {
        "path": name,
        "file_size": os.path.getsize(name),
        **{key: card.get(key) for key in _CONTENT},
    }
