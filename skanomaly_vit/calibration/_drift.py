"""Whether a batch has moved away from the calibration images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import betabinom, ks_2samp
from sklearn.utils import Bunch

from skanomaly_vit._utils.user_warnings import warn_user
from skanomaly_vit.calibration._units import checked_scores, sorted_calibration
from skanomaly_vit.exceptions import CalibrationWarning

#: Share of the level for the number of scores that the comparison leaves out.
_SHARE_OF_LEVEL = 0.01


def drift_test(calibration_scores: Any, scores: Any, *, anomaly_share: float = 0.05) -> Bunch:
    """Test whether a batch of mostly normal images has moved away from the calibration images.

    A two-sample Kolmogorov-Smirnov test of the scores or, equivalently, the p-values. Anomalies
    have small p-values, so the test leaves out the smallest on both sides: a few anomalies are no
    drift. A batch of which most scores are left out (the lamp is off) has moved, too: a second
    test counts them.

    Parameters
    ----------
    calibration_scores : array-like of shape (n,)
        As in `conformal_p_values`.
    scores : array-like of shape (m,)
        Scores of a batch that was drawn without regard to scores.
    anomaly_share : float, default=0.05
        In [0, 1): the test leaves out p-values up to this.

    Returns
    -------
    test : Bunch
        - ``p_value``: float in [0, 1]; small = drift. If nothing has moved, it is below `a` with
          a probability of at most `a`, on average over calibration sets and for images that are
          drawn independently of each other, fewer than half of them anomalies; see Notes.
        - ``statistic``: float in [0, 1], the largest distance between both distributions of
          compared scores; 0 if there are none.
        - ``direction``: ``"lower"`` if the batch scores lower at that distance, or if most of it
          is left out; else ``"higher"``.
        - ``n_compared``: int, number of compared images of the batch.

    Raises
    ------
    ValueError
        If `anomaly_share` is out of range, or as `conformal_p_values` does.

    Warns
    -----
    CalibrationWarning
        If the batch is empty, or no calibration score is left to compare.

    See Also
    --------
    benjamini_hochberg : Flags the abnormal images of a batch.

    Notes
    -----
    The second test allows for anomalies of up to half the batch, so that it finds a fault of the
    camera or the lamp, and no bad lot. With n calibration scores, k of them left out, and m normal
    images, the number of these that score below the k-th is a beta-binomial variable
    BetaBin(m, k, n + 1 - k), whose tail is the p-value. The smaller one of both tests counts, by
    Bonferroni's rule with a hundredth of the level for the second.

    A deployment uses one calibration set every day. If batches are larger than that set, the way in
    which the set happened to fall decides: some deployments then get an alarm on most days and
    others never do. Compare batches of about the size of the calibration set. Images of one lot or
    video are not independent: a batch of a single lot moves though nothing has.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.calibration import drift_test
    >>> rng = np.random.default_rng(0)
    >>> known = rng.normal(size=200)
    >>> bool(drift_test(known, rng.normal(size=100)).p_value < 0.01)
    False
    >>> drift_test(known, rng.normal(-1, 1, size=100)).direction
    'lower'
    """
    if not 0 <= anomaly_share < 1:
        raise ValueError(f"anomaly_share={anomaly_share!r} is not in [0, 1)")
    known = sorted_calibration(calibration_scores)
    new = checked_scores(scores)
    # Above a calibration score, the remaining ones are exchangeable with new scores. Of scores that
    # are equal to it, none counts on either side.
    n_left_out = math.floor(anomaly_share * (len(known) + 1) + 1e-9)
    cut = known[n_left_out - 1] if n_left_out else -np.inf
    kept, expected = new[new > cut], known[known > cut]
    if not len(new) or not len(expected):
        warn_user(
            f"{len(kept)} of {len(new)} images and {len(expected)} calibration images are left to "
            "compare; there is no telling whether the compared ones moved.",
            CalibrationWarning,
        )
    p_moved, statistic, direction = _compare(kept, expected)
    p_fallen = _p_value_of_left_out(new, known, n_left_out) / _SHARE_OF_LEVEL
    p_moved /= 1 - _SHARE_OF_LEVEL
    return Bunch(
        p_value=min(p_moved, p_fallen, 1.0),
        statistic=statistic,
        direction="lower" if p_fallen < p_moved else direction,
        n_compared=len(kept),
    )


def _compare(kept: np.ndarray, expected: np.ndarray) -> tuple[float, float, str]:
    """P-value, statistic and direction of the two-sample test."""
    if not len(kept) or not len(expected):
        return 1.0, 0.0, "lower"
    # With ties the exact distribution, which holds for continuous scores, is no better than the
    # asymptotic one; both are conservative then.
    both = np.concatenate([kept, expected])
    # scipy has none for one score on each side.
    is_exact = len(np.unique(both)) == len(both) or len(both) == 2
    method = "auto" if is_exact else "asymp"
    found = ks_2samp(kept, expected, method=method)
    # The batch's distribution function is above where its values are smaller.
    direction = "lower" if found.statistic_sign > 0 else "higher"
    return float(found.pvalue), float(found.statistic), direction


def _p_value_of_left_out(new: np.ndarray, known: np.ndarray, n_left_out: int) -> float:
    """P-value of the number of scores below the highest calibration score that is left out.

    Half of the images may be anomalies, which all lie below it.
    """
    if not n_left_out:
        return 1.0
    n_below = int((new < known[n_left_out - 1]).sum())
    n_anomalies = len(new) // 2
    spread = (n_left_out, len(known) + 1 - n_left_out)
    return float(betabinom.sf(n_below - n_anomalies - 1, len(new) - n_anomalies, *spread))
