"""Parameters of students, said in one breath with those of a detector."""

from __future__ import annotations

from typing import Any

from skanomaly_vit.distillation import BlockStudent, RidgeStudent

_BLOCK = ("max_epochs", "learning_rate", "learning_rate_schedule", "patience")
_PAPER = {
    "max_epochs": 30, "learning_rate": 1e-4, "learning_rate_schedule": "constant", "patience": 30
}  # fmt: skip


def with_student(**parameters: Any) -> dict[str, Any]:
    """Make a `student` of what is about one: ``student="block", max_epochs=2`` or ``alpha=1.0``.

    Parameters of block students are dropped where a ridge student is meant.
    """
    block = {name: parameters.pop(name) for name in _BLOCK if name in parameters}
    ridge = {"alpha": parameters.pop("alpha")} if "alpha" in parameters else {}
    is_paper = parameters.get("recipe") == "paper" and "student" not in parameters
    if block and (is_paper or parameters.get("student") == "block"):
        parameters["student"] = BlockStudent(**(_PAPER if is_paper else {}) | block)
    elif ridge:
        parameters["student"] = RidgeStudent(**ridge)
    return parameters
