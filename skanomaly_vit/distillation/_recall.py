"""Recall of fitted students from `memory`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from skanomaly_vit._caching.memory import LRUCache, Tensors
from skanomaly_vit._utils.hashing import combine
from skanomaly_vit.distillation._student import BaseStudent, StorableStudent, TrainingTask
from skanomaly_vit.distillation._trained import Trained

#: Recent students from `memory`; a search needs the same ones in many settings.
_recent_students: LRUCache[Trained] = LRUCache(2**28)


def fit_or_recall(
    student: BaseStudent, task: TrainingTask, blocks: Sequence[int], *, tag: object
) -> tuple[dict[int, Trained], list[float]]:
    """Fit a student of each block, or recall it if the passes have a memory.

    Parameters
    ----------
    student : BaseStudent
    task : TrainingTask
    blocks : sequence of int
    tag : object
        Changes that the caller makes to recalled students; another tag gives other objects.

    Returns
    -------
    trained : dict of int to Trained
    seconds : list of float
        Duration of each epoch; empty if all were recalled.
    """
    if not task.passes.memory or not isinstance(student, StorableStudent):
        return student._fit_blocks(task, blocks)
    seconds: list[float] = []

    def fit(missing: Collection[int]) -> dict[int, Tensors]:
        trained, taken = student._fit_blocks(task, sorted(missing))
        task.require_unchanged()
        seconds.extend(taken)
        return {index: record.to_tensors() for index, record in trained.items()}

    def is_final() -> bool:
        return not task.progress.stop_requested and task.passes.passes.is_whole

    # Last block first: every smaller `n_blocks` has it, too.
    keys = {index: student._key(task, index) for index in blocks[::-1]}
    own = {index: combine(key, tag) for index, key in keys.items()}
    recent = {i: record for i in keys if (record := _recent_students.get(own[i])) is not None}
    unknown = {index: key for index, key in keys.items() if index not in recent}
    found = task.passes.memory.recall(unknown, fit, is_final=is_final)
    rebuilt = _rebuild(student, task, found)
    if is_final():
        for index, record in rebuilt.items():
            _recent_students.put(own[index], record, record.n_bytes)
    return recent | rebuilt, seconds


def _rebuild(
    student: StorableStudent, task: TrainingTask, found: dict[int, Tensors]
) -> dict[int, Trained]:
    """Rebuild students from the tensors of `Trained.to_tensors`."""
    blocks = task.passes.teacher.copy_blocks(found if student._copies_blocks else ())

    def rebuild(index: int, tensors: Tensors) -> Trained:
        return Trained.from_tensors(tensors, lambda s: student._build(s, blocks.get(index)))

    return {index: rebuild(index, tensors) for index, tensors in found.items()}
