"""A server process: one socket, and an end that answers what was taken."""

from __future__ import annotations

import socket
from contextlib import suppress

import uvicorn

from skanomaly_vit.cli._service.app import create_app
from skanomaly_vit.cli._service.service import Service

#: Seconds that connections have to end after a signal to stop.
_GRACE = 60


def listen(host: str, port: int) -> socket.socket:
    """Open the socket; port 0 is any free one. An OSError says that the address is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)


def make_server(service: Service) -> uvicorn.Server:
    """Make a server of a service; `run` with a socket serves until a signal or `should_exit`."""
    return uvicorn.Server(
        uvicorn.Config(
            create_app(service),
            http="h11",
            ws="none",
            lifespan="on",
            access_log=False,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_GRACE,
        )
    )


def serve(service: Service, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C, and answer every request that was taken before."""
    # The server repeats the signal for the handler of the process, once it has stopped.
    with suppress(KeyboardInterrupt):
        make_server(service).run(sockets=[listener])
