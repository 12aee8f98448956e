"""Cached tensors under keys made of content, and an LRU cache of objects."""

from __future__ import annotations

import functools
import platform
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from safetensors.torch import load, save

from skanomaly_vit._caching.disk_cache import DiskCache
from skanomaly_vit._utils.torch_settings import described, settings_here
from skanomaly_vit._utils.version import __version__

Name = TypeVar("Name", bound=Hashable)


class Memory:
    """One interface to every store of named tensors.

    Parameters
    ----------
    keeper : DiskCache, path, object with ``cache`` or None
        ``None`` keeps nothing. The method ``cache`` of an object, such as `joblib.Memory`, makes
        a function that remembers. A path names the folder of a `DiskCache`.
    """

    def __init__(self, keeper: Any) -> None:
        if isinstance(keeper, str | PathLike):
            keeper = DiskCache(keeper)
        if not (keeper is None or isinstance(keeper, DiskCache) or hasattr(keeper, "cache")):
            raise ValueError(f"memory={keeper!r} is no folder, DiskCache or object with .cache")
        self.disk: DiskCache | None = keeper if isinstance(keeper, DiskCache) else None
        self._remembering = None if keeper is None or self.disk else keeper.cache(_follow)

    def __bool__(self) -> bool:
        return self.disk is not None or self._remembering is not None

    def recall(
        self,
        keys: Mapping[Name, bytes],
        compute: Callable[[list[Name]], Mapping[Name, Tensors]],
        is_final: Callable[[], bool] = lambda: True,
    ) -> dict[Name, Tensors]:
        """Recall the tensors known under `keys`, and compute the rest in one go.

        Parameters
        ----------
        keys : mapping of name to bytes
            The keys most likely to be known come first.
        compute : callable
            Computes the tensors of a list of names.
        is_final : callable
            Tells whether the computed tensors are worth keeping.
        """
        if self.disk is not None:
            return self._recall_from(self.disk, keys, compute, is_final)
        known: dict[Name, Tensors] = {}
        computed: dict[Name, Tensors] = {}
        for name, key in keys.items():

            def follow(name: Name = name) -> bytes:
                if name not in computed:
                    computed.update(compute([other for other in keys if other not in known]))
                if not is_final():
                    raise _NotFinalError
                return save(computed[name])

            try:
                known[name] = load(self._remembering(_Recipe(key, follow)))  # type: ignore[misc]
            except _NotFinalError:
                known[name] = computed[name]
        return known

    @staticmethod
    def _recall_from(
        disk: DiskCache,
        keys: Mapping[Name, bytes],
        compute: Callable[[list[Name]], Mapping[Name, Tensors]],
        is_final: Callable[[], bool],
    ) -> dict[Name, Tensors]:
        found = disk.get(list(keys.values()))
        known = {name: load(found[key]) for name, key in keys.items() if key in found}
        missing = [name for name in keys if name not in known]
        if missing:
            computed = compute(missing)
            known |= computed
            if is_final():
                disk.put({keys[name]: save(tensors) for name, tensors in computed.items()})
        return known


class _NotFinalError(Exception):
    """Leaves the remembering function before it remembers a result that is not final."""


class _Recipe:
    """A computation that hashes and pickles as its key."""

    def __init__(self, key: bytes, compute: Callable[[], bytes] | None = None) -> None:
        self.key = key
        self.compute = compute

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.key,)

    def __repr__(self) -> str:
        return self.key.hex()


def _follow(recipe: _Recipe) -> bytes:
    return recipe.compute()  # type: ignore[misc]


def surroundings(device: torch.device) -> list[str]:
    """Versions, processor and settings of torch: a result depends on them beside its inputs."""
    return [*_machine(device), *described(settings_here())]


@functools.cache
def _machine(device: torch.device) -> list[str]:
    packages = ("torch", "timm", "pillow", "numpy")
    return [__version__, *(version(package) for package in packages), _processor(device)]


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu_info = Path("/proc/cpuinfo")
    names = [platform.processor()]
    if cpu_info.exists():
        lines = cpu_info.read_text().splitlines()
        names += [line for line in lines if line.startswith("model name")][:1]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{device.type} {platform.machine()} {capability} {names}"


#: Named tensors, the values of a store.
Tensors: TypeAlias = dict[str, torch.Tensor]

Value = TypeVar("Value")


class LRUCache(Generic[Value]):
    """Objects under keys made of content; drops the least recently used first.

    Callers share the objects, and must not change them.

    Parameters
    ----------
    max_bytes : int
        Size of all objects together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[bytes, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Value | None:
        """Return the object under `key`, or None."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: bytes, value: Value, n_bytes: int) -> None:
        """Keep an object of `n_bytes` bytes, in place of older ones if need be."""
        with self._lock:
            if key in self._entries or n_bytes > self._max_bytes:
                return
            self._entries[key] = (value, n_bytes)
            self._bytes += n_bytes
            while self._bytes > self._max_bytes:
                _, (_, freed) = self._entries.popitem(last=False)
                self._bytes -= freed
