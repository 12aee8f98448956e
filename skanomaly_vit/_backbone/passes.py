"""Passes of a teacher over a set of images, each image embedded once where its tokens are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils._pytree import tree_flatten

from skanomaly_vit._backbone.activations import FEATURES, Activations, Level, Tokens, _levels
from skanomaly_vit._backbone.out_of_memory import run_in_parts
from skanomaly_vit._backbone.teacher import BlockCall, Teacher, Visitor, look_away
from skanomaly_vit._images.prefetching import Reader, batches_ahead
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit.exceptions import UnreadableImageError

#: Images of a shard, or a few less: seconds on a CPU, and on a GPU more than what a task costs.
IMAGES_PER_SHARD = 128

#: Shards of which a sum is one: sums are large (7 MB a block of the embedded backbone), and travel.
SHARDS_PER_SUM = 8

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


def shards_of(n_images: int, batch_size: int, *, of_sums: bool = False) -> list[slice]:
    """Consecutive shards of a pass, each but the last of the same number of whole batches.

    They depend on nothing else: what is summed over images (`of_sums`) is summed shard by shard
    whoever works on them, and however many do, so that it rounds alike.
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
        Where tokens are kept between passes. Kept tokens are replayed: an image whose tokens
        are there is neither decoded nor embedded again.
    kept_blocks : collection of int
        The blocks whose tokens are collected to be kept.
    batch_size : int
    n_jobs : int or None
        Threads that decode.

    Notes
    -----
    Replaying is exact: the tokens are those that the teacher gave, and the other arguments of a
    block (rotary embeddings, position biases) depend on the image size alone. Where they do
    not, which is looked at in every batch, nothing is kept.

    A batch for which the device has too little memory is worked on in parts (`run_in_parts`):
    visitors see the images of each block in order, all of them once, in one call or in several.

    Of a source that skips what is unreadable, images found to be so are left out, and the next
    ones move up: the batches are those of a pass over the others alone.
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
        """Whether all batches fit on the device: sums over a batch in parts round otherwise."""
        return (self.teacher.largest_batch or self._batch_size) >= self._batch_size

    def n_batches(self, n_images: int) -> int:
        """In how many batches a pass sees so many images."""
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
            Those that `visit` sees at work.
        visit : callable
        track : callable
            Is shown every batch.
        in_parts : bool
            Whether a batch may be worked on in parts. If not, `visit` sees each batch whole, or the
            device runs out of memory.

        Yields
        ------
        features : torch.Tensor of shape (batch, dim)
            Pooled features of a batch.
        """
        return track(self._read(indices, sorted(blocks), visit, in_parts))

    def _read(
        self, indices: np.ndarray, blocks: Sequence[int], visit: Visitor, in_parts: bool
    ) -> Iterator[torch.Tensor]:
        """As `_run`, and no thread is left, however the pass ends."""
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
                yield torch.cat(parts) if len(parts) > 1 else parts[0]
            else:
                yield self._show(inputs, blocks, visit)
            batch = []

    def _show(
        self, inputs: list[Tokens] | torch.Tensor, blocks: Collection[int], visit: Visitor
    ) -> torch.Tensor:
        """Pooled features of images, whose blocks `visit` sees at work."""
        if torch.is_tensor(inputs):
            return self.teacher(inputs, blocks=blocks, visit=visit)
        return self._replay(inputs, sorted(blocks), visit)

    def _prepare(self, batch: Sequence[int], blocks: Sequence[int]) -> list[Tokens] | torch.Tensor:
        """The tokens of a batch of images, or its pixels, before anything is shown to a visitor."""
        known = self._recall(batch, blocks)
        return self._decode(batch) if known is None else [known[position] for position in batch]

    def _recall(self, batch: Sequence[int], blocks: Sequence[int]) -> dict[int, Tokens] | None:
        """Tokens of all images of a batch, embedding those not known; None without room."""
        levels = _levels(blocks)
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
        """Run the teacher over images, collect their tokens, and have them kept."""

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
            collected.setdefault(call.index, call.tokens)
            collected[call.index + 1] = call.output

        self._probe()  # here, since the pass below is not to be interrupted by another
        # Not inference_mode: autograd refuses to save its tensors for a student's backward pass.
        with torch.inference_mode(False), torch.no_grad():
            collected[FEATURES] = self.teacher(self._decode(positions), blocks=blocks, visit=visit)
        tokens = {
            position: {level: values[i] for level, values in collected.items()}
            for i, position in enumerate(positions)
        }
        if self._replayable:
            self._activations.keep(tokens)
        return tokens

    def _replay(self, images: list[Tokens], blocks: Sequence[int], visit: Visitor) -> torch.Tensor:
        """Show `visit` the blocks at work on images whose tokens are known."""

        def batch(level: Level) -> torch.Tensor:
            return torch.stack([tokens[level] for tokens in images]).to(self.teacher.device)

        output = torch.empty(0)
        for i, index in enumerate(blocks):
            follows = i > 0 and blocks[i - 1] == index - 1
            tokens, output = output if follows else batch(index), batch(index + 1)
            args, kwargs = self._arguments_of(index)
            visit(BlockCall(index, (tokens, *args), kwargs, output))
        return batch(FEATURES)

    def _arguments_of(self, index: int) -> Arguments:
        """What the block gets beside tokens."""
        self._probe()
        return self._arguments[index]

    def _probe(self) -> None:
        """Run the teacher on a blank image to see with what arguments it calls its blocks."""
        if self._arguments:
            return

        def visit(call: BlockCall) -> None:
            self._arguments[call.index] = _arguments(call)

        blank = torch.zeros(1, 3, *self.teacher.preprocessing.image_size)
        with torch.inference_mode(False), torch.no_grad():
            self.teacher(blank, blocks=range(len(self.teacher.blocks)), visit=visit)


def _arguments(call: BlockCall) -> Arguments:
    return call.args[1:], call.kwargs


def _same(a: Any, b: Any) -> bool:
    """Whether arguments of two calls are equal, tensors among them by value."""
    flat_a, form_a = tree_flatten(a)
    flat_b, form_b = tree_flatten(b)
    return form_a == form_b and all(
        torch.equal(x, y) if torch.is_tensor(x) and torch.is_tensor(y) else x is y or x == y
        for x, y in zip(flat_a, flat_b, strict=True)
    )
