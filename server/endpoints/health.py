"""GET /health and GET /version."""

from __future__ import annotations

import msgspec
from starlette.requests import Request

from qwell import __version__
from qwell.server.json_body import JsonResponse
from qwell.server.service import Service


class Health(msgspec.Struct):
    """`status` is "ok", "loading", "restarting" (the engine died) or "draining"."""

    status: str


class Version(msgspec.Struct):
    """The version of qwell."""

    version: str


async def health(service: Service, _request: Request) -> JsonResponse:
    """200 while requests can run; 503 while the engine loads or is replaced, and at the end."""
    status = "draining" if service.lifecycle.draining else service.engine.status
    return JsonResponse(Health(status), 200 if status == "ok" else 503)


async def version(_request: Request) -> JsonResponse:
    """The version of qwell."""
    return JsonResponse(Version(__version__))
