"""Upgrades of model files from older formats."""

from __future__ import annotations

from typing import Any

#: Parameters of formats 1 and 2 that are now parameters of `BlockStudent`.
_BLOCK_PARAMETERS = ("max_epochs", "learning_rate", "learning_rate_schedule", "patience")

#: Values that "auto" stood for, in each recipe.
_AUTO: dict[str, dict[str, Any]] = {
    "default": {
        "student": "ridge",
        "max_epochs": 3,
        "learning_rate": 1e-3,
        "learning_rate_schedule": "one_cycle",
        "patience": 3,
    },
    "paper": {
        "student": "block",
        "max_epochs": 30,
        "learning_rate": 1e-4,
        "learning_rate_schedule": "constant",
        "patience": 30,
    },
}


def upgrade(values: dict[str, Any], tensors: dict[str, Any], version: int) -> None:
    """Upgrade a file of format `version` in place; missing values stay missing."""
    if version < 4:
        _upgrade_views(_part(values, "detector"), tensors)
    if version < 3:
        detector = _part(values, "detector")
        distillation = _part(detector, "distillation")
        for estimator in (detector, distillation):
            _upgrade_student(_part(estimator, "parameters"))
        if "kind" in distillation:
            distillation["fitted_student"] = _fitted_student(distillation)


def _upgrade_views(detector: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Name the only view of formats 1 to 3, which they call the pre-trained space."""
    old, new = "pretrained", "pooled"
    features = _part(detector, "features")
    _part(detector, "parameters").update(views=[new], pooling="mean")
    _part(features, "parameters").update(views=[new])
    _part(_part(detector, "distillation"), "parameters").update(pooling="mean")
    if isinstance(width := features.get("n_features_out"), int):
        features["n_features_out"] = [width]
    _part(detector, "recipe").update(views=[new], pooling="mean")
    kept = _part(detector, "kept")
    by_space = [
        _part(detector, "density"),
        _part(detector, "fusion"),
        _part(_part(detector, "recipe"), "density"),
        _part(kept, "learned"),
        _part(kept, "held_out"),
    ]
    for part_values in by_space:
        if old in part_values:
            part_values[new] = part_values.pop(old)
    prefixes = {
        f"detector.{path}.{old}.": f"detector.{path}.{new}."
        for path in ("density", "kept.learned", "kept.held_out")
    }
    if "statistics" in kept:
        kept["statistics"] = {new: kept["statistics"]}
        prefixes["detector.kept.statistics."] = f"detector.kept.statistics.{new}."
    for name in list(tensors):
        for prefix, other in prefixes.items():
            if name.startswith(prefix):
                tensors[other + name.removeprefix(prefix)] = tensors.pop(name)


def _upgrade_student(parameters: dict[str, Any]) -> None:
    """Replace the student parameters of formats 1 and 2 by one parameter `student`."""
    parameters.pop("token_fraction", None)
    alpha = parameters.pop("ridge_alpha", None)
    block = {name: parameters.pop(name) for name in _BLOCK_PARAMETERS if name in parameters}
    if "student" not in parameters:
        return
    auto = _AUTO.get(str(parameters.get("recipe")), _AUTO["default"])
    if (
        parameters["student"] == "auto"
        and alpha in (None, 0.01)
        and set(block.values()) == {"auto"}
    ):
        return
    kind = auto["student"] if parameters["student"] == "auto" else parameters["student"]
    if kind == "ridge":
        own = {} if alpha is None else {"alpha": alpha}
        parameters["student"] = {"class": "RidgeStudent", "parameters": own}
    elif kind == "block":
        own = {name: auto[name] if value == "auto" else value for name, value in block.items()}
        parameters["student"] = {"class": "BlockStudent", "parameters": own}


def _fitted_student(distillation: dict[str, Any]) -> Any:
    """Fitted student: the one in the parameters, unless they changed after the fit."""
    kind = distillation.pop("kind")
    name = {"ridge": "RidgeStudent", "block": "BlockStudent"}.get(kind, kind)
    given = _part(_part(distillation, "parameters"), "student")
    return dict(given) if given.get("class") == name else {"class": name, "parameters": {}}


def _part(values: dict[str, Any], key: str) -> dict[str, Any]:
    part = values.get(key)
    return part if isinstance(part, dict) else {}
