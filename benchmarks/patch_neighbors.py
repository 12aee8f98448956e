"""Neighbours among patches, the plainest detector of small defects, to compare with.

No students, no density, no coreset: the distance of the oddest patch of an image to the nearest
patch of a random bank.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator

from skanomaly_vit._backbone.anomaly_maps import enlarge
from skanomaly_vit._backbone.block_calls import BlockCall
from skanomaly_vit._backbone.patches import layout_of
from skanomaly_vit._backbone.teacher import load_teacher
from skanomaly_vit._images.opening import open_images


class PatchNeighbors(BaseEstimator):
    """Largest distance of a patch to its nearest normal patch; `score_samples` is its negative.

    Parameters
    ----------
    backbone, pretrained, image_size, random_state, n_jobs
        As in the detector.
    block : int or None
        Number of blocks before the patches, which get length 1. None is the middle: 6 of 11.
    bank_size : int
        Patches of normal images in the bank, at most; a random draw.
    memory : object
        Ignored.
    """

    def __init__(
        self,
        *,
        backbone: str = "embedded",
        pretrained: Any = True,
        image_size: int | None = None,
        block: int | None = None,
        bank_size: int = 6000,
        random_state: int = 0,
        n_jobs: int | None = None,
        memory: Any = None,
    ) -> None:
        self.backbone = backbone
        self.pretrained = pretrained
        self.image_size = image_size
        self.block = block
        self.bank_size = bank_size
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.memory = memory

    def fit(self, X: Any, y: Any = None) -> PatchNeighbors:
        self.teacher_ = load_teacher(
            self.backbone, pretrained=self.pretrained, image_size=self.image_size, device="cpu",
            seed=0,
        )  # fmt: skip
        patches = self._patches(X).flatten(0, 1)  # [n, P, C] -> [n * P, C]
        order = np.random.default_rng(self.random_state).permutation(len(patches))
        self.bank_ = patches[order[: self.bank_size]]
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        return -self._distances(X).amax(dim=1).numpy().astype(np.float64)

    def anomaly_map(self, X: Any) -> Any:
        layout = layout_of(self.teacher_)
        source = open_images(X)
        grid = self._distances(X).unflatten(1, (layout.rows, layout.columns))
        return enlarge(grid.numpy(), [source.size(i) for i in range(len(source))])

    def _distances(self, X: Any) -> torch.Tensor:
        """Distance of each patch to the nearest one of the bank: (n_images, n_patches)."""
        patches = self._patches(X)
        return torch.stack([torch.cdist(image, self.bank_).amin(dim=1) for image in patches])

    @torch.inference_mode()
    def _patches(self, X: Any) -> torch.Tensor:
        """Patches of length 1: (n_images, n_patches, dim)."""
        layout = layout_of(self.teacher_)
        block = layout.block if self.block is None else self.block - 1
        found: list[torch.Tensor] = []

        def visit(call: BlockCall) -> None:
            found.append(torch.nn.functional.normalize(layout.patches(call.output), dim=2))

        source = open_images(X)
        for batch in source.batches(self.teacher_.preprocessing, batch_size=32, n_jobs=self.n_jobs):
            self.teacher_(batch, blocks=[block], visit=visit)
        return torch.cat(found)
