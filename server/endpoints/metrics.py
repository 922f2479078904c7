"""GET /metrics"""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from qwell.server.service import Service


async def show_metrics(service: Service, _request: Request) -> Response:
    """All figures, in the text format that every collector reads."""
    content = generate_latest(service.engine.metrics.registry)
    return Response(content, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})
