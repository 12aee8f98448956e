"""`LineMonitor`: says, after every image, whether a line has changed."""

from __future__ import annotations

from collections.abc import Hashable
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from skanomaly_vit.calibration import conformal_threshold
from skanomaly_vit.monitoring._cells import Cells, Edges
from skanomaly_vit.monitoring._checks import checked_p_values, checked_vector, state_of
from skanomaly_vit.monitoring._line import Line

_SETTINGS = ("level", "anomaly_share", "target_fpr", "confidence", "rate_window", "random_state")


class LineMonitor:
    """Say after every image whether a line has changed since the calibration.

    `update` takes scores or p-values of images in the order in which they come, one by one or in
    batches. The monitor bets against "nothing has changed" [1]_; what it wins is the evidence.
    However long the line runs and however often you look, the evidence of a line that has not
    changed ever reaches ``1 / level`` with a probability of at most `level`.

    Parameters
    ----------
    calibration_scores : array-like of shape (n,) or None, default=None
        Scores of normal images that the detector has not learned from, such as
        ``detector.calibration_scores_``; one for each lot, and for copies of an image. Higher =
        more normal. Without them the monitor takes p-values.
    n_calibration : int or None, default=None
        With p-values: the number of calibration scores that they were computed with. ``None``
        counts `calibration_scores`.
    level : float, default=0.01
        In (0, 1): probability that a line without a change ever gives an alarm, on average over
        calibration sets. With groups, it is that of each group, and of the whole line.
    anomaly_share : float, default=0.05
        In [0, 1): share of anomalies that is no change. Images with p-values up to this are not
        compared; only their share counts.
    target_fpr : float, default=0.05
        In (0, 1): images with p-values up to this are counted as flagged.
    confidence : float, default=0.95
        In (0, 1): of the interval of the rate of flagged images, at all times together.
    rate_window : int, default=1000
        The rate is that of the current window of so many images and the window before it.
    random_state : int, default=0
        Seed that tells equal scores apart. Without equal scores nothing is random.

    Attributes
    ----------
    n_images_ : int
        Number of images so far, which is also the number of the next one; the first one is 0.
    calibrated_at_ : int
        Number of the first image after the calibration in use.
    n_calibration_ : int
        Number of calibration scores in use.
    groups_ : list of str
        Groups since then, in the order in which they came.

    Raises
    ------
    ValueError
        If a parameter is out of range, or there are neither calibration scores nor their number.

    Warns
    -----
    CalibrationWarning
        If there are too few calibration scores for `target_fpr`; the lowest rate is then used.

    See Also
    --------
    OnlineFDR : Says which of the images to flag.
    skanomaly_vit.calibration.drift_test : Tests one batch; its level holds for one look.
    skanomaly_vit.display.EvidenceDisplay : Draws the evidence.

    Notes
    -----
    **Guarantee.** It holds if normal images are drawn independently from the distribution of the
    calibration images, and at most `anomaly_share` of the images at any time are anomalies, with
    p-values up to `anomaly_share`. Others count as normal. Images of one lot or video depend on
    each other: feed one score for each lot, and calibrate with such scores.

    **Why not multiply bets on p-values.** P-values from one calibration set are each uniform, but
    not independent: if the set happened to score high, all later p-values are small, and a product
    of bets grows without a change. Here the next image falls into one of the n + 1 places among
    the calibration scores with a probability of (1 + earlier images there) / (n + 1 + earlier
    images): exactly, for any continuous scores, as in Polya's urn [2]_. Bets are made at these
    odds, and their product is a martingale. The price: a change is compared with what n images
    tell, and after many images the new line is what is known. More than 1,000 places are merged.

    **Evidence.** The bets are on scores that move down or up, spread or draw together, and on a
    larger share of the lowest ones. Capital moves between them as in the simple jumper [1]_, at
    rates of 1e-2 to 1e-6, so that late changes are found as well. It starts at 0.9 if some images
    are left out: a tenth of `level` covers calibration sets that hold too few low scores.

    **Since.** The first image of the run over which the most successful bet has won most: the
    most likely change point if one bet was right since then (Page's CUSUM). It is fixed at the
    alarm; it is an estimate and has no guarantee.

    **Rate.** The interval holds at all times of a window for the mean rate, which may vary
    [3]_. The rate counts all images: it is that of false alarms where images are normal, and with a
    share d of anomalies the false-alarm rate is at most ``rate_high / (1 - d)``.

    References
    ----------
    .. [1] V. Vovk, I. Petej, I. Nouretdinov, E. Ahlberg, L. Carlsson and A. Gammerman, "Retrain or
       not retrain: conformal test martingales for change-point detection", COPA 2021.
    .. [2] D. Blackwell and J. MacQueen, "Ferguson distributions via Polya urn schemes", Annals of
       Statistics 1, 1973.
    .. [3] S. Howard, A. Ramdas, J. McAuliffe and J. Sekhon, "Time-uniform, nonparametric,
       nonasymptotic confidence sequences", Annals of Statistics 49, 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from skanomaly_vit.monitoring import LineMonitor
    >>> rng = np.random.default_rng(0)
    >>> monitor = LineMonitor(rng.normal(size=200))
    >>> monitor.update(rng.normal(size=300)).changed
    False
    >>> found = monitor.update(rng.normal(-1, 1, size=100))
    >>> found.changed, found.direction, 290 < found.since < 310
    (True, 'lower', True)
    """

    def __init__(
        self,
        calibration_scores: Any = None,
        *,
        n_calibration: int | None = None,
        level: float = 0.01,
        anomaly_share: float = 0.05,
        target_fpr: float = 0.05,
        confidence: float = 0.95,
        rate_window: int = 1000,
        random_state: int = 0,
    ) -> None:
        self.level = level
        self.anomaly_share = anomaly_share
        self.target_fpr = target_fpr
        self.confidence = confidence
        self.rate_window = rate_window
        self.random_state = random_state
        self._check_settings()
        self.n_images_ = 0
        self._calibrate(calibration_scores, n_calibration)

    def _check_settings(self) -> None:
        for name in ("level", "target_fpr", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is not in (0, 1)")
        if not 0 <= self.anomaly_share < 1:
            raise ValueError(f"anomaly_share={self.anomaly_share!r} is not in [0, 1)")
        for name, lowest in (("rate_window", 1), ("random_state", 0)):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < lowest:
                raise ValueError(f"{name}={value!r} is not an integer of {lowest} or more")

    def _calibrate(self, calibration_scores: Any, n_calibration: int | None) -> None:
        known = threshold = None
        if calibration_scores is None:
            n = _required_count(n_calibration)
        else:
            known = checked_vector(calibration_scores, "calibration_scores")
            n = len(known)
            if n_calibration not in (None, n):
                raise ValueError(
                    f"n_calibration={n_calibration}, and there are {n} calibration scores; pass "
                    "one of the two"
                )
            threshold = conformal_threshold(known, self.target_fpr)
        self.n_calibration_, self._threshold = n, threshold
        self._cells = Cells(n, self.anomaly_share)
        self._edges = None if known is None else Edges.of(known, self._cells, self.random_state)
        self._begin()

    def _begin(self) -> None:
        self.calibrated_at_ = self.n_images_
        self._line = self._new_line()
        self._groups: dict[str, Line] = {}

    def _new_line(self) -> Line:
        return Line(self._cells, self.anomaly_share, self.level, self.rate_window)

    @property
    def groups_(self) -> list[str]:
        """Groups since the calibration, in the order in which they came."""
        return list(self._groups)

    def update(
        self,
        scores: Any = None,
        *,
        p_values: Any = None,
        groups: Any = None,
        first: int | None = None,
    ) -> Bunch:
        """Count the next images.

        Parameters
        ----------
        scores : array-like of shape (m,) or None, default=None
            Scores of the images, in the order in which they came; of all, not of suspicious ones.
            Higher = more normal. An empty batch changes nothing.
        p_values : array-like of shape (m,) or None, default=None
            P-values in place of scores, as `conformal_p_values` gives without groups.
        groups : array-like of shape (m,) or None, default=None
            Camera or lot of each image. Each group is watched on its own, too, against the same
            calibration; groups are told apart by their text.
        first : int or None, default=None
            Number that the first of these images should have. A script that runs twice by mistake
            then gets an error in place of counting its images twice. ``None`` takes `n_images_`.

        Returns
        -------
        status : Bunch
            As `status` returns, of the whole line.

        Raises
        ------
        ValueError
            If not exactly one of `scores` and `p_values` is given, scores without calibration
            scores, a value is NaN or a p-value out of [0, 1] or none of the calibration's, groups
            do not fit, or `first` is not the next number. Nothing is counted then.
        """
        if first is not None and first != self.n_images_:
            raise ValueError(
                f"first={first}, but the next image is number {self.n_images_}; images before it "
                "have been counted, and none may be left out"
            )
        cells, is_flagged = self._placed(scores, p_values)
        names = _group_names(groups, len(cells))
        for i, (cell, flagged) in enumerate(zip(cells.tolist(), is_flagged.tolist(), strict=True)):
            lines = [self._line]
            if names is not None:
                lines.append(self._group(names[i]))
            for line in lines:
                line.add(self.n_images_, cell, flagged)
            self.n_images_ += 1
        return self.status()

    def _group(self, name: str) -> Line:
        if name not in self._groups:
            self._groups[name] = self._new_line()
        return self._groups[name]

    def _placed(self, scores: Any, p_values: Any) -> tuple[np.ndarray, np.ndarray]:
        """Cell of each image, and whether it is flagged."""
        if (scores is None) == (p_values is None):
            raise ValueError("pass either scores or p_values")
        if scores is None:
            values = checked_p_values(p_values)
            return self._cells.of_p_values(values), values <= self.target_fpr + 1e-9
        if self._edges is None:
            raise ValueError(
                "scores need calibration scores, and this monitor has only their number; make it "
                "with calibration_scores, or pass p_values"
            )
        values = checked_vector(scores, "scores")
        return self._edges.cells_of(values, self.n_images_), values < self._threshold

    def status(self, group: Hashable = None) -> Bunch:
        """What is known of the line now.

        Parameters
        ----------
        group : str, int or None, default=None
            One of `groups_`; ``None`` is the whole line.

        Returns
        -------
        status : Bunch
            - ``n_images``: int, images of the line or the group since the calibration.
            - ``changed``: bool, whether the evidence has reached ``1 / level``, now or earlier.
            - ``log10_evidence``: float, the evidence now; it can fall again.
            - ``alarm_at``: int, number of the image at which that happened, or None.
            - ``since``: int, number of the image with which the change began, estimated, or None.
            - ``direction``: ``"lower"``, ``"higher"`` or ``"different"`` scores, or None; scores
              that spread may read as higher, as the lowest are not compared.
            - ``rate``, ``rate_low``, ``rate_high``: float, share of flagged images of late, and its
              interval; ``rate`` is None without images.
            - ``rate_since``: int, number of the image with which that rate begins, or None.

        Raises
        ------
        ValueError
            If there is no such group.
        """
        line = self._line_of(group)
        number, since, direction = line.alarm or (None, None, None)
        return Bunch(
            n_images=line.n,
            changed=line.alarm is not None,
            log10_evidence=line.bets.log10_capital,
            alarm_at=number,
            since=since,
            direction=direction,
            **line.rate.summary(self.confidence),
        )

    def history(self, group: Hashable = None) -> Bunch:
        """Evidence over the images, for a chart.

        Parameters
        ----------
        group : str, int or None, default=None
            One of `groups_`; ``None`` is the whole line.

        Returns
        -------
        history : Bunch
            - ``images``: ndarray of shape (n_points,), int, numbers of images; at most 512, evenly
              spread since the calibration.
            - ``log10_evidence``: ndarray of shape (n_points,), float64, the evidence after each.

        Raises
        ------
        ValueError
            If there is no such group.
        """
        images, evidence = self._line_of(group).history()
        return Bunch(images=images, log10_evidence=evidence)

    def _line_of(self, group: Hashable) -> Line:
        if group is None:
            return self._line
        if str(group) not in self._groups:
            raise ValueError(f"there is no group {group!r} among {self.groups_[:20]}")
        return self._groups[str(group)]

    def drop(self, group: Hashable) -> LineMonitor:
        """Forget a group, such as a lot that has ended.

        Parameters
        ----------
        group : str or int
            One of `groups_`. If it comes again, it begins anew, with a promise of its own.

        Returns
        -------
        self : LineMonitor
            The monitor.

        Raises
        ------
        ValueError
            If there is no such group.
        """
        self._line_of(group)
        del self._groups[str(group)]
        return self

    def recalibrate(
        self, calibration_scores: Any = None, *, n_calibration: int | None = None
    ) -> LineMonitor:
        """Begin anew with other calibration images, after a change or from time to time.

        The monitor never does this by itself: images in which the change has begun would make it
        the new normal.

        Parameters
        ----------
        calibration_scores : array-like of shape (n,) or None, default=None
            Scores of images that somebody has looked at and found normal, chosen without regard to
            scores; they replace the earlier ones.
        n_calibration : int or None, default=None
            As for the class.

        Returns
        -------
        self : LineMonitor
            The monitor, without evidence, alarm, rate and groups; numbers of images go on. The
            guarantee begins anew: of k calibrations, at most ``k * level`` give a false alarm.

        Raises
        ------
        ValueError
            As for the class; the monitor is then as it was.
        """
        self._calibrate(calibration_scores, n_calibration)
        return self

    def to_dict(self) -> dict[str, Any]:
        """State, for JSON.

        Returns
        -------
        state : dict
            What `from_dict` takes. As text at most some 60 kB, and 15 kB for each group, however
            many images there were.
        """
        return {
            "kind": type(self).__name__, "format": 1,
            "settings": {name: getattr(self, name) for name in _SETTINGS},
            "n_images": self.n_images_, "calibrated_at": self.calibrated_at_,
            "n_calibration": self.n_calibration_, "threshold": self._threshold,
            "edges": None if self._edges is None else self._edges.to_dict(),
            "line": self._line.to_dict(),
            "groups": {name: line.to_dict() for name, line in self._groups.items()},
        }  # fmt: skip

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> LineMonitor:
        """Go on where another one stopped.

        Parameters
        ----------
        state : dict
            What `to_dict` returned, also after JSON.

        Returns
        -------
        monitor : LineMonitor
            It continues to the bit as the other one would have.

        Raises
        ------
        ValueError
            If `state` is not one of a `LineMonitor`.
        """
        with state_of(cls.__name__, state):
            monitor = cls(n_calibration=state["n_calibration"], **state["settings"])
            monitor.n_images_ = int(state["n_images"])
            monitor.calibrated_at_ = int(state["calibrated_at"])
            monitor._threshold = state["threshold"]
            monitor._edges = _read_edges(state["edges"], monitor._cells, monitor.random_state)
            monitor._line.read(state["line"])
            monitor._groups = {
                name: monitor._new_line().read(line) for name, line in state["groups"].items()
            }
        return monitor


def _required_count(n_calibration: Any) -> int:
    if not isinstance(n_calibration, Integral) or n_calibration < 1:
        raise ValueError(
            f"n_calibration={n_calibration!r}; pass calibration_scores, or for p-values the number "
            "of calibration scores that they were computed with"
        )
    return int(n_calibration)


def _read_edges(state: dict[str, Any] | None, cells: Cells, random_state: int) -> Edges | None:
    if state is None:
        return None
    shape = (len(cells.starts) - 1,)
    scores = np.array(state["scores"], dtype=float).reshape(shape)
    keys = np.array(state["keys"], dtype=float).reshape(shape)
    return Edges(scores, keys, random_state)


def _group_names(groups: Any, n: int) -> list[str] | None:
    if groups is None:
        return None
    values = np.asarray(groups)
    if values.shape != (n,):
        raise ValueError(f"groups have shape {values.shape}; pass the group of each of {n} images")
    missing = [i for i, value in enumerate(values) if value is None or value != value]
    if missing:
        raise ValueError(f"the group of image {missing[0]} is missing; name all groups, or none")
    return [str(value) for value in values]
