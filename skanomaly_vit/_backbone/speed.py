"""Speed and memory of a backbone on this machine, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np
import torch

from skanomaly_vit._backbone.devices import resolve_device
from skanomaly_vit._backbone.loading import load_backbone

#: Images of a pass, and passes after a first one that is not counted.
_BATCH, _REPEATS = 8, 5


@dataclass(frozen=True)
class Speed:
    """Speed of a network.

    Attributes
    ----------
    rate : float
        Images a second; the median of passes over 8 images.
    peak_bytes : int or None
        Largest memory of the process, libraries included; on CUDA the largest of the device. None
        where the system does not tell.
    """

    rate: float
    peak_bytes: int | None


def measure_speed(name: str, image_size: int | None, device: str | None) -> Speed:
    """Measure a network of timm, or the embedded one, with random weights.

    Parameters
    ----------
    name : str
    image_size : int or None
    device : str or None
        None is the best one.

    Raises
    ------
    ValueError
        If name, size or device do not fit.
    RuntimeError
        If the pass fails, or the process is killed, most often for lack of memory.
    """
    # A fresh process, since the peak of this one may come from anything.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, name, image_size, device, torch.get_num_threads()).result()


def _measure(name: str, image_size: int | None, device: str | None, n_threads: int) -> Speed:
    torch.set_num_threads(n_threads)
    place = resolve_device(device)
    model, preprocessing = load_backbone(name, pretrained=False, image_size=image_size, seed=0)
    model.to(place).eval()
    pixels = torch.zeros(_BATCH, 3, *preprocessing.image_size, device=place)
    with torch.inference_mode():
        seconds = [_time(model, pixels) for _ in range(1 + _REPEATS)]
    return Speed(_BATCH / median(seconds[1:]), _peak(place))


def _time(model: torch.nn.Module, pixels: torch.Tensor) -> float:
    start = perf_counter()
    features = model.forward_features(pixels)  # type: ignore[operator]
    np.asarray(features[0, 0, 0].cpu())  # waits for the device
    return perf_counter() - start


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
