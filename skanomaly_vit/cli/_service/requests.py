"""Bodies of requests: received within limits, as one image or several."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from skanomaly_vit.cli._service.service import Limits


async def receive(request: Request, limits: Limits) -> bytes:
    """Receive a body, and raise if it is too large, comes too slowly, or ends early."""
    try:
        async with asyncio.timeout(limits.body_timeout):
            content = await _receive(request, limits.max_body)
    except TimeoutError:
        raise HTTPException(
            408, f"The request was not complete after {limits.body_timeout:g} seconds."
        ) from None
    except ClientDisconnect:
        raise HTTPException(400, "The request ended early.") from None
    if content is None:
        raise HTTPException(
            413, f"The request is larger than the {limits.max_body} bytes taken here."
        )
    return content


async def _receive(request: Request, max_body: int) -> bytes | None:
    """The body; None if it is too large: the server drops the rest."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_body:
        return None
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > max_body:
            return None
    return bytes(content)


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
