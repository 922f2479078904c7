"""The chat page at /, one static file, and what it needs to know of the model."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from qwell import __version__
from qwell.server.json_body import JsonResponse
from qwell.server.protocol.models import listed_ids
from qwell.server.service import Service

_FILE = Path(__file__).parents[1] / "static" / "chat.html"
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_STYLE = re.compile(rb"<style>(.*?)</style>", re.DOTALL)


class ModelDescription(msgspec.Struct, kw_only=True):
    """What the page shows and asks for. `context` is null until the model is loaded.

    `thinking` says that the chat template can be told not to think.
    """

    id: str
    name: str
    thinking: bool
    context: int | None
    version: str = __version__


class ChatPage:
    """The page; `model_name` is what it calls the model."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        self._content = _FILE.read_bytes()
        self._headers = {
            "Content-Security-Policy": _content_security_policy(self._content),
            "Cache-Control": "no-cache",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }

    async def show(self, _request: Request) -> Response:
        """GET /"""
        return Response(self._content, headers=self._headers, media_type="text/html")

    async def describe_model(self, service: Service, _request: Request) -> JsonResponse:
        """GET /ui/model"""
        template = service.text.chat_template
        is_ready = service.engine.status == "ok"
        description = ModelDescription(
            id=listed_ids(service.served_model_names)[0],
            name=self._model_name,
            thinking=template is not None and "enable_thinking" in template.variables,
            context=service.engine.ready_info().max_model_len if is_ready else None,
        )
        return JsonResponse(description)


def _content_security_policy(page: bytes) -> str:
    """Only the page's own script and style run, and they reach this server only."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(_SCRIPT, page)}",
            f"style-src {_hash(_STYLE, page)}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _hash(element: re.Pattern[bytes], page: bytes) -> str:
    (content,) = element.findall(page)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
