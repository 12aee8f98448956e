"""Counters of a service, in the text format of Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counters of one service.

    Parameters
    ----------
    taken : callable
        Returns the number of images in the service now.
    """

    def __init__(self, taken: Callable[[], int]) -> None:
        # Not the registry of the process, which a second service would share.
        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry, "namespace": "skanomaly"}
        self._requests = Counter("requests", "Answers.", ["path", "status"], **own)
        self._images = Counter("images", "Images scored.", ["verdict"], **own)
        for verdict in ("normal", "anomaly"):  # a rate needs a zero to begin from
            self._images.labels(verdict)
        self._sizes = Histogram(
            "batch_images", "Images of a pass.", buckets=(1, 2, 4, 8, 16, 32, 64), **own
        )
        self._seconds = Histogram("batch_seconds", "Duration of a pass.", **own)
        Gauge("images_in_service", "Images received, queued and scored.", **own).set_function(taken)

    def count_request(self, path: str, status: int) -> None:
        self._requests.labels(path, str(status)).inc()

    def count_verdict(self, flag: bool) -> None:
        self._images.labels("anomaly" if flag else "normal").inc()

    @contextmanager
    def timed_pass(self, n_images: int) -> Iterator[None]:
        """Measure a pass, also if it fails."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._sizes.observe(n_images)
            self._seconds.observe(time.perf_counter() - start)

    def text(self) -> bytes:
        """All values, for a scraper."""
        return generate_latest(self._registry)
