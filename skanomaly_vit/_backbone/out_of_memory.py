"""Batches in parts, where a device has too little memory for the whole."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import torch

from skanomaly_vit._backbone.teacher import BlockCall, Teacher, Visitor
from skanomaly_vit.exceptions import OutOfMemoryWarning

Result = TypeVar("Result")


def run_in_parts(
    teacher: Teacher,
    images: Any,
    blocks: Collection[int],
    visit: Visitor,
    run: Callable[[Any, Collection[int], Visitor], Result],
) -> list[Result]:
    """Have a batch of images worked on, in parts where the device has too little memory.

    Parameters
    ----------
    teacher : Teacher
        Remembers how many images fit at once, so that memory runs out once and not every time.
    images : sequence
        Of anything that `run` takes.
    blocks : collection of int
        The blocks that `visit` is to see.
    visit : callable
        Sees every image of each block once, in order, in one call or in several. It must change
        nothing when it runs out of memory itself.
    run : callable
        Given some of the images, blocks and `visit`, shows it those blocks.

    Returns
    -------
    results : list
        What `run` gave for each part, in order.

    Raises
    ------
    MemoryError
        If there is too little memory for one image.
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
        # Here the error is gone, and with it its hold on the tensors of the frames it came through.
        blocks = [index for index in blocks if index not in seen]
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    return [result for part in parts for result in run_in_parts(teacher, part, blocks, visit, run)]


def _halve(teacher: Teacher, n_images: int, error: torch.OutOfMemoryError) -> int:
    height, width = teacher.preprocessing.image_size
    found = f"Out of memory on {teacher.device} with"
    if n_images == 1:
        raise MemoryError(
            f"{found} a single image of {height} x {width} pixels. Pass a smaller image_size or "
            "backbone, fewer n_blocks, activation_cache=0 (it is kept on the device), or "
            "device='cpu'; or end what else takes memory there."
        ) from error
    half = n_images // 2
    teacher.largest_batch = min(half, teacher.largest_batch or half)
    warnings.warn(
        f"{found} {n_images} images of {height} x {width} pixels at once; from here on, batches "
        f"are worked on in parts of {half} at most. Results are the same up to rounding.",
        OutOfMemoryWarning,
        stacklevel=2,
    )
    return teacher.largest_batch
