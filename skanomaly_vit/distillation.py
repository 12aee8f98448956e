"""Images to the discrepancy between a frozen teacher's blocks and their students."""

from __future__ import annotations

import math
from os import PathLike
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import TransformerMixin
from sklearn.callback import CallbackSupportMixin, with_callbacks
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skanomaly_vit._base import (
    TRAINING_CONSTRAINTS,
    ImageEstimator,
    draw_seed,
    split_validation,
)
from skanomaly_vit._compat import _fit_context
from skanomaly_vit._extraction import extract
from skanomaly_vit._images import ImageSource
from skanomaly_vit._progress import Progress
from skanomaly_vit._ridge import fit_ridge_students
from skanomaly_vit._teacher import Teacher
from skanomaly_vit._training import Schedule, train_students


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
        ``"one_cycle"`` rises to `learning_rate` and falls to zero within `max_epochs`.
    validation_fraction : float, default=0.2
        Share of the images in [0, 1) that students do not learn from; the epoch with the
        smallest error on them is kept, block student by block student. With 0 the last epoch
        counts.
    patience : int, default=3
        A block student that has not improved on the held-out images for so many epochs is
        not trained further.
    batch_size : int, default=32
        Images in a step of training, and in a pass of the backbone.
    store_backbone : bool, default=False
        Whether a pickle holds the backbone. If not, it is loaded again where the pickle is used,
        as `backbone` and `pretrained` say, and refused if it is not the same to the bit.
    device : str, torch.device or None, default=None
        Where networks run. ``None`` is CUDA or MPS if there is one, else the CPU.
    n_jobs : int or None, default=None
        Threads that decode and resize images. ``None`` is one, ``-1`` all cores.
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
    feature_names_in_ : ndarray of shape (n_features_in_,)
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
        batch_size: int = 32,
        store_backbone: bool = False,
        device: str | torch.device | None = None,
        n_jobs: int | None = None,
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
        self.batch_size = batch_size
        self.store_backbone = store_backbone
        self.device = device
        self.n_jobs = n_jobs
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
        source = self._open(X, reset=True)
        rng = check_random_state(self.random_state)
        split = split_validation(len(source), self.validation_fraction, rng)
        teacher_seed, seed = draw_seed(rng), draw_seed(rng)
        teacher = self._load_teacher(teacher_seed)
        context = self._init_callback_context(max_subtasks=self._n_epochs())
        context.call_on_fit_task_begin(estimator=self, X=X, y=y)
        self._fit_students(teacher, source, split, seed, Progress(self, context))
        self._hold(teacher, teacher_seed)
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
            the backbone.

        Raises
        ------
        ValueError
            If the images are not as described, or one cannot be decoded.
        """
        check_is_fitted(self)
        source = self._open(X, reset=False)
        teacher = self._held_teacher()
        batches = self._batches_of(source, teacher)(np.arange(len(source)))
        return extract(teacher, self._students_on(teacher.device), batches)[1]

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

    def _fit_students(
        self,
        teacher: Teacher,
        source: ImageSource,
        split: tuple[np.ndarray, np.ndarray],
        seed: int,
        progress: Progress,
    ) -> None:
        n_blocks = len(teacher.blocks) if self.n_blocks is None else self.n_blocks
        block_indices = [index for index, _ in teacher.last_blocks(n_blocks)]
        batches_of = self._batches_of(source, teacher)
        if self.student == "ridge":
            n_batches = math.ceil(len(split[0]) / self.batch_size)
            with progress.task("epoch", n_batches) as task:
                students, history = fit_ridge_students(
                    teacher,
                    task.track(batches_of(split[0])),
                    n_blocks=n_blocks,
                    alpha=self.ridge_alpha,
                    verbose=self.verbose,
                )
        else:
            students, history = train_students(
                teacher,
                batches_of,
                *split,
                n_blocks=n_blocks,
                schedule=self._schedule(),
                seed=seed,
                progress=progress,
            )
        # Last, lest a fit that fails leaves half of a new state in an old one.
        self.students_, self.history_ = students, history
        self.block_indices_, self.validation_indices_ = block_indices, split[1]

    def _n_epochs(self) -> int:
        """Passes over the training images, at most."""
        return 1 if self.student == "ridge" else self.max_epochs

    def _students_on(self, device: torch.device) -> list[torch.nn.Module]:
        return [student.to(device) for student in self.students_]

    def __getstate__(self) -> dict[str, Any]:
        # A detector fitted on a GPU has to load on a machine without one.
        for student in vars(self).get("students_", []):
            student.cpu()
        return super().__getstate__()

    def _schedule(self) -> Schedule:
        return Schedule(
            max_epochs=self.max_epochs,
            learning_rate=self.learning_rate,
            learning_rate_schedule=self.learning_rate_schedule,
            patience=self.patience,
            batch_size=self.batch_size,
            verbose=self.verbose,
        )
