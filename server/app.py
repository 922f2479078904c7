"""The application: which path answers what, behind which middleware."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp

from qwell.runtime.errors import QwellError
from qwell.server.auth import Authentication
from qwell.server.disconnect import CancelOnDisconnect
from qwell.server.endpoints.api_docs import show_docs, show_openapi
from qwell.server.endpoints.chat import create_chat_completion
from qwell.server.endpoints.completions import create_completion
from qwell.server.endpoints.health import health, version
from qwell.server.endpoints.metrics import show_metrics
from qwell.server.endpoints.models import list_models, show_model
from qwell.server.endpoints.page import ChatPage
from qwell.server.endpoints.tokenize import detokenize, tokenize
from qwell.server.errors import answer_exception, answer_http_exception
from qwell.server.lifecycle import Admission
from qwell.server.metrics import CountResponses
from qwell.server.request_id import RequestIds
from qwell.server.service import Service

_READ_IN_BROWSERS = frozenset(("/docs", "/openapi.json", "/metrics"))


def api_routes(service: Service) -> list[Route]:
    """What the server answers, but for the chat page."""
    return [
        Route("/health", partial(health, service)),
        Route("/version", version),
        Route("/metrics", partial(show_metrics, service)),
        Route("/docs", show_docs),
        Route("/openapi.json", show_openapi),
        Route("/tokenize", partial(tokenize, service), methods=["POST"]),
        Route("/detokenize", partial(detokenize, service), methods=["POST"]),
        Route("/v1/models", partial(list_models, service)),
        Route("/v1/models/{model_id:path}", partial(show_model, service)),
        Route("/v1/completions", partial(create_completion, service), methods=["POST"]),
        Route("/v1/chat/completions", partial(create_chat_completion, service), methods=["POST"]),
    ]


def build_app(
    service: Service,
    *,
    api_keys: Sequence[str] = (),
    api_auth: tuple[str, str] | None = None,
    cors_origins: Sequence[str] = (),
    page: ChatPage | None = None,
) -> ASGIApp:
    """The ASGI application of one served model; open to everybody unless told otherwise."""
    routes = api_routes(service)
    open_paths = {"/health"}
    if page is not None:
        # The page holds nothing of model or users; it asks for the key that the rest needs.
        open_paths.add("/")
        routes += [
            Route("/", page.show),
            Route("/ui/model", partial(page.describe_model, service)),
        ]
    starlette = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: answer_http_exception,
            QwellError: answer_exception,
            Exception: answer_exception,
        },
    )
    starlette.router.redirect_slashes = False
    app: ASGIApp = Admission(CancelOnDisconnect(starlette), service.lifecycle)
    app = Authentication(
        app,
        api_keys=api_keys,
        api_auth=api_auth,
        open_paths=open_paths,
        browsed_paths=_READ_IN_BROWSERS,
    )
    app = CountResponses(app, service.engine.metrics, [route.path for route in routes])
    if cors_origins:
        # In front of the authentication: a browser's first question carries no credentials.
        app = CORSMiddleware(
            app,
            allow_origins=cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["retry-after", "x-request-id"],
        )
    return RequestIds(app)
