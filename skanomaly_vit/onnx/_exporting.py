"""Export of a detector to ONNX: `export_onnx`, which imports torch when it is called."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def export_onnx(
    det: Any,
    path: str | os.PathLike[str],
    *,
    map_method: str | None = None,
    quantize: str | None = None,
    calibration_images: Any = None,
    calibration_groups: Any = None,
    takes_regions: bool = False,
) -> Path:
    """Write a fitted detector as one ONNX graph: from normalized pixels to score, p-value and map.

    The graph holds backbone, students, PCA, densities, fusion, threshold and calibration scores.
    Backbone and students compute in their own type, usually float32; all later steps compute in
    float64. `export_onnx` runs the graph in ONNX Runtime first, and raises if its scores differ
    from those of torch.

    Parameters
    ----------
    det : TransformalyDetector
        Fitted, with densities of these classes: `GaussianDensity`, `GaussianMixtureDensity`,
        `KNNDensity`, `WhitenedKNNDensity`, `ExcessDensity`.
    path : str or path-like
        The file, in a folder that exists. `export_onnx` replaces an older one in one step, once
        the new one is complete.
    map_method : {"discrepancy", "features", "both"} or None, default=None
        Source of the anomaly maps, as `method` of `TransformalyDetector.anomaly_map`. ``None``
        takes the feature spaces of the score.
    quantize : {"int8"} or None, default=None
        ``"int8"`` computes the matrix products of backbone and students in int8, about twice as
        fast on one thread of a processor with VNNI, in a third of the bytes. Scores move, so
        `calibration_images` set threshold and p-values.
    calibration_images : images or None, default=None
        Only with `quantize`: normal images of any form that `TransformalyDetector.fit` takes, which
        `det` has not learned from, at least ``1 / rate - 1`` for the false-alarm rate of its
        threshold. The file keeps that rate; `det` stays as it is.
    calibration_groups : array-like of shape (n_images,) or None, default=None
        Group of each of `calibration_images`, as `groups` of `TransformalyDetector.calibrate`.
    takes_regions : bool, default=False
        Whether the graph takes a region with each image, so that the file scores `MaskedImages`
        though `det` has neither `roi` nor `keep_aspect`. With one of these, it always does.

    Returns
    -------
    path : pathlib.Path
        Path of the file.

    Raises
    ------
    ValueError
        If `det` is no fitted detector (NotFittedError), a density is of another class, the backbone
        cannot be exported, the weights take more than 2 GiB, or the graph is to take regions and
        the backbone does not tell the size of its patches. With `quantize`: if there are too
        few calibration images, `det` has learned from one of them, or one cannot be read; or if
        rounding moves their scores by more than half of their standard deviation.
    ImportError
        If onnx, onnxscript or onnxruntime is not installed.
    OSError
        If the file cannot be written.

    Warns
    -----
    CalibrationWarning
        If calibration images have near copies among those learned from.

    See Also
    --------
    OnnxDetector : Reads the file.
    TransformalyDetector.save : A file that can be loaded as a detector again.

    Notes
    -----
    The graph takes ``pixels``, float32 of shape (n, 3, height, width), any n: images resized to the
    backbone's input, ``(x - mean) / std`` with x in [0, 1]. With regions (`roi`, `keep_aspect` or
    `takes_regions`) the shape is (n, 4, height, width): the fourth channel is above 0 where a pixel
    counts, and 0 elsewhere, where the others are 0 too, the mean colour. The graph leaves patches
    without a pixel that counts out of views, errors and maps. It returns

    - ``score``: float64 (n,), `score_samples`, higher = more normal;
    - ``decision``: float64 (n,), score - threshold, negative = anomaly;
    - ``p_value``: float64 (n,); absent if no images were held out;
    - ``anomaly_map``: float32 (n, rows, columns), a value for each patch of the backbone, higher =
      more abnormal; absent if the size of the patches is unknown. Linear interpolation to the size
      of the image gives the maps of `anomaly_map`.

    Size, mean, standard deviation and interpolation, region and tiles, threshold, versions and
    fingerprint of the backbone are in the model's metadata, a JSON text under the key
    ``skanomaly_vit``. `OnnxDetector` frames images with them: it paints what lies outside of the
    region, pads, and cuts tiles, whose worst score is that of the image. With
    `KNNDensity` or `WhitenedKNNDensity` the file holds the features of the training images.

    In int8, each column of weights and each row of inputs has a scale of its own, the latter
    computed by the graph, so that a score does not depend on the other images of a batch. Weights
    have 7 bits, with which the sums of every processor are exact. All else stays in float32 or
    float64.

    Examples
    --------
    >>> from skanomaly_vit.onnx import OnnxDetector, export_onnx
    >>> path = export_onnx(detector, "parts.onnx")  # doctest: +SKIP
    >>> OnnxDetector.load(path).predict(["new.png"])  # doctest: +SKIP
    array([1])
    >>> export_onnx(
    ...     detector, "fast.onnx", quantize="int8", calibration_images=more_normal_images
    ... )  # doctest: +SKIP
    """
    from skanomaly_vit.onnx._export import write_onnx

    return write_onnx(
        det, path, map_method, quantize, calibration_images, calibration_groups, takes_regions
    )
