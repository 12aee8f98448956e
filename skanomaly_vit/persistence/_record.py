"""Records of fitted state: JSON values and named tensors, checked when read."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from sklearn.base import BaseEstimator

from skanomaly_vit._utils.compat import validate_parameter_constraints

Tensors: TypeAlias = dict[str, torch.Tensor]

Estimator = TypeVar("Estimator", bound=BaseEstimator)

#: Parameters that describe a machine, not the learned state.
MACHINE_PARAMETERS = ("device", "n_jobs", "memory", "checkpoint_dir", "verbose")

# Ends the name of an array stored by columns. Rounding of products depends on the layout, and
# scores must come back to the bit.
_TRANSPOSED = ".T"

_LARGEST_INT = 2**53  # beyond, other programs read a JSON number as a float


class StateRecord:
    """A part of a model: JSON values, and tensors whose names start with the name of the part.

    `write`, `write_tensor` and `write_part` fill it. The methods that start with ``read`` empty it,
    and raise a ValueError if a value is missing or of another type or shape than expected.

    Parameters
    ----------
    values : dict
        JSON values; reading one removes it.
    tensors : dict of str to torch.Tensor
        Of all parts; reading one removes it.
    name : str
        Of the part.
    """

    def __init__(self, values: dict[str, Any], tensors: Tensors, name: str) -> None:
        self.values = values
        self.tensors = tensors
        self.name = name

    def write(self, **values: Any) -> None:
        """Write JSON values."""
        self.values.update(values)

    def write_tensor(self, key: str, value: np.ndarray | torch.Tensor) -> None:
        """Write a tensor in its own layout, by rows or by columns."""
        if isinstance(value, np.ndarray):
            # torch warns of arrays that are read-only, as `joblib.load(mmap_mode="r")` makes them.
            tensor = torch.from_numpy(np.require(value, requirements="W"))
        else:
            tensor = value
        tensor, name = tensor.detach().cpu(), f"{self.name}.{key}"
        if tensor.ndim == 2 and not tensor.is_contiguous() and tensor.T.is_contiguous():
            tensor, name = tensor.T, name + _TRANSPOSED
        # A copy: safetensors rejects tensors that share memory.
        self.tensors[name] = tensor.clone(memory_format=torch.contiguous_format)

    def write_part(self, key: str) -> StateRecord:
        """Begin a part of this part."""
        return StateRecord(self.values.setdefault(key, {}), self.tensors, f"{self.name}.{key}")

    def read(self, key: str, kind: type | tuple[type, ...]) -> Any:
        """A value of a type."""
        if key not in self.values:
            raise ValueError(f"{self.name} lacks {key!r}")
        value = self.values.pop(key)
        # True is an int to Python.
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise ValueError(f"{self.name}.{key} is of type {type(value).__name__}")
        return value

    def read_part(self, key: str) -> StateRecord:
        """A part of this part."""
        return StateRecord(self.read(key, dict), self.tensors, f"{self.name}.{key}")

    def read_int(self, key: str, lowest: int = 0) -> int:
        """An integer from `lowest` to 2**53."""
        value = self.read(key, int)
        if not lowest <= value <= _LARGEST_INT:
            raise ValueError(f"{self.name}.{key} is {value}")
        return value

    def read_number(self, key: str, *, positive: bool = False) -> float:
        """A finite number."""
        value = float(self.read(key, (int, float)))
        if not math.isfinite(value) or (positive and value <= 0):
            raise ValueError(f"{self.name}.{key} is {value}")
        return value

    def read_list(self, key: str, kind: type) -> list[Any]:
        """A list of values of one type."""
        items = self.read(key, list)
        return [
            StateRecord({str(i): item}, self.tensors, f"{self.name}.{key}").read(str(i), kind)
            for i, item in enumerate(items)
        ]

    def read_array(
        self, key: str, *shape: int, dtype: Any = np.float64, positive: bool = False
    ) -> np.ndarray:
        """A finite array of exactly this shape and type."""
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        array = self.read_tensor(key, *shape, dtype=kind).numpy()
        if positive and not (array > 0).all():
            raise ValueError(f"{self.name}.{key} holds values that are not positive")
        return array

    def read_tensor(self, key: str, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """A finite tensor of exactly this shape and type, in the layout that was written."""
        name = f"{self.name}.{key}"
        if name in self.tensors:
            tensor = self.tensors.pop(name)
        elif name + _TRANSPOSED in self.tensors:
            tensor = self.tensors.pop(name + _TRANSPOSED).mT
        else:
            raise ValueError(f"there is no tensor {name!r}")
        if (tensor.dtype, tuple(tensor.shape)) != (dtype, shape):
            raise ValueError(
                f"{name} is of type {tensor.dtype} and shape {tuple(tensor.shape)}, not of {dtype} "
                f"and {shape}"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite")
        return tensor

    def write_parameters(
        self,
        estimator: BaseEstimator,
        describe: Mapping[str, Callable[[Any], Any]] | None = None,
    ) -> None:
        """Write the parameters of an estimator, without `MACHINE_PARAMETERS`.

        Parameters
        ----------
        estimator : estimator
        describe : mapping of str to callable, or None
            Parameter -> function that gives JSON for a part, or raises a ValueError.

        Raises
        ------
        ValueError
            If a parameter cannot be written.
        """
        owner = type(estimator).__name__
        values = {
            name: _plain(f"{owner}({name}=...)", value, (describe or {}).get(name))
            for name, value in estimator.get_params(deep=False).items()
            if name not in MACHINE_PARAMETERS
        }
        self.write(parameters=values)

    def read_parameters(
        self,
        estimator_class: type[Estimator],
        build: Mapping[str, Callable[[StateRecord], Any]] | None = None,
    ) -> Estimator:
        """An estimator with the parameters that `write_parameters` wrote, not fitted.

        Parameters
        ----------
        estimator_class : type
        build : mapping of str to callable, or None
            Parameter -> function that makes a part of a record, the inverse of `describe`.
        """
        written = self.read("parameters", dict)
        estimator = estimator_class()
        known = estimator.get_params(deep=False).keys() - set(MACHINE_PARAMETERS)
        if unknown := written.keys() - known:
            raise ValueError(f"{estimator_class.__name__} has no parameter {sorted(unknown)[0]!r}")
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in written.items()}
        for name, make in (build or {}).items():
            if isinstance(value := values.get(name), dict):
                values[name] = make(StateRecord(value, self.tensors, f"{self.name}.{name}"))
        estimator.set_params(**values)
        validate_parameter_constraints(
            estimator._parameter_constraints,
            estimator.get_params(deep=False),
            caller_name=estimator_class.__name__,
        )
        return estimator

    def read_dtype(self, key: str) -> torch.dtype:
        """The floating type whose name `name_of` gave."""
        name = self.read(key, str)
        if name not in ("float16", "bfloat16", "float32", "float64"):
            raise ValueError(f"{self.name}.{key} is {name!r}")
        return getattr(torch, name)

    def close(self) -> None:
        """Reject values that nothing has read."""
        if self.values:
            raise ValueError(f"{self.name} holds {', '.join(map(repr, self.values))}: unknown here")


def name_of(dtype: torch.dtype) -> str:
    """Name of a type, for JSON."""
    return str(dtype).removeprefix("torch.")


def _plain(name: str, value: Any, describe: Callable[[Any], Any] | None) -> Any:
    """A parameter as JSON has it."""
    if value is None or isinstance(value, bool | np.bool_):
        return None if value is None else bool(value)
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    if isinstance(value, tuple):
        return [_plain(name, item, describe) for item in value]
    if isinstance(value, np.random.RandomState):
        raise ValueError(
            f"{name} is a RandomState, which cannot be saved. Scores no longer depend on it: "
            "replace it by set_params(random_state=None) or a number."
        )
    if describe is not None:
        return describe(value)
    raise ValueError(f"{name} is of type {type(value).__name__}, which cannot be saved")
