"""Pre-trained features of images, from a frozen Vision Transformer."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skanomaly_vit._backbone.cached_passes import CachedPasses
from skanomaly_vit._backbone.image_estimator import ImageEstimator, draw_seed
from skanomaly_vit._backbone.precision import DTYPE_CONSTRAINT, FLOAT32
from skanomaly_vit._backbone.views import Readout, names_of, parse_views
from skanomaly_vit._images.pillow_rules import MAX_PIXELS
from skanomaly_vit._utils.compat import _fit_context
from skanomaly_vit._utils.settings import with_own_settings
from skanomaly_vit.distributed._torchrun import agreed


class ViTFeatures(TransformerMixin, ImageEstimator):
    """Pre-trained features of images: the pooled output of a frozen Vision Transformer.

    The features are by default the penultimate output of the backbone: the class token (or whatever
    the backbone pools) after the final norm, z_p of [1]_, section 3.1. Other views come from the
    same pass. `fit` trains nothing; it loads the backbone.

    Parameters
    ----------
    backbone : str or torch.nn.Module, default="embedded"
        ``"embedded"`` (the small ViT that ships with the package), the name of a timm model
        with transformer blocks in ``.blocks``, or such a network. A network is copied.
    views : str or sequence of str, default=("pooled",)
        Vectors that describe an image, side by side. ``"pooled"`` is the backbone's output.
        ``"pooled:-2"`` is the class token one block earlier (the mean patch of a backbone without
        a class token), ``"mean_patch"`` and ``"max_patch"`` are the mean and, channel by channel,
        the largest of the patches after the last block, ``"max_patch:-4"`` of those three blocks
        earlier. Tokens are normalised first, as by the final norm.
    pretrained : bool, str or path-like, default=True
        ``True`` loads the published weights (timm's hub, or the local hub cache), ``False``
        draws random ones, a path reads a checkpoint: ``.safetensors``, or a torch file that is
        read as tensors only. Ignored if `backbone` is a network.
    dtype : {"float32", "bfloat16", "auto"}, default="float32"
        Floating type in which the backbone works. ``"bfloat16"`` is faster on processors with
        AVX512-BF16 or AMX and on most GPUs, and slower on others, of which a `PrecisionWarning`
        tells; scores differ slightly. ``"auto"`` is ``"bfloat16"`` if the device of `fit` has
        instructions for it, else ``"float32"``; `dtype_` tells which, and stays on any machine. A
        network in another type than float32 keeps its own.
    image_size : int, tuple of (int, int) or None, default=None
        Height and width in pixels that images are resized to. ``None`` is the backbone's own.
    image_shape : tuple of (int, int, int) or None, default=None
        Height, width and channels of an image, if `X` is a 2-D array of flattened images.
    max_pixels : int or None, default=2**27
        Largest number of pixels of a file or PIL image. Larger ones count as unreadable and are
        not decoded, so that a small file cannot fill the memory. ``None`` is no limit.
    batch_size : int, default=32
        Images to decode and to pass through the backbone at once.
    store_backbone : bool, default=False
        Whether a pickle holds the backbone. If not, the unpickled estimator loads it, as
        `backbone` and `pretrained` say, and rejects it unless it is the same to the bit.
    device : str, torch.device or None, default=None
        Device of the networks. ``None`` is CUDA or MPS if there is one, else the CPU; under
        torchrun each rank's own GPU.
    n_jobs : int or None, default=None
        Threads that decode and resize images. ``None`` is one, ``-1`` all cores. Add
        workers by ``joblib.parallel_config`` or `skanomaly_vit.distributed.torchrun`.
    memory : str, path-like, DiskCache, object with ``cache`` or None, default=None
        Keeps features for other calls: a folder, a `DiskCache`, or an object such as
        `joblib.Memory`. The keys are the contents of images and the weights of the backbone.
        Results are the same with and without.
    random_state : int, RandomState instance or None, default=None
        Seed of random weights; used only with ``pretrained=False``.

    Attributes
    ----------
    backbone_fingerprint_ : str
        What the backbone is: digests of its modules, weights and preprocessing, and its features
        of a test image.
    dtype_ : str
        Floating type of the backbone.
    n_features_in_ : int
        Length of a flattened image; only where `image_shape` is given.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns; only where `X` has names that are all strings and `image_shape` is
        given.

    See Also
    --------
    BlockDistillation : The second feature space: errors of students.
    TransformalyDetector : Both spaces, with a density in each.

    Notes
    -----
    Beyond the features themselves, memory holds one batch of images and activations.

    References
    ----------
    .. [1] M. Cohen and S. Avidan, "Transformaly - Two (Feature Spaces) Are Better Than One",
       CVPR Workshops 2022, arXiv:2112.04185.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit import ViTFeatures
    >>> images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    >>> ViTFeatures().fit_transform(images).shape
    (2, 384)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ImageEstimator._parameter_constraints,
        "dtype": DTYPE_CONSTRAINT,
        "views": [str, tuple, list],
    }

    def __init__(
        self,
        *,
        backbone: str | torch.nn.Module = "embedded",
        views: str | Sequence[str] = ("pooled",),
        pretrained: bool | str | PathLike[str] = True,
        dtype: str = FLOAT32,
        image_size: int | tuple[int, int] | None = None,
        image_shape: tuple[int, int, int] | None = None,
        max_pixels: int | None = MAX_PIXELS,
        batch_size: int = 32,
        store_backbone: bool = False,
        device: str | torch.device | None = None,
        n_jobs: int | None = None,
        memory: Any = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.backbone = backbone
        self.views = views
        self.pretrained = pretrained
        self.dtype = dtype
        self.image_size = image_size
        self.image_shape = image_shape
        self.max_pixels = max_pixels
        self.batch_size = batch_size
        self.store_backbone = store_backbone
        self.device = device
        self.n_jobs = n_jobs
        self.memory = memory
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=True)
    @with_own_settings
    def fit(self, X: Any, y: Any = None) -> ViTFeatures:
        """Load the backbone.

        Parameters
        ----------
        X : images
            Any images that `TransformalyDetector.fit` takes. `fit` passes one through the backbone,
            to see that it works.
        y : None
            Ignored.

        Returns
        -------
        self : ViTFeatures
            Fitted.

        Raises
        ------
        ValueError
            If a parameter, the images or the backbone are not as described.
        WeightsUnavailableError
            If the weights are unavailable.
        """
        source = self._open(X, reset=True)
        seed = draw_seed(agreed(check_random_state(self.random_state)))
        return self._adopt(self._passes(self._load_teacher(seed), source), seed)

    @with_own_settings
    def transform(self, X: Any) -> np.ndarray:
        """Compute the pre-trained features of images.

        Parameters
        ----------
        X : images
            Any images that `TransformalyDetector.fit` takes.

        Returns
        -------
        Z : ndarray of shape (n_images, n_views * dim)
            In the floating type of the backbone, as a rule float32; bfloat16 becomes float32.

        Raises
        ------
        ValueError
            If the images are not as described, or one cannot be decoded.
        """
        check_is_fitted(self)
        source = self._open(X, reset=False)
        passes = self._passes(self._held_teacher(), source)
        embedded = passes.extract(np.arange(len(source)), {})
        return np.concatenate([embedded[name] for name in names_of(passes.teacher.views)], axis=1)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the features, after their views.

        Parameters
        ----------
        input_features : None
            Ignored.

        Returns
        -------
        names : ndarray of str objects of shape (n_features,)
            ``"pooled_0"``, ``"pooled_1"``, ...
        """
        check_is_fitted(self)
        names = [f"{view}_{i}" for view, n in self._n_features().items() for i in range(n)]
        return np.array(names, dtype=object)

    def _readout(self) -> Readout:
        return Readout(parse_views(self.views))

    def _n_features(self) -> dict[str, int]:
        """View -> number of its features."""
        return dict(zip(names_of(parse_views(self.views)), self._widths, strict=True))

    def _adopt(self, passes: CachedPasses, seed: int) -> ViTFeatures:
        embedded = passes.extract(np.arange(1), {})
        self._widths = [embedded[name].shape[1] for name in names_of(passes.teacher.views)]
        self._hold(passes.teacher, seed)
        return self
