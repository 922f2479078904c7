"""The application: which path answers what, behind which middleware."""

from __future__ import annotations

from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp

from qwell.runtime.errors import QwellError
from qwell.server.access_log import AccessLog
from qwell.server.auth import Authentication
from qwell.server.disconnect import CancelOnDisconnect
from qwell.server.endpoints.chat import create_chat_completion
from qwell.server.endpoints.completions import create_completion
from qwell.server.endpoints.health import health, version
from qwell.server.endpoints.models import list_models, show_model
from qwell.server.endpoints.tokenize import detokenize, tokenize
from qwell.server.errors import answer_exception, answer_http_exception
from qwell.server.lifecycle import Admission
from qwell.server.options import ServeOptions
from qwell.server.request_id import RequestIds
from qwell.server.service import Service


def build_app(service: Service, options: ServeOptions) -> ASGIApp:
    """The ASGI application of one served model."""
    routes = [
        Route("/health", partial(health, service)),
        Route("/version", version),
        Route("/tokenize", partial(tokenize, service), methods=["POST"]),
        Route("/detokenize", partial(detokenize, service), methods=["POST"]),
        Route("/v1/models", partial(list_models, service)),
        Route("/v1/models/{model_id:path}", partial(show_model, service)),
        Route("/v1/completions", partial(create_completion, service), methods=["POST"]),
        Route("/v1/chat/completions", partial(create_chat_completion, service), methods=["POST"]),
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
    app = Authentication(app, api_keys=options.api_keys, api_auth=options.api_auth)
    if options.cors_origins:
        # In front of the authentication: a browser's first question carries no credentials.
        app = CORSMiddleware(
            app,
            allow_origins=options.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["retry-after", "x-request-id"],
        )
    return RequestIds(AccessLog(app, log_prompts=options.log_prompts))
