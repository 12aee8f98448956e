"""PatchCore as anomalib has it, on the patches of a Vision Transformer, as an outlier detector.

Memory bank, coreset, nearest neighbours and re-weighted score are anomalib's. Our backbone replaces
its convolutional one, so that all methods see the same images through the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from sklearn.base import BaseEstimator
from torch import nn

from skanomaly_vit._backbone.block_calls import BlockCall
from skanomaly_vit._backbone.teacher import Teacher, load_teacher
from skanomaly_vit._images.opening import open_images


class PatchMaps(nn.Module):
    """Normalized tokens of the patches after some blocks, as maps, by block."""

    def __init__(self, teacher: Teacher, blocks: list[int]) -> None:
        super().__init__()
        self.teacher, self.blocks = teacher, blocks

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = {}
        model: Any = self.teacher.model

        def visit(call: BlockCall) -> None:
            tokens = model.norm(call.output)[:, model.num_prefix_tokens :]  # [B, P, C]
            side = model.patch_embed.grid_size
            maps[str(call.index)] = tokens.mT.unflatten(2, side)  # [B, C, rows, columns]

        self.teacher(images, blocks=self.blocks, visit=visit)
        return maps


class PatchCoreDetector(BaseEstimator):
    """PatchCore; `score_samples` is high for normal images.

    Parameters
    ----------
    backbone, pretrained, image_size, random_state, n_jobs
        As in the detector.
    bank_size : int
        Patches in the memory bank, at most: a fiftieth of those of 500 images of 8 x 8 patches.
        The authors lose next to nothing with a hundredth (Roth et al., CVPR 2022, table 1).
    """

    def __init__(
        self,
        *,
        backbone: str = "embedded",
        pretrained: Any = True,
        image_size: int | None = None,
        bank_size: int = 640,
        random_state: int = 0,
        n_jobs: int | None = 2,
        memory: Any = None,
    ) -> None:
        self.backbone = backbone
        self.pretrained = pretrained
        self.image_size = image_size
        self.bank_size = bank_size
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.memory = memory

    def fit(self, X: Any, y: Any = None) -> PatchCoreDetector:
        self.teacher_ = load_teacher(
            self.backbone, pretrained=self.pretrained, image_size=self.image_size, device="cpu",
            seed=0,
        )  # fmt: skip
        depth = len(self.teacher_.blocks)
        blocks = [depth // 2, 3 * depth // 4]  # the middle of the network, as in the authors' code
        # The ResNet needs no weights, since ours replaces it.
        model = PatchcoreModel(["layer3"], backbone="resnet18", pre_trained=False)
        model.feature_extractor = PatchMaps(self.teacher_, blocks)
        model.layers = [str(block) for block in blocks]
        self.model_ = model.train()
        n_patches = sum(len(batch) for batch in map(self.model_, self._batches(X)))
        # Without no_grad, autograd fills the memory with the steps of the coreset.
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(self.random_state)
            self.model_.subsample_embedding(min(1.0, self.bank_size / n_patches))
        self.model_.eval()
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        scores = [self.model_(batch).pred_score.flatten() for batch in self._batches(X)]
        return -torch.cat(scores).numpy()

    def _batches(self, X: Any) -> Iterator[torch.Tensor]:
        return open_images(X).batches(
            self.teacher_.preprocessing, batch_size=32, n_jobs=self.n_jobs
        )
