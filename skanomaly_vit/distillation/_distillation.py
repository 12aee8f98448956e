"""Images to the discrepancy between a frozen teacher's blocks and their students."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict
from os import PathLike
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import TransformerMixin
from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skanomaly_vit._backbone.cached_passes import CachedPasses
from skanomaly_vit._backbone.discrepancy import DISCREPANCY
from skanomaly_vit._backbone.image_estimator import (
    TRAINING_CONSTRAINTS,
    ImageEstimator,
    draw_seed,
    split_validation,
)
from skanomaly_vit._backbone.teacher import Teacher, on_device
from skanomaly_vit._caching.memory import LRUCache, Tensors
from skanomaly_vit._images.pillow_rules import MAX_PIXELS
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._utils.compat import _fit_context
from skanomaly_vit._utils.hashing import combine
from skanomaly_vit._utils.progress import Progress
from skanomaly_vit.distillation._block_training import Schedule
from skanomaly_vit.distillation._checkpoints import (
    Checkpoints,
    check_checkpoint_dir,
    open_checkpoints,
)
from skanomaly_vit.distillation._ridge import RidgeStudent, RidgeSums, fit_ridge_students
from skanomaly_vit.distillation._sharing import sum_shards, train_blocks
from skanomaly_vit.distillation._students import Trained, history_of
from skanomaly_vit.distributed._torchrun import agreed

#: Students that came from `memory`; a search asks for the same ones in setting after setting.
_recent_students: LRUCache[Trained] = LRUCache(2**28)


class BlockDistillation(CallbackSupportMixin, TransformerMixin, ImageEstimator):
    """Discrepancy features: how badly students imitate the blocks of a frozen teacher.

    For each of the last `n_blocks` blocks of a Vision Transformer a student learns from normal
    images to map the teacher's tokens before the block to those after it. The feature of an
    image is, per block, the mean squared error of the student: z_f of [1]_, section 3.2. It is
    large where the image differs from the normal ones in what that block computes.

    Parameters
    ----------
    backbone : str or torch.nn.Module, default="embedded"
        ``"embedded"`` (the small ViT that ships with the package), the name of a timm model
        with transformer blocks in ``.blocks``, or such a network. A network is copied.
    pretrained : bool, str or path-like, default=True
        ``True`` loads the published weights (timm's hub, or the local hub cache), ``False``
        draws random ones, a path reads a checkpoint: ``.safetensors``, or a torch file that is
        read as tensors only. Of no effect if `backbone` is a network.
    image_size : int, tuple of (int, int) or None, default=None
        Height and width in pixels that images are resized to. ``None`` is the backbone's own.
    image_shape : tuple of (int, int, int) or None, default=None
        Height, width and channels of an image, if `X` comes as a 2-D array of flattened images.
    n_blocks : int or None, default=10
        How many of the last blocks get a student. ``None`` is all blocks.
    student : {"ridge", "block"}, default="ridge"
        What imitates a block. ``"ridge"`` is a linear map from a token and the mean token of
        its image to what the block adds to the token, solved in closed form in one pass.
        ``"block"`` is a block of the same architecture, started at random and trained by
        gradient descent, as in the paper.
    ridge_alpha : float, default=0.01
        Penalty on the weights of ridge students, relative to the mean square of their inputs.
    max_epochs : int, default=3
        Passes over the training images to train block students; ridge students need one.
    learning_rate : float, default=1e-3
        Of Adam, for block students; the peak under the one-cycle schedule.
    learning_rate_schedule : {"one_cycle", "constant"}, default="one_cycle"
        ``"one_cycle"`` rises to `learning_rate` and falls to zero within `max_epochs`, while
        Adam's beta1 falls from 0.95 to 0.85 and rises again; a single step is taken at
        `learning_rate`.
    validation_fraction : float, default=0.2
        Share of the images in [0, 1) that students do not learn from; the epoch with the
        smallest error on them is kept, block student by block student. With 0 the last epoch
        counts.
    patience : int, default=3
        A block student that has not improved on the held-out images for so many epochs is
        not trained further.
    activation_cache : int, default=2**30
        Bytes of memory in which `fit` may keep the backbone's tokens of the training images, so
        that they pass through it once and not in every epoch. The result does not depend on it.
    student_dtype : {"float16", "bfloat16"} or None, default=None
        Type that students are rounded to, and stored in by pickles. ``None`` is the backbone's.
    max_pixels : int or None, default=2**27
        Files and PIL images of more pixels are refused before they are decoded, lest a small file
        fill the memory. ``None`` is no limit.
    batch_size : int, default=32
        Images in a step of training, and in a pass of the backbone.
    store_backbone : bool, default=False
        Whether a pickle holds the backbone. If not, it is loaded again where the pickle is used,
        as `backbone` and `pretrained` say, and refused if it is not the same to the bit.
    device : str, torch.device or None, default=None
        Where networks run. ``None`` is CUDA or MPS if there is one, else the CPU.
    n_jobs : int or None, default=None
        Threads that decode and resize images. ``None`` is one, ``-1`` all cores.
    memory : str, path-like, DiskCache, object with ``cache`` or None, default=None
        Where features and students are kept for other fits: a folder, a `DiskCache`, or
        an object such as `joblib.Memory`. The keys are the contents of images, the weights of the
        backbone and the parameters that matter. Results are the same with or without.
    checkpoint_dir : str, path-like or None, default=None
        A folder for checkpoints: a `fit` that was stopped, by whatever, and is started again with
        the same images and parameters goes on after the last epoch, or the last minute of the
        pass for ridge students, and ends with the same to the bit. Checkpoints of other images or
        parameters are left alone, with a warning; those of a `fit` that has ended well are removed.
        Needs a `random_state`.
    random_state : int, RandomState instance or None, default=None
        Seed of block students' weights, the order of images and the validation split.
    verbose : int, default=0
        Above 0, a line per epoch goes to the logger ``"skanomaly_vit"``.

    Attributes
    ----------
    students_ : list of torch.nn.Module
        The students, first that of the earliest block.
    block_indices_ : list of int
        The block of each student, counted from 0.
    history_ : list of dict
        Per epoch ``epoch``, ``train_loss`` and, for block students, ``valid_loss`` (one value a
        student; nan once it has stopped), ``seconds``.
    validation_indices_ : ndarray of int
        Positions in `X` of the images that students did not learn from.
    backbone_fingerprint_ : str
        SHA-256 over class, weights and preprocessing of the backbone.
    n_features_in_ : int
        Length of a flattened image; only where `image_shape` is given.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the columns; only where `X` has names that are all strings and `image_shape` is
        given.

    See Also
    --------
    ViTFeatures : The first feature space, the backbone's own output.
    TransformalyDetector : Both spaces and a density in each.

    Notes
    -----
    The teacher stays in eval mode, and a batch's activations are dropped block by block: memory
    is one batch and the students with their optimisers.

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
    }

    def __init__(
        self,
        *,
        backbone: str | torch.nn.Module = "embedded",
        pretrained: bool | str | PathLike[str] = True,
        image_size: int | tuple[int, int] | None = None,
        image_shape: tuple[int, int, int] | None = None,
        n_blocks: int | None = 10,
        student: str = "ridge",
        ridge_alpha: float = 0.01,
        max_epochs: int = 3,
        learning_rate: float = 1e-3,
        learning_rate_schedule: str = "one_cycle",
        validation_fraction: float = 0.2,
        patience: int = 3,
        activation_cache: int = 2**30,
        student_dtype: str | None = None,
        max_pixels: int | None = MAX_PIXELS,
        batch_size: int = 32,
        store_backbone: bool = False,
        device: str | torch.device | None = None,
        n_jobs: int | None = None,
        memory: Any = None,
        checkpoint_dir: str | PathLike[str] | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.pretrained = pretrained
        self.image_size = image_size
        self.image_shape = image_shape
        self.n_blocks = n_blocks
        self.student = student
        self.ridge_alpha = ridge_alpha
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.learning_rate_schedule = learning_rate_schedule
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.activation_cache = activation_cache
        self.student_dtype = student_dtype
        self.max_pixels = max_pixels
        self.batch_size = batch_size
        self.store_backbone = store_backbone
        self.device = device
        self.n_jobs = n_jobs
        self.memory = memory
        self.checkpoint_dir = checkpoint_dir
        self.random_state = random_state
        self.verbose = verbose

    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=True)
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
            If the weights cannot be had.
        """
        check_checkpoint_dir(self.checkpoint_dir, self.random_state)
        source = self._open(X, reset=True)
        rng = agreed(check_random_state(self.random_state))
        split = split_validation(len(source), self.validation_fraction, rng)
        teacher_seed, seed = draw_seed(rng), draw_seed(rng)
        teacher = self._load_teacher(teacher_seed)
        context = self._init_callback_context(max_subtasks=self._n_epochs())
        context.call_on_fit_task_begin(estimator=self, X=X, y=y)
        passes = self._fitting_passes(teacher, source)
        checkpoints = self._fit_students(passes, split, seed, Progress(self, context))
        self._hold(teacher, teacher_seed)
        checkpoints.discard()
        context.call_on_fit_task_end(estimator=self, X=X, y=y)
        return self

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
            the backbone; of bfloat16 in float32.

        Raises
        ------
        ValueError
            If the images are not as described, or one cannot be decoded.
        """
        check_is_fitted(self)
        source = self._open(X, reset=False)
        passes = self._passes(self._held_teacher(), source)
        students = self._students_on(passes.teacher.device)
        return passes.extract(np.arange(len(source)), students)[DISCREPANCY]

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the features: the block each is about, counted from 0.

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

    def _fitting_passes(
        self, teacher: Teacher, source: ImageSource, also: Collection[int] = ()
    ) -> CachedPasses:
        """Passes that keep tokens, of the blocks `also` too, from one to the next."""
        kept_blocks = sorted({*teacher.last_blocks(self.n_blocks), *also})
        return self._passes(
            teacher, source, activation_cache=self.activation_cache, kept_blocks=kept_blocks
        )

    def _fit_students(
        self,
        passes: CachedPasses,
        split: tuple[np.ndarray, np.ndarray],
        seed: int,
        progress: Progress,
    ) -> Checkpoints:
        """Fit the students; their checkpoints are to be discarded once all of the fit is done."""
        block_indices = passes.teacher.last_blocks(self.n_blocks)
        checkpoints = self._checkpoints(passes, split, seed)
        seconds: list[float] = []

        def train(blocks: Collection[int]) -> dict[int, Trained]:
            if self.student == "ridge":
                return self._fit_ridge(
                    passes, sorted(blocks), split[0], progress, checkpoints, seconds
                )
            return self._train(passes, sorted(blocks), split, seed, progress, checkpoints, seconds)

        if passes.memory:
            # From the last block back: those are in every smaller `n_blocks`.
            keys = {i: self._student_key(passes, i, split, seed) for i in block_indices[::-1]}
            trained = self._recall_students(passes, keys, train, progress)
        else:
            trained = train(block_indices)
        records = [trained[index] for index in block_indices]
        students = [self._rounded(record.student) for record in records]
        # Last, lest a fit that fails leaves half of a new state in an old one.
        self.students_, self.history_ = students, history_of(records, seconds)
        self.block_indices_, self.validation_indices_ = block_indices, split[1]
        self._running_dtype = passes.teacher.dtype
        return checkpoints

    def _checkpoints(
        self, passes: CachedPasses, split: tuple[np.ndarray, np.ndarray], seed: int
    ) -> Checkpoints:
        if self.checkpoint_dir is None:
            return Checkpoints()
        # Of no block in particular: a student does not depend on which others there are.
        key = self._student_key(passes, -1, split, seed)
        is_ridge = self.student == "ridge"
        own = {"ridge_alpha": self.ridge_alpha} if is_ridge else asdict(self._schedule())
        identity = passes.identity() | {
            "images held out": combine(split[1].tobytes()),
            "random_state": combine(seed),
            "student": self.student,
            **own,
        }
        return open_checkpoints(self.checkpoint_dir, key, identity)

    def _recall_students(
        self,
        passes: CachedPasses,
        keys: dict[int, bytes],
        train: Callable[[Collection[int]], dict[int, Trained]],
        progress: Progress,
    ) -> dict[int, Trained]:
        # One that is rounded is another student, and one of another memory is missing in this.
        own = {i: combine(k, self.student_dtype, repr(self.memory)) for i, k in keys.items()}

        def is_final() -> bool:
            return not progress.stop_requested and passes.passes.is_whole

        recent = {i: record for i in keys if (record := _recent_students.get(own[i])) is not None}
        found = passes.memory.recall(
            {i: key for i, key in keys.items() if i not in recent},
            lambda blocks: {i: record.to_tensors() for i, record in train(blocks).items()},
            is_final=is_final,
        )
        templates = passes.teacher.copy_blocks(found if self.student == "block" else ())
        rebuilt = {i: self._rebuild(tensors, templates.get(i)) for i, tensors in found.items()}
        if is_final():
            for i, record in rebuilt.items():
                _recent_students.put(own[i], record, record.n_bytes)
        return recent | rebuilt

    def _fit_ridge(
        self,
        passes: CachedPasses,
        blocks: list[int],
        train: np.ndarray,
        progress: Progress,
        checkpoints: Checkpoints,
        seconds: list[float],
    ) -> dict[int, Trained]:
        started = time.perf_counter()
        with progress.task("epoch", math.ceil(len(train) / self.batch_size)) as task:

            def sums_after(n_shards: int) -> Iterator[RidgeSums]:
                return sum_shards(passes, train, blocks, task.track, n_shards)

            trained = fit_ridge_students(
                sums_after,
                blocks,
                alpha=self.ridge_alpha,
                checkpoints=checkpoints,
                verbose=self.verbose,
            )
        seconds.append(time.perf_counter() - started)
        return trained

    def _train(
        self,
        passes: CachedPasses,
        blocks: list[int],
        split: tuple[np.ndarray, np.ndarray],
        seed: int,
        progress: Progress,
        checkpoints: Checkpoints,
        seconds: list[float],
    ) -> dict[int, Trained]:
        trained, taken = train_blocks(
            passes,
            blocks,
            split,
            self._schedule(),
            seed=seed,
            progress=progress,
            checkpoints=checkpoints,
            verbose=self.verbose,
        )
        seconds.extend(taken)
        return trained

    def _student_key(
        self,
        passes: CachedPasses,
        index: int,
        split: tuple[np.ndarray, np.ndarray],
        seed: int,
    ) -> bytes:
        train, validation = split
        if self.student == "ridge":
            return passes.key("ridge", train, index, self.ridge_alpha)
        held_out = passes.key("held out", validation)
        return passes.key("block", train, index, held_out, seed, self._schedule())

    @staticmethod
    def _rebuild(tensors: Tensors, template: torch.nn.Module | None) -> Trained:
        """What `Trained.to_tensors` took apart."""
        return Trained.from_tensors(tensors, lambda state: build_student(state, template))

    def _rounded(self, student: torch.nn.Module) -> torch.nn.Module:
        """Round to the type that pickles hold, so that scores survive them to the bit."""
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

    def _n_epochs(self) -> int:
        """Passes over the training images, at most."""
        return 1 if self.student == "ridge" else self.max_epochs

    def _students_on(self, device: torch.device) -> dict[int, torch.nn.Module]:
        self.students_[:] = [on_device(student, device) for student in self.students_]
        return dict(zip(self.block_indices_, self.students_, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "students_" in state:
            # A detector fitted on a GPU has to load on a machine without one.
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

    def _schedule(self) -> Schedule:
        return Schedule(
            max_epochs=self.max_epochs,
            learning_rate=self.learning_rate,
            learning_rate_schedule=self.learning_rate_schedule,
            patience=self.patience,
            batch_size=self.batch_size,
        )


def build_student(state: Tensors, block: torch.nn.Module | None) -> torch.nn.Module:
    """Make a student of its weights.

    Parameters
    ----------
    state : dict of str to torch.Tensor
        Its weights, by name.
    block : torch.nn.Module or None
        The teacher's block that the student is a copy of; None for a ridge student.

    Returns
    -------
    student : torch.nn.Module
        In eval mode, without gradients.
    """
    if block is None:
        return RidgeStudent(**state)
    student = copy.deepcopy(block).eval().requires_grad_(False)
    student.load_state_dict(state)
    return student
