"""ONNX detector: a detector from an ONNX file, which needs no torch."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from skanomaly_vit._images.missing import fill_maps, fill_scores
from skanomaly_vit._images.opening import open_images
from skanomaly_vit._images.pillow_rules import MAX_PIXELS
from skanomaly_vit._images.preprocessing import frame
from skanomaly_vit._images.score_stream import Scores, ScoreStreamMixin
from skanomaly_vit._images.source import ImageSource
from skanomaly_vit._images.tiles import TiledSource, merge_maps, merge_scores, tile
from skanomaly_vit._utils.decisions import DecisionMixin
from skanomaly_vit._utils.settings import with_own_settings
from skanomaly_vit._utils.stages import verdict
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
from skanomaly_vit.onnx._fixtures import TOLERANCE, compare_fixtures
from skanomaly_vit.onnx._framing import framing_of
from skanomaly_vit.onnx._resizing import enlarge, prepare
from skanomaly_vit.persistence._container import refusal


class OnnxDetector(DecisionMixin, ScoreStreamMixin):
    """A detector from an ONNX file, which scores images without torch.

    `load` makes one. It needs onnx, onnxruntime, numpy, pillow and joblib, and no other package.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
        Runs the graph.
    card : dict
        The metadata of the file.
    image_shape : tuple of (int, int, int) or None, default=None
        Height, width and channels of an image, if `X` comes as a 2-D array of flattened images.
    max_pixels : int or None, default=2**27
        Files and PIL images of more pixels raise an error before they are decoded. ``None`` is no
        limit.
    on_error : {"raise", "nan"}, default="raise"
        Treatment of unreadable images, as in `TransformalyDetector`.
    batch_size : int, default=32
        Images that are decoded and scored at once.
    n_jobs : int or None, default=None
        Threads that decode and resize images. ``None`` is one, ``-1`` all cores.

    Attributes
    ----------
    card : dict
        ``created``, ``versions``, ``backbone``, ``backbone_fingerprint``, ``preprocessing``,
        ``image_shape``, ``threshold``, ``false_alarm_rate`` (of the threshold), ``n_calibrating``,
        ``map_method``, ``quantization`` (``"int8"`` or None), ``noise`` (of int8: standard
        deviation of the differences from the scores in float32, in that of the scores of
        calibration images), ``framing`` (None if whole images are stretched to the input, else
        ``keep_aspect``, ``tiles``, ``roi_shape`` and ``roi``, packed bits in base64),
        ``takes_regions`` (whether the graph does), ``outputs`` (name -> description) and, but for
        older files, ``fixtures`` (what `verify` compares).
    offset_ : float
        The threshold: ``decision_function = score_samples - offset_``.
    contamination_ : float or None
        False-alarm rate at which the threshold was set; None if an older version wrote the file.

    See Also
    --------
    export_onnx : Writes the file.

    Notes
    -----
    Scores equal those of the exported detector up to rounding, less than 1e-4 of their spread;
    those in int8 differ by ``noise``, and threshold and p-values are of scores in int8.
    Pillow resizes pixels in place of torch; results differ by less than 3e-5 of white. The held-out
    image whose score *is* the threshold may fall to either side.

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
        self.contamination_: float | None = card["false_alarm_rate"]
        self.image_shape = image_shape
        self.max_pixels = max_pixels
        self.on_error = on_error
        self.batch_size = batch_size
        self.n_jobs = n_jobs
        self._session = session
        self._preprocessing = preprocessing_of(card)
        self._framing = framing_of(card)

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
            The file. `load` checks the whole file. It runs no code except the operators of ONNX.
        n_threads : int or None, default=None
            Threads of the graph. ``None`` is one for each core.
        providers : sequence of str or (str, dict), default=("CPUExecutionProvider",)
            Execution providers, as in ``onnxruntime.InferenceSession``. They must support float64.
        **options : dict
            `image_shape` (by default, that of the file), `max_pixels`, `on_error`, `batch_size` and
            `n_jobs` of `OnnxDetector`.

        Returns
        -------
        detector : OnnxDetector
            Ready to score.

        Raises
        ------
        ModelFileError
            If the file is missing, cut off, damaged, of another program or of a newer format, or
            refers to other files (a ValueError).
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
        except Exception as error:  # the runtime has an error class for each cause
            raise refusal(name, f"ONNX Runtime does not take it ({error})") from error
        shape = card["image_shape"]
        own = {"image_shape": None if shape is None else tuple(shape)}
        return cls(session, card, **own | options)

    @with_own_settings
    def score_samples(self, X: Any, *, return_map: bool = False) -> Any:
        """Compute the normality score of each image.

        Parameters
        ----------
        X : images
            Images of any form that `TransformalyDetector.fit` takes.
        return_map : bool, default=False
            Whether to return the anomaly maps too, from the same run of the graph.

        Returns
        -------
        scores : ndarray of shape (n_images,), float64
            Higher = more normal; NaN for an unreadable image.
        maps : ndarray of shape (n_images, height, width), float32, or list
            Only with `return_map`: the maps of `anomaly_map`. Higher = more abnormal.

        Raises
        ------
        ValueError
            If the images are not as described, or one cannot be read (`on_error`).
        """
        if return_map:
            self._require_maps()
            scores, maps = self._run(X, SCORE, MAP)
            return scores, maps
        return self._run(X, SCORE)[0]

    @with_own_settings
    def anomaly_map(self, X: Any) -> Any:
        """Compute the anomaly map of each image.

        Parameters
        ----------
        X : images
            Images of any form that `TransformalyDetector.fit` takes.

        Returns
        -------
        maps : ndarray of shape (n_images, height, width), float32, or list
            At the images' own sizes, by the `map_method` of `export_onnx`. Higher = more abnormal.
            A list of arrays (height, width) if sizes differ or images are unreadable; the map of an
            unreadable image has the shape (0, 0).

        Raises
        ------
        ValueError
            If the file holds no maps, or as `score_samples` does.
        """
        self._require_maps()
        return self._run(X, MAP)[0]

    @with_own_settings
    def verify(self, *, tolerance: float | None = None) -> dict[str, Any]:
        """Compare the graph, on this machine, with torch on the one that exported it.

        An ONNX file carries the three small image files of `TransformalyDetector.verify`, with
        their inputs and scores as torch computed them.

        Parameters
        ----------
        tolerance : float or None, default=None
            Largest difference of a score, in standard deviations of the calibration scores, that
            counts as the same. ``None`` is 0.005.

        Returns
        -------
        verified : dict
            As `TransformalyDetector.verify` gives it, with the stages ``"decoding"``,
            ``"resizing"`` and ``"graph"``.

        Raises
        ------
        ValueError
            If the file carries no fixtures, since an older version wrote it, or if `tolerance` is
            below 0.
        """
        if "fixtures" not in self.card:
            raise ValueError(
                "the file carries no fixtures to compare with; export the model again on a machine "
                "where it is trusted, and verify that file"
            )
        stages, difference = compare_fixtures(self, self.card["fixtures"])
        allowed = TOLERANCE if tolerance is None else tolerance
        unit = self.card["fixtures"]["unit"]
        return verdict(stages, difference, tolerance=allowed, unit=unit)

    def _run_graph(self, pixels: np.ndarray) -> np.ndarray:
        """Scores of prepared images (n, 3 or 4, height, width)."""
        return self._session.run([SCORE], {PIXELS: pixels})[0]

    def _p_values(self, X: Any) -> np.ndarray:
        self._require_p_values()
        return self._run(X, P_VALUE)[0]

    def _require_p_values(self) -> None:
        if P_VALUE not in self.card["outputs"]:
            raise ValueError(
                "The detector in this file was fitted with validation_fraction=0, so there are no "
                "scores of images that it has not learned from, and no p-values. Fit with "
                "validation_fraction > 0 and export again."
            )

    def _require_maps(self) -> None:
        if MAP not in self.card["outputs"]:
            raise ValueError(
                "There are no anomaly maps in this file: the patch size of its backbone is "
                "unknown. Fit with a ViT of timm, and export again."
            )

    def _run(self, X: Any, *names: str) -> list[Any]:
        """Outputs of the graph for all images, with gaps for unreadable ones."""
        source = self._open_images(X, on_error=self.on_error)
        inputs = tile(source, self._preprocessing.image_size)
        batches = list(self._batches(inputs, names))
        positions = np.array([position for batch, _ in batches for position in batch], dtype=int)
        columns = {n: np.array([row for _, rows in batches for row in rows[n]]) for n in names}
        maps = columns.pop(MAP, None)
        # One by one: the tile of the lowest score has the lowest decision and p-value, too.
        scores = {n: merge_scores({n: c}, inputs, source)[n] for n, c in columns.items()}
        scored, filled = source.readable(), {}
        if maps is not None:
            planes = fill_maps(maps, positions, inputs, enlarge)
            filled[MAP] = merge_maps(planes, inputs, source)
        filled |= fill_scores(scores, scored, source)
        return [filled[name] for name in names]

    def _open_images(self, X: Any, *, on_error: str) -> ImageSource:
        source = open_images(
            X,
            image_shape=self.image_shape,
            max_pixels=self.max_pixels,
            on_error=on_error,
            framing=self._framing,
        )
        if source.has_regions and not self.card["takes_regions"]:
            raise ValueError(
                "X is MaskedImages, and the graph of this file takes no regions; export the model "
                "again with export_onnx(..., takes_regions=True)"
            )
        return source

    def _score_batches(self, source: ImageSource) -> Iterator[Scores]:
        inputs = tile(source, self._preprocessing.image_size)
        names = [name for name in (SCORE, P_VALUE) if name in self.card["outputs"]]
        batches = (outputs for _, outputs in self._batches(inputs, names))
        of_scores, of_p_values = itertools.tee(batches)
        scores: Iterator[np.ndarray] = (outputs[SCORE] for outputs in of_scores)
        p_values: Iterator[np.ndarray] = (
            outputs.get(P_VALUE, np.full(len(outputs[SCORE]), np.nan)) for outputs in of_p_values
        )
        if isinstance(inputs, TiledSource):
            # The tile of the lowest score has the lowest p-value, too.
            scores = inputs.worst_in_order(scores, source)
            p_values = inputs.worst_in_order(p_values, source)
        yield from zip(scores, p_values, strict=True)

    def _batches(
        self, source: ImageSource, names: Sequence[str]
    ) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
        """Positions of the readable images of each batch, and the outputs of the graph."""
        everything = source.readable()
        for start in range(0, len(everything), self.batch_size):
            batch = everything[start : start + self.batch_size].tolist()
            pixels: list[np.ndarray] = []
            while batch and not pixels:
                try:
                    pixels = source.load_framed(batch, self._prepare, self.n_jobs)
                except UnreadableImageError:
                    if not source.skips_unreadable:
                        raise
                    batch = source.readable(batch).tolist()
            if batch:
                outputs = self._session.run(list(names), {PIXELS: np.stack(pixels)})
                yield batch, dict(zip(names, outputs, strict=True))
        source.warn_of_doubts()

    def _prepare(self, pixels: np.ndarray, region: np.ndarray | None) -> np.ndarray:
        if not self.card["takes_regions"]:
            return prepare(pixels, self._preprocessing)
        keep_aspect = self._framing.keep_aspect
        return frame(pixels, self._preprocessing, region, prepare, keep_aspect=keep_aspect)
