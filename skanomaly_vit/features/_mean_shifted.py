"""MSAD: features tuned by contrast around their mean."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from numbers import Integral, Real
from os import PathLike
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.preprocessing import normalize
from torchvision.transforms import v2

from skanomaly_vit._backbone.cached_passes import CachedPasses
from skanomaly_vit._images.pillow_rules import MAX_PIXELS
from skanomaly_vit._images.preprocessing import Preprocessing
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._utils.compat import Interval
from skanomaly_vit._utils.seeding import seeded
from skanomaly_vit.features._tuned import TunedFeatures
from skanomaly_vit.features._tuning import Objective, Track, TunedNetwork, TuningSchedule


class MeanShiftedContrast(Objective[torch.Tensor]):
    """InfoNCE between two views of each image, with angles around a fixed center.

    Parameters
    ----------
    source : ImageSource
    preprocessing : Preprocessing
    network : TunedNetwork
    center : ndarray of shape (dim,)
        Mean of features scaled to length 1.
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
        # Colors change on the scale where white is 1, before normalization.
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
        features = torch.nn.functional.normalize(
            self._network.features(batch.flatten(0, 1))
        )  # [2, B, 3, H, W] -> [2 * B, C]
        first, second = (features - self._center).chunk(2)  # [B, C] each
        return info_nce(first, second, self._temperature)

    def _starts(self, n_images: int) -> range:
        """Starts of batches: never the last image, since the loss of a single image is 0."""
        return range(0, n_images - 1, self._batch_size)

    def _views(self, images: torch.Tensor, seed: int) -> torch.Tensor:
        """Two random views of each image: (2, images, 3, height, width)."""
        # Image by image, since torchvision would change all images of a batch alike.
        with seeded(seed):  # torchvision draws from torch's global generator
            views = [self._augment(image) for _ in range(2) for image in images]
        return torch.stack(views).unflatten(0, (2, len(images)))  # [2, B, 3, H, W]


def info_nce(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE of each image, from the vectors of its two views.

    The loss asks which of all other views in the batch belongs to the same image, by angle alone.

    Parameters
    ----------
    first, second : torch.Tensor of shape (images, dim)
        Vectors of any length; only directions count.
    temperature : float

    Returns
    -------
    losses : torch.Tensor of shape (images,)
        Mean of both views.
    """
    n_images = len(first)
    directions = torch.nn.functional.normalize(torch.cat([first, second]))  # [2 * B, C]
    similarity = directions @ directions.T / temperature  # [2 * B, 2 * B]
    similarity.fill_diagonal_(-torch.inf)
    partner = torch.arange(2 * n_images, device=first.device).roll(n_images)  # [2 * B]
    losses = torch.nn.functional.cross_entropy(similarity, partner, reduction="none")
    return losses.view(2, n_images).mean(dim=0)  # [2 * B] -> [B]


def _augmentation(preprocessing: Preprocessing) -> v2.Compose:
    """Random changes of the authors' code, then the backbone's own normalization."""
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


class MeanShiftedFeatures(TunedFeatures):
    """Features tuned by contrast around the mean of normal images, of length 1 (MSAD).

    `fit` tunes the last blocks of a Vision Transformer by stochastic gradient descent on pairs of
    random views of normal images. Features have length 1 and are seen from a fixed center, the
    mean feature of all images, held-out ones too, under the pre-trained network. The loss
    (InfoNCE) [1]_ pulls the directions of both views of an image together, and away from those of
    all other images of the batch. It takes angles at the center: at the origin, as usual in
    contrastive learning, it would drive normal images apart. The authors score the features by
    cosine distance to the two nearest neighbours; as all features have length 1, Euclidean distance
    (`KNNDensity`) has the same neighbours.

    Parameters
    ----------
    backbone : str or torch.nn.Module, default="embedded"
        ``"embedded"`` (the small ViT that ships with the package), the name of a timm model
        with transformer blocks in ``.blocks``, or such a network. A network is copied.
    pretrained : bool, str or path-like, default=True
        ``True`` loads the published weights (timm's hub, or the local hub cache), ``False``
        draws random ones, a path reads a checkpoint: ``.safetensors``, or a torch file that is
        read as tensors only. Ignored if `backbone` is a network.
    image_size : int, tuple of (int, int) or None, default=None
        Height and width in pixels that images are resized to. ``None`` is the backbone's own.
    image_shape : tuple of (int, int, int) or None, default=None
        Height, width and channels of an image, if `X` is a 2-D array of flattened images.
    n_tuned_blocks : int, default=2
        Number of last blocks to tune, together with the final norm.
    max_epochs : int, default=20
        Passes over the training images, at most; the authors' number.
    learning_rate : float, default=1e-5
        Of stochastic gradient descent; the authors' value.
    temperature : float, default=0.25
        Divisor of the cosines in the loss.
    validation_fraction : float, default=0.2
        Share of the images in [0, 1) that `fit` does not train on: only the center depends on
        them. `fit` keeps the epoch with the smallest loss on them. With 0 the last epoch counts.
    patience : int, default=3
        Tuning ends after this number of epochs without a smaller loss on the held-out images.
    max_pixels : int or None, default=2**27
        Largest number of pixels of a file or PIL image. Larger ones count as unreadable and are
        not decoded, so that a small file cannot fill the memory. ``None`` is no limit.
    batch_size : int, default=64
        Images in a step of training, at least 2, and in a pass of the backbone. A single leftover
        image joins the step before, since the loss compares its views with those of others.
    store_backbone : bool, default=False
        Whether a pickle holds the backbone, beside the tuned parameters. If not, the unpickled
        estimator loads it, as `backbone` and `pretrained` say, and rejects it unless it is the same
        to the bit.
    device : str, torch.device or None, default=None
        Device of the networks. ``None`` is CUDA or MPS if there is one, else the CPU; under
        torchrun each rank's own GPU.
    n_jobs : int or None, default=None
        Threads that decode and resize images. ``None`` is one, ``-1`` all cores. Add
        workers by ``joblib.parallel_config`` or `skanomaly_vit.distributed.torchrun`.
    memory : str, path-like, DiskCache, object with ``cache`` or None, default=None
        Keeps features for other calls: a folder, a `DiskCache`, or an object such as
        `joblib.Memory`. The keys are the contents of images and the weights of the network.
        Results are the same with and without.
    random_state : int, RandomState instance or None, default=None
        Seed of the order of images and of their views, of the validation split, and of random
        weights.
    verbose : int, default=0
        Above 0, progress goes to the logger ``"skanomaly_vit"``, a line per epoch.

    Attributes
    ----------
    center_ : ndarray of shape (dim,)
        Mean of the features, each scaled to length 1, of all images of `fit`, held-out ones too,
        before tuning.
    history_ : list of dict
        Per epoch ``epoch``, ``train_loss``, ``valid_loss`` if images were held out, and
        ``seconds``.
    initial_loss_ : float
        Loss on the held-out images before tuning; nan without held-out images.
    n_epochs_ : int
        Epochs of tuning behind the features; 0 is the pre-trained network, which `fit` keeps if no
        epoch improves the loss on the held-out images.
    validation_indices_ : ndarray of int
        Positions in `X` of the held-out images.
    backbone_fingerprint_ : str
        What the backbone is, before tuning: digests of its modules, weights and preprocessing,
        and its features of a test image.
    dtype_ : str
        Floating type of the backbone.
    n_features_in_ : int
        Length of a flattened image; only where `image_shape` is given.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns; only where `X` has names that are all strings and `image_shape` is
        given.

    See Also
    --------
    CompactFeatures : Features tuned to lie close together.
    ViTFeatures : The features before tuning.
    skanomaly_vit.evaluation.NeighborDistance : The authors' score of the features, by cosine.

    Notes
    -----
    As in the authors' code, views come from a random crop of 0.2 to 1 of the area, changes of
    color, gray, blur and mirroring (here of images already resized to the backbone's size), and
    the weight decay is 5e-5. That code has neither held-out images nor early stopping, and tunes
    the last two stages of a ResNet. The network stays in eval mode; held-out images have the same
    views in every epoch. With a few hundred images, epochs have few steps, and the authors'
    `learning_rate` hardly moves the features.

    References
    ----------
    .. [1] T. Reiss and Y. Hoshen, "Mean-Shifted Contrastive Loss for Anomaly Detection",
       AAAI 2023, arXiv:2106.03844.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit import MeanShiftedFeatures
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    >>> features = MeanShiftedFeatures(max_epochs=1, random_state=0).fit(images)
    >>> features.transform(images).shape
    (8, 384)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **TunedFeatures._parameter_constraints,
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
    }

    # The loss of a single image is 0, whatever the network: its views meet no others.
    _min_images: ClassVar[int] = 2

    _turns_images: ClassVar[bool] = True

    def __init__(
        self,
        *,
        backbone: str | torch.nn.Module = "embedded",
        pretrained: bool | str | PathLike[str] = True,
        image_size: int | tuple[int, int] | None = None,
        image_shape: tuple[int, int, int] | None = None,
        n_tuned_blocks: int = 2,
        max_epochs: int = 20,
        learning_rate: float = 1e-5,
        temperature: float = 0.25,
        validation_fraction: float = 0.2,
        patience: int = 3,
        max_pixels: int | None = MAX_PIXELS,
        batch_size: int = 64,
        store_backbone: bool = False,
        device: str | torch.device | None = None,
        n_jobs: int | None = None,
        memory: Any = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.pretrained = pretrained
        self.image_size = image_size
        self.image_shape = image_shape
        self.n_tuned_blocks = n_tuned_blocks
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.temperature = temperature
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.max_pixels = max_pixels
        self.batch_size = batch_size
        self.store_backbone = store_backbone
        self.device = device
        self.n_jobs = n_jobs
        self.memory = memory
        self.random_state = random_state
        self.verbose = verbose

    def _features_of(self, passes: CachedPasses, n_images: int) -> np.ndarray:
        return normalize(super()._features_of(passes, n_images))

    def _objective(
        self,
        source: ImageSource,
        passes: CachedPasses,
        network: TunedNetwork,
        center: np.ndarray,
    ) -> MeanShiftedContrast:
        return MeanShiftedContrast(
            source,
            passes.teacher.preprocessing,
            network,
            center,
            temperature=self.temperature,
            batch_size=self.batch_size,
            n_jobs=self.n_jobs,
        )

    def _schedule(self) -> TuningSchedule:
        return TuningSchedule(
            max_epochs=self.max_epochs,
            learning_rate=self.learning_rate,
            patience=self.patience,
        )
