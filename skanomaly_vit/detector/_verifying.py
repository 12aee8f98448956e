"""Verification: whether a detector scores here as it did where its file was saved."""

from __future__ import annotations

from typing import Any

from sklearn.utils.validation import check_is_fitted

from skanomaly_vit._backbone.precision import FLOAT32
from skanomaly_vit._utils.settings import with_own_settings
from skanomaly_vit._utils.stages import verdict
from skanomaly_vit.detector._fixtures import Fixtures, tolerance_of


class VerifiableMixin:
    """A detector that carries fixtures: images with the numbers of each stage of scoring them."""

    _fixtures: Fixtures | None = None

    @with_own_settings
    def verify(self, *, tolerance: float | None = None) -> dict[str, Any]:
        """Compare this machine with the one that saved the model.

        A model file carries three small image files that `save` has drawn, and what each stage of
        scoring gave for them. `verify` computes them again.

        Parameters
        ----------
        tolerance : float or None, default=None
            Largest difference of a score, in standard deviations of the calibration scores, that
            counts as the same. ``None`` is 0.001, and 0.1 for a backbone in bfloat16.

        Returns
        -------
        verified : dict
            - ``same``: bool, whether no score differs by more than ``tolerance``.
            - ``difference``: float, the largest difference of a score, in standard deviations.
            - ``tolerance``: float.
            - ``unit``: float, the standard deviation.
            - ``first``: str or None, the first stage to differ: ``"decoding"``, ``"resizing"``,
              ``"backbone"``, ``"students"`` or ``"densities"``. None if all are the same up to
              rounding.
            - ``stages``: list of dict, ``name``, ``same``, ``difference``, ``unit``, ``tolerance``
              (what rounding explains) and ``n_compared`` of each stage.

        Raises
        ------
        ValueError
            If the detector carries no fixtures: it was never saved, was changed since, or comes
            from an older file; or if `tolerance` is below 0.

        See Also
        --------
        save : Records what `verify` compares.

        Notes
        -----
        The fixtures are files, also where the detector was fitted on flattened images. A region of
        interest is fitted to their sizes; tiles are left out.
        """
        check_is_fitted(self)
        allowed = tolerance_of(self) if tolerance is None else tolerance
        if self._fixtures is None:
            raise ValueError(
                "the model carries no fixtures to compare with; load and save it again on a "
                "machine where it is trusted, and verify that file"
            )
        detector: Any = self
        if detector.dtype != FLOAT32:
            detector._held_teacher().announce_precision()
        stages, difference = self._fixtures.compare(detector)
        return verdict(stages, difference, tolerance=allowed, unit=self._fixtures.unit)
