"""Passes of a teacher over a set of images, with replay of tokens that a cache keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils._pytree import tree_flatten

from skanomaly_vit._backbone.activations import (
    FEATURES,
    REGION,
    Activations,
    Level,
    Tokens,
    _levels,
)
from skanomaly_vit._backbone.block_calls import BlockCall, Visitor, look_away
from skanomaly_vit._backbone.out_of_memory import run_in_parts
from skanomaly_vit._backbone.teacher import Teacher
from skanomaly_vit._images.prefetching import Reader, batches_ahead
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit.exceptions import UnreadableImageError

#: Images per shard, or slightly fewer: seconds on a CPU, and on a GPU more than a task costs.
IMAGES_PER_SHARD = 128

#: Shards per sum, since sums travel and are large (7 MB per block of the embedded backbone).
SHARDS_PER_SUM = 8

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


def shards_of(n_images: int, batch_size: int, *, of_sums: bool = False) -> list[slice]:
    """Consecutive shards of a pass: whole batches, the same number in all but the last.

    They depend on nothing else. Every worker sums over images (`of_sums`) shard by shard, so sums
    round alike for any number of workers.
    """
    n_images_at_most = IMAGES_PER_SHARD * (SHARDS_PER_SUM if of_sums else 1)
    size = max(1, n_images_at_most // batch_size) * batch_size
    return [slice(start, min(start + size, n_images)) for start in range(0, n_images, size)]


class TeacherPasses:
    """Passes of one teacher over one set of images.

    Parameters
    ----------
    teacher : Teacher
    source : ImageSource
    activations : Activations
        Keeps tokens between passes. Passes replay them: an image with kept tokens is neither
        decoded nor embedded again.
    kept_blocks : collection of int
        Blocks whose tokens passes collect for `activations`.
    batch_size : int
    n_jobs : int or None
        Threads that decode.

    Notes
    -----
    Replay is exact: the tokens are the teacher's own, and the other arguments of a block (rotary
    embeddings, position biases) depend on the image size alone. Passes check that in every batch,
    and keep nothing where it fails.

    If the device has too little memory for a batch, `run_in_parts` splits it: visitors see the
    images of each block in order, each once, in one call or in several.

    A source that skips unreadable images leaves them out, and the next images move up: the batches
    are those of a pass over the readable images alone.
    """

    def __init__(
        self,
        teacher: Teacher,
        source: ImageSource,
        *,
        activations: Activations,
        kept_blocks: Collection[int],
        batch_size: int,
        n_jobs: int | None,
    ) -> None:
        self.teacher = teacher
        self._source = source
        self._activations = activations
        self._kept_blocks = kept_blocks
        self._batch_size = batch_size
        self._reader = Reader(
            source,
            teacher.preprocessing,
            n_jobs=n_jobs,
            n_ahead=batches_ahead(teacher.device) * batch_size,
            pinned=teacher.device.type == "cuda",
        )
        self._arguments: dict[int, Arguments] = {}
        self._replayable = True

    @property
    def is_whole(self) -> bool:
        """Whether all batches fit on the device: sums over split batches round differently."""
        return (self.teacher.largest_batch or self._batch_size) >= self._batch_size

    def n_batches(self, n_images: int) -> int:
        """Number of batches in a pass over `n_images`."""
        return math.ceil(n_images / self._batch_size)

    def run(
        self,
        indices: np.ndarray,
        blocks: Collection[int],
        visit: Visitor,
        *,
        track: Callable[[Iterator[Any]], Iterator[Any]] = iter,
        in_parts: bool = True,
    ) -> Iterator[torch.Tensor]:
        """Run the teacher over some of the images, in order, batch by batch.

        Parameters
        ----------
        indices : ndarray of int
        blocks : collection of int
            Blocks that `visit` sees at work.
        visit : callable
        track : callable
            Wraps the iterator of batches, to follow progress.
        in_parts : bool
            Whether to split batches that exceed the memory. If not, `visit` sees each batch whole,
            or the device runs out of memory.

        Yields
        ------
        features : torch.Tensor of shape (batch, dim)
            Pooled features of a batch.
        """
        return track(self._read(indices, sorted(blocks), visit, in_parts))

    def _read(
        self, indices: np.ndarray, blocks: Sequence[int], visit: Visitor, in_parts: bool
    ) -> Iterator[torch.Tensor]:
        """As `_run`; ends the reader's threads, however the pass ends."""
        try:
            yield from self._run(indices, blocks, visit, in_parts)
            self._source.warn_of_doubts()
        finally:
            self._reader.close()

    def _run(
        self, indices: np.ndarray, blocks: Sequence[int], visit: Visitor, in_parts: bool
    ) -> Iterator[torch.Tensor]:
        batch: list[int] = []
        start = 0
        while start < len(indices) or batch:
            stop = start + self._batch_size - len(batch)
            batch += indices[start:stop].tolist()
            start = stop
            self._reader.expect(indices[start : start + self._reader.n_ahead].tolist())
            try:
                inputs = self._prepare(batch, blocks)
            except UnreadableImageError:
                if not self._source.skips_unreadable:
                    raise
                batch = self._source.readable(batch).tolist()
                continue
            if in_parts:
                parts = run_in_parts(self.teacher, inputs, blocks, visit, self._show)
                yield torch.cat(parts) if len(parts) > 1 else parts[0]  # [B, C]
            else:
                yield self._show(inputs, blocks, visit)  # [B, C]
            batch = []

    def _show(
        self, inputs: list[Tokens] | torch.Tensor, blocks: Collection[int], visit: Visitor
    ) -> torch.Tensor:
        """Pooled features of images, [B, C]; `visit` sees the blocks at work on them."""
        if torch.is_tensor(inputs):
            return self.teacher(inputs, blocks=blocks, visit=visit)
        return self._replay(inputs, sorted(blocks), visit)

    def _prepare(self, batch: Sequence[int], blocks: Sequence[int]) -> list[Tokens] | torch.Tensor:
        """Tokens of a batch of images, or its pixels; no visitor sees anything yet."""
        known = self._recall(batch, blocks)
        return self._decode(batch) if known is None else [known[position] for position in batch]

    def _recall(self, batch: Sequence[int], blocks: Sequence[int]) -> dict[int, Tokens] | None:
        """Tokens of a batch, which embeds images that have none; None if none can be kept."""
        levels = _levels(blocks) | ({REGION} if self._source.has_regions else set())
        known = self._activations.find(batch, levels)
        missing = [position for position in batch if position not in known]
        if not missing:
            return known
        if not self._replayable or not self._activations.has_room(len(missing)):
            return None
        embedded = self._embed(missing, {*blocks, *self._kept_blocks})
        return known | embedded if self._replayable else None

    def _decode(self, positions: Sequence[int]) -> torch.Tensor:
        return self._reader.load(positions)

    def _embed(self, positions: Sequence[int], blocks: Collection[int]) -> dict[int, Tokens]:
        """Run the teacher over images, and collect and keep their tokens."""

        def embed(part: Sequence[int], *ignored: Any) -> dict[int, Tokens]:
            return self._embed_at_once(part, blocks)

        parts = run_in_parts(self.teacher, positions, (), look_away, embed)
        return {position: tokens for part in parts for position, tokens in part.items()}

    def _embed_at_once(
        self, positions: Sequence[int], blocks: Collection[int]
    ) -> dict[int, Tokens]:
        collected: Tokens = {}

        def visit(call: BlockCall) -> None:
            if not _same(_arguments(call), self._arguments_of(call.index)):
                self._replayable = False
            collected.setdefault(call.index, call.tokens)  # [B, N, C]
            collected[call.index + 1] = call.output  # [B, N, C]
            if call.inside is not None:
                collected[REGION] = call.inside  # [B, P]

        self._probe()  # here, since no other pass may interrupt the one below
        # Not inference_mode: autograd refuses to save its tensors for a student's backward pass.
        with torch.inference_mode(False), torch.no_grad():
            # [B, 3, H, W] -> [B, C]
            collected[FEATURES] = self.teacher(self._decode(positions), blocks=blocks, visit=visit)
        # [B, N, C] -> B x [N, C], and of features [B, C] -> B x [C]
        tokens = {
            position: {level: values[i] for level, values in collected.items()}
            for i, position in enumerate(positions)
        }
        if self._replayable:
            self._activations.keep(tokens)
        return tokens

    def _replay(self, images: list[Tokens], blocks: Sequence[int], visit: Visitor) -> torch.Tensor:
        """Show `visit` the blocks at work on images with kept tokens."""

        def batch(level: Level) -> torch.Tensor:
            # B x [N, C] -> [B, N, C], and of features B x [C] -> [B, C]
            return torch.stack([tokens[level] for tokens in images]).to(self.teacher.device)

        inside = batch(REGION) if REGION in images[0] else None  # [B, P]
        output = torch.empty(0)
        for i, index in enumerate(blocks):
            follows = i > 0 and blocks[i - 1] == index - 1
            tokens, output = output if follows else batch(index), batch(index + 1)
            args, kwargs = self._arguments_of(index)
            visit(BlockCall(index, (tokens, *args), kwargs, output, inside))
        return batch(FEATURES)

    def _arguments_of(self, index: int) -> Arguments:
        """Arguments of the block beside tokens."""
        self._probe()
        return self._arguments[index]

    def _probe(self) -> None:
        """Run the teacher on a blank image to record the arguments of its blocks."""
        if self._arguments:
            return

        def visit(call: BlockCall) -> None:
            self._arguments[call.index] = _arguments(call)

        blank = torch.zeros(1, 3, *self.teacher.preprocessing.image_size)  # [1, 3, H, W]
        with torch.inference_mode(False), torch.no_grad():
            self.teacher(blank, blocks=range(len(self.teacher.blocks)), visit=visit)


def _arguments(call: BlockCall) -> Arguments:
    return call.args[1:], call.kwargs


def _same(a: Any, b: Any) -> bool:
    """True if the arguments of two calls are equal; tensors are compared by value."""
    flat_a, form_a = tree_flatten(a)
    flat_b, form_b = tree_flatten(b)
    return form_a == form_b and all(
        torch.equal(x, y) if torch.is_tensor(x) and torch.is_tensor(y) else x is y or x == y
        for x, y in zip(flat_a, flat_b, strict=True)
    )
