"""PANDA: features tuned to lie close together."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real
from os import PathLike
from typing import Any, ClassVar

import numpy as np
import torch

from skanomaly_vit._backbone.block_calls import BlockCall
from skanomaly_vit._backbone.cached_passes import CachedPasses
from skanomaly_vit._backbone.image_estimator import TRAINING_CONSTRAINTS
from skanomaly_vit._backbone.passes import TeacherPasses
from skanomaly_vit._backbone.teacher import Teacher
from skanomaly_vit._images.pillow_rules import MAX_PIXELS
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._utils.compat import Interval
from skanomaly_vit.features._tuned import TunedFeatures
from skanomaly_vit.features._tuning import Objective, Track, TunedNetwork, TuningSchedule


class Compactness(Objective[BlockCall]):
    """Mean squared distance of features to a fixed center (PANDA).

    It is divided by the number of channels, as in the authors' code.

    Parameters
    ----------
    passes : TeacherPasses
        Give the tokens before the first block that learns, which do not change.
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
        features = self._network.features_from(batch)  # [B, C]
        return (features - self._center).square().mean(dim=1)  # [B, C] -> [B]


class CompactFeatures(TunedFeatures):
    """Features tuned to lie close together on normal images (PANDA).

    `fit` tunes the last blocks of a Vision Transformer by stochastic gradient descent. The loss is
    the mean squared distance of pooled features to a fixed center [1]_: the mean feature of all
    normal images, held-out ones too, under the pre-trained network. Images of another kind move
    less towards it, or not at all. A density such as `KNNDensity` turns the features into a score.

    The loss is smallest where all images have the same feature, whatever they show. Against this
    collapse the authors stop after a fixed number of epochs and clip the gradient. We add a third
    guard: tuning ends where the loss on held-out images falls below a share of its initial value
    (`min_spread`).

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
    max_epochs : int, default=15
        Passes over the training images, at most; the authors' number.
    learning_rate : float, default=1e-2
        Of stochastic gradient descent with momentum 0.9; the authors' value.
    validation_fraction : float, default=0.2
        Share of the images in [0, 1) that `fit` does not train on: only the center depends on
        them. `fit` keeps the epoch with the smallest loss on them. With 0 the last epoch counts,
        and only `max_epochs` guards against collapse.
    patience : int, default=3
        Tuning ends after this number of epochs without a smaller loss on the held-out images.
    min_spread : float, default=0.5
        Share in [0, 1) of the held-out loss before tuning. The first epoch with a smaller loss
        ends tuning, and does not count.
    activation_cache : int, default=2**30
        Bytes in which `fit` may keep the backbone's tokens of the training images, so that images
        pass through the backbone once, not in every epoch: on a GPU in its memory, else in a
        temporary file beyond the first 8 MiB. Results do not depend on it.
    max_pixels : int or None, default=2**27
        Largest number of pixels of a file or PIL image. Larger ones count as unreadable and are
        not decoded, so that a small file cannot fill the memory. ``None`` is no limit.
    batch_size : int, default=32
        Images in a step of training, and in a pass of the backbone.
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
        Keeps features and tokens for other calls: a folder, a `DiskCache`, or an object such as
        `joblib.Memory`, which keeps features alone. The keys are the contents of images and the
        weights of the network. Results are the same with and without.
    random_state : int, RandomState instance or None, default=None
        Seed of the order of images, of the validation split, and of random weights.
    verbose : int, default=0
        Above 0, progress goes to the logger ``"skanomaly_vit"``, a line per epoch.

    Attributes
    ----------
    center_ : ndarray of shape (dim,)
        Mean feature of all images of `fit`, held-out ones too, before tuning.
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
    MeanShiftedFeatures : Features tuned by contrast, which cannot collapse.
    ViTFeatures : The features before tuning.
    skanomaly_vit.evaluation.NeighborDistance : The authors' score of the features.

    Notes
    -----
    As in the authors' code, which tunes the last two stages of a ResNet, the squared distance is
    divided by the number of channels, the norm of the gradient is clipped to 1e-3, and the weight
    decay is 5e-5. The network stays in eval mode. Steps are therefore short: a few hundred images
    need more epochs, or a larger `learning_rate`, to move as far as the authors' thousands.

    References
    ----------
    .. [1] T. Reiss, N. Cohen, L. Bergman and Y. Hoshen, "PANDA: Adapting Pretrained Features for
       Anomaly Detection and Segmentation", CVPR 2021, arXiv:2010.05903.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit import CompactFeatures
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    >>> features = CompactFeatures(max_epochs=1, random_state=0).fit(images)
    >>> features.transform(images).shape
    (8, 384)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **TunedFeatures._parameter_constraints,
        "min_spread": [Interval(Real, 0, 1, closed="left")],
        "activation_cache": TRAINING_CONSTRAINTS["activation_cache"],
    }

    def __init__(
        self,
        *,
        backbone: str | torch.nn.Module = "embedded",
        pretrained: bool | str | PathLike[str] = True,
        image_size: int | tuple[int, int] | None = None,
        image_shape: tuple[int, int, int] | None = None,
        n_tuned_blocks: int = 2,
        max_epochs: int = 15,
        learning_rate: float = 1e-2,
        validation_fraction: float = 0.2,
        patience: int = 3,
        min_spread: float = 0.5,
        activation_cache: int = 2**30,
        max_pixels: int | None = MAX_PIXELS,
        batch_size: int = 32,
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
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.min_spread = min_spread
        self.activation_cache = activation_cache
        self.max_pixels = max_pixels
        self.batch_size = batch_size
        self.store_backbone = store_backbone
        self.device = device
        self.n_jobs = n_jobs
        self.memory = memory
        self.random_state = random_state
        self.verbose = verbose

    def _fitting_passes(
        self, teacher: Teacher, source: ImageSource, network: TunedNetwork
    ) -> CachedPasses:
        """Passes that keep the tokens before the first tuned block for the next pass."""
        return self._passes(
            teacher, source, activation_cache=self.activation_cache, kept_blocks=[network.first]
        )

    def _objective(
        self,
        source: ImageSource,
        passes: CachedPasses,
        network: TunedNetwork,
        center: np.ndarray,
    ) -> Compactness:
        return Compactness(passes.passes, network, center)

    def _schedule(self) -> TuningSchedule:
        return TuningSchedule(
            max_epochs=self.max_epochs,
            learning_rate=self.learning_rate,
            patience=self.patience,
            min_share=self.min_spread,
            momentum=0.9,
            max_norm=1e-3,
        )
