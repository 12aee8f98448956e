"""Discrepancy features: errors of students that imitate a frozen teacher's blocks."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection
from dataclasses import replace
from os import PathLike
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skanomaly_vit._backbone.cached_passes import CachedPasses
from skanomaly_vit._backbone.devices import on_device
from skanomaly_vit._backbone.discrepancy import DISCREPANCY
from skanomaly_vit._backbone.image_estimator import (
    POOLING_CONSTRAINT,
    TRAINING_CONSTRAINTS,
    ImageEstimator,
    draw_seed,
    split_validation,
)
from skanomaly_vit._backbone.precision import DTYPE_CONSTRAINT, FLOAT32
from skanomaly_vit._backbone.teacher import Teacher
from skanomaly_vit._backbone.views import Readout, share_of
from skanomaly_vit._images.pillow_rules import MAX_PIXELS
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._images.units import find_units
from skanomaly_vit._utils.compat import CallbackSupportMixin, _fit_context, with_callbacks
from skanomaly_vit._utils.hashing import combine
from skanomaly_vit._utils.progress import Progress
from skanomaly_vit._utils.settings import with_own_settings
from skanomaly_vit.distillation._by_name import STUDENT_CONSTRAINT, make_student
from skanomaly_vit.distillation._checkpoints import (
    Checkpoints,
    check_checkpoint_dir,
    open_checkpoints,
)
from skanomaly_vit.distillation._recall import fit_or_recall
from skanomaly_vit.distillation._student import BaseStudent, StorableStudent, TrainingTask
from skanomaly_vit.distillation._trained import Trained, history_of
from skanomaly_vit.distributed._torchrun import agreed


class BlockDistillation(CallbackSupportMixin, TransformerMixin, ImageEstimator):
    """Discrepancy features: errors of students that imitate a frozen teacher's blocks.

    For each of the last `n_blocks` blocks of a Vision Transformer, a student learns from normal
    images to map the teacher's tokens before the block to the tokens after it. The features of an
    image are the students' mean squared errors, one per block: z_f of [1]_, section 3.2. An error
    is large if the image differs from the normal ones in the features of that block.

    Parameters
    ----------
    backbone : str or torch.nn.Module, default="embedded"
        ``"embedded"`` (the small ViT that ships with the package), the name of a timm model
        with transformer blocks in ``.blocks``, or such a network. A network is copied.
    image_size : int, tuple of (int, int) or None, default=None
        Height and width in pixels that images are resized to. ``None`` is the backbone's own.
    n_blocks : int or None, default=5
        Number of last blocks that get a student. ``None`` is all blocks.
    pooling : {"mean", "max"} or float, default="mean"
        Error of a student on an image: the mean over all tokens, the largest of its patches, or the
        mean over that share in (0, 1] of the patches where it is largest.
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
    student : {"ridge", "block"} or estimator, default="ridge"
        Imitation of a block: `RidgeStudent`, `BlockStudent` (a name stands for its default
        parameters), or any estimator with ``fit(batches)`` and ``predict(tokens)``, cloned for
        each block; see `RidgeStudent.fit`. A ``random_state`` of ``None`` in it follows
        `random_state`.
    student_dtype : {"float16", "bfloat16"} or None, default=None
        Type to which `fit` rounds students, and in which pickles store them. ``None`` is float32;
        for block students, the backbone's.
    activation_cache : int, default=2**30
        Bytes in which `fit` may keep the backbone's tokens of the training images, so that images
        pass through the backbone once, not in every epoch: on a GPU in its memory, else in a
        temporary file beyond the first 8 MiB. Results do not depend on it.
    validation_fraction : float, default=0.2
        Share of the images in [0, 1) that students do not learn from. These images choose each
        block student's best epoch. With 0, block students keep the last epoch.
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
        Seed of the validation split, block students' weights, and the order of images.
    verbose : int, default=0
        Above 0, progress goes to the logger ``"skanomaly_vit"``, a line per epoch.

    Attributes
    ----------
    students_ : list of torch.nn.Module
        The students, in the order of their blocks.
    block_indices_ : list of int
        Index of each student's block, counted from 0.
    history_ : list of dict
        Per epoch ``epoch``, ``train_loss`` and, for block students, ``valid_loss`` (one value per
        student; nan once it has stopped), ``seconds``.
    validation_indices_ : ndarray of int
        Positions in `X` of the images that students did not learn from.
    backbone_fingerprint_ : str
        What the backbone is: digests of its modules, weights and preprocessing, and its features
        of a test image.
    dtype_ : str
        Floating type of the backbone.
    n_features_in_ : int
        Length of a flattened image; only with `image_shape`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns; only with `image_shape`, and if `X` has names that are all strings.

    See Also
    --------
    ViTFeatures : The first feature space, the backbone's own output.
    TransformalyDetector : Both spaces and a density in each.

    Notes
    -----
    The teacher stays in eval mode. `fit` drops a batch's activations block by block: its memory
    holds one batch and the students with their optimizers.

    References
    ----------
    .. [1] M. Cohen and S. Avidan, "Transformaly - Two (Feature Spaces) Are Better Than One",
       CVPR Workshops 2022, arXiv:2112.04185.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit import BlockDistillation
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    >>> distillation = BlockDistillation(n_blocks=2, random_state=0).fit(images)
    >>> distillation.transform(images).shape
    (8, 2)
    >>> distillation.get_feature_names_out()
    array(['block9', 'block10'], dtype=object)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ImageEstimator._parameter_constraints,
        **TRAINING_CONSTRAINTS,
        "dtype": DTYPE_CONSTRAINT,
        "student": STUDENT_CONSTRAINT,
        "pooling": POOLING_CONSTRAINT,
    }

    def __init__(
        self,
        *,
        # Basics
        backbone: str | torch.nn.Module = "embedded",
        image_size: int | tuple[int, int] | None = None,
        n_blocks: int | None = 5,
        pooling: str | float = "mean",
        # Backbone and images
        pretrained: bool | str | PathLike[str] = True,
        dtype: str = FLOAT32,
        store_backbone: bool = False,
        image_shape: tuple[int, int, int] | None = None,
        max_pixels: int | None = MAX_PIXELS,
        # Students
        student: Any = "ridge",
        student_dtype: str | None = None,
        activation_cache: int = 2**30,
        validation_fraction: float = 0.2,
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
        self.pooling = pooling
        self.pretrained = pretrained
        self.dtype = dtype
        self.store_backbone = store_backbone
        self.image_shape = image_shape
        self.max_pixels = max_pixels
        self.student = student
        self.student_dtype = student_dtype
        self.activation_cache = activation_cache
        self.validation_fraction = validation_fraction
        self.batch_size = batch_size
        self.device = device
        self.n_jobs = n_jobs
        self.memory = memory
        self.checkpoint_dir = checkpoint_dir
        self.random_state = random_state
        self.verbose = verbose

    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=False)  # `student` may be an estimator
    @with_own_settings
    def fit(self, X: Any, y: Any = None) -> BlockDistillation:
        """Train the students on normal images.

        Parameters
        ----------
        X : images
            Any images that `TransformalyDetector.fit` takes.
        y : None
            Ignored.

        Returns
        -------
        self : BlockDistillation
            Fitted.

        Raises
        ------
        ValueError
            If a parameter, the images or the backbone are not as described.
        WeightsUnavailableError
            If the weights of the backbone are unavailable.
        """
        check_checkpoint_dir(self.checkpoint_dir, self.random_state)
        student = self._make_student()
        source = self._open(X, reset=True)
        rng = agreed(check_random_state(self.random_state))
        units = find_units(source).to_divide()
        split = split_validation(len(source), self.validation_fraction, rng, groups=units)
        teacher_seed, seed = draw_seed(rng), draw_seed(rng)
        teacher = self._load_teacher(teacher_seed)
        context = self._init_callback_context(max_subtasks=student._n_epochs)
        context.call_on_fit_task_begin(estimator=self, X=X, y=y)
        passes = self._fitting_passes(teacher, source)
        checkpoints = self._fit_students(student, passes, split, seed, Progress(self, context))
        self._hold(teacher, teacher_seed)
        checkpoints.discard()
        context.call_on_fit_task_end(estimator=self, X=X, y=y)
        return self

    @with_own_settings
    def transform(self, X: Any) -> np.ndarray:
        """Compute the discrepancy features of images.

        Parameters
        ----------
        X : images
            Any images that `TransformalyDetector.fit` takes.

        Returns
        -------
        Z : ndarray of shape (n_images, n_blocks)
            Mean squared error of each student, higher = more abnormal, in the floating type of
            the backbone, or in float32 for half precision.

        Raises
        ------
        ValueError
            If the images are not as described, or one is unreadable.
        """
        check_is_fitted(self)
        source = self._open(X, reset=False)
        passes = self._passes(self._held_teacher(), source)
        students = self._students_on(passes.teacher.device)
        return passes.extract(np.arange(len(source)), students)[DISCREPANCY]

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the features, after their blocks, counted from 0.

        Parameters
        ----------
        input_features : None
            Ignored.

        Returns
        -------
        names : ndarray of str objects of shape (n_blocks,)
            ``"block1"``, ``"block2"``, ...
        """
        check_is_fitted(self)
        return np.array([f"block{index}" for index in self.block_indices_], dtype=object)

    def _readout(self) -> Readout:
        return Readout(pooling=share_of(self.pooling))

    def _fitting_passes(
        self, teacher: Teacher, source: ImageSource, also: Collection[int] = ()
    ) -> CachedPasses:
        """Passes that cache the tokens of the last blocks, and of the blocks `also`."""
        kept_blocks = sorted({*teacher.last_blocks(self.n_blocks), *also})
        return self._passes(
            teacher, source, activation_cache=self.activation_cache, kept_blocks=kept_blocks
        )

    def _make_student(self) -> BaseStudent:
        """Make the student; a ValueError if `checkpoint_dir` is set and it has no checkpoints."""
        student = make_student(self.student)
        if self.checkpoint_dir is not None and not isinstance(student, StorableStudent):
            raise ValueError(
                f"checkpoint_dir={os.fspath(self.checkpoint_dir)!r}, but checkpoints hold students "
                f"of this package only, not a {type(self.student).__name__}. Pass "
                "checkpoint_dir=None, a RidgeStudent or a BlockStudent."
            )
        return student

    def _fit_students(
        self,
        student: BaseStudent,
        passes: CachedPasses,
        split: tuple[np.ndarray, np.ndarray],
        seed: int,
        progress: Progress,
    ) -> Checkpoints:
        """Fit the students; the caller discards their checkpoints once the whole fit is done."""
        block_indices = passes.teacher.last_blocks(self.n_blocks)
        task = TrainingTask(passes, *split, seed, progress, Checkpoints(), self.verbose)
        if self.checkpoint_dir is not None and isinstance(student, StorableStudent):
            checkpoints = _open_checkpoints(self.checkpoint_dir, student, task)
            task = replace(task, checkpoints=checkpoints)
        # Another rounding makes another student; this memory lacks students of another memory.
        tag = (self.student_dtype, repr(self.memory))
        trained, seconds = fit_or_recall(student, task, block_indices, tag=tag)
        records = [trained[index] for index in block_indices]
        students = [self._rounded(record.student) for record in records]
        # Last, so that a fit that fails leaves the old state whole.
        self.students_, self.history_ = students, history_of(records, seconds)
        self.block_indices_, self.validation_indices_ = block_indices, split[1]
        self._running_dtype, self._student = _dtype_of(students[0], passes.teacher.dtype), student
        self._grams = [record.gram for record in records]
        return task.checkpoints

    def _updated(
        self, passes: CachedPasses, train: np.ndarray
    ) -> tuple[BlockDistillation, np.ndarray] | None:
        """A copy whose students have learned from more images, if they can without the others.

        The second value is the mean error of each new student on the earlier images, relative to
        that of the old one, in the order of their blocks.
        """
        records = zip(self.students_, self._grams, strict=True)
        known = {
            index: Trained(student, [], [], gram)
            for index, (student, gram) in zip(self.block_indices_, records, strict=True)
        }
        found = self._student._update_blocks(passes, train, known)
        if found is None:
            return None
        trained, ratios = found
        updated = copy.copy(self)
        updated.students_ = [self._rounded(trained[i].student) for i in self.block_indices_]
        updated._grams = [trained[i].gram for i in self.block_indices_]
        return updated, np.array([ratios[i] for i in self.block_indices_])

    def _rounded(self, student: torch.nn.Module) -> torch.nn.Module:
        """Round to the type of pickles, so that pickling preserves scores to the bit."""
        if self.student_dtype is None:
            return student
        for value in student.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.to(getattr(torch, self.student_dtype)))
                if not value.isfinite().all():
                    raise ValueError(
                        f"student_dtype={self.student_dtype!r} cannot hold a student's weights: "
                        "they are too large. Pass student_dtype='bfloat16' or None."
                    )
        return student

    def _students_on(self, device: torch.device) -> dict[int, torch.nn.Module]:
        self.students_[:] = [on_device(student, device) for student in self.students_]
        return dict(zip(self.block_indices_, self.students_, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "students_" in state:
            # A detector fitted on a GPU must load on a machine without one.
            students = [on_device(student, torch.device("cpu")) for student in self.students_]
            if self.student_dtype is not None:
                stored = getattr(torch, self.student_dtype)
                students = [copy.deepcopy(student).to(stored) for student in students]
            state["students_"] = students
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for student in vars(self).get("students_", []):
            student.to(self._running_dtype)


def _dtype_of(student: torch.nn.Module, default: torch.dtype) -> torch.dtype:
    """Floating type of a student; the default for one without tensors."""
    values = student.state_dict().values()
    return next((value.dtype for value in values if value.is_floating_point()), default)


def _open_checkpoints(
    folder: str | PathLike[str], student: StorableStudent, task: TrainingTask
) -> Checkpoints:
    # The key of no block: a student does not depend on the other students.
    key = student._key(task, -1)
    identity = task.passes.identity() | {
        "images held out": combine(task.validation.tobytes()),
        "random_state": combine(task.seed),
        "student": type(student).__name__,
        **student.get_params(deep=False),
    }
    return open_checkpoints(folder, key, identity, task.require_unchanged)
