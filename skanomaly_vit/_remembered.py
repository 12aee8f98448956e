"""Passes of a teacher, and what is remembered of them: tokens, features, students."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from safetensors.torch import load, save
from torch import nn

from skanomaly_vit._checkpoints import Checkpoints
from skanomaly_vit._digests import combine
from skanomaly_vit._extraction import concatenate, extract_batches
from skanomaly_vit._images import ImageSource
from skanomaly_vit._memory import Memory, surroundings
from skanomaly_vit._passes import (
    FEATURES,
    Activations,
    LayeredActivations,
    Level,
    TeacherPasses,
    Tokens,
    shards_of,
)
from skanomaly_vit._patches import NormalPatches, Observer, PatchSample
from skanomaly_vit._progress import Progress
from skanomaly_vit._ridge import RidgeSums, sum_tokens
from skanomaly_vit._students import Tensors, Trained
from skanomaly_vit._teacher import Teacher
from skanomaly_vit._training import Schedule, train_students
from skanomaly_vit.cache import DiskCache

#: Part of every key: raised whenever what is computed changes.
FORMAT = 4


class StoredActivations(Activations):
    """Keeps tokens in a cache on disk, under the content of each image.

    Parameters
    ----------
    disk : DiskCache
    source : ImageSource
    digests : mapping of int to bytes
        Position -> digest of the images of `source` that can be read.
    context : bytes
        What the tokens depend on beside the image.
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
            if self._source.digest(position) != self._digests[position]:
                changed = "changed while it was in use"
                raise self._source.set_aside(position, f" {changed}", changed)
            for level, key in self._keys(position, values).items():
                entries[key] = save({"tokens": values[level].cpu().contiguous()})
        self._disk.put(entries)

    def has_room(self, n_images: int) -> bool:
        return self._disk.works

    def _keys(self, position: int, levels: Collection[Level]) -> dict[Level, bytes]:
        # One digest an image: there are a dozen levels.
        prefix = combine("tokens", self._context, self._digests[position])
        return {level: prefix + level.to_bytes(2, "big", signed=True) for level in levels}


class RememberedPasses:
    """Passes of one teacher over one set of images, and what is remembered of them.

    Parameters
    ----------
    teacher : Teacher
    source : ImageSource
    memory : Memory
    held : Activations
        Where tokens are kept between passes, beside a `memory` on disk.
    kept_blocks : collection of int
        The blocks whose tokens are worth keeping in `held`.
    store_tokens : bool
        Whether tokens are kept in a `memory` on disk, where they take a megabyte an image: not
        those of a network that no other estimator has.
    batch_size : int
    n_jobs : int or None
    """

    def __init__(
        self,
        teacher: Teacher,
        source: ImageSource,
        memory: Memory,
        *,
        held: Activations,
        kept_blocks: Collection[int],
        store_tokens: bool,
        batch_size: int,
        n_jobs: int | None,
    ) -> None:
        self.teacher = teacher
        self.memory = memory
        self._source = source
        self._batch_size = batch_size
        self._n_jobs = n_jobs
        if memory:
            self._digests  # noqa: B018, here, so that what is unreadable is found before any work
        if memory.disk is not None and store_tokens:
            stored = StoredActivations(memory.disk, source, self._digests, self._context)
            held = LayeredActivations(held, stored, kept_blocks)
            # All blocks: which of them other settings will want is not known.
            kept_blocks = range(len(teacher.blocks))
        self.passes = TeacherPasses(
            teacher,
            source,
            activations=held,
            kept_blocks=kept_blocks,
            batch_size=batch_size,
            n_jobs=n_jobs,
        )

    @functools.cached_property
    def _digests(self) -> dict[int, bytes]:
        """Position -> digest of the images that can be read."""
        return self._source.each(self._source.digest, range(len(self._source)))

    @functools.cached_property
    def _context(self) -> bytes:
        """What everything depends on beside the images."""
        return combine(FORMAT, self.teacher.fingerprint, *surroundings(self.teacher.device))

    def identity(self) -> dict[str, Any]:
        """What goes into every key, for people."""
        return {
            "images": combine(*self._digests.values()),
            "backbone": bytes.fromhex(self.teacher.fingerprint),
            "batch_size": self._batch_size,
            "number of threads": torch.get_num_threads(),
            "versions and processor": surroundings(self.teacher.device),
        }

    def key(self, kind: str, indices: np.ndarray, *parts: object) -> bytes:
        """Key of what was computed from some of the images, in their order."""
        images = b"".join(self._digests[index] for index in indices)
        # The number of threads can change the order of a sum.
        threads = torch.get_num_threads()
        return combine(kind, self._context, threads, self._batch_size, images, *parts)

    def extract(
        self,
        indices: np.ndarray,
        students: Mapping[int, nn.Module],
        track: Callable[..., Any] = iter,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features (n_images, dim) and discrepancies (n_images, n_students), block by block.

        Of a source that skips what is unreadable, both are about those of the images that are in
        ``source.readable(indices)`` afterwards.
        """
        return _features_and_discrepancies(self._extract(indices, students, track, None), students)

    def stream(
        self,
        indices: np.ndarray,
        students: Mapping[int, nn.Module],
        observer: Observer | None = None,
        track: Callable[..., Any] = iter,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `extract`, batch by batch, so that no more than one is held.

        With `memory` all come in one, since they are remembered in one; with an `observer`, which
        has to see every image, only tokens are.
        """
        if self.memory and observer is None:
            yield self.extract(indices, students, track)
            return
        readable = self._source.readable(indices)
        yield from self.run(readable, students, observer, track)

    def extract_normal(
        self,
        indices: np.ndarray,
        students: Mapping[int, nn.Module],
        sample: PatchSample | None,
        keep: Callable[[np.ndarray, np.ndarray], None],
        track: Callable[..., Any] = iter,
    ) -> NormalPatches | None:
        """Hand features and discrepancies to `keep`; what a sample of patches looks like."""
        if not self.memory:
            for features, discrepancies in self.stream(indices, students, sample, track):
                keep(features, discrepancies)
            if sample is None:
                return None
            of_blocks = {index: sample.of_block(index) for index in students}
            return sample.summarise(of_blocks, sample.of_tokens())
        found = self._extract(indices, students, track, sample)
        keep(*_features_and_discrepancies(found, students))
        if sample is None:
            return None
        return sample.summarise({index: found[index] for index in students}, found[FEATURES])

    def run(
        self,
        indices: np.ndarray,
        students: Mapping[int, nn.Module],
        observer: Observer | None,
        track: Callable[..., Any] = iter,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`extract_batches` for some of the images, past what is remembered."""
        return extract_batches(self.passes.over(indices, track), students, observer)

    def sum_shards(
        self,
        indices: np.ndarray,
        blocks: Sequence[int],
        track: Callable[..., Any],
        n_done: int = 0,
    ) -> Iterator[RidgeSums]:
        """Statistics for ridge students of some blocks, of one shard of images after the other.

        The first `n_done` shards are left out.
        """
        for shard in shards_of(len(indices), self._batch_size, of_sums=True)[n_done:]:
            yield sum_tokens(self.passes.over(indices[shard], track), blocks)

    def train(
        self,
        blocks: Sequence[int],
        split: tuple[np.ndarray, np.ndarray],
        schedule: Schedule,
        *,
        seed: int,
        progress: Progress,
        checkpoints: Checkpoints,
        verbose: int,
    ) -> tuple[dict[int, Trained], list[float]]:
        """Block students, and the seconds of each epoch: see `train_students`."""
        return train_students(
            self.passes.over,
            self.teacher.copy_blocks(blocks),
            *split,
            schedule=schedule,
            seed=seed,
            progress=progress,
            checkpoints=checkpoints,
            verbose=verbose,
        )

    def _extract(
        self,
        indices: np.ndarray,
        students: Mapping[int, nn.Module],
        track: Callable[..., Any],
        sample: PatchSample | None,
    ) -> dict[Level, Tensors]:
        indices = self._source.readable(indices)

        def is_complete() -> bool:
            return len(self._source.readable(indices)) == len(indices)

        def compute(names: list[Level]) -> dict[Level, Tensors]:
            asked = {index: students[index] for index in sorted(names) if index != FEATURES}
            features, discrepancies = concatenate(self.run(indices, asked, sample, track))
            n_images = len(features)
            # (n_images, n_students) -> (n_students, n_images); (0, 0) if none could be read
            columns = np.ascontiguousarray(discrepancies.T).reshape(len(asked), n_images)
            arrays = {FEATURES: features, **dict(zip(asked, columns, strict=True))}
            found = {name: {"values": torch.from_numpy(arrays[name])} for name in names}
            if sample is not None:
                for name, tensors in found.items():
                    tensors |= sample.of_tokens() if name == FEATURES else sample.of_block(name)
            return found

        names = [FEATURES, *sorted(students, reverse=True)]
        if not self.memory:
            return compute(names)
        drawn = sample.key if sample is not None else b""
        keys = {name: self._key_of(name, indices, students, drawn) for name in names}
        found = self.memory.recall(keys, compute, is_complete)
        if is_complete():
            return found
        # What was recalled is about all of the images, what was computed about the others.
        return self._extract(indices, students, track, sample)

    def _key_of(
        self, name: Level, indices: np.ndarray, students: Mapping[int, nn.Module], drawn: bytes
    ) -> bytes:
        if name == FEATURES:
            return self.key("features", indices, drawn)
        return self.key("discrepancy", indices, drawn, name, _digest_student(students[name]))


def _features_and_discrepancies(
    found: Mapping[Level, Tensors], students: Collection[int]
) -> tuple[np.ndarray, np.ndarray]:
    arrays = {name: tensors["values"].numpy() for name, tensors in found.items()}
    columns = [arrays[index] for index in sorted(students)]
    none = np.empty((len(arrays[FEATURES]), 0), arrays[FEATURES].dtype)
    return arrays[FEATURES], np.stack(columns, axis=1) if columns else none


#: Students do not change once they are fitted, and a search asks for the same ones often.
_student_digests: WeakKeyDictionary[nn.Module, bytes] = WeakKeyDictionary()


def _digest_student(student: nn.Module) -> bytes:
    if student not in _student_digests:
        _student_digests[student] = _digest_weights(student)
    return _student_digests[student]


def _digest_weights(student: nn.Module) -> bytes:
    tensors = {name: value.cpu().contiguous() for name, value in student.state_dict().items()}
    return combine(type(student).__name__, save(tensors))
