"""Reads and writes JSON, of which nothing is believed before it has been looked at."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

MAX_BODY_BYTES = 1024 * 1024
BODY_SECONDS = 30.0
"""How long a client may take to send a body."""

M = TypeVar("M", bound=BaseModel)


async def read(request: Request, model: type[M]) -> M:
    """The body of a request. Raises `HTTPException` as `receive` and `parse`."""
    return parse(await receive(request), model)


async def receive(request: Request) -> bytes:
    """The body of a request as it came; an empty one stands for an empty object.

    Raises `HTTPException`: 408 if it does not come in time, 413 if it is too large, 415 if it is not JSON by its
    headers.
    """
    try:
        data = await asyncio.wait_for(_read_bytes(request), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"The body did not come within {BODY_SECONDS:.0f} seconds.") from None
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity")
    if data and (media_type != "application/json" or encoding != "identity"):
        raise HTTPException(415, "Send the body as application/json, without a content encoding.")
    return data or b"{}"


def parse(data: bytes, model: type[M]) -> M:
    """What a body says. Raises `HTTPException` 422 if that is not what it should be.

    NaN and infinities are not JSON (RFC 8259, section 6).
    """
    try:
        return model.model_validate(from_json(data, allow_inf_nan=False))
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        places = "; ".join(f"{_place(problem['loc'])}: {problem['msg']}" for problem in problems[:5])
        raise HTTPException(422, f"The body does not fit. {places}.") from None
    except ValueError:
        raise HTTPException(422, "The body is not JSON.") from None


def answer(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer as JSON, which no cache keeps."""
    return Response(
        model.model_dump_json(),
        status,
        {"cache-control": "no-store", **(headers or {})},
        media_type="application/json",
    )


async def _read_bytes(request: Request) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise _too_large()
    return bytes(data)


def _too_large() -> HTTPException:
    return HTTPException(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")


def _place(location: tuple[int | str, ...]) -> str:
    # The first part is a field of the model or a name that the caller has made up, which is not repeated.
    return str(location[0]) if location and location[0] in ("args", "kwargs") else "body"
