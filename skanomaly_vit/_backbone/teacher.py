"""Teacher: a frozen backbone, whose pass gives features and shows blocks at work."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from skanomaly_vit._backbone.block_calls import BlockCall, Visitor, visited
from skanomaly_vit._backbone.devices import resolve_device
from skanomaly_vit._backbone.fingerprints import (
    PREFIX,
    Fingerprint,
    Structure,
    digest_of_first_rule,
    shadows_of,
    structure_of,
    test_image,
)
from skanomaly_vit._backbone.loading import Backbone, ImageSize, Pretrained, load_backbone
from skanomaly_vit._backbone.precision import FLOAT32, cast, warn_if_slow
from skanomaly_vit._backbone.views import PENULTIMATE, PLAIN, Readout, View, n_prefix, names_of
from skanomaly_vit._images.preprocessing import Preprocessing
from skanomaly_vit._utils.torch_settings import full_precision

#: Batches with fewer tokens are padded. Matrix products of few rows round differently from those of
#: many (seen below 48 rows with two threads on AVX2), so the features of an image would depend on
#: the size of its batch. No network of practical size has as few tokens.
FEW_ROWS = 64


class Origin(NamedTuple):
    """Arguments from which `load_teacher` made a network, and can make it again."""

    backbone: str
    pretrained: Pretrained
    image_size: ImageSize
    seed: int
    dtype: str


class Teacher:
    """A backbone in eval mode with gradients off, on a device.

    Parameters
    ----------
    model : nn.Module
        A ViT-like network: ``blocks`` of one shape, tokens in, tokens out.
    preprocessing : Preprocessing
        The format of its input.
    device : torch.device
        Runs the network.
    origin : Origin or None
        Source of `model`; None if `model` can only be copied.
    readout : Readout
        Which numbers of an image a pass gives.

    Attributes
    ----------
    largest_batch : int or None
        Images that fit on the device at once, if it has run out of memory with more.
    """

    largest_batch: int | None = None

    _is_announced = False

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        device: torch.device,
        origin: Origin | None = None,
        readout: Readout = PLAIN,
    ) -> None:
        _require_blocks(model)
        self.model = model.eval().requires_grad_(False)
        self._structure: Structure = structure_of(model)
        self._one_visit_at_a_time = threading.Lock()
        self.preprocessing = preprocessing
        self.device = device
        self.origin = origin
        self.readout = readout
        self.model.to(device)

    def on(self, device: torch.device) -> Teacher:
        """The teacher, or a copy on another device: others may be using the original."""
        if device == self.device:
            return self
        return Teacher(self.copy_model(), self.preprocessing, device, self.origin, self.readout)

    def reading(self, readout: Readout) -> Teacher:
        """The same network, with another readout; a ValueError if it has too few blocks for it."""
        if readout == self.readout:
            return self
        for view in readout.views:
            view.index(len(self.blocks))
        other = copy.copy(self)  # with the lock, since it shares the network
        other.readout = readout
        return other

    @property
    def views(self) -> tuple[View, ...]:
        """Vectors of an image that a pass gives."""
        return self.readout.views

    @property
    def blocks(self) -> list[nn.Module]:
        """The backbone's L blocks in order."""
        return list(self.model.blocks)  # type: ignore[arg-type]

    def copy_blocks(self, indices: Collection[int]) -> dict[int, nn.Module]:
        """Copies of some blocks, by index.

        No copy has the hooks of another thread's pass: as a student it would show its calls to
        that thread's visitor.
        """
        with self._one_visit_at_a_time:
            return {index: copy.deepcopy(self.blocks[index]) for index in indices}

    def copy_model(self, known: Mapping[int, nn.Module] | None = None) -> nn.Module:
        """A copy of the network, without hooks, as in `copy_blocks`.

        Modules whose ids are keys of `known` are not copied: the values take their places.
        """
        with self._one_visit_at_a_time:
            return copy.deepcopy(self.model, dict(known or {}))

    def last_blocks(self, n_blocks: int | None) -> list[int]:
        """Indices of the last `n_blocks` (None: of all); a ValueError if there are fewer."""
        n_there = len(self.blocks)
        if n_blocks is None:
            n_blocks = n_there
        if n_blocks > n_there:
            raise ValueError(
                f"n_blocks={n_blocks}, but the backbone has {n_there} blocks. Pass "
                f"n_blocks={n_there} or fewer, or None for all."
            )
        return list(range(n_there - n_blocks, n_there))

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the weights; images are cast to it."""
        return next(self.model.parameters()).dtype

    def announce_precision(self) -> None:
        """Warn, once, if its floating type is slow on its device."""
        if not self._is_announced:
            self._is_announced = True
            warn_if_slow(self.dtype, self.device)

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the network: digests of modules and weights, and features of a test image.

        Networks that give the same have fingerprints that `has_fingerprint` takes for one; those
        of the same network differ by the rounding of the processor at most.
        """
        return str(Fingerprint.of(self._weights, self._structure, self._shadows))

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Whether the network is that of a fingerprint, which may be one of an older kind."""
        if not fingerprint.startswith(PREFIX):
            return self._weights == fingerprint
        known = Fingerprint.parse(fingerprint)
        own = Fingerprint.parse(self.fingerprint)
        return known is not None and own is not None and own.is_of_the_same(known, self.dtype)

    def rounding(self) -> list[object]:
        """Ingredients of the bits of results: the fingerprint and the attention kernels."""
        fused = [getattr(module, "fused_attn", None) for module in self.model.modules()]
        kernels = [bool(each) for each in fused if each is not None]
        return [self.fingerprint, kernels, names_of(self.views)]

    @cached_property
    def _weights(self) -> str:
        return digest_of_first_rule(self.model, self.preprocessing)

    def _shadows(self) -> bytes:
        image = test_image(*self.preprocessing.image_size).to(self.device, self.dtype)
        # Not a pass: no visitor of another thread is to see it.
        with self._one_visit_at_a_time, torch.inference_mode(), full_precision(self.device):
            features = penultimate(self.model, self._padded(image))[:1]
        return shadows_of(features)

    def __call__(
        self, images: torch.Tensor, *, blocks: Collection[int], visit: Visitor
    ) -> torch.Tensor:
        """Pooled features of a batch; `visit` sees each of `blocks` at work.

        Parameters
        ----------
        images : torch.Tensor of shape (batch, 3 or 4, height, width)
            Normalized images; a fourth channel is above 0 where pixels count.
        blocks : collection of int
            Indices of the blocks that `visit` sees, in the backbone's order; may be empty.
        visit : callable
            Called with a `BlockCall` as soon as a block has run. The tensors of a block are free
            again when `visit` returns, so memory holds those of one block, not of all.

        Returns
        -------
        features : torch.Tensor of shape (batch, n_features)
            The views side by side: as a rule the penultimate output, the pooled tokens after the
            final norm, among them.
        """
        non_blocking = self._is_pinned(images)  # the GPU waits for the copy, and its readers do
        # [B, 3 or 4, H, W]
        images = images.to(self.device, self.dtype, non_blocking=non_blocking)
        images, inside = split_regions(images, self.grid)  # [B, 3, H, W], [B, P]
        n_images = len(images)
        pooled: dict[View, torch.Tensor] = {}
        n_blocks = len(self.blocks)
        wanted = {v: v.index(n_blocks) for v in self.views if not v.is_penultimate}

        def look(call: BlockCall) -> None:
            for view, index in wanted.items():
                if index == call.index:
                    # [B, N, C] -> [B, C]
                    pooled[view] = view.pool(call.output, self.n_prefix(call.output), inside)
            if call.index in blocks:
                visit(call)

        watched = self._indexed({*blocks, *wanted.values()})
        # Hooks are on the blocks: the first thread's visitor would see a second thread's pass.
        with self._one_visit_at_a_time, visited(watched, look, n_images, inside):
            features = penultimate(self.model, self._padded(images))  # [B + padding, C]
        pooled[PENULTIMATE] = features[:n_images]  # [B, C]
        # n_views x [B, C] -> [B, n_features]
        return torch.cat([pooled[view] for view in self.views], dim=1)

    def split(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """Features of images by view: (n_images, n_features) -> n_views x (n_images, dim)."""
        if len(self.views) == 1:
            return {self.views[0].name: features}
        ends = np.cumsum(self._widths)[:-1]
        parts = np.split(features, ends, axis=1)
        return {view.name: part for view, part in zip(self.views, parts, strict=True)}

    @cached_property
    def _probed(self) -> tuple[int, int]:
        """Length of the penultimate output, and of a token, as a blank image tells."""
        lengths: list[int] = []
        blank = torch.zeros(1, 3, *self.preprocessing.image_size)  # [1, 3, H, W]

        def look(call: BlockCall) -> None:
            lengths.append(call.tokens.shape[-1])

        # Not a pass: no visitor of another thread is to see it.
        with self._one_visit_at_a_time, visited(self._indexed([0]), look, 1), torch.no_grad():
            features = penultimate(self.model, self._padded(blank.to(self.device, self.dtype)))
        return features.shape[1], lengths[0]

    @property
    def _widths(self) -> list[int]:
        """Number of features of each view."""
        of_output, of_token = self._probed
        return [of_output if view.is_penultimate else of_token for view in self.views]

    def n_prefix(self, tokens: torch.Tensor) -> int:
        """Number of tokens before the patches; 0 if the backbone does not tell."""
        return n_prefix(tokens, self.grid)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of patches; None if the backbone does not tell the size of a patch."""
        size = getattr(getattr(self.model, "patch_embed", None), "patch_size", None)
        if size is None:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        of_image = self.preprocessing.image_size
        return of_image[0] // height, of_image[1] // width

    def _is_pinned(self, images: torch.Tensor) -> bool:
        return self.device.type == "cuda" and images.is_pinned()

    def _padded(self, images: torch.Tensor) -> torch.Tensor:
        """Pad a batch with too few tokens, so that its products round as those of larger ones."""
        patches = getattr(self.model, "patch_embed", None)
        tokens_per_image = getattr(patches, "num_patches", FEW_ROWS)
        n_more = math.ceil(FEW_ROWS / tokens_per_image) - len(images)
        if n_more <= 0:
            return images
        padding = images[:1].expand(n_more, -1, -1, -1)  # [1, 3, H, W] -> [n_more, 3, H, W]
        return torch.cat([images, padding])  # [B + n_more, 3, H, W]

    def _indexed(self, blocks: Collection[int]) -> list[tuple[int, nn.Module]]:
        return [(index, block) for index, block in enumerate(self.blocks) if index in blocks]

    def __getstate__(self) -> dict[str, Any]:
        # A detector fitted on a GPU has to load on a machine without one.
        on_cpu = {"model": self.copy_model().cpu(), "device": torch.device("cpu")}
        left_out = ("_one_visit_at_a_time", "largest_batch", "_is_announced")
        return {k: v for k, v in vars(self).items() if k not in left_out} | on_cpu

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "_structure" not in state:  # of an older version, which had another fingerprint
            self.__dict__.pop("fingerprint", None)
            self._structure = structure_of(self.model)
        self._one_visit_at_a_time = threading.Lock()


def load_teacher(
    backbone: Backbone,
    *,
    pretrained: Pretrained,
    image_size: ImageSize,
    device: str | torch.device | None,
    seed: int,
    dtype: str = FLOAT32,
) -> Teacher:
    """Load a backbone (see `load_backbone`) and freeze it on a device, in a floating type."""
    target = resolve_device(device)
    model, preprocessing = load_backbone(
        backbone, pretrained=pretrained, image_size=image_size, seed=seed
    )
    origin = None
    if isinstance(backbone, str):
        origin = Origin(backbone, pretrained, image_size, seed, dtype)
    return Teacher(cast(model, dtype), preprocessing, target, origin)


def _require_blocks(model: nn.Module) -> None:
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, (nn.Sequential, nn.ModuleList)) or len(blocks) == 0:
        raise ValueError(
            f"backbone {type(model).__name__} is no Vision Transformer: it has no list `.blocks` "
            "of transformer blocks. Pass a ViT, DeiT, BEiT, EVA or DINO model, or 'embedded'."
        )


def penultimate(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    if hasattr(model, "forward_features") and hasattr(model, "forward_head"):
        tokens = model.forward_features(images)  # type: ignore[operator]  # [B, N, C]
        features = model.forward_head(tokens, pre_logits=True)  # type: ignore[operator]  # [B, C]
    else:
        features = model(images)  # [B, C]
    if not torch.is_tensor(features) or features.ndim != 2:
        found = tuple(features.shape) if torch.is_tensor(features) else type(features).__name__
        raise ValueError(
            f"backbone {type(model).__name__} gives {found} for {images.shape[0]} images; expected "
            "one pooled feature vector per image, (batch, dim)."
        )
    return features


def split_regions(
    images: torch.Tensor, grid: tuple[int, int] | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Images [B, 3, H, W], and the patches [B, P] with pixels that count; None is all."""
    if images.shape[1] == 3:
        return images, None
    rows, columns = require_grid(grid)
    height, width = images.shape[2] // rows, images.shape[3] // columns
    counts = images[:, 3:, : rows * height, : columns * width]  # [B, 1, H, W]
    cells = torch.nn.functional.max_pool2d(counts, (height, width))  # [B, 1, rows, columns]
    return images[:, :3], cells.flatten(1) > 0


def require_grid(grid: tuple[int, int] | None) -> tuple[int, int]:
    """The grid of patches; a ValueError if it is not known, since no region can count alone."""
    if grid is None:
        raise ValueError(
            "The backbone does not tell the size of its patches (patch_embed.patch_size), so "
            "no region can count alone. Use a ViT of timm, or fit without roi and keep_aspect."
        )
    return grid


# Rounding of an interpolation in float32; other weights differ by far more. In half precision it
# can be the next number.
_ROUNDING = 1e-5


def positions_of(model: torch.nn.Module) -> torch.Tensor | None:
    """Position embeddings on the CPU; None for a network without any."""
    found = getattr(model, "pos_embed", None)
    return found.detach().cpu().clone() if torch.is_tensor(found) else None


def same_teacher(
    teacher: Teacher, fingerprint: str, positions: torch.Tensor | None
) -> Teacher | None:
    """The teacher if its fingerprint matches, as it is or with `positions`; None otherwise."""
    if teacher.has_fingerprint(fingerprint):
        return teacher
    repaired = _with_positions(teacher, positions)
    return repaired if repaired is not teacher and repaired.has_fingerprint(fingerprint) else None


def _with_positions(teacher: Teacher, positions: torch.Tensor | None) -> Teacher:
    """The teacher with these position embeddings, if its own differ by rounding alone.

    timm interpolates them to the size of the images; other kinds of processors round differently.
    """
    own = positions_of(teacher.model)
    if own is None or positions is None or own.shape != positions.shape:
        return teacher
    rounding = max(_ROUNDING, torch.finfo(own.dtype).eps)
    if (own.float() - positions.float()).abs().max() > rounding * own.abs().max():
        return teacher
    model = teacher.copy_model()  # others may share it
    with torch.no_grad():
        model.pos_embed.copy_(positions)  # type: ignore[operator]
    # A worker that loads the origin receives the positions too, and corrects its own with them.
    return Teacher(model, teacher.preprocessing, teacher.device, teacher.origin, teacher.readout)
