"""Attributes of composite estimators: searches, pipelines, detectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def find_attribute(estimator: Any, attribute: str, default: Any = None) -> Any:
    """Return an attribute of the estimator, or of its first part that has it, or the default."""
    for part in _parts(estimator):
        if hasattr(part, attribute):
            return getattr(part, attribute)
    return default


def _parts(estimator: Any) -> Iterator[Any]:
    """The estimator, then the parts of a search, a pipeline or a detector."""
    yield estimator
    inner = [getattr(estimator, name, None) for name in ("best_estimator_", "features_")]
    steps = [step for _, step in getattr(estimator, "steps", [])]
    for part in (*inner, *steps):
        if part is not None and not isinstance(part, str):
            yield from _parts(part)


def seed_estimator(estimator: Any, seed: int) -> Any:
    """Set every ``random_state`` of an estimator and its parts that is ``None`` to `seed`."""
    unseeded = {
        name: seed
        for name, value in estimator.get_params(deep=True).items()
        if value is None and (name == "random_state" or name.endswith("__random_state"))
    }
    return estimator.set_params(**unseeded)
