"""Backbone loading: networks, weights and input formats. The only file that imports timm."""

from __future__ import annotations

import copy
import difflib
import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from numbers import Integral
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import huggingface_hub
import timm
import torch
from huggingface_hub.constants import HF_HUB_OFFLINE
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from timm.data import resolve_model_data_config
from torch import nn

from skanomaly_vit._images.preprocessing import Preprocessing
from skanomaly_vit._utils.seeding import seeded
from skanomaly_vit.exceptions import WeightsUnavailableError

#: Types of ``backbone``, ``pretrained`` and ``image_size``; see `TransformalyDetector`.
Backbone: TypeAlias = str | nn.Module

Pretrained: TypeAlias = bool | str | PathLike[str]

ImageSize: TypeAlias = int | tuple[int, int] | None

EMBEDDED = "embedded"

EMBEDDED_ARCHITECTURE = "vit_small_patch14_dinov2"

EMBEDDED_OPTIONS: Mapping[str, Any] = {"depth": 11}

EMBEDDED_IMAGE_SIZE = 112

EMBEDDED_FILE = "vit_small_patch14_embedded.safetensors"

EMBEDDED_SHA256 = "e370e629af639d4361d72612e7fecaecec0931a2b0c4c90bd11478b760fd4ec9"

#: Names of timm that stand for a repository of the hub.
_HUB_PREFIX = "hf-hub:"

#: Seconds until a silent hub counts as out of reach.
HUB_TIMEOUT = 5.0


def load_backbone(
    backbone: Backbone, *, pretrained: Pretrained, image_size: ImageSize, seed: int
) -> tuple[nn.Module, Preprocessing]:
    """Build the network that ``backbone`` names, with its weights and its input format.

    Parameters
    ----------
    backbone : str or nn.Module
        ``"embedded"``, a timm model name, or a network, which is copied, never changed.
    pretrained : bool, str or path-like
        ``True`` for published weights, ``False`` for random ones drawn from `seed`, or the
        path of a checkpoint.
    image_size : int, (int, int) or None
        Input (height, width) in pixels; ``None`` keeps the network's own.
    seed : int
        Seed of random weights; used only with ``pretrained=False``.

    Returns
    -------
    model : nn.Module
        On the CPU, as timm or the user built it.
    preprocessing : Preprocessing
        Size, mean, standard deviation and interpolation of its input.

    Raises
    ------
    ValueError
        If the name, checkpoint or image size does not fit.
    WeightsUnavailableError
        If the weights are unavailable.
    """
    size = _as_pair(image_size)
    if isinstance(backbone, nn.Module):
        model = _copy_module(backbone, pretrained, size)
    elif backbone == EMBEDDED:
        model = _embedded(pretrained, size or (EMBEDDED_IMAGE_SIZE,) * 2, seed)
    else:
        model = _named(backbone, pretrained, size, seed)
    return model, _preprocessing(model, size)


def _as_pair(image_size: ImageSize) -> tuple[int, int] | None:
    if image_size is None:
        return None
    size = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    if len(size) != 2 or not all(isinstance(side, Integral) and side > 0 for side in size):
        raise ValueError(
            f"image_size={image_size!r} is not a size. Pass (height, width) in pixels, or one "
            "number for a square."
        )
    return (int(size[0]), int(size[1]))


def _copy_module(
    module: nn.Module, pretrained: Pretrained, size: tuple[int, int] | None
) -> nn.Module:
    if not isinstance(pretrained, bool):
        raise ValueError(
            f"pretrained={str(pretrained)!r} names a checkpoint, but backbone is already a network "
            f"({type(module).__name__}). Load the weights into it, or pass a timm model name."
        )
    model = copy.deepcopy(module)
    if size is not None and _own_size(model) not in (None, size):
        if not hasattr(model, "set_input_size"):
            raise ValueError(
                f"image_size={size} differs from the input size {_own_size(model)} that this "
                f"{type(model).__name__} was built for. Build it for that size, or leave "
                "image_size=None."
            )
        _resize(model, size)
    return model


def _resize(model: nn.Module, size: tuple[int, int]) -> None:
    _require_divisible(model, size)
    model.set_input_size(img_size=size)  # type: ignore[operator]


def _embedded(pretrained: Pretrained, size: tuple[int, int], seed: int) -> nn.Module:
    if not isinstance(pretrained, bool):
        raise ValueError(
            f"backbone='embedded' has weights of its own, but pretrained={str(pretrained)!r} names "
            f"a checkpoint. Pass backbone={EMBEDDED_ARCHITECTURE!r} with it, or pretrained=True."
        )
    if not pretrained:
        return _random(EMBEDDED_ARCHITECTURE, size, seed, **EMBEDDED_OPTIONS)
    return _create(
        EMBEDDED_ARCHITECTURE,
        size,
        pretrained=True,
        pretrained_cfg_overlay={"state_dict": _embedded_weights()},
        **EMBEDDED_OPTIONS,
    )


def _embedded_weights() -> dict[str, torch.Tensor]:
    """Weights shipped in the package, float16 on disk, float32 here."""
    resource = resources.files("skanomaly_vit.weights") / EMBEDDED_FILE
    data = resource.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != EMBEDDED_SHA256:
        raise OSError(
            f"The embedded backbone {resource} is damaged: SHA-256 {found}, expected "
            f"{EMBEDDED_SHA256}. Reinstall skanomaly-vit."
        )
    return {name: value.float() for name, value in load(data).items()}


def _named(name: str, pretrained: Pretrained, size: tuple[int, int] | None, seed: int) -> nn.Module:
    _require_name(name)
    if isinstance(pretrained, bool):
        return _published(name, size) if pretrained else _random(name, size, seed)
    weights = _with_head(_read_checkpoint(Path(pretrained)), name)
    try:
        return _create(name, size, pretrained=True, pretrained_cfg_overlay={"state_dict": weights})
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"The checkpoint {str(pretrained)!r} does not fit backbone={name!r}: {error}"
        ) from error


def _require_name(name: str) -> None:
    """Raise unless timm, or its hub, knows a network of that name."""
    if name.startswith(_HUB_PREFIX):
        _require_hub_model(name)
    elif not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" Close names: {', '.join(close)}." if close else ""
        raise ValueError(
            f"backbone={name!r} is not a timm model.{hint} timm.list_models('*vit*') lists them; "
            "'embedded' is the one shipped with this package."
        )
    else:
        _require_known_tag(name)


def _with_head(weights: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """The weights, with zeros for a classifier that they lack: features do not pass through it."""
    cfg = None if name.startswith(_HUB_PREFIX) else timm.get_pretrained_cfg(name)
    head = getattr(cfg, "classifier", None)
    if not isinstance(head, str) or any(key.startswith(f"{head}.") for key in weights):
        return weights
    with torch.device("meta"):
        shapes = timm.create_model(name).state_dict()
    zeros = {k: torch.zeros(v.shape) for k, v in shapes.items() if k.startswith(f"{head}.")}
    return weights | zeros


def _require_known_tag(name: str) -> None:
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # timm raises it for a tag that this version does not know
        architecture, _, tag = name.partition(".")
        known = timm.list_models(f"{architecture}.*", pretrained=True)
        raise ValueError(
            f"backbone={name!r} has the tag {tag!r}, which timm {timm.__version__} does not know. "
            f"Pass one of {', '.join(map(repr, [architecture, *known]))}."
        ) from error


def _require_hub_model(name: str) -> None:
    """Raise unless the description of a hub's model is cached, or the hub answers."""
    repository, _, _ = name.removeprefix(_HUB_PREFIX).partition("@")
    if repository.count("/") != 1:
        raise ValueError(
            f"backbone={name!r} names no repository of the hub. Pass 'hf-hub:owner/name'."
        )
    _require_cached_or_reachable(
        name, SimpleNamespace(hf_hub_id=repository, hf_hub_filename="config.json")
    )


def _create_of_hub(name: str, size: tuple[int, int] | None, **options: Any) -> nn.Module:
    """Build a model that the hub describes; timm raises various errors for what is no model."""
    try:
        return _create(name, size, **options)
    except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise _unavailable(name, error) from error
    except (KeyError, RuntimeError, AttributeError) as error:
        raise ValueError(f"backbone={name!r} is no model of timm: {_describe(error)}") from error


def _random(name: str, size: tuple[int, int] | None, seed: int, **options: Any) -> nn.Module:
    create = _create_of_hub if name.startswith(_HUB_PREFIX) else _create
    with seeded(seed):  # timm initializes from torch's global generator
        return create(name, size, pretrained=False, **options)


def _published(name: str, size: tuple[int, int] | None) -> nn.Module:
    if name.startswith(_HUB_PREFIX):
        return _create_of_hub(name, size, pretrained=True)
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        raise WeightsUnavailableError(
            f"timm publishes no weights for backbone={name!r}. Pass pretrained='path/to/"
            "checkpoint.safetensors', backbone='embedded', or pretrained=False for random weights."
        )
    _require_cached_or_reachable(name, cfg)
    try:
        return _create(name, size, pretrained=True)
    except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise _unavailable(name, error) from error


def _require_cached_or_reachable(name: str, cfg: Any) -> None:
    """Ask once, with a short timeout, whether the hub answers, unless the weights are cached.

    timm's own download retries an unreachable hub for most of a minute.
    """
    if not cfg.hf_hub_id:
        return
    filenames = [cfg.hf_hub_filename] if cfg.hf_hub_filename else []
    filenames += ["model.safetensors", "pytorch_model.bin"]
    if any(
        isinstance(huggingface_hub.try_to_load_from_cache(cfg.hf_hub_id, filename), str)
        for filename in filenames
    ):
        return
    if HF_HUB_OFFLINE:
        raise _unavailable(name, "HF_HUB_OFFLINE is set and the weights are not in the hub's cache")
    try:
        huggingface_hub.HfApi().model_info(cfg.hf_hub_id, timeout=HUB_TIMEOUT)
    except Exception as error:  # of any HTTP client; every failure means no weights
        raise _unavailable(name, error) from error


def _unavailable(name: str, cause: object) -> WeightsUnavailableError:
    return WeightsUnavailableError(
        f"The weights of backbone={name!r} are unavailable ({_describe(cause)}). "
        "Three ways out: (1) fit once with a network connection, or copy a hub cache from such a "
        "machine and set HF_HOME to it; (2) pass pretrained='path/to/checkpoint.safetensors'; "
        "(3) pass backbone='embedded', the small ViT shipped with this package."
    )


def _describe(cause: object) -> str:
    return f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else str(cause)


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ValueError(
            f"pretrained={str(path)!r} is {'a directory' if path.is_dir() else 'no file'}. Pass "
            "True, False or the path of a .safetensors, .pth, .pt or .bin checkpoint."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"The checkpoint {str(path)!r} cannot be read as tensors only: {error}. Save the "
            "state_dict, best as .safetensors."
        ) from error
    return _state_dict(weights, path)


def _state_dict(weights: Any, path: Path) -> dict[str, torch.Tensor]:
    for key in ("state_dict", "model"):  # as training scripts nest it
        if isinstance(weights, dict) and isinstance(weights.get(key), dict):
            weights = weights[key]
    if not isinstance(weights, dict) or not all(torch.is_tensor(v) for v in weights.values()):
        raise ValueError(
            f"The checkpoint {str(path)!r} holds {type(weights).__name__}, not a state_dict of "
            "tensors. Save model.state_dict()."
        )
    return weights


def _create(name: str, size: tuple[int, int] | None, **options: Any) -> nn.Module:
    try:
        model = timm.create_model(name, img_size=size, **options)  # timm ignores None
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        raise ValueError(
            f"backbone={name!r} cannot be built for image_size={size}. Leave image_size=None."
        ) from error
    except RuntimeError as error:
        if "sizes should be greater than 0" not in str(error):  # the grid has no patches
            raise
        raise ValueError(
            f"image_size={size} is smaller than a patch of backbone={name!r}. Pass a larger one, "
            "or leave image_size=None."
        ) from error
    if size is not None:
        _require_divisible(model, size)
    kept: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    kept.pop("state_dict", None)  # timm keeps the weights that it was given
    return model


def _require_divisible(model: nn.Module, size: tuple[int, int]) -> None:
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if patch is None or all(s % p == 0 for s, p in zip(size, patch, strict=True)):
        return
    nearest = tuple(max(p, round(s / p) * p) for s, p in zip(size, patch, strict=True))
    raise ValueError(
        f"image_size={size} is not a multiple of the backbone's patch size {tuple(patch)}: pixels "
        f"at the border would be dropped. Pass image_size={nearest}."
    )


def _own_size(model: nn.Module) -> tuple[int, int] | None:
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return None if size is None else (int(size[0]), int(size[1]))


def _preprocessing(model: nn.Module, size: tuple[int, int] | None) -> Preprocessing:
    config = resolve_model_data_config(model)
    height, width = size or _own_size(model) or config["input_size"][-2:]
    interpolation = config["interpolation"]
    return Preprocessing(
        image_size=(height, width),
        mean=tuple(float(value) for value in config["mean"]),  # type: ignore[arg-type]
        std=tuple(float(value) for value in config["std"]),  # type: ignore[arg-type]
        interpolation=interpolation if interpolation != "random" else "bicubic",
    )


@dataclass(frozen=True)
class Published:
    """A network as timm describes it, without its weights.

    Attributes
    ----------
    name : str
    image_size : (int, int)
        Height and width of its input in pixels.
    n_parameters : int
        Without a classifier.
    n_patches : int
    n_blocks : int
    license : str
        Of the weights; "unknown" if timm does not say.
    """

    name: str
    image_size: tuple[int, int]
    n_parameters: int
    n_patches: int
    n_blocks: int
    license: str


def describe_published(name: str, image_size: ImageSize = None) -> Published:
    """Describe a network by its name; reads and loads no weights.

    Raises
    ------
    ValueError
        If the name is none of timm's, the network has no blocks or patches, or the size does not
        fit.
    """
    options: Mapping[str, Any] = {}
    if name == EMBEDDED:
        architecture, options, terms = EMBEDDED_ARCHITECTURE, EMBEDDED_OPTIONS, "apache-2.0, mit"
        image_size = image_size or EMBEDDED_IMAGE_SIZE
    else:
        _require_name(name)
        cfg = timm.get_pretrained_cfg(name)
        architecture, terms = name, (cfg.license if cfg else None) or "unknown"
    with torch.device("meta"):
        model: Any = _create(architecture, _as_pair(image_size), num_classes=0, **options)
    size = _own_size(model)
    if not hasattr(model, "blocks") or size is None:
        raise ValueError(
            f"backbone={name!r} ({type(model).__name__}) is no transformer with a list of blocks "
            "and patches of one size. Pass a ViT, DeiT, BEiT, EVA, DINOv2 or DINOv3."
        )
    rows, columns = model.patch_embed.grid_size
    n_parameters = sum(value.numel() for value in model.parameters())
    return Published(name, size, n_parameters, rows * columns, len(model.blocks), terms)


def fetch_published(name: str) -> dict[str, torch.Tensor]:
    """Download the weights of a network that timm names, or take them from the hub's cache.

    Raises
    ------
    ValueError
        If the name is none of timm's.
    WeightsUnavailableError
        If the weights are unavailable.
    """
    if name == EMBEDDED:
        raise ValueError(
            f"backbone={name!r} comes with this package; there is nothing to download."
        )
    return _named(name, True, None, seed=0).state_dict()
