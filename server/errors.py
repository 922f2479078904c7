"""Every error as OpenAI clients expect it: {"error": {message, type, param, code}}."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from qwell.runtime.errors import EngineDeadError, ModelError, QwellError, RequestError

RETRY_AFTER_S = 2

# First parts of OpenAI's paths behind /v1/, but for those that are served.
_OPENAI_FAMILIES = frozenset(
    (
        *("assistants", "audio", "batches", "chatkit", "containers", "conversations"),
        *("embeddings", "evals", "files", "fine_tuning", "images", "moderations"),
        *("organization", "projects", "realtime", "responses", "skills", "threads"),
        *("uploads", "vector_stores", "videos"),
    )
)


class StartError(QwellError):
    """The server cannot start: its address is taken, or the engine failed to load."""


class EngineLoadingError(QwellError):
    """The first engine process is still loading the model."""


class HttpError(QwellError):
    """An error that has a status of its own; `type` and `code` are OpenAI's vocabulary."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.param = param
        self.code = code
        self.headers = headers or {}


class ErrorDetail(msgspec.Struct):
    """The object under "error"; all four keys are always there."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def model_not_found(model: str) -> HttpError:
    """The error for a model id that is not served."""
    message = f"The model {model!r} is not served here; GET /v1/models lists what is"
    return HttpError(404, message, param="model", code="model_not_found")


def as_http_error(error: Exception) -> HttpError:
    """The status and OpenAI fields of any exception that reaches the edge of the server."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, RequestError) and error.code == "queue_full":
        headers = {"Retry-After": str(RETRY_AFTER_S)}
        return HttpError(429, str(error), type="rate_limit_error", code=error.code, headers=headers)
    if isinstance(error, RequestError):
        return HttpError(400, str(error), param=error.param, code=error.code)
    if isinstance(error, ModelError):
        # It would be the same again: OpenAI's clients heed the header.
        headers = {"x-should-retry": "false"}
        return HttpError(500, str(error), type="server_error", code="model_error", headers=headers)
    if isinstance(error, EngineLoadingError):
        return _unavailable(str(error), "model_loading")
    if isinstance(error, EngineDeadError):
        return _unavailable(str(error), "engine_unavailable")
    return HttpError(500, "Internal server error", type="server_error")


def error_body(error: HttpError) -> ErrorBody:
    """`error` as it goes over the wire."""
    return ErrorBody(ErrorDetail(str(error), error.type, error.param, error.code))


def error_response(error: HttpError) -> Response:
    """`error` as a whole answer."""
    content = msgspec.json.encode(error_body(error))
    return Response(content, error.status, error.headers, "application/json")


async def answer_exception(_request: Request, error: Exception) -> Response:
    """Starlette's handler for our exceptions and for the unexpected."""
    return error_response(as_http_error(error))


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's handler for what routing refuses: unknown paths and wrong methods."""
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == 404:
        return error_response(_unknown_path(request.url.path))
    if error.status_code == 405:
        message = f"{request.method} is not allowed at {request.url.path}"
    else:
        message = error.detail
    return error_response(HttpError(error.status_code, message, headers=error.headers))


def _unknown_path(path: str) -> HttpError:
    """A 404: clients repeat requests that a 5xx answers, and this answer will not change."""
    version, _, rest = path.removeprefix("/").partition("/")
    if version == "v1" and rest.split("/")[0] in _OPENAI_FAMILIES:
        return HttpError(
            404,
            f"qwell does not have OpenAI's {path}; it has /v1/chat/completions, /v1/completions "
            "and /v1/models",
            code="unsupported_endpoint",
        )
    return HttpError(404, f"There is nothing at {path}")


def _unavailable(message: str, code: str) -> HttpError:
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return HttpError(503, message, type="server_error", code=code, headers=headers)
