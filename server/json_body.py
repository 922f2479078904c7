"""Request bodies in, JSON answers out."""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from qwell.runtime.errors import RequestError
from qwell.server.errors import HttpError
from qwell.server.json_rules import check_json
from qwell.server.known_values import known_values

T = TypeVar("T")

# Longer bodies are checked beside the event loop, so that nobody else waits for it.
_LONG_BODY_BYTES = 64 << 10
_AT_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`$")
_UNKNOWN_VALUE = re.compile(r"Invalid (enum )?value (?P<value>.*)", re.DOTALL)
_NAMED_FIELD = re.compile(r"(unknown|required) field `(?P<field>[^`]*)`")


class JsonResponse(Response):
    """A msgspec struct, or any value msgspec can encode, as JSON."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """The body's bytes."""
        return msgspec.json.encode(content)


async def read_json(request: Request, decoder: msgspec.json.Decoder[T], max_bytes: int) -> T:
    """The body as the decoder's type.

    Raises:
        HttpError: 415 for a body that is not declared as JSON or is packed, 413 for one that is
            too long.
        RequestError: a body that is not JSON, breaks the rules of `check_json` or does not fit
            the type; `param` is the path of the value at fault.
    """
    _check_content_type(request)
    body = await _read_body(request, max_bytes)
    decoded = _decode(decoder, body)
    if len(body) > _LONG_BODY_BYTES:
        await asyncio.to_thread(check_json, body)
    else:
        check_json(body)
    return decoded


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid_value(str(error), decoder.type) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"The request body is not valid JSON: {error}") from None
    except RecursionError:
        raise RequestError("The request body is nested too deeply") from None


def _check_content_type(request: Request) -> None:
    given = request.headers.get("content-type", "")
    media_type = given.partition(";")[0].strip().lower()
    if media_type != "application/json":
        message = f"Content-Type must be application/json, got {given!r}"
        raise HttpError(415, message)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise HttpError(
            415, f"Content-Encoding must be identity, got {encoding!r}: send it as it is"
        )


async def _read_body(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_long(max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _too_long(max_bytes)
    return bytes(body)


def _too_long(max_bytes: int) -> HttpError:
    return HttpError(413, f"The request body is longer than {max_bytes} bytes")


def _invalid_value(description: str, request_type: object) -> RequestError:
    """msgspec's description of a misfit, with the path taken out of it as `param`."""
    at = _AT_PATH.search(description)
    path = at["path"] if at else ""
    problem = description[: at.start()] if at else description
    named = _NAMED_FIELD.search(problem)
    if named:
        path = f"{path}.{named['field']}" if path else named["field"]
    unknown = _UNKNOWN_VALUE.fullmatch(problem)
    if unknown:
        known = ", ".join(known_values(request_type, path))
        problem = f"{unknown['value']:.100} is none of the known values ({known})"
    message = f"{path}: {problem}" if path else problem
    return RequestError(message, param=path or None)
