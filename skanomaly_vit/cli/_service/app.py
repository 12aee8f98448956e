"""The service as an ASGI application: routes, answers, and errors of one sentence."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skanomaly_vit._utils.version import __version__
from skanomaly_vit.cli._service.batches import FullError, Job, StoppingError
from skanomaly_vit.cli._service.bodies import NotAnImageError, count_pixels
from skanomaly_vit.cli._service.metrics import CONTENT_TYPE
from skanomaly_vit.cli._service.pictures import draw_map
from skanomaly_vit.cli._service.requests import images_of, is_image, media_type, receive
from skanomaly_vit.cli._service.service import Answer, ScoringError, Service

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}

_PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}

_RETRY = {"retry-after": "1"}

_BUSY = "All places are taken; try again in a second."
_STOPPING = "The service is stopping."
_FAILED = "The service could not score this image; its log says why."


def create_app(service: Service) -> ASGIApp:
    """Make the application; its lifespan starts the worker, and closes it once all is answered."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await asyncio.to_thread(service.close)

    endpoints = _Endpoints(service)
    app = Starlette(
        routes=[
            Route("/score", endpoints.score, methods=["POST"]),
            Route("/map", endpoints.map, methods=["POST"]),
            Route("/health", endpoints.health),
            Route("/metrics", endpoints.metrics),
            *(Route(path, _static(name, kind)) for path, (name, kind) in _PAGE.items()),
        ],
        exception_handlers={HTTPException: _answer_http, Exception: _answer_crash},
        lifespan=lifespan,
    )
    known = {route.path for route in app.routes if isinstance(route, Route)}
    # Around all else, also what answers errors that nobody foresaw.
    return _Envelope(app, service, known)


class _Endpoints:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def score(self, request: Request) -> Response:
        kind = media_type(request)
        if kind == "application/json":
            return await self._score_several(request)
        if not is_image(kind):
            raise HTTPException(
                415, "Send an image with its content type, such as image/png, or application/json."
            )
        (answer,) = await self._answers(request, _whole, with_map=False)
        return JSONResponse(self._described(_required(answer)))

    async def map(self, request: Request) -> Response:
        if not self._service.scorer.has_maps:
            raise HTTPException(404, "This model has no anomaly maps.")
        if not is_image(media_type(request)):
            raise HTTPException(415, "Send an image with its content type, such as image/png.")
        (answer,) = await self._answers(request, _whole, with_map=True)
        found = _required(answer)
        picture = await run_in_threadpool(draw_map, found.pixels, found.verdict.anomaly_map)
        return Response(picture, media_type="image/png")

    async def health(self, request: Request) -> Response:
        service = self._service
        working = service.worker.is_working
        return JSONResponse(
            {
                "status": "ok" if working else "stopping",
                "version": __version__,
                "model_sha256": service.model_digest,
                "threshold": service.scorer.threshold,
                "has_maps": service.scorer.has_maps,
                "max_body": service.limits.max_body,
                "max_pixels": service.limits.max_pixels,
            },
            status_code=200 if working else 503,
        )

    async def metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def _score_several(self, request: Request) -> Response:
        places = self._service.limits.places
        answers = await self._answers(request, lambda body: images_of(body, places), with_map=False)
        return JSONResponse(
            {
                "results": [
                    {"error": str(answer)}
                    if isinstance(answer, NotAnImageError)
                    else self._described(_required(answer))
                    for answer in answers
                ]
            }
        )

    async def _answers(
        self, request: Request, split: Callable[[bytes], list[bytes]], *, with_map: bool
    ) -> list[Answer | BaseException]:
        """Receive the images of a request, and wait for the answer or the error of each."""
        worker, limits = self._service.worker, self._service.limits
        try:
            # Before the body is received: the places bound the memory, too.
            with worker.reserve():
                contents = split(await receive(request, limits))
                with worker.reserve(len(contents) - 1):
                    return await self._wait(contents, with_map)
        except FullError:
            raise HTTPException(503, _BUSY, _RETRY) from None
        except StoppingError:
            raise HTTPException(503, _STOPPING, _RETRY) from None

    async def _wait(self, contents: list[bytes], with_map: bool) -> list[Answer | BaseException]:
        answers = [await self._look(content, with_map) for content in contents]
        jobs = [answer for answer in answers if isinstance(answer, Job)]
        self._service.worker.submit(jobs)
        found = iter(
            await asyncio.gather(
                *(asyncio.wrap_future(job.result) for job in jobs), return_exceptions=True
            )
        )
        return [next(found) if isinstance(answer, Job) else answer for answer in answers]

    async def _look(self, content: bytes, with_map: bool) -> Job | NotAnImageError:
        max_pixels = self._service.limits.max_pixels
        try:
            n_pixels = await run_in_threadpool(count_pixels, content, max_pixels)
        except NotAnImageError as error:
            return error
        return Job(content, n_pixels, with_map)

    def _described(self, answer: Answer) -> dict[str, Any]:
        verdict = answer.verdict
        return {
            "score": _number(verdict.score),
            "decision": _number(verdict.decision),
            "flag": verdict.flag,
            "p_value": verdict.p_value,
            "threshold": _number(self._service.scorer.threshold),
            "remarks": answer.remarks,
        }


def _whole(body: bytes) -> list[bytes]:
    return [body]


def _required(answer: Answer | BaseException) -> Answer:
    if isinstance(answer, NotAnImageError):
        raise HTTPException(422, f"The image cannot be read: {answer}.")
    if isinstance(answer, ScoringError):
        raise HTTPException(500, _FAILED)
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _number(value: float) -> float | None:
    """A number that JSON has: a kernel density may give -inf."""
    return value if math.isfinite(value) else None


def _static(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = files("skanomaly_vit.cli._service").joinpath("page", name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


async def _answer_http(request: Request, error: Exception) -> Response:
    code = getattr(error, "status_code", 500)
    said = {404: "There is nothing here.", 405: "This address takes another method."}
    detail = getattr(error, "detail", "")
    if detail in ("Not Found", "Method Not Allowed"):
        detail = said[code]
    return JSONResponse({"error": detail}, code, headers=getattr(error, "headers", None))


async def _answer_crash(request: Request, error: Exception) -> Response:
    """Say nothing of an error that nobody foresaw; the server logs it."""
    return JSONResponse({"error": _FAILED}, 500)


class _Envelope:
    """Adds headers to each answer, and counts it."""

    def __init__(self, app: ASGIApp, service: Service, known: set[str]) -> None:
        self._app = app
        self._metrics = service.metrics
        self._known = known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Not any path that somebody asks for, of which there is no end.
                path = scope["path"] if scope["path"] in self._known else "other"
                self._metrics.count_request(path, message["status"])
                extra = [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        await self._app(scope, receive, send_with_headers)
