"""Base class of the transformers that tune a backbone: fitting, transforming, pickling."""

from __future__ import annotations

from abc import abstractmethod
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skanomaly_vit._backbone.cached_passes import CachedPasses
from skanomaly_vit._backbone.devices import resolve_device
from skanomaly_vit._backbone.image_estimator import (
    TRAINING_CONSTRAINTS,
    ImageEstimator,
    draw_seed,
    split_validation,
)
from skanomaly_vit._backbone.teacher import Teacher
from skanomaly_vit._backbone.views import PENULTIMATE
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._images.units import find_units
from skanomaly_vit._utils.compat import (
    CallbackSupportMixin,
    Interval,
    _fit_context,
    with_callbacks,
)
from skanomaly_vit._utils.labels import warn_about_labels
from skanomaly_vit._utils.progress import Progress
from skanomaly_vit._utils.settings import with_own_settings
from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.distributed._torchrun import agreed
from skanomaly_vit.features._tuning import Objective, TunedNetwork, TuningSchedule, tune, tuned_copy


class TunedFeatures(
    CallbackSupportMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, ImageEstimator
):
    """Base of the transformers that tune the last blocks of a backbone.

    The backbone itself stays unchanged: a pickle holds the tuned parameters, and finds the rest
    again as `ImageEstimator` does.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ImageEstimator._parameter_constraints,
        **{name: TRAINING_CONSTRAINTS[name] for name in ("validation_fraction", "verbose")},
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "patience": [Interval(Integral, 1, None, closed="left")],
        "n_tuned_blocks": [Interval(Integral, 1, None, closed="left")],
    }

    #: Fewest images to learn from, and to hold out if `validation_fraction` is above 0.
    _min_images: ClassVar[int] = 1

    #: Whether it learns from images that are turned and recoloured, of which all pixels count.
    _turns_images: ClassVar[bool] = False

    n_tuned_blocks: int
    max_epochs: int
    learning_rate: float
    validation_fraction: float
    patience: int
    random_state: int | np.random.RandomState | None
    verbose: int

    _tuned_teacher: Teacher | None

    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=True)
    @with_own_settings
    def fit(self, X: Any, y: Any = None) -> Self:
        """Tune the last blocks on normal images.

        Parameters
        ----------
        X : images
            Any images that `TransformalyDetector.fit` takes.
        y : None
            Ignored, except that labels of anomalies among the images give a `LabelWarning`.

        Returns
        -------
        self : estimator
            Fitted.

        Raises
        ------
        ValueError
            If a parameter, the images or the backbone are not as described, or a loss is not
            finite.
        WeightsUnavailableError
            If the weights are unavailable.

        Warns
        -----
        ConvergenceWarning
            If no epoch improved the loss on the held-out images, so that the features are those of
            the backbone before tuning.
        """
        warn_about_labels(y)
        source = self._open(X, reset=True)
        if source.has_regions and self._turns_images:
            raise ValueError(
                f"{type(self).__name__} turns and recolours whole images, and takes no "
                "MaskedImages; pass the images alone, or use CompactFeatures"
            )
        rng = agreed(check_random_state(self.random_state))
        split = split_validation(
            len(source),
            self.validation_fraction,
            rng,
            min_train=self._min_images,
            min_held_out=self._min_images,
            groups=find_units(source).to_divide(),
        )
        teacher_seed, seed = draw_seed(rng), draw_seed(rng)
        teacher = self._load_teacher(teacher_seed)
        context = self._init_callback_context(max_subtasks=self.max_epochs)
        context.call_on_fit_task_begin(estimator=self, X=X, y=y)
        self._tune(teacher, source, split, seed, Progress(self, context))
        self._hold(teacher, teacher_seed)
        self._held_tuned()  # here, since `transform` must not change the attributes
        context.call_on_fit_task_end(estimator=self, X=X, y=y)
        if self.history_ and self.n_epochs_ == 0:
            warn_user(
                f"Tuning did not improve the loss on {len(split[1])} held-out images in "
                f"{len(self.history_)} epochs; the features are those of the backbone before "
                "tuning. Pass more images or another learning_rate.",
                ConvergenceWarning,
            )
        return self

    @with_own_settings
    def transform(self, X: Any) -> np.ndarray:
        """Compute the tuned features of images.

        Parameters
        ----------
        X : images
            Any images that `TransformalyDetector.fit` takes.

        Returns
        -------
        Z : ndarray of shape (n_images, dim)
            In the floating type of the backbone, as a rule float32.

        Raises
        ------
        ValueError
            If the images are not as described, or one cannot be decoded.
        """
        check_is_fitted(self)
        source = self._open(X, reset=False)
        passes = self._passes(self._held_tuned(), source, store_tokens=False)
        return self._features_of(passes, len(source))

    def _tune(
        self,
        teacher: Teacher,
        source: ImageSource,
        split: tuple[np.ndarray, np.ndarray],
        seed: int,
        progress: Progress,
    ) -> None:
        network = TunedNetwork(teacher, self.n_tuned_blocks)
        passes = self._fitting_passes(teacher, source, network)
        features = self._features_of(passes, len(source))
        center = features.mean(axis=0, dtype=np.float64).astype(features.dtype)
        tuned = tune(
            network,
            self._objective(source, passes, network, center),
            *split,
            schedule=self._schedule(),
            seed=seed,
            progress=progress,
            verbose=self.verbose,
        )
        # Last, so that a fit that fails leaves the old state whole.
        self._tuned_state, self._tuned_teacher = tuned.state, None
        self._n_features_out = len(center)
        self.center_, self.validation_indices_ = center, split[1]
        self.history_, self.n_epochs_ = tuned.history, tuned.n_epochs
        self.initial_loss_ = tuned.initial_loss

    def _fitting_passes(
        self, teacher: Teacher, source: ImageSource, network: TunedNetwork
    ) -> CachedPasses:
        return self._passes(teacher, source)

    def _features_of(self, passes: CachedPasses, n_images: int) -> np.ndarray:
        return passes.extract(np.arange(n_images), {})[PENULTIMATE.name]

    @abstractmethod
    def _objective(
        self,
        source: ImageSource,
        passes: CachedPasses,
        network: TunedNetwork,
        center: np.ndarray,
    ) -> Objective[Any]:
        """The loss that tuning minimizes."""

    @abstractmethod
    def _schedule(self) -> TuningSchedule:
        """Schedule of the tuning."""

    def _held_tuned(self) -> Teacher:
        """The tuned network, on the device that `device` means here and now."""
        if self._tuned_teacher is None:
            self._tuned_teacher = tuned_copy(self._held_teacher(), self._tuned_state)
        self._tuned_teacher = self._tuned_teacher.on(resolve_device(self.device))
        return self._tuned_teacher

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "_tuned_teacher" in state:
            state["_tuned_teacher"] = None  # made again from the backbone and the tuned parameters
        return state
