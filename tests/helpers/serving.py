"""Servers for tests: in a thread, on a free port; and scorers that wait, or fail."""

from __future__ import annotations

import io
import threading
import time
from contextlib import contextmanager

import httpx
import numpy as np
from PIL import Image

from skanomaly_vit.cli._service.scorers import Scorer
from skanomaly_vit.cli._service.server import listen, make_server
from skanomaly_vit.cli._service.service import Limits, Service


def png(image) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def wait_until(condition) -> None:
    """Wait for what will be; what never is ends with the timeout of the test."""
    while not condition():
        time.sleep(0.01)


class Brightness(Scorer):
    """Scores the mean of an image; waits while its gate is closed, and notes its batches."""

    threshold = 100.0
    max_pixels = None
    has_maps = False

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.batches = []
        self.error = None

    def _compute(self, images, with_maps):
        self.batches.append(len(images))
        self.gate.wait()
        if self.error is not None:
            raise self.error
        return np.array([image.mean() for image in images]), np.full(len(images), np.nan), None


@contextmanager
def serving(scorer, **limits):
    """A client of a server in a thread; `client.service` and `client.server` are its parts."""
    service = Service(scorer, Limits(**limits), model_digest="0" * 64)
    server = make_server(service)
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        wait_until(lambda: server.started)
        with httpx.Client(base_url=address, timeout=120) as client:
            client.service, client.server, client.thread = service, server, thread
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def send(client, image, path="/score", kind="image/png"):
    content = image if isinstance(image, bytes) else png(image)
    return client.post(path, content=content, headers={"content-type": kind})
