"""Settings of torch, numpy and scikit-learn that scores depend on: ours while we work."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

from skanomaly_vit._utils.shared_context import SharedContext

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

#: What numpy does by default about floats that overflow.
_ERRORS: Any = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}

#: What changes results or their form. Validation, metadata routing and sizes stay the user's.
_SKLEARN = {
    "array_api_dispatch": False,
    "enable_cython_pairwise_dist": True,
    "transform_output": "default",
}

_LOWER = ("bf16", "tf32")


def with_own_settings(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Have a function, or each step of a generator, run under `own_settings`."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generate(*args: Any, **options: Any) -> Any:
            return _stepwise(function(*args, **options))

        return cast("Callable[Parameters, Result]", generate)

    @functools.wraps(function)
    def call(*args: Parameters.args, **options: Parameters.kwargs) -> Result:
        with own_settings():
            return function(*args, **options)

    return call


def _stepwise(steps: Any) -> Iterator[Any]:
    """The steps of a generator: between two of them, the settings are those of the caller."""
    try:
        while True:
            with own_settings():
                try:
                    step = next(steps)
                except StopIteration:
                    return
            yield step
    finally:
        steps.close()


@contextmanager
def own_settings() -> Iterator[None]:
    """Work under settings that do not depend on the process.

    No autocast, gradients as by default, tensors of float32 on the CPU, products at full precision,
    and the defaults of numpy and scikit-learn. What is like that already is left alone. The dtype
    and the precision are the process's: its other threads see ours in the meantime.
    """
    with ExitStack() as entered:
        if np.geterr() != _ERRORS:
            entered.enter_context(np.errstate(**_ERRORS))
        # Who scores an ONNX file may have installed neither.
        for name, enter in (("sklearn", _enter_sklearn), ("torch", _enter_torch)):
            library = sys.modules.get(name)
            if library is not None:
                enter(library, entered)
        yield


def _enter_sklearn(sklearn: Any, entered: ExitStack) -> None:
    found = sklearn.get_config()
    if any(found.get(name, value) != value for name, value in _SKLEARN.items()):
        ours = {name: value for name, value in _SKLEARN.items() if name in found}
        entered.enter_context(sklearn.config_context(**ours))


def _enter_torch(torch: Any, entered: ExitStack) -> None:
    if _forked and torch.get_num_threads() > 1:
        # The other threads stayed behind, and a product that is shared out would wait for ever.
        torch.set_num_threads(1)
    if torch.is_inference_mode_enabled():
        entered.enter_context(torch.inference_mode(False))
    if not torch.is_grad_enabled():
        entered.enter_context(torch.enable_grad())
    for kind in ("cpu", "cuda", "mps"):
        if torch.is_autocast_enabled(kind):
            entered.enter_context(torch.autocast(kind, enabled=False))
    if torch.get_default_device().type != "cpu":
        entered.enter_context(torch.device("cpu"))
    entered.enter_context(_whole_process())


@contextmanager
def _settings_of_the_process() -> Iterator[None]:
    torch: Any = sys.modules["torch"]
    with ExitStack() as undo:
        dtype = torch.get_default_dtype()
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            undo.callback(torch.set_default_dtype, dtype)
        precision = _matmul_precision(torch)
        if precision != "highest":
            torch.set_float32_matmul_precision("highest")
            undo.callback(torch.set_float32_matmul_precision, precision)
        # On GPUs, convolutions stay as torch has them, in TF32: they are no part of a block.
        mkldnn = torch.backends.mkldnn
        # Older versions of torch have fewer of them.
        libraries = [getattr(mkldnn, name, None) for name in ("matmul", "conv")]
        for library in (*libraries, torch.backends.cuda.matmul):
            found = getattr(library, "fp32_precision", "ieee")
            if found in _LOWER:
                library.fp32_precision = "ieee"
                undo.callback(setattr, library, "fp32_precision", found)
        yield


def _matmul_precision(torch: Any) -> str:
    _spend_warning()
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the process has set those of single libraries
        return "highest"


@functools.cache
def _spend_warning() -> None:
    """Have torch 2.9 warn of its older names of precisions, as it does once, where nobody sees it.

    Not at each reading: Python shows warnings again that it has shown, once filters have changed.
    """
    with warnings.catch_warnings(), suppress(RuntimeError):
        warnings.simplefilter("ignore")
        sys.modules["torch"].get_float32_matmul_precision()


_whole_process = SharedContext(_settings_of_the_process)
_forked = False


def _note_fork() -> None:
    """In a forked child: its parent's threads, some of which may have been at work, are gone."""
    global _whole_process, _forked
    _whole_process = SharedContext(_settings_of_the_process)
    _forked = "torch" in sys.modules


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
