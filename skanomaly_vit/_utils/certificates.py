"""Certificates: what is known of the false alarms of a threshold, for people."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Certificate:
    """How often a threshold flags normal images.

    Parameters
    ----------
    rate : float or None
        False-alarm rate at which the threshold was set; None if that is not recorded.
    confidence : float or None
        Share of deployments in which the rate holds; None if it holds on average over them.
    n_images : int
        Held-out images that set the threshold; 0 if none were held out.
    n_units : int
        Their groups, with copies of an image as one; `n_images` if each is a unit of its own.
    bound : float or None
        Rate that the threshold does not exceed in a share `bound_confidence` of deployments.
    bound_confidence : float or None
        None without a bound.
    """

    rate: float | None
    confidence: float | None
    n_images: int
    n_units: int
    bound: float | None
    bound_confidence: float | None

    def describe_rate(self) -> str:
        """The rate, and in what sense it holds."""
        if self.rate is None:
            return "not recorded"
        if self.n_images == 0:
            return f"{percent(self.rate)} of the training images; of new ones, more"
        if self.confidence is None:
            return self._describe_average(self.rate)
        return f"at most {percent(self.rate)} of normal images, in {self._share(self.confidence)}"

    def _describe_average(self, rate: float) -> str:
        """The rate; if it takes more images than there are, the lowest one, which is in use."""
        lowest = 1 / (self.n_units + 1)
        meaning = "of normal images, on average over deployments"
        if rate >= lowest:
            return f"{percent(rate)} {meaning}"
        return f"{percent(lowest)} {meaning}; {percent(rate)} takes more held-out images"

    def describe_calibration(self) -> str:
        """The images that set the threshold, and the bound that they give."""
        if self.n_images == 0:
            return "no held-out images, so there is no bound"
        count = f"{self.n_images} held-out images"
        if self.n_units != self.n_images:
            count += f" in {self.n_units} groups"
        if self.bound is None or self.bound_confidence is None:
            return f"{count}; no bound without a confidence"
        return f"{count}; at most {percent(self.bound)} in {self._share(self.bound_confidence)}"

    @staticmethod
    def _share(confidence: float) -> str:
        return f"{percent(confidence)} of deployments"


def percent(share: float) -> str:
    """A share in percent, with three digits."""
    return f"{100 * share:.3g} %"
