"""Base class of the estimators on images: common parameters, loading of X and the backbone."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Collection
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.model_selection import GroupShuffleSplit
from sklearn.utils import Tags
from sklearn.utils.validation import validate_data

from skanomaly_vit._backbone.block_calls import to_numpy
from skanomaly_vit._backbone.cached_passes import CachedPasses
from skanomaly_vit._backbone.devices import resolve_device
from skanomaly_vit._backbone.loading import Backbone, ImageSize, Pretrained
from skanomaly_vit._backbone.precision import FLOAT32, resolve_dtype
from skanomaly_vit._backbone.shared_passes import passes_of
from skanomaly_vit._backbone.teacher import Teacher, load_teacher, positions_of, same_teacher
from skanomaly_vit._backbone.views import Readout
from skanomaly_vit._caching.disk_cache import DiskCache
from skanomaly_vit._caching.memory import Memory
from skanomaly_vit._images.opening import open_images
from skanomaly_vit._images.regions import PLAIN_FRAMING, Framing
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._utils.compat import HasMethods, Interval, StrOptions
from skanomaly_vit._utils.provenance import versions
from skanomaly_vit.distributed._torchrun import agreed


class ImageEstimator(BaseEstimator):
    """Base of the estimators whose samples are images seen by a backbone."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "backbone": [str, torch.nn.Module],
        "pretrained": ["boolean", str, os.PathLike],
        "image_size": [Interval(Integral, 1, None, closed="left"), tuple, None],
        "image_shape": [tuple, None],
        "max_pixels": [Interval(Integral, 1, None, closed="left"), None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "store_backbone": ["boolean"],
        "device": [str, torch.device, None],
        "n_jobs": [Integral, None],
        "memory": [str, os.PathLike, DiskCache, HasMethods(["cache"]), None],
        "random_state": ["random_state"],
    }

    backbone: Backbone
    pretrained: Pretrained
    image_size: ImageSize
    image_shape: tuple[int, int, int] | None
    max_pixels: int | None
    batch_size: int
    store_backbone: bool
    device: str | torch.device | None
    n_jobs: int | None
    memory: Any

    #: Of estimators that have no such parameter, since they train their networks.
    dtype: str = FLOAT32

    def set_params(self, **params: Any) -> Self:
        """Set parameters of this estimator, and of the parts that are estimators.

        Parameters
        ----------
        **params : dict
            Values by name; ``part__name`` is the parameter `name` of a part.

        Returns
        -------
        self : estimator
            With other parameters.

        Raises
        ------
        ValueError
            If there is no such parameter, or the part is a name, which has no parameters.
        """
        for name in params:
            part, _, inner = name.partition("__")
            held = params.get(part, getattr(self, part, None))
            if inner and isinstance(held, str):
                raise ValueError(
                    f"{name} cannot be set, since {part}={held!r} is a name. Pass the part itself, "
                    f"such as student=RidgeStudent() or density=KNNDensity(), and set its {inner}."
                )
        return super().set_params(**params)

    def _open(self, X: Any, *, reset: bool, on_error: str = "raise") -> ImageSource:
        source = open_images(
            X,
            image_shape=self.image_shape,
            max_pixels=self.max_pixels,
            on_error=on_error,
            framing=self._framing(reset=reset),
        )
        if reset and source.has_regions:
            source.region(0, source.size(0))  # refused before any work
        if self.image_shape is not None:
            validate_data(self, X, reset=reset, skip_check_array=True)
        return source

    def _framing(self, *, reset: bool) -> Framing:
        """Which pixels count: by the parameters in a fit (`reset`), else as in the last fit."""
        return PLAIN_FRAMING

    def _load_teacher(self, seed: int, dtype: str | None = None) -> Teacher:
        """Load the backbone, with the readout of the estimator; see `_load_network`."""
        return self._load_network(seed, dtype).reading(self._readout())

    def _readout(self) -> Readout:
        return Readout()

    def _load_network(self, seed: int, dtype: str | None = None) -> Teacher:
        """Load the backbone, in the type of a fit, or in that which `dtype` means here and now."""
        device = resolve_device(self.device)
        # The ranks of torchrun may have other processors, and have to get the same model.
        dtype = dtype or agreed(resolve_dtype(self.dtype, device))
        if self.memory is None or isinstance(self.backbone, torch.nn.Module):
            return load_teacher(
                self.backbone,
                pretrained=self.pretrained,
                image_size=self.image_size,
                device=device,
                seed=seed,
                dtype=dtype,
            )
        return _load_recent_teacher(
            self.backbone,
            self.pretrained if isinstance(self.pretrained, bool) else os.fspath(self.pretrained),
            self.image_size,
            device,
            seed if self.pretrained is False else 0,
            dtype,
            _stamp(self.pretrained),
        )

    def _passes(
        self,
        teacher: Teacher,
        source: ImageSource,
        *,
        activation_cache: int = 0,
        kept_blocks: Collection[int] = (),
        store_tokens: bool = True,
    ) -> CachedPasses:
        if self.dtype != FLOAT32:  # a network that was given in bfloat16 is so by its owner's will
            teacher.announce_precision()
        return passes_of(
            teacher,
            source,
            Memory(self.memory),
            activation_cache=activation_cache,
            kept_blocks=kept_blocks,
            store_tokens=store_tokens,
            batch_size=self.batch_size,
            n_jobs=self.n_jobs,
            device=self.device,
            include_weights=self.store_backbone,
        )

    def _hold(self, teacher: Teacher, seed: int) -> None:
        """Keep `teacher`, and all that `_find_teacher_again` needs."""
        self._teacher: Teacher | None = teacher
        self._teacher_seed = seed
        self._positions = positions_of(teacher.model)
        self.backbone_fingerprint_ = teacher.fingerprint
        self.dtype_ = str(teacher.dtype).removeprefix("torch.")

    def _held_teacher(self) -> Teacher:
        """The teacher of `fit`, on the device that `device` means here and now."""
        if self._teacher is None:
            self._teacher = self._find_teacher_again()
        self._teacher = self._teacher.on(resolve_device(self.device))
        return self._teacher

    def _find_teacher_again(self) -> Teacher:
        teacher = self._load_teacher(self._teacher_seed, self.dtype_)
        same = same_teacher(teacher, self.backbone_fingerprint_, self._positions)
        if same is None:
            raise ValueError(
                f"{type(self).__name__} was fitted with a backbone of fingerprint "
                f"{self.backbone_fingerprint_[:12]}..., but backbone={_name(self.backbone)} with "
                f"pretrained={self.pretrained!r} is {teacher.fingerprint[:12]}... here: other "
                "weights, another size, or another version of timm. Provide the weights of the "
                "fit, fit again, or pickle with store_backbone=True."
            )
        return same

    def __getstate__(self) -> dict[str, Any]:
        state = dict(
            super().__getstate__()
        )  # a copy, since super may give the attributes themselves
        if "_teacher" in state and not self.store_backbone:
            state["_teacher"] = None
        state.pop("_made_by", None)
        # An array, for formats that know no tensors, such as that of skops.
        if state.get("_positions") is not None:
            state["_positions"] = to_numpy(state["_positions"])
        return state | {"_versions": versions()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = dict(state)
        made_by = own.pop("_versions", None)
        super().__setstate__(own)
        self._made_by: dict[str, str] | None = made_by
        if isinstance(vars(self).get("_positions"), np.ndarray):
            self._positions = torch.from_numpy(np.require(self._positions, requirements="W"))

    if not TYPE_CHECKING:  # type checkers would accept any attribute

        def __getattr__(self, name: str) -> Any:
            """Say which versions made a pickle that lacks an attribute."""
            message = f"{type(self).__name__!r} object has no attribute {name!r}"
            state = vars(self)
            is_fitted = any(key.endswith("_") and not key.startswith("_") for key in state)
            if "_made_by" in state and is_fitted and not name.startswith("__"):
                message += _other_versions(state["_made_by"])
            raise AttributeError(message, name=name, obj=self)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.image_shape is not None
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


def _other_versions(made_by: dict[str, str] | None) -> str:
    """Sentence about a pickle that lacks an attribute."""
    here = versions()
    if made_by is None:
        there = "a version of skanomaly-vit that pickles do not name"
        found = f"skanomaly-vit {here['skanomaly-vit']}"
    else:
        names = [name for name in here if made_by.get(name) != here[name]] or ["skanomaly-vit"]
        there = ", ".join(f"{name} {made_by.get(name)}" for name in names)
        found = ", ".join(f"{name} {here[name]}" for name in names)
    return (
        f": it comes from a pickle of {there}; this is {found}. Pickles need the versions that "
        "made them: install those, or fit again; for other versions keep a file of `save`"
    )


@functools.lru_cache(maxsize=1)
def _load_recent_teacher(
    backbone: str,
    pretrained: bool | str,
    image_size: ImageSize,
    device: torch.device,
    seed: int,
    dtype: str,
    stamp: tuple[int, ...],
) -> Teacher:
    """The most recently loaded teacher, which a search asks for again and again.

    It is frozen, so any number of estimators can share it.
    """
    return load_teacher(
        backbone,
        pretrained=pretrained,
        image_size=image_size,
        device=device,
        seed=seed,
        dtype=dtype,
    )


def _stamp(pretrained: Pretrained) -> tuple[int, ...]:
    """File status of a checkpoint, which changes when the checkpoint does."""
    if isinstance(pretrained, bool) or not os.path.exists(pretrained):
        return ()
    stat = os.stat(pretrained)
    return stat.st_ctime_ns, stat.st_size, stat.st_ino


def _name(backbone: Backbone) -> str:
    return repr(backbone) if isinstance(backbone, str) else f"<{type(backbone).__name__}>"


#: Constraint of the pooling of errors.
POOLING_CONSTRAINT: list[Any] = [StrOptions({"mean", "max"}), Interval(Real, 0, 1, closed="right")]

#: Constraints of the parameters that govern the training of students.
TRAINING_CONSTRAINTS: dict[str, list[Any]] = {
    "n_blocks": [Interval(Integral, 1, None, closed="left"), None],
    "validation_fraction": [Interval(Real, 0, 1, closed="left")],
    "activation_cache": [Interval(Integral, 0, None, closed="left")],
    "student_dtype": [StrOptions({"float16", "bfloat16"}), None],
    "checkpoint_dir": [str, os.PathLike, None],
    "verbose": ["verbose"],
}


def draw_seed(rng: np.random.RandomState) -> int:
    """A seed for torch's generators."""
    return int(rng.randint(np.iinfo(np.int32).max))


def split_validation(
    n_samples: int,
    fraction: float,
    rng: np.random.RandomState,
    *,
    min_train: int = 1,
    min_held_out: int = 1,
    groups: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on and indices to hold out, each sorted.

    Parameters
    ----------
    n_samples : int
    fraction : float
        Share held out, rounded up; 0 holds out nothing.
    rng : RandomState
    min_train : int
        Fewest images to train on.
    min_held_out : int
        Fewest images to hold out, if `fraction` is above 0.
    groups : ndarray of shape (n_samples,) or None
        Samples of one group stay together; `fraction` then counts groups.

    Raises
    ------
    ValueError
        If fewer images would be left to train on, or held out.
    """
    if groups is not None and fraction > 0:
        return _split_groups(groups, fraction, rng, min_train, min_held_out)
    n_validation = math.ceil(fraction * n_samples)
    if n_samples - n_validation < min_train:
        raise ValueError(
            f"Found {n_samples} image(s) (n_samples={n_samples}), but "
            f"validation_fraction={fraction} holds out {n_validation}; at least {min_train} must "
            f"be left to train on. Pass more images{', or validation_fraction=0' * (fraction > 0)}."
        )
    if 0 < n_validation < min_held_out:
        raise ValueError(
            f"Found {n_samples} image(s) (n_samples={n_samples}), but "
            f"validation_fraction={fraction} holds out {n_validation}; at least {min_held_out} "
            "must be held out, or none. Pass more images, a larger validation_fraction, or 0."
        )
    order = rng.permutation(n_samples)
    return np.sort(order[n_validation:]), np.sort(order[:n_validation])


def _split_groups(
    groups: np.ndarray,
    fraction: float,
    rng: np.random.RandomState,
    min_train: int,
    min_held_out: int,
) -> tuple[np.ndarray, np.ndarray]:
    n_groups = len(np.unique(groups))
    if n_groups < 2:
        raise ValueError(
            f"all {len(groups)} images belong to one group, or are copies of one image, so none "
            "can be held out; pass other images, groups=None, or validation_fraction=0"
        )
    n_held_out = math.ceil(fraction * n_groups)
    train, validation = np.arange(0), np.arange(len(groups))
    if n_held_out < n_groups:
        folds = GroupShuffleSplit(1, test_size=fraction, random_state=rng)
        ((train, validation),) = folds.split(groups, groups=groups)
    if len(validation) < min_held_out:
        raise ValueError(
            f"Found {len(groups)} images of {n_groups} groups, but validation_fraction={fraction} "
            f"holds out {n_held_out} of these, {len(validation)} image(s); at least {min_held_out} "
            "must be held out, or none. Pass more images, a larger validation_fraction, or 0."
        )
    if len(train) < min_train:
        raise ValueError(
            f"Found {len(groups)} images of {n_groups} groups, but validation_fraction={fraction} "
            f"holds out {n_held_out}, and {len(validation)} images with them; at least "
            f"{min_train} images must be left to train on. Pass images of more groups, a smaller "
            "validation_fraction, or validation_fraction=0."
        )
    return train, validation


def share_out(
    held_out: np.ndarray, groups: np.ndarray | None, *, chooses: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Split held-out images: some choose the students' best state, the others calibrate.

    Students that choose nothing leave all images to the calibration. `groups` covers all images;
    each group stays on one side.
    """
    if not chooses:
        return held_out, held_out
    group = np.arange(len(held_out))
    if groups is not None:
        group = np.unique(groups[held_out], return_inverse=True)[1]
    is_choosing = group % 2 == 1
    return held_out[is_choosing], held_out[~is_choosing]
