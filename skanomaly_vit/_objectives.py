"""What backbones are tuned for: compact features (PANDA), mean-shifted contrast (MSAD)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torchvision.transforms import v2

from skanomaly_vit._images import ImageSource, Preprocessing
from skanomaly_vit._passes import TeacherPasses
from skanomaly_vit._seeding import seeded
from skanomaly_vit._teacher import BlockCall
from skanomaly_vit._tuning import Objective, Track, TunedNetwork


class Compactness(Objective[BlockCall]):
    """Mean squared distance of features to a fixed centre (PANDA).

    Divided by the number of channels, as in the authors' code.

    Parameters
    ----------
    passes : TeacherPasses
        Give the tokens before the first block that learns; they do not change.
    network : TunedNetwork
    center : ndarray of shape (dim,)
    """

    def __init__(self, passes: TeacherPasses, network: TunedNetwork, center: np.ndarray) -> None:
        self._passes = passes
        self._network = network
        self._center = torch.from_numpy(center).to(network.device)

    def batches(self, indices: np.ndarray, seed: int, track: Track) -> Iterator[BlockCall]:
        calls: list[BlockCall] = []
        first = [self._network.first]
        for _ in self._passes.run(indices, first, calls.append, track=track, in_parts=False):
            yield calls.pop()

    def n_batches(self, n_images: int) -> int:
        return self._passes.n_batches(n_images)

    def losses(self, batch: BlockCall) -> torch.Tensor:
        return (self._network.features_from(batch) - self._center).square().mean(dim=1)


class MeanShiftedContrast(Objective[torch.Tensor]):
    """InfoNCE between two views of each image, angles taken around a fixed centre.

    Parameters
    ----------
    source : ImageSource
    preprocessing : Preprocessing
    network : TunedNetwork
    center : ndarray of shape (dim,)
        Of features scaled to length 1.
    temperature : float
    batch_size : int
    n_jobs : int or None
    """

    def __init__(
        self,
        source: ImageSource,
        preprocessing: Preprocessing,
        network: TunedNetwork,
        center: np.ndarray,
        *,
        temperature: float,
        batch_size: int,
        n_jobs: int | None,
    ) -> None:
        self._source = source
        self._network = network
        self._center = torch.from_numpy(center).to(network.device)
        self._temperature = temperature
        self._batch_size = batch_size
        self._n_jobs = n_jobs
        # Colours are changed on the scale where white is 1, and normalised after that.
        self._plain = dataclasses.replace(preprocessing, mean=(0.0,) * 3, std=(1.0,) * 3)
        self._augment = _augmentation(preprocessing)

    def batches(self, indices: np.ndarray, seed: int, track: Track) -> Iterator[torch.Tensor]:
        source = self._source.take(indices)
        bounds = itertools.pairwise([*self._starts(len(indices)), len(indices)])
        images = (source.load(range(*ends), self._plain, self._n_jobs) for ends in bounds)
        seeds = np.random.SeedSequence(seed)
        for batch in track(images):
            yield self._views(batch, int(seeds.spawn(1)[0].generate_state(1)[0]))

    def n_batches(self, n_images: int) -> int:
        return len(self._starts(n_images))

    def losses(self, batch: torch.Tensor) -> torch.Tensor:
        features = torch.nn.functional.normalize(self._network.features(batch.flatten(0, 1)))  # (2 * images, dim)
        first, second = (features - self._center).chunk(2)
        return info_nce(first, second, self._temperature)

    def _starts(self, n_images: int) -> range:
        """Where batches start: not at the last image, since the loss of one alone is 0."""
        return range(0, n_images - 1, self._batch_size)

    def _views(self, images: torch.Tensor, seed: int) -> torch.Tensor:
        """Two random views of each image: (2, images, 3, height, width)."""
        # Image by image, since torchvision would change all images of a batch alike.
        with seeded(seed):  # torchvision draws from torch's global generator
            views = [self._augment(image) for _ in range(2) for image in images]
        return torch.stack(views).unflatten(0, (2, len(images)))


def info_nce(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE of each image, given vectors of two views of each.

    A view has to be told by its angle to be the other one of its image, among all other views
    of the batch.

    Parameters
    ----------
    first, second : torch.Tensor of shape (images, dim)
        Of any length; only directions count.
    temperature : float

    Returns
    -------
    losses : torch.Tensor of shape (images,)
        Mean of both views.
    """
    n_images = len(first)
    directions = torch.nn.functional.normalize(torch.cat([first, second]))  # (2 * images, dim)
    similarity = directions @ directions.T / temperature  # (2 * images, 2 * images)
    similarity.fill_diagonal_(-torch.inf)
    partner = torch.arange(2 * n_images, device=first.device).roll(n_images)
    losses = torch.nn.functional.cross_entropy(similarity, partner, reduction="none")
    return losses.view(2, n_images).mean(dim=0)


def _augmentation(preprocessing: Preprocessing) -> v2.Compose:
    """The changes that views are made by in the authors' code, then the backbone's own scale."""
    height, width = preprocessing.image_size
    kernel = max(3, min(height, width) // 20 * 2 + 1)  # a tenth of the image, odd
    return v2.Compose(
        [
            v2.RandomResizedCrop((height, width), scale=(0.2, 1.0), antialias=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(kernel, sigma=(0.1, 2.0))], p=0.5),
            v2.RandomHorizontalFlip(),
            v2.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
