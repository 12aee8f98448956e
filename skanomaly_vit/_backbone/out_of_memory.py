"""Out-of-memory handling: batches are split where a device has too little memory."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

import torch

from skanomaly_vit._backbone.block_calls import BlockCall, Visitor
from skanomaly_vit._backbone.teacher import Teacher
from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.exceptions import OutOfMemoryWarning

Result = TypeVar("Result")


def run_in_parts(
    teacher: Teacher,
    images: Any,
    blocks: Collection[int],
    visit: Visitor,
    run: Callable[[Any, Collection[int], Visitor], Result],
) -> list[Result]:
    """Run a batch of images, split into parts where the device has too little memory.

    Parameters
    ----------
    teacher : Teacher
        Remembers how many images fit at once, so memory runs out once, not every time.
    images : sequence
        Anything that `run` takes.
    blocks : collection of int
        Blocks that `visit` sees.
    visit : callable
        Sees every image of each block once, in order, in one call or in several. It must change
        nothing if it runs out of memory itself.
    run : callable
        Takes some of the images, blocks and `visit`, and shows `visit` those blocks.

    Returns
    -------
    results : list
        Results of `run`, one per part, in order.

    Raises
    ------
    MemoryError
        If there is too little memory for a single image.
    """
    size = teacher.largest_batch
    if size is None or len(images) <= size:
        seen: list[int] = []

        def noting(call: BlockCall) -> None:
            visit(call)
            seen.append(call.index)

        try:
            return [run(images, blocks, noting)]
        except torch.OutOfMemoryError as error:
            size = _halve(teacher, len(images), error)
        # Here the error is gone, and no longer holds the tensors of the frames it came through.
        blocks = [index for index in blocks if index not in seen]
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    return [result for part in parts for result in run_in_parts(teacher, part, blocks, visit, run)]


def _halve(teacher: Teacher, n_images: int, error: torch.OutOfMemoryError) -> int:
    height, width = teacher.preprocessing.image_size
    found = f"Out of memory on {teacher.device} with"
    if n_images == 1:
        raise MemoryError(
            f"{found} a single image of {height} x {width} pixels. Pass a smaller image_size or "
            "backbone, fewer n_blocks, activation_cache=0 (the cache is on the device), or "
            "device='cpu'; or end other programs that use its memory."
        ) from error
    half = n_images // 2
    teacher.largest_batch = min(half, teacher.largest_batch or half)
    warn_user(
        f"{found} {n_images} images of {height} x {width} pixels at once; from now on, batches "
        f"are split into parts of at most {half}. Results are the same up to rounding.",
        OutOfMemoryWarning,
    )
    return teacher.largest_batch
