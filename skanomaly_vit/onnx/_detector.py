"""The detector that scores by an ONNX file, and the export into one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skanomaly_vit._images.missing import fill_maps, fill_scores
from skanomaly_vit._images.pillow_rules import MAX_PIXELS
from skanomaly_vit._images.score_stream import ScoreStreamMixin
from skanomaly_vit._images.source import ImageSource, open_images
from skanomaly_vit._utils.decisions import DecisionMixin
from skanomaly_vit.exceptions import UnreadableImageError
from skanomaly_vit.onnx._file import (
    MAP,
    P_VALUE,
    PIXELS,
    SCORE,
    preprocessing_of,
    read,
    require,
)
from skanomaly_vit.onnx._resizing import enlarge, prepare
from skanomaly_vit.persistence._container import refusal


def export_onnx(det: Any, path: str | os.PathLike[str], *, map_method: str | None = None) -> Path:
    """Write a fitted detector as one ONNX graph: from normalised pixels to score, p-value and map.

    All that scores are made of is in the graph: backbone, students, PCA, densities, fusion,
    threshold and calibration scores. The backbone and students compute in their own type, as a
    rule float32, what comes after them in float64. The graph is run in ONNX Runtime before the
    file is written, and refused if its scores are not those of torch.

    Parameters
    ----------
    det : TransformalyDetector
        Fitted. Its densities are ours: `GaussianDensity`, `GaussianMixtureDensity`,
        `KNNDensity`, `ExcessDensity`.
    path : str or path-like
        The file, in a folder that exists. An older one is replaced, in one step, once the
        new one is whole.
    map_method : {"discrepancy", "features", "both"} or None, default=None
        What maps are made of, as `TransformalyDetector.anomaly_map` takes it as `method`.
        ``None`` is what the score is made of.

    Returns
    -------
    path : pathlib.Path
        Where the file is.

    Raises
    ------
    ValueError
        If `det` is no fitted detector (NotFittedError), a density is none of ours, the backbone
        cannot be exported, or the weights take more than 2 GiB.
    ImportError
        If onnx, onnxscript or onnxruntime is not installed.
    OSError
        If the file cannot be written.

    See Also
    --------
    OnnxDetector : Reads the file.
    TransformalyDetector.save : A file that can be loaded as a detector again.

    Notes
    -----
    The graph takes ``pixels``, float32 of shape (n, 3, height, width), any n: images resized to the
    backbone's input, ``(x - mean) / std`` with x in [0, 1]. It gives

    - ``score``: float64 (n,), `score_samples`, higher = more normal;
    - ``decision``: float64 (n,), score - threshold, negative = anomaly;
    - ``p_value``: float64 (n,), unless no images were held out;
    - ``anomaly_map``: float32 (n, rows, columns), a value for each patch of the backbone, higher =
      more abnormal; unless the backbone does not tell the size of its patches. Linearly
      interpolated to the size of the image it is what `anomaly_map` gives.

    Size, mean, standard deviation and interpolation, threshold, versions and fingerprint of the
    backbone are in the model's metadata, a JSON text under the key ``skanomaly_vit``. With
    `KNNDensity` the features of the training images are in the file.

    Examples
    --------
    >>> from skanomaly_vit.onnx import OnnxDetector, export_onnx
    >>> path = export_onnx(detector, "parts.onnx")  # doctest: +SKIP
    >>> OnnxDetector.load(path).predict(["new.png"])  # doctest: +SKIP
    array([1])
    """
    from skanomaly_vit.onnx._export import write_onnx

    return write_onnx(det, path, map_method)


class OnnxDetector(DecisionMixin, ScoreStreamMixin):
    """A detector from an ONNX file, which scores images without torch.

    Made by `load`. It needs onnx, onnxruntime, numpy, pillow and joblib, and imports nothing else.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
        Runs the graph.
    card : dict
        The metadata of the file.
    image_shape : tuple of (int, int, int) or None, default=None
        Height, width and channels of an image, if `X` comes as a 2-D array of flattened images.
    max_pixels : int or None, default=2**27
        Files and PIL images of more pixels are refused before they are decoded. ``None`` is no
        limit.
    on_error : {"raise", "nan"}, default="raise"
        What is done about images that cannot be read, as in `TransformalyDetector`.
    batch_size : int, default=32
        Images that are decoded and go through the graph at once.
    n_jobs : int or None, default=None
        Threads that decode and resize images. ``None`` is one, ``-1`` all cores.

    Attributes
    ----------
    card : dict
        ``created``, ``versions``, ``backbone``, ``backbone_fingerprint``, ``preprocessing``,
        ``image_shape``, ``threshold``, ``n_calibrating``, ``map_method`` and ``outputs`` (name ->
        what it is).
    offset_ : float
        The threshold: ``decision_function = score_samples - offset_``.

    See Also
    --------
    export_onnx : Writes the file.

    Notes
    -----
    Scores are those of the detector that was exported up to rounding, less than 1e-4 of their
    spread. Pixels are resized by Pillow in place of torch, which differs by less than 3e-5 of
    white. An image whose score *is* the threshold, one of those held out, may fall to either side.

    Examples
    --------
    >>> from skanomaly_vit.onnx import OnnxDetector
    >>> detector = OnnxDetector.load("parts.onnx", n_jobs=-1)  # doctest: +SKIP
    >>> detector.score_samples(["new.png"])  # doctest: +SKIP
    array([1.3])
    """

    def __init__(
        self,
        session: Any,
        card: Mapping[str, Any],
        *,
        image_shape: tuple[int, int, int] | None = None,
        max_pixels: int | None = MAX_PIXELS,
        on_error: str = "raise",
        batch_size: int = 32,
        n_jobs: int | None = None,
    ) -> None:
        if on_error not in ("raise", "nan"):
            raise ValueError(f"on_error={on_error!r} is neither 'raise' nor 'nan'")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.card = dict(card)
        self.offset_ = float(card["threshold"])
        self.image_shape = image_shape
        self.max_pixels = max_pixels
        self.on_error = on_error
        self.batch_size = batch_size
        self.n_jobs = n_jobs
        self._session = session
        self._preprocessing = preprocessing_of(card)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        n_threads: int | None = None,
        providers: Sequence[Any] = ("CPUExecutionProvider",),
        **options: Any,
    ) -> OnnxDetector:
        """Read a detector from a file that `export_onnx` wrote.

        Parameters
        ----------
        path : str or path-like
            The file. All of it is checked, and it runs no code but the operators of ONNX.
        n_threads : int or None, default=None
            Threads in which the graph computes. ``None`` is one for each core.
        providers : sequence of str or (str, dict), default=("CPUExecutionProvider",)
            Where the graph runs, as ``onnxruntime.InferenceSession`` takes it. They have to know
            float64.
        **options : dict
            `image_shape` (the file's own, unless given), `max_pixels`, `on_error`, `batch_size` and
            `n_jobs` of `OnnxDetector`.

        Returns
        -------
        detector : OnnxDetector
            Ready to score.

        Raises
        ------
        ModelFileError
            If the file is missing, cut off, damaged, of another program or of a newer format, or
            wants to read other files (a ValueError).
        ImportError
            If onnx or onnxruntime is not installed.
        """
        name = os.path.expanduser(os.fsdecode(path))
        runtime = require("onnxruntime")
        content, card = read(name)
        settings = runtime.SessionOptions()
        settings.intra_op_num_threads = n_threads or 0
        try:
            session = runtime.InferenceSession(content, settings, providers=list(providers))
        except Exception as error:  # the runtime has a type for each of its reasons
            raise refusal(name, f"ONNX Runtime does not take it ({error})") from error
        shape = card["image_shape"]
        own = {"image_shape": None if shape is None else tuple(shape)}
        return cls(session, card, **own | options)

    def score_samples(self, X: Any, *, return_map: bool = False) -> Any:
        """Normality of images.

        Parameters
        ----------
        X : images
            Images of any form that `TransformalyDetector.fit` takes.
        return_map : bool, default=False
            Whether to return the anomaly maps too, from the same run of the graph.

        Returns
        -------
        scores : ndarray of shape (n_images,), float64
            Higher = more normal; NaN for an image that cannot be read.
        maps : ndarray of shape (n_images, height, width), float32, or list
            Only with `return_map`: what `anomaly_map` gives. Higher = more abnormal.

        Raises
        ------
        ValueError
            If the images are not as described, or one cannot be read (`on_error`).
        """
        if return_map:
            self._require(MAP)
            scores, maps = self._run(X, SCORE, MAP)
            return scores, maps
        return self._run(X, SCORE)[0]

    def anomaly_map(self, X: Any) -> Any:
        """Where images are abnormal.

        Parameters
        ----------
        X : images
            Images of any form that `TransformalyDetector.fit` takes.

        Returns
        -------
        maps : ndarray of shape (n_images, height, width), float32, or list
            At the images' own sizes; a list of arrays (height, width) where those differ, or
            where images cannot be read, whose map has the shape (0, 0). Made by the `map_method` of
            `export_onnx`. Higher = more abnormal.

        Raises
        ------
        ValueError
            If the file holds no maps, or as `score_samples` does.
        """
        self._require(MAP)
        return self._run(X, MAP)[0]

    def _p_values(self, X: Any) -> np.ndarray:
        self._require(P_VALUE)
        return self._run(X, P_VALUE)[0]

    def _require(self, output: str) -> None:
        if output in self.card["outputs"]:
            return
        if output == P_VALUE:
            raise ValueError(
                "The detector in this file was fitted with validation_fraction=0, so there are no "
                "scores of images that it has not learned from, and no p-values. Fit with "
                "validation_fraction > 0 and export again."
            )
        raise ValueError(
            "There are no anomaly maps in this file: its backbone does not tell the size of its "
            "patches. Fit with a ViT of timm, and export again."
        )

    def _run(self, X: Any, *names: str) -> list[Any]:
        """Outputs of the graph for all images, with gaps for those that cannot be read."""
        source = self._open_images(X, on_error=self.on_error)
        batches = list(self._batches(source, names))
        positions = np.array([position for batch, _ in batches for position in batch], dtype=int)
        columns = {n: np.array([row for _, rows in batches for row in rows[n]]) for n in names}
        maps = columns.pop(MAP, None)
        filled = {} if maps is None else {MAP: fill_maps(maps, positions, source, enlarge)}
        filled |= fill_scores(columns, positions, source)
        return [filled[name] for name in names]

    def _open_images(self, X: Any, *, on_error: str) -> ImageSource:
        return open_images(
            X, image_shape=self.image_shape, max_pixels=self.max_pixels, on_error=on_error
        )

    def _score_batches(self, source: ImageSource) -> Iterator[np.ndarray]:
        return (outputs[SCORE] for _, outputs in self._batches(source, [SCORE]))

    def _batches(
        self, source: ImageSource, names: Sequence[str]
    ) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
        """Positions of the images of each batch that can be read, and what the graph gives."""
        everything = source.readable()
        for start in range(0, len(everything), self.batch_size):
            batch = everything[start : start + self.batch_size].tolist()
            pixels: list[np.ndarray] = []
            while batch and not pixels:
                try:
                    pixels = source.load_each(batch, self._prepare, self.n_jobs)
                except UnreadableImageError:
                    if not source.skips_unreadable:
                        raise
                    batch = source.readable(batch).tolist()
            if batch:
                outputs = self._session.run(list(names), {PIXELS: np.stack(pixels)})
                yield batch, dict(zip(names, outputs, strict=True))

    def _prepare(self, pixels: np.ndarray) -> np.ndarray:
        return prepare(pixels, self._preprocessing)
