"""Distributed passes: an engine hands parts of a pass to its workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import joblib
import numpy as np
import torch
from torch import nn

from skanomaly_vit._backbone.activations import HeldActivations
from skanomaly_vit._backbone.cached_passes import CachedPasses, Part, Result
from skanomaly_vit._backbone.devices import on_device, resolve_device
from skanomaly_vit._backbone.discrepancy import Embedded, concatenate, embed, n_rows
from skanomaly_vit._backbone.passes import TeacherPasses, shards_of
from skanomaly_vit._backbone.patches import Observer
from skanomaly_vit._backbone.teacher import (
    Origin,
    Teacher,
    load_teacher,
    positions_of,
    same_teacher,
)
from skanomaly_vit._backbone.views import Readout
from skanomaly_vit._caching.memory import Memory
from skanomaly_vit._images.preprocessing import Preprocessing
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._utils.hashing import combine
from skanomaly_vit._utils.settings import with_own_settings
from skanomaly_vit.distributed._joblib import active_engine
from skanomaly_vit.distributed._tasks import Engine, SharedObjects

_CPU = torch.device("cpu")

# Objects that travel


@dataclass(frozen=True)
class PackedTeacher:
    """A teacher on its way to another process, which loads it by name if that is possible.

    Attributes
    ----------
    origin : Origin or None
        Arguments that load it; None if it has no name.
    model : nn.Module or None
        The network itself, if it has no `origin`.
    preprocessing : Preprocessing
    fingerprint : str
        Expected of the teacher that is found.
    positions : torch.Tensor or None
        Its position embeddings, see `same_teacher`.
    device : str, torch.device or None
        The user's setting, resolved on the machine that runs it.
    readout : Readout
    """

    origin: Origin | None
    model: nn.Module | None
    preprocessing: Preprocessing
    fingerprint: str
    positions: torch.Tensor | None
    device: str | torch.device | None
    readout: Readout

    def unpack(self) -> TeacherHandle:
        """Take out the network, or load it; a ValueError if it differs in a single bit."""
        if self.model is not None:
            device = resolve_device(self.device)
            teacher = Teacher(self.model, self.preprocessing, device, readout=self.readout)
            return TeacherHandle(teacher, self.device, True)
        return TeacherHandle(self._load(), self.device, False)

    def _load(self) -> Teacher:
        name, pretrained, image_size, seed, dtype = self.origin  # type: ignore[misc]
        teacher = load_teacher(
            name,
            pretrained=pretrained,
            image_size=image_size,
            device=self.device,
            seed=seed,
            dtype=dtype,
        )
        same = same_teacher(teacher, self.fingerprint, self.positions)
        if same is None:
            raise ValueError(
                f"A worker found backbone={name!r} with pretrained={pretrained!r} to be "
                f"{teacher.fingerprint[:12]}..., but expected {self.fingerprint[:12]}...: other "
                "weights, or another version of timm. Provide the same there, or send the "
                "backbone itself with store_backbone=True."
            )
        return same.reading(self.readout)


@dataclass(frozen=True)
class TeacherHandle:
    """A teacher that works as it is in this process, and is packed for others.

    Attributes
    ----------
    teacher : Teacher
    device : str, torch.device or None
        The user's setting.
    include_weights : bool
        Whether to send the network itself, even if its name would do.
    """

    teacher: Teacher
    device: str | torch.device | None
    include_weights: bool

    def pack(self) -> PackedTeacher:
        """See `Engine.run`."""
        teacher = self.teacher
        by_name = teacher.origin is not None and not self.include_weights
        return PackedTeacher(
            origin=teacher.origin if by_name else None,
            model=None if by_name else on_device(teacher.model, _CPU),
            preprocessing=teacher.preprocessing,
            fingerprint=teacher.fingerprint,
            positions=positions_of(teacher.model) if by_name else None,
            device=self.device,
            readout=teacher.readout,
        )


@dataclass(frozen=True)
class StudentsHandle:
    """The students and the observer of a pass, for the workers.

    Attributes
    ----------
    students : mapping of int to nn.Module
    observer : Observer or None
    """

    students: Mapping[int, nn.Module]
    observer: Observer | None

    def pack(self) -> StudentsHandle:
        """See `Engine.run`."""
        return replace(self, students={i: on_device(s, _CPU) for i, s in self.students.items()})

    def unpack(self) -> StudentsHandle:
        """See `Engine.run`; the students are ready for use."""
        return self


@dataclass(frozen=True)
class PartTask:
    """A function that a worker calls with a part of a pass.

    Attributes
    ----------
    function : callable
        See `CachedPasses.map`.
    source : ImageSource
        The images of the part alone.
    part : Part
        Its indices are positions in `source`.
    batch_size, n_jobs
        See `CachedPasses`.
    activation_cache : int
        Bytes of tokens that the worker may keep.
    """

    function: Callable[..., Any]
    source: ImageSource
    part: Part
    batch_size: int
    n_jobs: int | None
    activation_cache: int

    def signature(self) -> bytes:
        """See `Task`."""
        names = [self.source.name(i) for i in range(len(self.source))]
        part = (self.part.start, list(self.part.blocks), joblib.hash(self.part.arguments))
        return combine(self.function.__name__, names, *part, self.batch_size)

    def passes(self, teacher: Teacher) -> TeacherPasses:
        """Passes over the images of the part."""
        return TeacherPasses(
            teacher,
            self.source,
            activations=HeldActivations(self.activation_cache),
            kept_blocks=self.part.blocks,
            batch_size=self.batch_size,
            n_jobs=self.n_jobs,
        )


# Work, on arrival


@with_own_settings
def run_part(objects: SharedObjects, task: PartTask) -> tuple[Any, ImageSource]:
    """Result of a task, and its findings about the images."""
    handle, *shared = objects
    result = task.function(task.passes(handle.teacher), task.part, *shared)
    return result, task.source.without_pixels()


def embed_part(
    passes: TeacherPasses, part: Part, shared: StudentsHandle, track: Callable[..., Any] = iter
) -> tuple[Embedded, tuple[Any, ...]]:
    """Features of the images of a part, and the observations of the observer."""
    observer = shared.observer
    if observer is not None:
        observer = observer.part(part.start, part.start + len(part.indices))
    device = passes.teacher.device
    students = {index: shared.students[index].to(device) for index in part.blocks}
    batches = embed(passes, part.indices, students, observer, track)
    embedded = concatenate(batches, passes.teacher.views, len(students))
    return embedded, observer.collected() if observer is not None else ()


# Distribution


class SharedPasses(CachedPasses):
    """Passes whose parts an engine hands to its workers.

    Results equal those of `CachedPasses` to the bit. Workers keep no tokens on disk.

    Parameters
    ----------
    engine : Engine
    device : str, torch.device or None
        The user's setting, for workers on other machines.
    include_weights : bool
        Whether to send the backbone itself, not its name.
    activation_cache : int
        Bytes of tokens that each worker may keep if it passes over its images again.
    *args, **options
        Parameters of `CachedPasses`.
    """

    def __init__(
        self,
        *args: Any,
        engine: Engine,
        device: str | torch.device | None,
        include_weights: bool,
        activation_cache: int,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.n_workers = engine.n_workers
        self._engine = engine
        self._activation_cache = activation_cache
        self._backbone = TeacherHandle(self.teacher, device, include_weights)

    def embed(
        self,
        indices: np.ndarray,
        students: Mapping[int, nn.Module],
        observer: Observer | None,
        track: Callable[..., Any] = iter,
    ) -> Iterator[Embedded]:
        """See `CachedPasses`; a shard is a batch."""
        shards = shards_of(len(indices), self.batch_size)
        if len(shards) < 2:
            yield from super().embed(indices, students, observer, track)
            return
        parts = [Part(indices[shard], sorted(students), shard.start) for shard in shards]
        handle = StudentsHandle(students, observer)
        for embedded, observed in self.map(embed_part, parts, shared=(handle,), track=track):
            if observer is not None:
                observer.absorb(observed)
            if n_rows(embedded):
                yield embedded

    def map(
        self,
        function: Callable[..., Result],
        parts: Sequence[Part],
        *,
        shared: tuple[Any, ...] = (),
        track: Callable[..., Any] = iter,
        keeps_tokens: bool = False,
    ) -> Iterator[Result]:
        """See `CachedPasses`."""
        if len(parts) < 2:
            return super().map(function, parts, shared=shared, track=track)
        activation_cache = self._activation_cache if keeps_tokens else 0
        tasks = (self._task(function, part, activation_cache) for part in parts)
        outcomes = self._engine.run(run_part, (self._backbone, *shared), tasks)
        return self._results(outcomes, parts, track)

    def _results(
        self,
        outcomes: Iterator[tuple[Any, ImageSource]],
        parts: Sequence[Part],
        track: Callable[..., Any],
    ) -> Iterator[Any]:
        """Results of parts; `track` counts as many batches as a pass in this process has."""

        def tick() -> Iterator[tuple[Any, ImageSource] | None]:
            for part, outcome in zip(parts, outcomes, strict=True):
                n_batches = math.ceil(len(part.indices) / self.batch_size)
                yield from [None] * (n_batches - 1)
                yield outcome

        done = iter(parts)
        for outcome in track(tick()):
            if outcome is not None:
                result, findings = outcome
                self._source.merge_findings(next(done).indices, findings)
                yield result
        self._source.warn_of_doubts()

    def _task(self, function: Callable[..., Any], part: Part, activation_cache: int) -> PartTask:
        own = replace(part, indices=np.arange(len(part.indices)))
        source = self._source.subset(part.indices)
        return PartTask(function, source, own, self.batch_size, self._n_jobs, activation_cache)


def passes_of(
    teacher: Teacher,
    source: ImageSource,
    memory: Memory,
    *,
    activation_cache: int,
    device: str | torch.device | None,
    include_weights: bool,
    **options: Any,
) -> CachedPasses:
    """Passes under the engine that is active now, or in this process alone."""
    options["in_memory"] = HeldActivations(activation_cache)
    engine = active_engine()
    if engine is None:
        return CachedPasses(teacher, source, memory, **options)
    return SharedPasses(
        teacher,
        source,
        memory,
        engine=engine,
        device=device,
        include_weights=include_weights,
        activation_cache=activation_cache,
        **options,
    )
