"""Transformaly detector: two feature spaces, a density in each, one score, one threshold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from os import PathLike
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.utils import check_random_state

from skanomaly_vit._backbone.cached_passes import CachedPasses
from skanomaly_vit._backbone.discrepancy import DISCREPANCY, PRETRAINED
from skanomaly_vit._backbone.image_estimator import (
    POOLING_CONSTRAINT,
    TRAINING_CONSTRAINTS,
    ImageEstimator,
    draw_seed,
    share_out,
    split_validation,
)
from skanomaly_vit._backbone.patches import PatchSample, layout_of
from skanomaly_vit._backbone.precision import DTYPE_CONSTRAINT, FLOAT32
from skanomaly_vit._images.pillow_rules import MAX_PIXELS
from skanomaly_vit._images.regions import Framing, read_roi
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._images.tiles import (
    TiledSource,
    check_tiles,
    rows_of,
    tile,
)
from skanomaly_vit._images.units import IDS, Units, find_units
from skanomaly_vit._utils.blas import one_blas_thread
from skanomaly_vit._utils.compat import (
    CallbackSupportMixin,
    HasMethods,
    Interval,
    StrOptions,
    _fit_context,
    with_callbacks,
)
from skanomaly_vit._utils.labels import AUTO, warn_about_labels
from skanomaly_vit._utils.progress import Progress, log
from skanomaly_vit._utils.settings import with_own_settings
from skanomaly_vit.density._by_name import DENSITIES
from skanomaly_vit.detector._cross_calibration import UNUSED_RATE, calibrate_across, folds_of
from skanomaly_vit.detector._feature_store import FeatureStore
from skanomaly_vit.detector._fit_summary import warn_about_few_images
from skanomaly_vit.detector._fusion import (
    FalseAlarms,
    FittedDensities,
    fit_densities,
)
from skanomaly_vit.detector._near_copies import (
    one_learned_of_each_unit,
    warn_of_near_copies,
)
from skanomaly_vit.detector._notebook_card import NotebookCardMixin
from skanomaly_vit.detector._recipes import RECIPES, describe_recipe, readout_of, resolve
from skanomaly_vit.detector._saving import load_detector, save_detector
from skanomaly_vit.detector._updates import UpdatableDetector
from skanomaly_vit.distillation import BlockDistillation
from skanomaly_vit.distillation._by_name import STUDENT_CONSTRAINT, STUDENTS
from skanomaly_vit.distillation._checkpoints import Checkpoints, check_checkpoint_dir
from skanomaly_vit.distillation._student import BaseStudent
from skanomaly_vit.distributed._torchrun import agreed
from skanomaly_vit.features import ViTFeatures

FEATURE_SPACES = {"both", PRETRAINED, DISCREPANCY}

#: Densities of tiles: one for all places, or one for each.
SHARED, POSITION = "shared", "position"


class TransformalyDetector(NotebookCardMixin, CallbackSupportMixin, UpdatableDetector):
    """Find images that differ in meaning from normal ones.

    Transformaly [1]_ describes an image in two feature spaces of one frozen Vision Transformer:
    its pooled output, and the errors of students that imitate its last blocks and have learned
    from normal images only. The detector fits a density in each space. The score of an image is
    the sum of its scores in both, each standardized by those that the training images have when
    they are left out. It is no log-likelihood, except with ``fusion="product"``.

    The parameters come in five groups: basics (`backbone` to `contamination`; most users change
    no others), backbone and images (`pretrained` to `on_error`), students (`student` to
    `activation_cache`), score and threshold (`recipe` to `validation_fraction`), machine
    (`batch_size` to `verbose`).

    Parameters
    ----------
    backbone : str or torch.nn.Module, default="embedded"
        ``"embedded"`` (the small ViT that ships with the package), the name of a timm model
        with transformer blocks in ``.blocks`` (the paper's is
        ``"vit_base_patch16_384.augreg_in21k_ft_in1k"``), or such a network. A network is copied.
    image_size : int, tuple of (int, int) or None, default=None
        Height and width in pixels that images are resized to. ``None`` is the backbone's own.
    n_blocks : int, None or "auto", default="auto"
        Number of last blocks that get a student. ``None`` is all blocks. ``"auto"`` is 5; in the
        paper's recipe 10.
    pca_variance : float, None or "auto", default="auto"
        Share in (0, 1) of the variance of the pre-trained features that a whitening PCA keeps.
        ``None`` applies no PCA. ``"auto"`` is ``None``; in the paper's recipe 0.9.
    contamination : float, default=0.05
        Accepted share in (0, 0.5] of *false alarms*: normal images that may be flagged. `offset_`
        is the score whose p-value among held-out images reaches this share. At least
        ``1 / contamination - 1`` held-out images are needed. A change after `fit` does not move
        the threshold, and `predict` warns once: call `set_threshold`, or fit again.
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
    store_backbone : bool, default=False
        Whether a pickle holds the backbone. If not, the unpickled estimator loads it, as
        `backbone` and `pretrained` say, and rejects it unless it is the same to the bit.
    image_shape : tuple of (int, int, int) or None, default=None
        Height, width and channels of an image, if `X` is a 2-D array of flattened images.
    max_pixels : int or None, default=2**27
        Largest number of pixels of a file or PIL image. Larger ones count as unreadable and are
        not decoded, so that a small file cannot fill the memory. ``None`` is no limit.
    roi : str, path-like, array-like of shape (height, width) or None, default=None
        Region of interest: the pixels that count in every image, as `read_roi` reads them, scaled
        to the size of each image. The others are painted in the mean colour before the backbone
        sees the image, so that no score depends on them, and patches without a pixel that counts
        take no part. `fit` keeps the region in `roi_`. For another region in each image, pass
        `MaskedImages` in `fit` and in scoring. ``None`` is the whole image.
    keep_aspect : bool, default=False
        Whether an image of another ratio of sides than `image_size` is padded; padding does not
        count. If not, it is stretched.
    tiles : (int, int), int, "auto" or None, default=None
        Tiles of a large picture, each an input of the backbone: (rows, columns); the side of a
        square in pixels; or ``"auto"``, squares of `image_size`, at full resolution. Neighbours
        overlap by an eighth of their side. The score of an image is that of its worst tile, and
        images, not tiles, set the threshold. ``None`` resizes the whole image.
    tile_density : {"shared", "position"}, default="shared"
        Densities of tiles. ``"shared"``: one in each feature space, for tiles of all places.
        ``"position"``: one for each place, where parts are aligned, so that what is normal at one
        place is none at another; all images need equally many rows and columns of tiles. Each has
        the tiles of one place to learn from. Students learn from all tiles either way.
    on_error : {"raise", "nan"}, default="raise"
        Treatment of unreadable images in scoring. ``"raise"`` raises an error that lists them.
        ``"nan"`` warns of them (`UnreadableImageWarning`): their score is NaN, their label -1,
        their map empty; the others score as they do without them. An image that
        `roi` does not fit is unreadable, too. `fit` always raises.
    student : {"ridge", "block", "auto"} or estimator, default="auto"
        Imitation of a block: `RidgeStudent`, `BlockStudent` (a name stands for its default
        parameters), or any estimator with ``fit(batches)`` and ``predict(tokens)``, cloned for
        each block; see `RidgeStudent.fit`. A ``random_state`` of ``None`` in it follows
        `random_state`. ``"auto"`` is ``RidgeStudent()``; in the paper's recipe ``BlockStudent(
        max_epochs=30, learning_rate=1e-4, learning_rate_schedule="constant", patience=30)``.
    student_dtype : {"float16", "bfloat16"} or None, default=None
        Type to which `fit` rounds students, and in which pickles store them. ``None`` is float32;
        for block students, the backbone's.
    activation_cache : int, default=2**30
        Bytes in which `fit` may keep the backbone's tokens of the training images, so that images
        pass through the backbone once, not in every epoch: on a GPU in its memory, else in a
        temporary file beyond the first 8 MiB. Results do not depend on it.
    recipe : {"default", "paper"}, default="default"
        Values of the parameters that are ``"auto"``: the most accurate ones in our benchmarks, or
        those of the paper. `recipe_` holds them after `fit`.
    feature_spaces : {"both", "pretrained", "discrepancy"}, default="both"
        Feature spaces that make up the score. With ``"pretrained"``, `fit` trains no students.
    views : str, sequence of str or "auto", default="auto"
        Vectors that make up the pre-trained space, as in `ViTFeatures`. Each has a density of its
        own. ``"auto"`` is ``("pooled", "pooled:-2", "max_patch", "max_patch:-2")``: class token
        and, channel by channel, largest patch, after the last two blocks. In the paper's recipe
        ``("pooled",)``.
    pooling : {"mean", "max", "auto"} or float, default="auto"
        Error of a student on an image: the mean over all tokens, the largest of its patches, or the
        mean over that share in (0, 1] of the patches where it is largest. A small defect shows in
        few patches. ``"auto"`` is ``"max"``; in the paper's recipe ``"mean"``.
    density : str or estimator, default="auto"
        Density scorer, cloned for each space: ``"gaussian"`` (`GaussianDensity`), ``"gmm"``
        (`GaussianMixtureDensity`), ``"knn"`` (`KNNDensity`), ``"whitened_knn"``
        (`WhitenedKNNDensity`), ``"excess"`` (`ExcessDensity`), or any estimator with ``fit`` and
        ``score_samples`` (higher = more normal). A ``random_state`` of ``None`` in it follows
        `random_state`.
        ``"auto"`` is ``WhitenedKNNDensity(whitening_exponent=0.25)`` in each view, and
        ``ExcessDensity(tail="exponential")`` in the discrepancy space; in the paper's recipe a
        Gaussian in each.
    fusion : {"product", "standardized", "auto"}, default="auto"
        Combination of both spaces' scores. ``"product"`` adds log-likelihoods.
        ``"standardized"`` first scales each by mean and standard deviation of the scores that the
        training images have when left out, by the ``score_left_out`` of the density
        (see `GaussianDensity.score_left_out`). A density without that method has learned from them:
        its scores of them are too high. Students have learned from them too, so the discrepancy
        space counts half. ``"auto"`` is ``"standardized"``; in the paper's recipe
        ``"product"``.
    validation_fraction : float, default=0.2
        Share of the images in [0, 1) that neither students nor densities learn from. These images
        set the threshold and choose each block student's best epoch. With 0, the threshold comes
        from the training images, whose scores are too high, and block students keep the last epoch.
        Ignored with ``calibration="cross"``.
    calibration : {"split", "cross"}, default="split"
        Images that set the threshold. ``"split"``: the held-out ones, with a guarantee for any
        number of them. ``"cross"``: all images; students and densities learn from nine tenths of
        them, and nine further models, each without another tenth of the images (or groups), score
        what they left out. For few images: with 60, the smallest p-value is 1/61, not 1/13. The
        guarantee is approximate, see Notes, and `fit` takes longer.
    batch_size : int, default=32
        Images in a step of training, and in a pass of the backbone.
    device : str, torch.device or None, default=None
        Device of the networks. ``None`` is CUDA or MPS if there is one, else the CPU; under
        torchrun each rank's own GPU.
    n_jobs : int or None, default=None
        Threads that decode and resize images. ``None`` is one, ``-1`` all cores. Add
        workers by ``joblib.parallel_config`` or `skanomaly_vit.distributed.torchrun`.
    memory : str, path-like, DiskCache, object with ``cache`` or None, default=None
        Cache of features and students for other fits: a folder, a `DiskCache`, or an object such
        as `joblib.Memory`. Its keys are the contents of images, the weights of the backbone and
        the parameters that results depend on. Results are the same with or without it.
    checkpoint_dir : str, path-like or None, default=None
        Folder for checkpoints. After an interruption, `fit` with the same images and parameters
        resumes after the last epoch, or the last minute of the pass for ridge students, and gives
        the same result to the bit. `fit` warns of checkpoints of other images or parameters and
        leaves them alone; it removes its own when it succeeds. Needs a `random_state`, and a
        student of this package.
    random_state : int, RandomState instance or None, default=None
        Seed of the validation split, block students' weights, the order of images, and densities.
        An int gives the same scores to the bit on the same machine, for any `n_jobs`.
    verbose : int, default=0
        Above 0, progress goes to the logger ``"skanomaly_vit"``, a line per epoch.

    Attributes
    ----------
    features_ : ViTFeatures
        The pre-trained feature space.
    distillation_ : BlockDistillation or None
        The students; ``None`` with ``feature_spaces="pretrained"``.
    density_ : dict
        The fitted scorer of each view, under its name (a pipeline of PCA and density if
        `pca_variance` is a number), and that of the discrepancy space under ``"discrepancy"``.
        With ``tile_density="position"``, each holds the scorers of all places in ``densities``.
    offset_ : float
        ``decision_function = score_samples - offset_``.
    calibration_scores_ : ndarray of shape (n_calibrating,), float64, or None
        Scores of held-out images that neither taught nor chose anything: all held-out images, or
        with block students every second one (or every second group of `fit`), because the others
        choose epochs. ``None`` with ``validation_fraction=0``. With ``calibration="cross"``, one of
        each image of `fit`, in their order, by the model that has not learned from it.
    calibration_units_ : ndarray of shape (n_calibrating,), float64, or None
        Unit of each of these images: its group, or the image that it is a copy of. ``None`` if each
        is a unit of its own.
    threshold_confidence_ : float or None
        Confidence that `set_threshold` was given.
    contamination_ : float or None
        False-alarm rate at which `fit` or `set_threshold` set the threshold.
    recipe_ : Bunch
        Values that `fit` used, without ``"auto"``: `n_blocks` (the number of students), `student`
        (None without students), `views`, `pooling`, `pca_variance`, `density` (a dict with the
        unfitted scorer of each space) and `fusion`.
    dtype_ : str
        Floating type of the backbone.
    roi_ : ndarray of shape (height, width), bool, or None
        The pixels that count in every image; ``None`` if all do.
    tile_grid_ : tuple of (int, int) or None
        Rows and columns of the tiles that have densities of their own; ``None`` with
        ``tile_density="shared"``.
    fusion_ : dict
        Location and scale that standardize each space's score; (0, 1) for ``"product"``. The scale
        is the standard deviation divided by the weight of the space: all views together weigh 1,
        ``"discrepancy"`` 1/2. For densities of this package, the standard deviation counts as at
        least half of ``sqrt(n_features / 2)``, that of a Gaussian's log-density: the training
        images may all score alike.
    fusion_weights_ : dict
        Weight of each view and of ``"discrepancy"`` that `tune_fusion` learned, of mean 1; all 1
        after `fit`. `fusion_` holds them in its scales.
    validation_indices_ : ndarray of int
        Positions in the `X` of `fit` of the images that the model has not learned from.
    n_samples_fit_ : int
        Number of images in all calls of `fit` and `partial_fit`, held-out ones included.
    n_features_in_ : int
        Length of a flattened image; only with `image_shape`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns; only with `image_shape`, and if `X` has names that are all strings.

    See Also
    --------
    ViTFeatures : The first feature space alone, as a transformer.
    BlockDistillation : The second feature space alone, as a transformer.
    GaussianDensity : The default density.

    Notes
    -----
    ``recipe="paper"`` is the method as published: block students, a whitening PCA, a Gaussian in
    each space, the product of likelihoods. The default is faster, and was more accurate in our
    benchmarks (docs/explanation/benchmarks.md).

    Unlike the code released with the paper, `fit` chooses students on held-out training images
    instead of test images, keeps the teacher in eval mode, passes a batch through the teacher once
    for both feature spaces, trains only students that score, and seeds every draw.

    With ``calibration="cross"``, the score of a new image is compared with those that other models
    gave the images that they had left out. All models learn from equally many images, so each of
    these scores is distributed as that of a new normal image; but they are not independent, and
    nothing proves the level for one detector, as [2]_ proves twice the level for a comparison
    within each model, which would take ten models to score. docs/how_to/false_alarms.md reports
    measured shares. `partial_fit` raises an error, and block students keep their last epoch.

    The method cannot tell apart two classes that the backbone confuses (*pre-training confusion*,
    [1]_ section 5).

    References
    ----------
    .. [1] M. Cohen and S. Avidan, "Transformaly - Two (Feature Spaces) Are Better Than One",
       CVPR Workshops 2022, arXiv:2112.04185.
    .. [2] R. F. Barber, E. J. Candes, A. Ramdas and R. J. Tibshirani, "Predictive Inference with
       the Jackknife+", Annals of Statistics 49, 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit import TransformalyDetector
    >>> rng = np.random.default_rng(0)
    >>> normal = rng.integers(100, 156, (24, 32, 32, 3), dtype=np.uint8)  # soft noise
    >>> odd = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)  # harsh noise
    >>> detector = TransformalyDetector(n_blocks=2, random_state=0).fit(normal)
    >>> detector.predict(odd)
    array([-1, -1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ImageEstimator._parameter_constraints,
        **TRAINING_CONSTRAINTS,
        "dtype": DTYPE_CONSTRAINT,
        "student": [StrOptions({AUTO, *STUDENTS}), *STUDENT_CONSTRAINT[1:]],
        "recipe": [StrOptions(set(RECIPES))],
        "n_blocks": [*TRAINING_CONSTRAINTS["n_blocks"], StrOptions({AUTO})],
        "views": [str, tuple, list],
        "pooling": [StrOptions({AUTO}), *POOLING_CONSTRAINT],
        "pca_variance": [Interval(Real, 0, 1, closed="neither"), StrOptions({AUTO}), None],
        "density": [StrOptions({AUTO, *DENSITIES}), HasMethods(["fit", "score_samples"])],
        "fusion": [StrOptions({"product", "standardized", AUTO})],
        "feature_spaces": [StrOptions(FEATURE_SPACES)],
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
        "roi": [str, PathLike, "array-like", None],
        "keep_aspect": ["boolean"],
        "tiles": [tuple, list, Integral, StrOptions({AUTO}), None],
        "tile_density": [StrOptions({SHARED, POSITION})],
        "on_error": [StrOptions({"raise", "nan"})],
        "calibration": [StrOptions({"split", "cross"})],
    }

    def __init__(
        self,
        *,
        # Basics
        backbone: str | torch.nn.Module = "embedded",
        image_size: int | tuple[int, int] | None = None,
        n_blocks: int | str | None = "auto",
        pca_variance: float | str | None = "auto",
        contamination: float = 0.05,
        # Backbone and images
        pretrained: bool | str | PathLike[str] = True,
        dtype: str = FLOAT32,
        store_backbone: bool = False,
        image_shape: tuple[int, int, int] | None = None,
        max_pixels: int | None = MAX_PIXELS,
        roi: Any = None,
        keep_aspect: bool = False,
        tiles: tuple[int, int] | int | str | None = None,
        tile_density: str = SHARED,
        on_error: str = "raise",
        # Students
        student: Any = "auto",
        student_dtype: str | None = None,
        activation_cache: int = 2**30,
        # Score and threshold
        recipe: str = "default",
        feature_spaces: str = "both",
        views: str | Sequence[str] = "auto",
        pooling: str | float = "auto",
        density: Any = "auto",
        fusion: str = "auto",
        validation_fraction: float = 0.2,
        calibration: str = "split",
        # Machine
        batch_size: int = 32,
        device: str | torch.device | None = None,
        n_jobs: int | None = None,
        memory: Any = None,
        checkpoint_dir: str | PathLike[str] | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.image_size = image_size
        self.n_blocks = n_blocks
        self.pca_variance = pca_variance
        self.contamination = contamination
        self.pretrained = pretrained
        self.dtype = dtype
        self.store_backbone = store_backbone
        self.image_shape = image_shape
        self.max_pixels = max_pixels
        self.roi = roi
        self.keep_aspect = keep_aspect
        self.tiles = tiles
        self.tile_density = tile_density
        self.on_error = on_error
        self.student = student
        self.student_dtype = student_dtype
        self.activation_cache = activation_cache
        self.recipe = recipe
        self.feature_spaces = feature_spaces
        self.views = views
        self.pooling = pooling
        self.density = density
        self.fusion = fusion
        self.validation_fraction = validation_fraction
        self.calibration = calibration
        self.batch_size = batch_size
        self.device = device
        self.n_jobs = n_jobs
        self.memory = memory
        self.checkpoint_dir = checkpoint_dir
        self.random_state = random_state
        self.verbose = verbose

    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=False)  # `density`, `student`: estimators
    @with_own_settings
    def fit(self, X: Any, y: Any = None, groups: Any = None) -> TransformalyDetector:
        """Learn what normal images look like.

        Parameters
        ----------
        X : images
            Normal images: an array (n, height, width, 3), (n, height, width, 1) or
            (n, height, width) of uint8, uint16 or floats in [0, 1]; a list, array or Series of
            paths, files' bytes, PIL images or arrays, of any sizes; a torch tensor (n, 3, height,
            width); or, with `image_shape`, a 2-D array of flattened images.
        y : array-like of shape (n_images,) or None, default=None
            Ignored, but for a `LabelWarning` if it marks anomalies in `X`.
        groups : array-like of shape (n_images,) or None, default=None
            Group of each image (camera, lot, day). `fit` holds out whole groups, so that the
            threshold applies to groups not seen before. In a pipeline, request it with
            ``set_fit_request(groups=True)``.

        Returns
        -------
        self : TransformalyDetector
            Fitted.

        Raises
        ------
        ValueError
            If a parameter, the images or the backbone are not as described.
        WeightsUnavailableError
            If the weights of the backbone are unavailable.

        Warns
        -----
        CalibrationWarning
            If too few images are held out for a threshold at `contamination`, `fit` learns from
            fewer than 20 different images, or held-out ones have near copies (frames of a video)
            among those learned from.
        AmbiguousImageWarning
            If images can be read in more than one way.
        """
        warn_about_labels(y)
        check_checkpoint_dir(self.checkpoint_dir, self.random_state)
        values = resolve(self)
        student = self._make_student(values)
        source = self._open(X, reset=True)
        units = find_units(source, groups)
        groups = units.to_divide(groups)
        rng = agreed(check_random_state(self.random_state))
        folds = []
        if self.calibration == "cross":
            folds = list(folds_of(units.units, draw_seed(rng)))
            split = folds[0]
        else:
            # A density needs two images to see any spread.
            split = split_validation(
                len(source), self.validation_fraction, rng, min_train=2, groups=groups
            )
        warn_about_few_images(units.contents[split[0]])
        n_epochs = student._n_epochs if student else 0
        context = self._init_callback_context(max_subtasks=n_epochs + 1)
        context.call_on_fit_task_begin(estimator=self, X=X, y=y)
        chooses = student is not None and student._chooses
        shares = share_out(split[1], groups, chooses=chooses)
        if folds:
            shares = split[1][:0], split[1]
        progress = Progress(self, context)
        self._fit(source, split, shares, folds[1:], student, values, units, rng, progress)
        context.call_on_fit_task_end(estimator=self, X=X, y=y)
        return self

    @with_own_settings
    def save(self, path: str | PathLike[str]) -> None:
        """Write the fitted detector to one file, which runs no code when loaded.

        The file holds numbers and text only (safetensors with JSON in its header): parameters,
        students, densities, threshold, and a model card. It leaves out `device`, `n_jobs`,
        `memory`, `checkpoint_dir` and `verbose`, and the backbone unless `store_backbone` is set.

        Parameters
        ----------
        path : str or path-like
            The file, in an existing folder. It replaces an older one in one step, once it is
            complete.

        Raises
        ------
        ValueError
            If `backbone` is a network, `density` or `student` is not of this package, or another
            parameter is neither numbers nor text.
        OSError
            If the file cannot be written.

        See Also
        --------
        load : Read the file.
        """
        save_detector(self, path)

    @classmethod
    @with_own_settings
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a fitted detector from a file that `save` wrote.

        Its scores equal those of the saved detector, to the bit on the same machine. If the file
        holds no backbone, the detector loads it on first use, as `backbone` and `pretrained` say,
        and rejects it unless it is the same to the bit.

        Parameters
        ----------
        path : str or path-like
            The file.

        Returns
        -------
        detector : TransformalyDetector
            Fitted; it runs on the best available device, unless `device` is set.

        Raises
        ------
        ModelFileError
            If the file is missing, cut off, damaged, of another kind or of a newer format.

        See Also
        --------
        save : Write the file.
        """
        return load_detector(cls, path)

    def _framing(self, *, reset: bool) -> Framing:
        if not reset:
            return self._fitted_framing
        if self.tiles is not None:
            check_tiles(self.tiles)
        elif self.tile_density == POSITION:
            raise ValueError(
                f"tile_density={POSITION!r} is for tiles; pass tiles=(rows, columns), too"
            )
        roi = None if self.roi is None else read_roi(self.roi)
        return Framing(roi, self.keep_aspect, self.tiles)

    def _spaces(self, values: dict[str, Any]) -> tuple[str, ...]:
        """Names of the spaces that make up the score: views, and that of discrepancies."""
        views = () if self.feature_spaces == DISCREPANCY else values["views"]
        return views if self.feature_spaces == PRETRAINED else (*views, DISCREPANCY)

    def _make_student(self, values: dict[str, Any]) -> BaseStudent | None:
        if self.feature_spaces == PRETRAINED:
            return None
        return self._part(BlockDistillation, values)._make_student()

    def _fit(
        self,
        source: ImageSource,
        split: tuple[np.ndarray, np.ndarray],
        shares: tuple[np.ndarray, np.ndarray],
        further_folds: list[tuple[np.ndarray, np.ndarray]],
        student: BaseStudent | None,
        values: dict[str, Any],
        units: Units,
        rng: np.random.RandomState,
        progress: Progress,
    ) -> None:
        teacher_seed, students_seed = draw_seed(rng), draw_seed(rng)
        teacher = self._load_network(teacher_seed).reading(readout_of(values))
        height, width = teacher.preprocessing.image_size
        log(self.verbose, "The backbone runs on %s and sees images of %d x %d pixels.",
            teacher.device, width, height)  # fmt: skip
        inputs = tile(source, teacher.preprocessing.image_size)

        def rows(images: np.ndarray) -> np.ndarray:
            return rows_of(inputs, images)

        train, held_out = map(rows, split)
        choosing, calibrating = map(rows, shares)
        tile_grid = None
        if self.tile_density == POSITION and isinstance(inputs, TiledSource):
            tile_grid = inputs.find_grid()
        columns = units.columns_of(inputs, places=tile_grid is not None)
        layout = layout_of(teacher)
        distillation: BlockDistillation | None = None
        if student is not None:
            distillation = self._part(BlockDistillation, values)
            passes = distillation._fitting_passes(teacher, inputs, [layout.block] if layout else [])
        else:
            passes = self._passes(teacher, inputs)
        features = self._part(ViTFeatures, values)._adopt(passes, teacher_seed)
        checkpoints = Checkpoints()
        if distillation is not None and student is not None:
            checkpoints = distillation._fit_students(
                student, passes, (train, choosing), students_seed, progress
            )
            distillation.validation_indices_ = shares[0]
            distillation._hold(teacher, teacher_seed)
        with FeatureStore() as store:
            with progress.task("features", math.ceil(len(inputs) / self.batch_size)) as task:
                students = self._students_on(teacher.device, distillation)
                sample = None
                if layout:
                    share = inputs.share_inside()
                    sample = PatchSample(layout, len(inputs), held_out, share)
                keep = store.append_with(columns)
                normal_patches = passes.extract_normal(
                    np.arange(len(inputs)), students, sample, keep, task.track
                )
            false_alarms, seed = FalseAlarms(self.contamination), draw_seed(rng)
            rate = UNUSED_RATE if further_folds else false_alarms
            fitted = self._fit_densities(store, (train, calibrating), values, rate, seed)

            def fit_fold(learned: np.ndarray, left_out: np.ndarray) -> FittedDensities:
                fold = rows(learned), rows(left_out)
                embedded = self._embed_fold(store, passes, student, values, fold[0], students_seed)
                with embedded as of_fold:
                    return self._fit_densities(of_fold, fold, values, UNUSED_RATE, seed)

            if further_folds:
                fitted = calibrate_across(
                    fitted, split[1], further_folds, fit_fold, units.units, false_alarms
                )
            if inputs is source:  # tiles of one image are near each other
                learned = one_learned_of_each_unit(store, store.mask(train))
                warn_of_near_copies(fitted.summary.held_out, learned)
        # Last, so that a fit that fails leaves the old state whole.
        self.features_, self.distillation_ = features, distillation
        self.dtype_, self._fitted_framing = features.dtype_, source.framing
        self.roi_, self.tile_grid_ = source.framing.roi, tile_grid
        self._set_densities(fitted, false_alarms)
        self.fusion_weights_ = dict.fromkeys(fitted.fusion, 1.0)
        self.recipe_ = describe_recipe(values, fitted.density, distillation)
        self.validation_indices_, self.n_samples_fit_ = split[1], len(source)
        self._normal_patches = normal_patches
        self._is_cross_calibrated = len(further_folds) > 0
        self._updates = []
        checkpoints.discard()
        log(self.verbose, "Fitted on %d images. The threshold, %.4g, flags %s.",
            len(source), self.offset_, self._certificate().describe_rate())  # fmt: skip

    def _fit_densities(
        self,
        store: FeatureStore,
        split: tuple[np.ndarray, np.ndarray],
        values: dict[str, Any],
        false_alarms: FalseAlarms,
        seed: int,
    ) -> FittedDensities:
        with one_blas_thread(store.n_values):
            return fit_densities(
                store,
                self._spaces(values),
                split,
                density=values["density"],
                pca_variance=values["pca_variance"],
                fusion=values["fusion"],
                false_alarms=false_alarms,
                seed=seed,
                remember=self.memory is not None,
            )

    @contextmanager
    def _embed_fold(
        self,
        store: FeatureStore,
        passes: CachedPasses,
        student: BaseStudent | None,
        values: dict[str, Any],
        train: np.ndarray,
        seed: int,
    ) -> Iterator[FeatureStore]:
        """Features of all images, with the errors of students of some of them."""
        if student is None:
            yield store
            return
        distillation = self._part(BlockDistillation, values).set_params(checkpoint_dir=None)
        distillation._fit_students(student, passes, (train, train[:0]), seed, Progress())
        everyone = np.ones(len(store), dtype=bool)
        columns = {name: store.column(name, everyone) for name in IDS if name in store}
        with self._embed_all(passes, distillation, columns) as of_fold:
            yield of_fold

    def _part(self, estimator_class: type[Any], values: dict[str, Any]) -> Any:
        """Make an estimator, as a part of the detector, with the detector's parameters."""
        names = estimator_class().get_params(deep=False)
        own = {name: getattr(self, name) for name in names}
        return estimator_class(**own | {k: v for k, v in values.items() if k in own})
