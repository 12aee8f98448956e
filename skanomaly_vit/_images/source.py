"""Images opened lazily: any accepted ``X``, validated, then batches of normalised tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

import joblib
import numpy as np

from skanomaly_vit._images.decoding import Array, Item, decode_image, image_size
from skanomaly_vit._images.digests import digest_image
from skanomaly_vit._images.pillow_rules import MAX_PIXELS
from skanomaly_vit._images.preprocessing import Preprocessing, prepare, prepare_region
from skanomaly_vit._images.regions import (
    PLAIN_FRAMING,
    Framing,
    fit_region,
    read_roi,
)
from skanomaly_vit._images.remarks import Named, Remarks, remarks_to
from skanomaly_vit._images.unreadable import merge, one_line
from skanomaly_vit._images.validation import Items
from skanomaly_vit._utils.hashing import combine
from skanomaly_vit.exceptions import UnreadableImage, UnreadableImageError

if TYPE_CHECKING:
    import torch


Result = TypeVar("Result")

# Images of which no pixel is brighter than this share of white are hardly meant so: the values are
# of another range. Cameras of 10, 12 and 14 bits fill 16 bits to a quarter at most.
_DIM, _DIM_16_BITS = 1 / 15, 0.25

# Images that are asked which share of their pixels counts, about.
_N_ASKED = 16


class ImageSource:
    """Validated, lazy view of any accepted ``X``.

    :func:`open_images` makes it. It holds references (paths, arrays, PIL images) and decodes an
    image at each request.

    Attributes
    ----------
    unreadable : dict of int to UnreadableImage
        Position -> cause, as found by `open_images` and every later step.
    framing : Framing
        Pixels that count in all images, and how images fit the input.
    skips_unreadable : bool
        True: callers skip unreadable images. False: callers stop at the first.
    """

    def __init__(
        self,
        items: Items,
        *,
        image_shape: tuple[int, int, int] | None = None,
        max_pixels: int | None = MAX_PIXELS,
        skips_unreadable: bool = False,
        unreadable: Mapping[int, UnreadableImage] | None = None,
        remarks: Remarks | None = None,
        framing: Framing = PLAIN_FRAMING,
        regions: Sequence[Any] | None = None,
    ) -> None:
        self._items = items
        self.framing = framing
        self._regions = regions  # of the items, one each
        self._max_pixels = max_pixels
        self.skips_unreadable = skips_unreadable
        self.unreadable = dict(unreadable or {})
        self._index = np.arange(len(items))
        # Positions of the items in the X of the user, which errors name.
        self._names = np.arange(len(items))
        # Sizes of images decoded so far, 0 for others: asking a file again may mean decoding it
        # again. Not a dictionary, which takes 200 bytes an image.
        self._sizes = np.zeros((len(self._index), 2), dtype=np.int32)
        self._image_shape = image_shape
        self._remarks = Remarks() if remarks is None else remarks
        self._is_part = False  # of another process, which hears of doubts and warns

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Array:
        """One decoded image (h, w, 3), RGB: uint8, uint16 or float in [0, 1]."""
        texts: list[str] = []
        with remarks_to(texts):
            pixels: Array = self._named(decode_image, index)
        for text in texts:
            self._remarks.add(text, self._as_named(index))
        self._see_range(pixels, index)
        return pixels

    def warn_of_doubts(self) -> None:
        """Warn of images that can be read in more than one way, as far as they were decoded."""
        if not self._is_part:
            self._remarks.warn()

    def _see_range(self, pixels: Array, index: int) -> None:
        white = float(np.iinfo(pixels.dtype).max) if pixels.dtype.kind == "u" else 1.0
        limit = white * (_DIM_16_BITS if pixels.dtype.itemsize == 2 and white > 1 else _DIM)
        brightest = float(pixels.max())
        image = self._as_named(index)
        self._remarks.see_range(pixels.dtype.name, brightest, white, limit, image)

    def take(self, indices: Any) -> Self:
        """Lazy subset.

        Parameters
        ----------
        indices : array-like of int or bool
            Positions in this source, or a mask over it.

        Returns
        -------
        subset : ImageSource
            Its errors name samples by their index in the original ``X``.
        """
        chosen = np.asarray(indices)
        if chosen.size == 0:
            chosen = chosen.astype(np.intp)  # numpy makes an empty list float64
        return self._like(self._index[chosen])

    def subset(self, positions: Array) -> Self:
        """Some of the images without a reference to the others, to send to another process."""
        used, index = np.unique(self._index[positions], return_inverse=True)
        items: Any = self._items
        is_list = isinstance(items, Sequence)
        return self._like(
            index,
            # A copy of an array: pickle stores the whole of a sliced tensor.
            _items=[items[i] for i in used.tolist()] if is_list else items[used],
            _names=self._names[used],
            _regions=self._regions and [self._regions[i] for i in used.tolist()],
            _remarks=Remarks(),
            _is_part=True,
        )

    def _like(self, index: Array, **changes: Any) -> Self:
        """The same, of the items at `index`; nothing is known of these."""
        other = copy.copy(self)
        sizes = np.zeros((len(index), 2), dtype=np.int32)
        vars(other).update({"_index": index, "_sizes": sizes, "unreadable": {}} | changes)
        return other

    def merge_findings(self, positions: Array, other: ImageSource) -> None:
        """Copy findings about the images at `positions` from a `subset` of them."""
        for place, image in other.unreadable.items():
            self.unreadable[int(positions[place])] = image
        known = other._sizes.any(axis=1)
        self._sizes[positions[known]] = other._sizes[known]
        self._remarks.merge(other._remarks)

    def without_pixels(self) -> ImageSource:
        """Findings about the images without the images, to send back from another process."""
        told = ImageSource([], unreadable=self.unreadable, remarks=self._remarks)
        told._sizes = self._sizes
        return told

    def reopen(self, max_pixels: int | None, on_error: str, framing: Framing) -> Self:
        """Return the same images under other rules."""
        if self.unreadable and on_error == "raise":
            raise merge(
                [UnreadableImageError(str(each), [each]) for each in self.unreadable.values()]
            )
        return self._like(
            self._index,
            _max_pixels=max_pixels,
            skips_unreadable=on_error == "nan",
            unreadable=dict(self.unreadable),
            framing=self.framing if framing.is_plain else framing,
            _remarks=Remarks(),
        )

    def batches(
        self, preprocessing: Preprocessing, *, batch_size: int, n_jobs: int | None = None
    ) -> Iterator[torch.Tensor]:
        """Decode, resize and normalise, one batch at a time, in order.

        Parameters
        ----------
        preprocessing : Preprocessing
            Size, mean, standard deviation and interpolation.
        batch_size : int
            Images per batch; the last batch may hold fewer.
        n_jobs : int, default=None
            Threads that decode and resize. The result does not depend on it.

        Yields
        ------
        batch : torch.Tensor of shape (b, 3 or 4, height, width), float32
            ``(x - mean) / std`` with x in [0, 1]. If images have regions, a fourth channel is 1
            where pixels count, else 0, and the others are 0 there.

        Raises
        ------
        ValueError
            If an image of the batch cannot be decoded.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        # The generator binds no batch to a name, so a batch can be freed while the next is made.
        return (
            self.load(range(start, min(start + batch_size, len(self))), preprocessing, n_jobs)
            for start in range(0, len(self), batch_size)
        )

    def size(self, position: int) -> tuple[int, int]:
        """Height and width of an image; a ValueError if it cannot be read."""
        if not self._sizes[position].any():
            self._sizes[position] = self._named(image_size, position)
        height, width = self._sizes[position].tolist()
        return height, width

    def name(self, position: int) -> str:
        """Name of an image in messages: its index in the original ``X``, and its path."""
        return _name(*self._entry(position))

    def _as_named(self, position: int) -> Named:
        item, index = self._entry(position)
        return Named(index, _name(item, index))

    def path(self, position: int) -> str | None:
        """Path of an image; None if `X` holds no path there."""
        item, _ = self._entry(position)
        return item if isinstance(item, str) else None

    def digest(self, position: int) -> bytes:
        """Digest of an image's content, 32 bytes; a ValueError if it cannot be read."""
        return self._named(digest_image, position, "read")

    def key(self, position: int) -> bytes:
        """Digest of all that features of an image depend on: its content, and which pixels count.

        A ValueError if it cannot be read.
        """
        content = self.digest(position)
        if not self.has_regions:
            return content
        own = self._own_region(position)
        drawn = b"" if own is None else combine(own.shape, np.packbits(own).tobytes())
        return combine(content, self.framing.digest, drawn)

    @property
    def has_regions(self) -> bool:
        """Whether some pixels of some input may not count."""
        return not self.framing.counts_all or self._regions is not None

    def region(self, position: int, shape: tuple[int, int]) -> Array | None:
        """The pixels that count, bool of the shape of an image; None if all do.

        Raises
        ------
        UnreadableImageError
            If the region has another ratio of sides than the image, or leaves no pixel.
        """
        masks = [self.framing.roi, self._own_region(position)]
        try:
            fitted = [fit_region(mask, shape) for mask in masks if mask is not None]
        except ValueError as error:
            advice = "pass a region for images of that size, or MaskedImages with one for each"
            raise self.set_aside(position, f": {error}; {advice}", str(error)) from error
        if not fitted:
            return None
        region = np.logical_and.reduce(fitted)
        if not region.any():
            cause = "its region of interest leaves no pixel that counts"
            advice = "leave the image out, or pass a larger region"
            raise self.set_aside(position, f": {cause}; {advice}", cause)
        return region

    def canvas(self, size: tuple[int, int], grid: tuple[int, ...]) -> tuple[int, int]:
        """Height and width, in pixels of an image of some size, of what a grid of patches covers.

        More than the image if it keeps its ratio of sides.
        """
        if not self.framing.keep_aspect:
            return size
        scale = max(size[0] / grid[0], size[1] / grid[1])
        return max(size[0], round(scale * grid[0])), max(size[1], round(scale * grid[1]))

    def _own_region(self, position: int) -> Array | None:
        if self._regions is None:
            return None
        given = self._regions[int(self._index[position])]
        if given is None:
            return None
        try:
            return read_roi(given)
        except ValueError as error:
            raise ValueError(f"{self.name(position)}: {error}") from error

    def share_inside(self) -> float:
        """About which share of the pixels counts, by some of the images that can be read."""
        if self.framing.roi is not None and self._regions is None:
            return float(self.framing.roi.mean())
        chosen = self.readable()[:: max(1, len(self) // _N_ASKED)].tolist()
        shares = [
            1.0 if region is None else float(region.mean())
            for position in chosen
            for region in [self.region(position, self.size(position))]
        ]
        return float(np.mean(shares))

    def readable(self, positions: Any = None) -> Array:
        """Positions, of some or all, without those found unreadable so far."""
        chosen = np.arange(len(self)) if positions is None else np.asarray(positions, dtype=int)
        return chosen[~np.isin(chosen, list(self.unreadable))] if self.unreadable else chosen

    def each(
        self, function: Callable[[int], Result], positions: Sequence[int]
    ) -> dict[int, Result]:
        """Call a function for some positions; omit unreadable images if the source skips them."""
        results: dict[int, Result] = {}
        for position in positions:
            try:
                results[position] = function(position)
            except UnreadableImageError:
                if not self.skips_unreadable:
                    raise
        return results

    def set_aside(self, position: int, message: str, cause: str) -> UnreadableImageError:
        """Record an image as unreadable, and return the error."""
        item, index = self._entry(position)
        image = UnreadableImage(index, item if isinstance(item, str) else None, cause)
        self.unreadable[int(position)] = image
        return UnreadableImageError(f"{_name(item, index)}{message}", [image])

    def load(
        self, positions: Sequence[int], preprocessing: Preprocessing, n_jobs: int | None = None
    ) -> torch.Tensor:
        """Load one batch of any of the images, as `batches` gives it.

        Raises
        ------
        UnreadableImageError
            If some of the images cannot be decoded; `unreadable` lists them from then on.
        """
        import torch

        # Each image is resized alone, even in one array: resizing a batch gives the same bits but
        # saves only 0.1 ms an image, next to nothing beside the ViT.
        images = self._each_of(
            positions, lambda position: self.try_prepare(position, preprocessing), n_jobs
        )
        return torch.stack(images)  # [B, 3 or 4, H, W]

    def try_prepare(
        self, position: int, preprocessing: Preprocessing
    ) -> torch.Tensor | UnreadableImageError:
        """One image as `load` gives it, or the error: (3 or 4, height, width)."""

        def prepare_one(pixels: Array, region: Array | None) -> torch.Tensor:
            if not self.has_regions:
                return prepare(pixels, preprocessing)
            return prepare_region(
                pixels, preprocessing, region, keep_aspect=self.framing.keep_aspect
            )

        return self._try_load_framed(position, prepare_one)

    def load_each(
        self,
        positions: Sequence[int],
        function: Callable[[Array], Result],
        n_jobs: int | None = None,
    ) -> list[Result]:
        """Apply a function to the pixels (h, w, 3) of some images, in `n_jobs` threads.

        Raises
        ------
        UnreadableImageError
            As `load` does.
        """
        return self._each_of(positions, lambda position: self.try_load(position, function), n_jobs)

    def load_framed(
        self,
        positions: Sequence[int],
        function: Callable[[Array, Array | None], Result],
        n_jobs: int | None = None,
    ) -> list[Result]:
        """As `load_each`, of the pixels and of those that count (h, w), None if all do."""
        return self._each_of(
            positions, lambda position: self._try_load_framed(position, function), n_jobs
        )

    def _try_load_framed(
        self, position: int, function: Callable[[Array, Array | None], Result]
    ) -> Result | UnreadableImageError:
        return self.try_load(
            position, lambda pixels: function(pixels, self.region(position, pixels.shape[:2]))
        )

    def _each_of(
        self,
        positions: Sequence[int],
        load: Callable[[int], Result | UnreadableImageError],
        n_jobs: int | None,
    ) -> list[Result]:
        if n_jobs is None or n_jobs == 1:
            results = [load(position) for position in positions]
        else:
            # Not "prefer": under any active backend, pixels have to stay in this process.
            parallel = joblib.Parallel(n_jobs=n_jobs, require="sharedmem")
            results = parallel(joblib.delayed(load)(position) for position in positions)
        return require_readable(results)

    def try_load(
        self, position: int, function: Callable[[Array], Result]
    ) -> Result | UnreadableImageError:
        """Load an image or return the error: joblib would replace the cause of a raised one."""
        try:
            pixels = self[position]  # (h, w, 3)
            self._sizes[position] = pixels.shape[:2]
            return function(pixels)
        except UnreadableImageError as error:
            return error

    def _named(self, function: Callable[..., Any], position: int, verb: str = "decoded") -> Any:
        """Apply a function to an image; an error names the sample."""
        item, _ = self._entry(position)
        try:
            return function(item, self._max_pixels)
        except (
            Exception
        ) as error:  # Pillow raises OSError, SyntaxError, struct.error, ValueError...
            found = f"{type(error).__name__}: {error}"
            message = f": the image cannot be {verb}: {found}"
            raise self.set_aside(position, message, one_line(error)) from error

    def _entry(self, position: int) -> tuple[Item, int]:
        """The undecoded image at a position of this source, and its index in the original X."""
        index = int(self._index[position])
        item = self._items[index]
        if self._image_shape is not None:
            # Row by row: reshaping all of a Fortran-ordered X would copy it.
            item = item.reshape(self._image_shape)  # type: ignore[union-attr]
        return item, int(self._names[index])


def require_readable(results: Sequence[Result | UnreadableImageError]) -> list[Result]:
    """Return results of `ImageSource.try_load`; raise if some are errors, and name all images."""
    errors = [result for result in results if isinstance(result, UnreadableImageError)]
    if errors:
        raise merge(errors)
    return [result for result in results if not isinstance(result, UnreadableImageError)]


# One image


def _name(item: Item, index: int) -> str:
    return f"sample {index} ({item!r})" if isinstance(item, str) else f"sample {index}"
