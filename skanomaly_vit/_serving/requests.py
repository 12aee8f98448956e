"""Bodies of requests: received within limits, as one image or several."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json

from starlette.exceptions import HTTPException
from starlette.requests import Request

from skanomaly_vit._serving.service import Limits

#: Of a body that is refused, this many bytes are read and dropped, so that the client reads the
#: answer in place of a closed connection.
_DROPPED = 2**26


async def receive(request: Request, limits: Limits) -> bytes:
    """Receive a body, and raise if it is too large, or comes too slowly."""
    try:
        async with asyncio.timeout(limits.body_timeout):
            return await _receive(request, limits.max_body)
    except TimeoutError:
        raise HTTPException(
            408, f"The request was not complete after {limits.body_timeout:g} seconds."
        ) from None


async def drop(request: Request, limits: Limits) -> None:
    """Read a body that nobody wants, for a while."""
    n_bytes = 0
    try:
        async with asyncio.timeout(limits.body_timeout):
            async for chunk in request.stream():
                n_bytes += len(chunk)
                if n_bytes > _DROPPED:
                    return
    except TimeoutError:
        return


async def _receive(request: Request, max_body: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_body:
        raise _too_large(max_body)
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > max_body:
            raise _too_large(max_body)
    return bytes(content)


def _too_large(max_body: int) -> HTTPException:
    return HTTPException(413, f"The request is larger than the {max_body} bytes taken here.")


def media_type(request: Request) -> str:
    """The content type of a request, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_image(kind: str) -> bool:
    """Whether a content type says that the body is one image."""
    return kind.startswith("image/") or kind == "application/octet-stream"


def images_of(body: bytes, most: int) -> list[bytes]:
    """The images of ``{"images": [<base64>, ...]}``."""
    try:
        texts = json.loads(body)["images"]
        if not isinstance(texts, list):
            raise TypeError
        images = [base64.b64decode(text, validate=True) for text in texts]
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise HTTPException(
            422, 'A JSON request is an object {"images": [...]} with each image in base64.'
        ) from None
    if not images:
        raise HTTPException(422, "The list of images is empty.")
    if len(images) > most:
        raise HTTPException(413, f"The request has more than the {most} images taken here.")
    return images
