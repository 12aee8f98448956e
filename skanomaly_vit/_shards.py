"""Passes over images that are shared out: shards of images, or students of different blocks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from skanomaly_vit._checkpoints import Checkpoints
from skanomaly_vit._digests import combine
from skanomaly_vit._engines import active_engine
from skanomaly_vit._extraction import extract
from skanomaly_vit._images import ImageSource, Preprocessing
from skanomaly_vit._memory import Memory
from skanomaly_vit._passes import HeldActivations, TeacherPasses, shards_of
from skanomaly_vit._patches import Observer
from skanomaly_vit._positions import positions_of, same_teacher
from skanomaly_vit._progress import Progress, log
from skanomaly_vit._remembered import RememberedPasses
from skanomaly_vit._ridge import RidgeSums, sum_tokens
from skanomaly_vit._students import Trained
from skanomaly_vit._tasks import Engine, Luggage
from skanomaly_vit._teacher import Origin, Teacher, load_teacher, on_device, resolve_device
from skanomaly_vit._training import Schedule, train_students

Result = TypeVar("Result")

_CPU = torch.device("cpu")


# What travels


@dataclass(frozen=True)
class Backbone:
    """A teacher on its way to another process, which gets to know its name and finds it there.

    Attributes
    ----------
    origin : Origin or None
        What it is loaded from.
    model : nn.Module or None
        The network itself, if it has no `origin`.
    preprocessing : Preprocessing
    fingerprint : str
        Of what is to be found.
    positions : torch.Tensor or None
        Its position embeddings, see `same_teacher`.
    device : str, torch.device or None
        Where the user wants it, to be understood on the machine where it runs.
    """

    origin: Origin | None
    model: nn.Module | None
    preprocessing: Preprocessing
    fingerprint: str
    positions: torch.Tensor | None
    device: str | torch.device | None

    def unpack(self) -> Traveller:
        """Take out the network, or load it; a ValueError if it is not the same to the bit."""
        if self.model is not None:
            device = resolve_device(self.device)
            return Traveller(Teacher(self.model, self.preprocessing, device), self.device, True)
        return Traveller(self._load(), self.device, False)

    def _load(self) -> Teacher:
        name, pretrained, image_size, seed = self.origin  # type: ignore[misc]
        teacher = load_teacher(
            name, pretrained=pretrained, image_size=image_size, device=self.device, seed=seed
        )
        same = same_teacher(teacher, self.fingerprint, self.positions)
        if same is None:
            raise ValueError(
                f"A worker found backbone={name!r} with pretrained={pretrained!r} to be "
                f"{teacher.fingerprint[:12]}..., where it was to find {self.fingerprint[:12]}...: "
                "other weights, or another version of timm. Provide the same there, or set "
                "store_backbone=True, with which the backbone itself is sent."
            )
        return same


@dataclass(frozen=True)
class Traveller:
    """A teacher that is used where it is, and packed where it has to leave.

    Attributes
    ----------
    teacher : Teacher
    device : str, torch.device or None
        What the user has set.
    whole : bool
        Whether the network itself travels, even if it could be found by name.
    """

    teacher: Teacher
    device: str | torch.device | None
    whole: bool

    def pack(self) -> Backbone:
        """See `Engine.run`."""
        teacher = self.teacher
        by_name = teacher.origin is not None and not self.whole
        return Backbone(
            origin=teacher.origin if by_name else None,
            model=None if by_name else on_device(teacher.model, _CPU),
            preprocessing=teacher.preprocessing,
            fingerprint=teacher.fingerprint,
            positions=positions_of(teacher.model) if by_name else None,
            device=self.device,
        )


@dataclass(frozen=True)
class Company:
    """What is done with the tokens, beside the backbone.

    Attributes
    ----------
    students : mapping of int to nn.Module
    observer : Observer or None
    """

    students: Mapping[int, nn.Module]
    observer: Observer | None

    def pack(self) -> Company:
        """See `Engine.run`."""
        return replace(self, students={i: on_device(s, _CPU) for i, s in self.students.items()})

    def unpack(self) -> Company:
        """What was packed is ready for use."""
        return self


@dataclass(frozen=True)
class Shard:
    """Some of the images of a pass.

    Attributes
    ----------
    source : ImageSource
        Of these images alone.
    start, stop : int
        Their place in the pass.
    blocks : sequence of int
        Those that are looked at.
    batch_size, n_jobs
        See `RememberedPasses`.
    """

    source: ImageSource
    start: int
    stop: int
    blocks: Sequence[int]
    batch_size: int
    n_jobs: int | None

    def signature(self) -> bytes:
        """See `Task`."""
        names = [self.source.name(i) for i in range(len(self.source))]
        return combine(names, self.start, self.stop, list(self.blocks), self.batch_size)

    def passes(self, teacher: Teacher, activations: int = 0) -> TeacherPasses:
        """Passes over these images, with so many bytes of tokens kept in between."""
        return TeacherPasses(
            teacher,
            self.source,
            activations=HeldActivations(activations),
            kept_blocks=self.blocks,
            batch_size=self.batch_size,
            n_jobs=self.n_jobs,
        )


@dataclass(frozen=True)
class Extracted:
    """What `extract` gave for a shard.

    Attributes
    ----------
    features, discrepancies
        See `extract`.
    observed : tuple
        What the observer of the shard has collected.
    told : ImageSource
        What was found out about the images.
    """

    features: np.ndarray
    discrepancies: np.ndarray
    observed: tuple[Any, ...]
    told: ImageSource


@dataclass(frozen=True)
class Lesson:
    """The training of the students of some blocks.

    Attributes
    ----------
    shard : Shard
        All images of the training, and the blocks.
    train, validation : ndarray of int
        Positions in the shard.
    schedule : Schedule
    seed : int
    activation_cache : int
        Bytes of tokens that may be kept between epochs.
    """

    shard: Shard
    train: np.ndarray
    validation: np.ndarray
    schedule: Schedule
    seed: int
    activation_cache: int

    def signature(self) -> bytes:
        """See `Task`."""
        parts = (self.train.tobytes(), self.validation.tobytes(), self.schedule, self.seed)
        return combine(self.shard.signature(), *parts)


# What is done with it, where it arrives


def extract_shard(luggage: Luggage, shard: Shard) -> Extracted:
    """`extract` for one shard."""
    teacher, company = luggage[0].teacher, luggage[1]
    part = company.observer.part(shard.start, shard.stop) if company.observer else None
    students = {index: company.students[index].to(teacher.device) for index in shard.blocks}
    teacher_pass = shard.passes(teacher).over(np.arange(len(shard.source)))
    features, discrepancies = extract(teacher_pass, students, part)
    observed = part.collected() if part is not None else ()
    return Extracted(features, discrepancies, observed, shard.source.without_pixels())


def sum_shard(luggage: Luggage, shard: Shard) -> RidgeSums:
    """`sum_tokens` for one shard."""
    teacher_pass = shard.passes(luggage[0].teacher).over(np.arange(len(shard.source)))
    return sum_tokens(teacher_pass, shard.blocks)


def train_blocks(luggage: Luggage, lesson: Lesson) -> tuple[dict[int, Trained], list[float]]:
    """`train_students` for some of the blocks."""
    teacher = luggage[0].teacher
    trained, seconds = train_students(
        lesson.shard.passes(teacher, lesson.activation_cache).over,
        teacher.copy_blocks(lesson.shard.blocks),
        lesson.train,
        lesson.validation,
        schedule=lesson.schedule,
        seed=lesson.seed,
        progress=Progress(),
        checkpoints=Checkpoints(),
    )
    for record in trained.values():
        record.student.cpu()
    return trained, seconds


# Who shares it out


class ShardedPasses(RememberedPasses):
    """Passes that an engine shares out among its workers.

    Results are those of `RememberedPasses` to the bit. Workers keep no tokens on disk.

    Parameters
    ----------
    engine : Engine
    device : str, torch.device or None
        What the user has set, for workers on other machines.
    whole : bool
        Whether the backbone itself travels, and not its name.
    activation_cache : int
        Bytes of tokens that each worker may keep while it trains students.
    *args, **options
        Of `RememberedPasses`.
    """

    def __init__(
        self,
        *args: Any,
        engine: Engine,
        device: str | torch.device | None,
        whole: bool,
        activation_cache: int,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._engine = engine
        self._activation_cache = activation_cache
        self._backbone = Traveller(self.teacher, device, whole)

    def run(
        self,
        indices: np.ndarray,
        students: Mapping[int, nn.Module],
        observer: Observer | None,
        track: Callable[..., Any] = iter,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See `RememberedPasses`; a shard is a batch."""
        shards = shards_of(len(indices), self._batch_size)
        if len(shards) < 2:
            yield from super().run(indices, students, observer, track)
            return
        luggage = (self._backbone, Company(students, observer))
        found = self._run(extract_shard, luggage, indices, shards, sorted(students), track)
        for shard, result in zip(shards, found, strict=True):
            self._source.learn(indices[shard], result.told)
            if observer is not None:
                observer.absorb(result.observed)
            if len(result.features):
                yield result.features, result.discrepancies

    def sum_shards(
        self,
        indices: np.ndarray,
        blocks: Sequence[int],
        track: Callable[..., Any],
        n_done: int = 0,
    ) -> Iterator[RidgeSums]:
        """See `RememberedPasses`."""
        shards = shards_of(len(indices), self._batch_size, of_sums=True)[n_done:]
        if len(shards) < 2:
            return super().sum_shards(indices, blocks, track, n_done)
        return self._run(sum_shard, (self._backbone,), indices, shards, blocks, track)

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
        """See `RememberedPasses`; progress is told when the students of some blocks are done."""
        checkpoints.warn_of_workers()
        groups = np.array_split(blocks, min(self._engine.n_workers, len(blocks)))
        train, validation = split
        images = np.concatenate([train, validation])
        source = self._source.alone(images)
        positions = np.arange(len(images))

        def lessons() -> Iterator[Lesson]:
            for group in groups:
                whole = slice(0, len(images))
                shard = self._shard(source, whole, group.tolist())
                order = (positions[: len(train)], positions[len(train) :])
                yield Lesson(shard, *order, schedule, seed, self._activation_cache)

        trained: dict[int, Trained] = {}
        seconds: list[list[float]] = []
        with progress.task("epoch", len(groups)) as task:
            results = self._engine.run(train_blocks, (self._backbone,), lessons())
            for students, taken in task.track(results):
                trained |= students
                seconds.append(taken)
                log(verbose, "students of blocks %s: %d epochs", sorted(students), len(taken))
        return trained, [max(column) for column in itertools.zip_longest(*seconds, fillvalue=0.0)]

    def _run(
        self,
        function: Callable[[Luggage, Shard], Result],
        luggage: Luggage,
        indices: np.ndarray,
        places: Sequence[slice],
        blocks: Sequence[int],
        track: Callable[..., Any],
    ) -> Iterator[Result]:
        """Have something done with each shard of some images; `track` sees as many batches."""
        tasks = (self._shard(self._source.alone(indices[at]), at, blocks) for at in places)

        def tick() -> Iterator[Result | None]:
            for place, result in zip(
                places, self._engine.run(function, luggage, tasks), strict=True
            ):
                n_batches = math.ceil((place.stop - place.start) / self._batch_size)
                yield from [None] * (n_batches - 1)
                yield result

        return (result for result in track(tick()) if result is not None)

    def _shard(self, source: ImageSource, place: slice, blocks: Sequence[int]) -> Shard:
        return Shard(source, place.start, place.stop, blocks, self._batch_size, self._n_jobs)


def passes_of(
    teacher: Teacher,
    source: ImageSource,
    memory: Memory,
    *,
    activation_cache: int,
    device: str | torch.device | None,
    whole: bool,
    **options: Any,
) -> RememberedPasses:
    """Passes under the engine that is active here and now, or in this process alone."""
    options["held"] = HeldActivations(activation_cache)
    engine = active_engine()
    if engine is None:
        return RememberedPasses(teacher, source, memory, **options)
    return ShardedPasses(
        teacher,
        source,
        memory,
        engine=engine,
        device=device,
        whole=whole,
        activation_cache=activation_cache,
        **options,
    )
