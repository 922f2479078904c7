"""The chat page at /, one static file, and what it needs to know of the model."""

from __future__ import annotations

from pathlib import Path

import msgspec
from starlette.requests import Request

from qwell import __version__
from qwell.server.html_page import HtmlPage
from qwell.server.json_body import JsonResponse
from qwell.server.protocol.models import listed_ids
from qwell.server.service import Service

_FILE = Path(__file__).parents[1] / "static" / "chat.html"


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

    async def show(self, _request: Request) -> HtmlPage:
        """GET /"""
        return HtmlPage(self._content)

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
