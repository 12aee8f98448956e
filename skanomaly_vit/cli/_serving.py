"""The command ``serve``: a model behind HTTP."""

from __future__ import annotations

import logging
import os
import socket

import click

from skanomaly_vit.cli._detectors import digest_of, load_scorer
from skanomaly_vit.cli._options import (
    HARMLESS,
    batch_size_option,
    device_option,
    epilog,
    jobs_option,
    model_argument,
    require,
)
from skanomaly_vit.cli._terminal import tell, told_warnings

_MEBIBYTE = 2**20


@click.command(
    "serve",
    short_help="Score images over HTTP.",
    epilog=epilog(
        "skanomaly serve parts.skanomaly --port 8765",
        "curl -H 'Content-Type: image/png' --data-binary @1.png http://localhost:8765/score",
        note=HARMLESS,
    ),
)
@model_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--queue",
    "places",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="N",
    help="Images in the service at once; beyond that, the answer is 503.",
)
@click.option(
    "--batch-wait",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    metavar="MS",
    help="Milliseconds that a batch waits for more images.",
)
@click.option(
    "--max-body",
    type=click.FloatRange(min=0, min_open=True),
    default=32.0,
    show_default=True,
    metavar="MIB",
    help="Largest request in MiB; beyond that, the answer is 413.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    metavar="N",
    help="Reject images of more pixels.  [default: 2^25, or the model's if lower]",
)
@device_option
@jobs_option
@batch_size_option
def serve_command(
    model: str,
    host: str,
    port: int,
    places: int,
    batch_wait: float,
    max_body: float,
    max_pixels: int | None,
    device: str | None,
    jobs: int | None,
    batch_size: int | None,
) -> None:
    """Score images over HTTP, with a .skanomaly or .onnx file (the latter without torch).

    POST /score answers with score, decision, flag and p_value, POST /map with a picture of the
    anomaly map; GET / is a page to drop an image on, GET /health and GET /metrics are for machines.
    There is no authentication: put a proxy before it, or keep it on this machine. SIGTERM and
    Ctrl-C end it after the last answer.
    """
    require("serve", "the service")
    # First, since it takes no time to see that the address is taken.
    with _listen(host, port) as listener:
        scorer = load_scorer(model, device)
        from skanomaly_vit.cli._service.server import serve
        from skanomaly_vit.cli._service.service import Limits, Service

        limits = Limits(
            max_body=int(max_body * _MEBIBYTE),
            max_pixels=max_pixels or min(scorer.max_pixels or 2**25, 2**25),
            places=places,
            batch_size=batch_size or Limits.batch_size,
            max_wait=batch_wait / 1000,
        )
        service = Service(scorer, limits, n_jobs=_threads(jobs), model_digest=digest_of(model))
        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
        tell(f"Serving {model} on {_address(listener)}")
        with told_warnings():
            serve(service, listener)
    tell("Stopped; every image that was taken has its answer.")


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listen(host: str, port: int) -> socket.socket:
    from skanomaly_vit.cli._service.server import listen

    try:
        return listen(host, port)
    except OSError as error:
        raise click.UsageError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}. Pass another "
            "--port, or an address of this machine as --host."
        ) from error


def _threads(jobs: int | None) -> int:
    """Number of threads, from joblib's: -1 is all cores, -2 all but one."""
    if jobs is None:
        return 1
    return jobs if jobs > 0 else max(1, (os.cpu_count() or 1) + 1 + jobs)
