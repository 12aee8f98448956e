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
    "has_backbone": bool,
    "preprocessing": dict,
    "n_images": int,
    "n_images_held_out": int,
    "threshold": float,
    "false_alarm_rate": (float, type(None)),
    "spaces": list,
    "densities": dict,
    "blocks": list,
    "student": (str, type(None)),
    "history": list,
    "parameters": dict,
    "changed_parameters": list,
}


def make_card(detector: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The card of a detector, from the values that its file will hold."""
    features, parameters = values["features"], values["parameters"]
    distillation = values.get("distillation", {})
    defaults = type(detector)().get_params(deep=False)
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "backbone": parameters["backbone"],
        "backbone_fingerprint": features["fingerprint"],
        "has_backbone": features["has_backbone"],
        "preprocessing": features["preprocessing"],
        "n_images": values["n_samples_fit"],
        "n_images_held_out": values["n_held_out"],
        "threshold": values["offset"],
        "false_alarm_rate": values.get("false_alarm_rate", [None])[0],
        "spaces": sorted(values["density"]),
        "densities": {space: part["class"] for space, part in values["density"].items()},
        "blocks": distillation.get("block_indices", []),
        "student": distillation.get("fitted_student", {}).get("class"),
        "history": distillation.get("history", []),
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
        ``backbone_fingerprint``, ``has_backbone``, ``preprocessing``, ``n_images``,
        ``n_images_held_out``, ``threshold``,
        ``false_alarm_rate`` (of the threshold; None in formats 1 and 2), ``spaces``,
        ``densities``, ``blocks``, ``student``, ``history`` (losses; null after a student has
        stopped), ``parameters`` and ``changed_parameters`` (names of those that differ from
        their defaults).

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
