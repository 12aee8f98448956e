"""Cached passes of a teacher, and the keys of their tokens, features and students."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from skanomaly_vit._backbone.activations import (
    FEATURES,
    Activations,
    LayeredActivations,
    Level,
    StoredActivations,
)
from skanomaly_vit._backbone.discrepancy import (
    DISCREPANCY,
    Embedded,
    concatenate,
    embed,
)
from skanomaly_vit._backbone.passes import TeacherPasses
from skanomaly_vit._backbone.patches import NormalPatches, Observer, PatchSample
from skanomaly_vit._backbone.teacher import Teacher
from skanomaly_vit._backbone.views import names_of
from skanomaly_vit._caching.memory import Memory, Tensors, surroundings
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._utils.hashing import combine

Result = TypeVar("Result")


@dataclass(frozen=True)
class Part:
    """A part of a pass.

    Attributes
    ----------
    indices : ndarray of int
        Its images.
    blocks : sequence of int
        Blocks to look at.
    start : int
        Position of its first image in the pass.
    arguments : tuple
        Further arguments of the mapped function, for this part.
    """

    indices: np.ndarray
    blocks: Sequence[int]
    start: int = 0
    arguments: tuple[Any, ...] = ()


_CHANGED = "changed while it was in use"

#: How often images may change during a pass that is made again for it.
_MOST_CHANGES = 3

#: Part of every key. Raise it whenever results change.
FORMAT = 8


class CachedPasses:
    """Passes of one teacher over one set of images, with a cache of their results.

    Attributes
    ----------
    n_workers : int
        Processes or threads that share the work.

    Parameters
    ----------
    teacher : Teacher
    source : ImageSource
    memory : Memory
    in_memory : Activations
        Keeps tokens between passes, beside a `memory` on disk.
    kept_blocks : collection of int
        Blocks whose tokens are worth keeping in `in_memory`.
    store_tokens : bool
        Whether a `memory` on disk keeps tokens, at a megabyte per image. Pass False for a network
        that no other estimator has.
    batch_size : int
    n_jobs : int or None
    """

    n_workers = 1

    def __init__(
        self,
        teacher: Teacher,
        source: ImageSource,
        memory: Memory,
        *,
        in_memory: Activations,
        kept_blocks: Collection[int],
        store_tokens: bool,
        batch_size: int,
        n_jobs: int | None,
    ) -> None:
        self.teacher = teacher
        self.memory = memory
        self._source = source
        self.batch_size = batch_size
        self._n_jobs = n_jobs
        if memory:
            self._digests  # noqa: B018, finds unreadable images before any work
        if memory.disk is not None and store_tokens:
            stored = StoredActivations(memory.disk, source, self._digests, self._context)
            in_memory = LayeredActivations(in_memory, stored, kept_blocks)
            # All blocks, since other settings may need any of them.
            kept_blocks = range(len(teacher.blocks))
        self._keeps_tokens = in_memory.has_room(0)
        self.passes = TeacherPasses(
            teacher,
            source,
            activations=in_memory,
            kept_blocks=kept_blocks,
            batch_size=batch_size,
            n_jobs=n_jobs,
        )

    @functools.cached_property
    def _digests(self) -> dict[int, bytes]:
        """Position -> digest, for each readable image."""
        return self._source.each(self._source.key, range(len(self._source)))

    def require_unchanged(self, indices: np.ndarray) -> None:
        """Digest images again, lest what another content gave is kept under their digests.

        Raises
        ------
        UnreadableImageError
            If one has changed. Of a source that skips what is unreadable, it is set aside.
        """
        changed = self._changed(indices)
        errors = [self._source.set_aside(i, f" {_CHANGED}", _CHANGED) for i in changed]
        if errors and not self._source.skips_unreadable:
            raise errors[0]

    def _changed(self, indices: np.ndarray) -> dict[int, bytes]:
        """Position -> new digest of the images that are others than before."""
        now = self._source.each(self._source.key, self._source.readable(indices).tolist())
        return {i: digest for i, digest in now.items() if digest != self._digests[i]}

    @functools.cached_property
    def _context(self) -> bytes:
        """Digest of everything but the images that results depend on."""
        return combine(FORMAT, *self.teacher.rounding(), *surroundings(self.teacher.device))

    def identity(self) -> dict[str, Any]:
        """Ingredients of every key, in readable form."""
        return {
            "images": combine(*self._digests.values()),
            "backbone": combine(self.teacher.fingerprint),
            "batch_size": self.batch_size,
            "number of threads": torch.get_num_threads(),
            "versions, processor and settings": surroundings(self.teacher.device),
        }

    def key(self, kind: str, indices: np.ndarray, *parts: object) -> bytes:
        """Key of a result of some images, in this order."""
        images = b"".join(self._digests[index] for index in indices)
        # The number of threads can change the order of a sum.
        threads = torch.get_num_threads()
        return combine(kind, self._context, threads, self.batch_size, images, *parts)

    def extract(
        self,
        indices: np.ndarray,
        students: Mapping[int, nn.Module],
        track: Callable[..., Any] = iter,
    ) -> Embedded:
        """Features of images in both spaces, as one batch: see `embed`.

        If the source skips unreadable images, the rows are those of ``source.readable(indices)``
        after the pass.
        """
        return self._by_space(self._extract(indices, students, track, None), students)

    def stream(
        self,
        indices: np.ndarray,
        students: Mapping[int, nn.Module],
        observer: Observer | None = None,
        track: Callable[..., Any] = iter,
    ) -> Iterator[Embedded]:
        """Features as `extract` gives them, but batch by batch: memory holds one batch.

        With `memory` all images are one batch, since `memory` keeps them as one. An `observer` has
        to see every image, so then only tokens come from `memory`.
        """
        if self.memory and observer is None:
            yield self.extract(indices, students, track)
            return
        readable = self._source.readable(indices)
        yield from self.embed(readable, students, observer, track)

    def extract_normal(
        self,
        indices: np.ndarray,
        students: Mapping[int, nn.Module],
        sample: PatchSample | None,
        keep: Callable[[Embedded], None],
        track: Callable[..., Any] = iter,
    ) -> NormalPatches | None:
        """Hand features to `keep`, and summarize the patches of a sample."""
        if not self.memory:
            for embedded in self.stream(indices, students, sample, track):
                keep(embedded)
            if sample is None:
                return None
            of_blocks = {index: sample.of_block(index) for index in students}
            return sample.summarize(of_blocks, sample.of_tokens())
        found = self._extract(indices, students, track, sample)
        keep(self._by_space(found, students))
        if sample is None:
            return None
        return sample.summarize({index: found[index] for index in students}, found[FEATURES])

    def embed(
        self,
        indices: np.ndarray,
        students: Mapping[int, nn.Module],
        observer: Observer | None,
        track: Callable[..., Any] = iter,
    ) -> Iterator[Embedded]:
        """`embed` some of the images; only their tokens may come from a cache."""
        return embed(self.passes, indices, students, observer, track)

    def map(
        self,
        function: Callable[..., Result],
        parts: Sequence[Part],
        *,
        shared: tuple[Any, ...] = (),
        track: Callable[..., Any] = iter,
        keeps_tokens: bool = False,
    ) -> Iterator[Result]:
        """Call a function with each part of a pass, in order.

        Parameters
        ----------
        function : callable
            Called as ``function(passes, part, *shared, track=track)`` with `TeacherPasses`.
        parts : sequence of Part
        shared : tuple
            Arguments common to all calls.
        track : callable
            Wraps the iterator of batches, to follow progress.
        keeps_tokens : bool
            Whether workers keep tokens, for a function that passes over its images again.
        """
        return (function(self.passes, part, *shared, track=track) for part in parts)

    def _extract(
        self,
        indices: np.ndarray,
        students: Mapping[int, nn.Module],
        track: Callable[..., Any],
        sample: PatchSample | None,
        n_changes: int = 0,
    ) -> dict[Level, Tensors]:
        indices = self._source.readable(indices)
        changed: dict[int, bytes] = {}

        def is_complete() -> bool:
            return not changed and len(self._source.readable(indices)) == len(indices)

        def compute(names: list[Level]) -> dict[Level, Tensors]:
            asked = {index: students[index] for index in sorted(names) if index != FEATURES}
            batches = self.embed(indices, asked, sample, track)
            embedded = concatenate(batches, self.teacher.views, len(asked))
            views = [embedded[name] for name in names_of(self.teacher.views)]
            arrays: dict[Level, np.ndarray] = {FEATURES: np.concatenate(views, axis=1)}
            if asked:
                columns = np.ascontiguousarray(embedded[DISCREPANCY].T)  # [n_students, n_images]
                arrays |= dict(zip(asked, columns, strict=True))
            found = {name: {"values": torch.from_numpy(arrays[name])} for name in names}
            if sample is not None:
                for name, tensors in found.items():
                    tensors |= sample.of_tokens() if name == FEATURES else sample.of_block(name)
            if self.memory:
                changed.update(self._changed(indices))
            return found

        names = [FEATURES, *sorted(students, reverse=True)]
        if not self.memory:
            return compute(names)
        drawn = sample.key if sample is not None else b""
        keys = {name: self._key_of(name, indices, students, drawn) for name in names}
        found = self.memory.recall(keys, compute, is_complete)
        if is_complete():
            return found
        if self._keeps_tokens or n_changes == _MOST_CHANGES:  # tokens may be those of before
            self.require_unchanged(indices)
        self._digests.update(changed)
        # Recalled results cover the images as they were, computed ones do not.
        return self._extract(indices, students, track, sample, n_changes + 1)

    def _by_space(self, found: Mapping[Level, Tensors], students: Collection[int]) -> Embedded:
        arrays = {name: tensors["values"].numpy() for name, tensors in found.items()}
        embedded = self.teacher.split(arrays[FEATURES])
        if students:
            columns = [arrays[index] for index in sorted(students)]
            embedded[DISCREPANCY] = np.stack(columns, axis=1)  # [n_images, n_students]
        return embedded

    def _key_of(
        self, name: Level, indices: np.ndarray, students: Mapping[int, nn.Module], drawn: bytes
    ) -> bytes:
        if name == FEATURES:
            return self.key("features", indices, drawn)
        student = _digest_student(students[name])
        return self.key("discrepancy", indices, drawn, name, student, self.teacher.readout.pooling)


#: Fitted students never change, and a search asks for the same ones often.
_student_digests: WeakKeyDictionary[nn.Module, bytes] = WeakKeyDictionary()


def _digest_student(student: nn.Module) -> bytes:
    if student not in _student_digests:
        _student_digests[student] = _digest_weights(student)
    return _student_digests[student]


def _digest_weights(student: nn.Module) -> bytes:
    own_digest: Callable[[], bytes] | None = getattr(student, "digest", None)
    if own_digest is not None:  # a user's own student, which may have no tensors
        return own_digest()
    tensors = {name: value.cpu().contiguous() for name, value in student.state_dict().items()}
    return combine(type(student).__name__, save(tensors))
