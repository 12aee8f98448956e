"""Work of many workers: shards of sums for ridge students, blocks for block students."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from skanomaly_vit._backbone.cached_passes import CachedPasses, Part
from skanomaly_vit._backbone.passes import TeacherPasses, shards_of
from skanomaly_vit._utils.progress import Progress, log
from skanomaly_vit.distillation._block_training import Schedule, train_students
from skanomaly_vit.distillation._checkpoints import Checkpoints
from skanomaly_vit.distillation._ridge import RidgeSums, sum_tokens
from skanomaly_vit.distillation._trained import Trained


def sum_shards(
    passes: CachedPasses,
    indices: np.ndarray,
    blocks: Sequence[int],
    track: Callable[..., Any],
    n_done: int = 0,
) -> Iterator[RidgeSums]:
    """Yield statistics for ridge students of some blocks, one shard of images after the other.

    Skips the first `n_done` shards.
    """
    shards = shards_of(len(indices), passes.batch_size, of_sums=True)[n_done:]
    return passes.map(sum_part, [Part(indices[shard], blocks) for shard in shards], track=track)


def sum_part(passes: TeacherPasses, part: Part, track: Callable[..., Any] = iter) -> RidgeSums:
    """Run `sum_tokens` on one shard."""
    return sum_tokens(passes, part.indices, part.blocks, track)


def train_blocks(
    passes: CachedPasses,
    blocks: Sequence[int],
    split: tuple[np.ndarray, np.ndarray],
    schedule: Schedule,
    *,
    seed: int,
    progress: Progress,
    checkpoints: Checkpoints,
    verbose: int,
) -> tuple[dict[int, Trained], list[float]]:
    """Train block students; return them and the seconds of each epoch, as `train_students` does.

    Each of several workers trains the students of some blocks, and reports progress when all of
    them are done.
    """
    n_groups = min(passes.n_workers, len(blocks))
    if n_groups < 2:
        return train_students(
            passes.passes,
            blocks,
            *split,
            schedule=schedule,
            seed=seed,
            progress=progress,
            checkpoints=checkpoints,
            verbose=verbose,
        )
    checkpoints.warn_of_workers()
    images, n_train = np.concatenate(split), len(split[0])
    parts = [
        Part(images, group.tolist(), arguments=(n_train, schedule, seed))
        for group in np.array_split(blocks, n_groups)
    ]
    trained: dict[int, Trained] = {}
    seconds: list[list[float]] = []
    with progress.task("epoch", n_groups) as task:
        for students, taken in task.track(passes.map(train_part, parts, keeps_tokens=True)):
            trained |= students
            seconds.append(taken)
            log(verbose, "students of blocks %s: %d epochs", sorted(students), len(taken))
    return trained, [max(column) for column in itertools.zip_longest(*seconds, fillvalue=0.0)]


def train_part(
    passes: TeacherPasses, part: Part, track: Callable[..., Any] = iter
) -> tuple[dict[int, Trained], list[float]]:
    """Run `train_students` for some of the blocks, in a worker."""
    n_train, schedule, seed = part.arguments
    trained, seconds = train_students(
        passes,
        part.blocks,
        part.indices[:n_train],
        part.indices[n_train:],
        schedule=schedule,
        seed=seed,
        progress=Progress(),
        checkpoints=Checkpoints(),
    )
    for record in trained.values():
        record.student.cpu()
    return trained, seconds
