"""Activation caches: tokens of a teacher, kept between passes in memory, on disk, or both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from tempfile import gettempdir
from typing import TypeAlias

import torch
from safetensors.torch import load, save

from skanomaly_vit._backbone.tensor_file import FiledTensor, TensorFile
from skanomaly_vit._caching.disk_cache import DiskCache
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._utils.hashing import combine
from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.exceptions import OutOfMemoryWarning

#: Key of a tensor of an image: i for the tokens before block i, L for those after the last block,
#: FEATURES for the pooled features.
Level: TypeAlias = int

FEATURES: Level = -1

#: Key of the patches of an image with pixels that count, if not all do.
REGION: Level = -2

Tokens: TypeAlias = dict[Level, torch.Tensor]

#: Bytes of tokens that stay in the memory of the process.
IN_MEMORY = 2**23

_FULL = (
    "the folder for temporary files, {folder!r}, cannot take the tokens of more images ({error}): "
    "these images pass through the backbone again, which takes longer and changes no result. Set "
    "TMPDIR to a folder with room, or a smaller activation_cache."
)


class Activations(ABC):
    """Store of the teacher's tokens, image by image."""

    @abstractmethod
    def find(self, positions: Sequence[int], levels: Collection[Level]) -> dict[int, Tokens]:
        """Position -> tokens, for each image that has all `levels`."""

    @abstractmethod
    def keep(self, tokens: Mapping[int, Tokens]) -> None:
        """Keep the tokens of some images while there is room."""

    @abstractmethod
    def has_room(self, n_images: int) -> bool:
        """True if collecting the tokens of `n_images` more is worth while."""


class HeldActivations(Activations):
    """Keeps tokens up to a number of bytes: those on a GPU there, most of those on a CPU in a file.

    A CPU's memory is that of the process, which a temporary file spares it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._bytes_per_image = 0
        self._tokens: dict[int, dict[Level, torch.Tensor | FiledTensor]] = {}
        self._file = TensorFile()

    def find(self, positions: Sequence[int], levels: Collection[Level]) -> dict[int, Tokens]:
        wanted = set(levels)
        return {
            position: {level: self._load(self._tokens[position][level]) for level in wanted}
            for position in positions
            if position in self._tokens and self._tokens[position].keys() >= wanted
        }

    def keep(self, tokens: Mapping[int, Tokens]) -> None:
        for position, levels in tokens.items():
            there = self._tokens.get(position, {})
            new = {level: value for level, value in levels.items() if level not in there}
            size = sum(value.nbytes for value in new.values())
            if self._bytes + size > self._max_bytes:
                return
            try:
                self._tokens[position] = there | {k: self._store(v) for k, v in new.items()}
            except OSError as error:
                self._max_bytes = 0
                warn_user(_FULL.format(folder=gettempdir(), error=error), OutOfMemoryWarning)
                return
            self._bytes += size
            self._bytes_per_image = size

    def has_room(self, n_images: int) -> bool:
        # The first image tells the size; `keep` checks that one.
        wanted = self._bytes + n_images * self._bytes_per_image
        return self._max_bytes > 0 and wanted <= self._max_bytes

    def _store(self, value: torch.Tensor) -> torch.Tensor | FiledTensor:
        is_small = self._bytes + value.nbytes <= IN_MEMORY
        return value if is_small or value.device.type != "cpu" else self._file.append(value)

    def _load(self, stored: torch.Tensor | FiledTensor) -> torch.Tensor:
        return stored if isinstance(stored, torch.Tensor) else self._file.read(stored)


class LayeredActivations(Activations):
    """Keeps tokens on disk, and in memory while there is room.

    Parameters
    ----------
    memory, disk : Activations
        `find` copies tokens from `disk` to `memory`.
    kept_blocks : collection of int
        Blocks whose tokens `memory` keeps, whichever `disk` keeps.
    """

    def __init__(
        self, memory: Activations, disk: Activations, kept_blocks: Collection[int]
    ) -> None:
        self._memory = memory
        self._disk_store = disk
        self._levels_in_memory = {*_levels(kept_blocks), REGION}

    def find(self, positions: Sequence[int], levels: Collection[Level]) -> dict[int, Tokens]:
        found = self._memory.find(positions, levels)
        rest = [position for position in positions if position not in found]
        if not rest:
            return found
        from_disk = self._disk_store.find(rest, levels)
        self._keep_in_memory(from_disk)
        return found | from_disk

    def keep(self, tokens: Mapping[int, Tokens]) -> None:
        self._keep_in_memory(tokens)
        self._disk_store.keep(tokens)

    def has_room(self, n_images: int) -> bool:
        return self._memory.has_room(n_images) or self._disk_store.has_room(n_images)

    def _keep_in_memory(self, tokens: Mapping[int, Tokens]) -> None:
        self._memory.keep(
            {
                position: {level: values[level] for level in values.keys() & self._levels_in_memory}
                for position, values in tokens.items()
            }
        )


def _levels(blocks: Collection[int]) -> set[Level]:
    """Levels of an image that a replay of `blocks` needs."""
    return {FEATURES, *blocks, *(index + 1 for index in blocks)}


class StoredActivations(Activations):
    """Keeps tokens in a cache on disk; the keys depend on the content of each image.

    Parameters
    ----------
    disk : DiskCache
    source : ImageSource
    digests : mapping of int to bytes
        Position -> digest, for each readable image of `source`.
    context : bytes
        Digest of everything else that the tokens depend on.
    """

    def __init__(
        self, disk: DiskCache, source: ImageSource, digests: Mapping[int, bytes], context: bytes
    ) -> None:
        self._disk = disk
        self._source = source
        self._digests = digests
        self._context = context

    def find(self, positions: Sequence[int], levels: Collection[Level]) -> dict[int, Tokens]:
        keys = {position: self._keys(position, levels) for position in positions}
        found = self._disk.get([key for of_image in keys.values() for key in of_image.values()])
        return {
            position: {level: load(found[key])["tokens"] for level, key in of_image.items()}
            for position, of_image in keys.items()
            if found.keys() >= set(of_image.values())
        }

    def keep(self, tokens: Mapping[int, Tokens]) -> None:
        entries = {}
        for position, values in tokens.items():
            if self._source.key(position) != self._digests[position]:
                changed = "changed while it was in use"
                raise self._source.set_aside(position, f" {changed}", changed)
            for level, key in self._keys(position, values).items():
                entries[key] = save({"tokens": values[level].cpu().contiguous()})
        self._disk.put(entries)

    def has_room(self, n_images: int) -> bool:
        return self._disk.works

    def _keys(self, position: int, levels: Collection[Level]) -> dict[Level, bytes]:
        # One digest per image, for its dozen levels.
        prefix = combine("tokens", self._context, self._digests[position])
        return {level: prefix + level.to_bytes(2, "big", signed=True) for level in levels}
