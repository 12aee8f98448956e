"""The service without HTTP: a scorer behind a queue, its limits, and its log."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from skanomaly_vit._images.decoding import Array
from skanomaly_vit.cli._service.batches import BatchWorker, Job
from skanomaly_vit.cli._service.bodies import NotAnImageError, decode
from skanomaly_vit.cli._service.metrics import Metrics
from skanomaly_vit.cli._service.scorers import Scorer, Verdict

log = logging.getLogger("skanomaly_vit.serve")


class ScoringError(RuntimeError):
    """A batch could not be scored; the log says why."""


@dataclass(frozen=True)
class Limits:
    """What the service takes.

    Parameters
    ----------
    max_body : int
        Bytes of a request.
    max_pixels : int
        Pixels of an image.
    places : int
        Images that are received, queued and scored at once.
    batch_size : int
        Images of a pass.
    max_wait : float
        Seconds that a batch waits for more images.
    body_timeout : float
        Seconds that a client has to send its request.
    """

    max_body: int = 2**25
    max_pixels: int = 2**25
    places: int = 64
    batch_size: int = 8
    max_wait: float = 0.005
    body_timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The verdict on an image, what is doubtful in it, and its pixels."""

    verdict: Verdict
    remarks: list[str]
    pixels: Array


class Service:
    """A scorer behind a bounded queue.

    Parameters
    ----------
    scorer : Scorer
    limits : Limits
    n_jobs : int, default=1
        Threads that decode images.
    model_digest : str, default=""
        SHA-256 of the model file.
    """

    def __init__(
        self, scorer: Scorer, limits: Limits, *, n_jobs: int = 1, model_digest: str = ""
    ) -> None:
        self.scorer = scorer
        self.limits = limits
        self.model_digest = model_digest
        self.worker = BatchWorker(
            self._process,
            places=limits.places,
            batch_size=limits.batch_size,
            batch_pixels=limits.max_pixels,
            max_wait=limits.max_wait,
        )
        self.metrics = Metrics(lambda: self.worker.taken)
        self._decoders = ThreadPoolExecutor(n_jobs, thread_name_prefix="skanomaly-decode")

    def close(self) -> None:
        """Answer everything that is queued, and stop."""
        self.worker.close()
        self._decoders.shutdown()

    def _process(self, batch: list[Job]) -> None:
        try:
            self._score(batch)
        except Exception:  # one batch must not end the service
            log.exception("a batch of %d images could not be scored", len(batch))
            for job in batch:
                if not job.result.done():
                    job.result.set_exception(ScoringError())

    def _score(self, batch: list[Job]) -> None:
        decoded = self._decode(batch)
        # Maps are as large as the images, so that only those get one that asked for it.
        for with_maps in (False, True):
            chosen = [each for each in decoded if each[0].with_map == with_maps]
            if not chosen:
                continue
            with self.metrics.timed_pass(len(chosen)):
                images = [pixels for _, pixels, _ in chosen]
                verdicts = self.scorer.score(images, with_maps=with_maps)
            for (job, pixels, remarks), verdict in zip(chosen, verdicts, strict=True):
                self.metrics.count_verdict(verdict.flag)
                job.result.set_result(Answer(verdict, remarks, pixels))

    def _decode(self, batch: list[Job]) -> list[tuple[Job, Array, list[str]]]:
        """Decoded images; a job whose image cannot be decoded is done."""
        limit = self.limits.max_pixels
        futures = [self._decoders.submit(decode, job.content, limit) for job in batch]
        decoded = []
        for job, future in zip(batch, futures, strict=True):
            try:
                pixels, remarks = future.result()
                self.scorer.check(pixels)
            except NotAnImageError as error:
                job.result.set_exception(error)
            else:
                decoded.append((job, pixels, remarks))
        return decoded
