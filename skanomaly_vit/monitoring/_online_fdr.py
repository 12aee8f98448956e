"""`OnlineFDR`: flags images one after the other at a bounded false-discovery rate (LORD++)."""

from __future__ import annotations

from typing import Any

import numpy as np

from skanomaly_vit.monitoring._checks import checked_p_values, state_of

# A budget is spent in geometric sequences: a half over the horizon, a quarter over four times it,
# and so on. What all earlier alarms have earned is then one number for each sequence.
_HORIZONS = 4.0 ** np.arange(12)
_WEIGHTS = 0.5 ** np.arange(1, 13)
_WEIGHTS /= _WEIGHTS.sum()


class OnlineFDR:
    """Flag images one after the other, few of the flagged ones being false alarms: LORD++ [1]_.

    Benjamini-Hochberg needs the whole batch. This decides at once about every image: it begins
    with a budget, spends it on the levels of the images, and earns some with every alarm.

    Parameters
    ----------
    q : float, default=0.1
        In (0, 1): the false-discovery rate, the share of false alarms among the flagged images, on
        average at any time.
    horizon : float, default=10
        At least 1: number of images over which half of what was earned is spent. Set it to about
        the number of images from one anomaly to the next.

    Attributes
    ----------
    level_ : float
        P-value up to which the next image is flagged.
    n_images_ : int
        Number of images so far.
    n_flagged_ : int
        Number of flagged ones.

    Raises
    ------
    ValueError
        If `q` or `horizon` is out of range.

    See Also
    --------
    skanomaly_vit.calibration.certified_p_values : P-values for which the guarantee holds.
    skanomaly_vit.calibration.benjamini_hochberg : Flags a whole batch, and finds more.

    Notes
    -----
    The guarantee needs p-values of normal images that are independent of each other. Those of one
    calibration set are not: the set makes all of them too small, or too large. Certified ones are,
    given a set, in the share of sets that their `confidence` names.

    The level of image t is ``w * g(t) + (q - w) * g(t - t_1) + q * (g(t - t_2) + ...)`` with the
    earlier alarms t_1, t_2, ..., ``w = q / 2`` and g decreasing, of sum 1. Here g is a mixture
    of 12 geometric sequences, so that the state is 12 numbers however many alarms there were.

    **Limit.** It begins at a level of about ``0.3 * q / horizon``, and some `horizon` images
    without an alarm later, it is a third of that. Once `level_` is below the smallest p-value,
    about 7 / n for certified ones, nothing can be flagged any more. So this takes n of about
    ``50 * horizon / q`` calibration images or more; with fewer, or with rare anomalies, flag whole
    days by `benjamini_hochberg`.

    References
    ----------
    .. [1] A. Ramdas, F. Yang, M. Wainwright and M. Jordan, "Online Control of the False Discovery
       Rate with Decaying Memory", NeurIPS 2017, section 3.

    Examples
    --------
    >>> from skanomaly_vit.monitoring import OnlineFDR
    >>> online = OnlineFDR(q=0.1)
    >>> online.update([0.5, 0.001, 0.02, 0.9])
    array([False,  True, False, False])
    """

    def __init__(self, q: float = 0.1, *, horizon: float = 10.0) -> None:
        if not 0 < q < 1:
            raise ValueError(f"q={q!r} is not in (0, 1)")
        if not 1 <= horizon < np.inf:
            raise ValueError(f"horizon={horizon!r} is not a number of at least 1")
        self.q = q
        self.horizon = horizon
        self.n_images_ = 0
        self.n_flagged_ = 0
        self._spent = 1 / (horizon * _HORIZONS)  # share of what is left, per image
        self._levels = q / 2 * _WEIGHTS * self._spent

    @property
    def level_(self) -> float:
        """P-value up to which the next image is flagged."""
        return float(self._levels.sum())

    def update(self, p_values: Any) -> np.ndarray:
        """Decide about the next images.

        Parameters
        ----------
        p_values : array-like of shape (m,)
            P-values of the images, in the order in which they came; of all, not of suspicious ones.

        Returns
        -------
        is_flagged : ndarray of shape (m,), bool
            True for an alarm. It does not depend on later images.

        Raises
        ------
        ValueError
            If a p-value is not in [0, 1]; nothing is counted then.
        """
        values = checked_p_values(p_values)
        return np.array([self._decide(value) for value in values], dtype=bool)

    def _decide(self, p_value: float) -> bool:
        is_flagged = p_value <= self.level_
        self._levels = (1 - self._spent) * self._levels
        if is_flagged:
            earned = self.q if self.n_flagged_ else self.q / 2
            self._levels += earned * _WEIGHTS * self._spent
        self.n_flagged_ += int(is_flagged)
        self.n_images_ += 1
        return bool(is_flagged)

    def to_dict(self) -> dict[str, Any]:
        """State, for JSON.

        Returns
        -------
        state : dict
            What `from_dict` takes.
        """
        return {
            "kind": type(self).__name__, "format": 1, "q": self.q, "horizon": self.horizon,
            "n_images": self.n_images_, "n_flagged": self.n_flagged_,
            "levels": self._levels.tolist(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> OnlineFDR:
        """Go on where another one stopped.

        Parameters
        ----------
        state : dict
            What `to_dict` returned.

        Returns
        -------
        online : OnlineFDR
            Its decisions are those of the other one.

        Raises
        ------
        ValueError
            If `state` is not one of an `OnlineFDR`.
        """
        with state_of(cls.__name__, state):
            online = cls(state["q"], horizon=state["horizon"])
            online.n_images_ = int(state["n_images"])
            online.n_flagged_ = int(state["n_flagged"])
            online._levels = np.array(state["levels"], dtype=float).reshape(_HORIZONS.shape)
        return online
