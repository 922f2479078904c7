"""The exceptions of qwell. Each message says what is wrong, where, and what would be right.

`server` maps them to HTTP in one place; the command line prints one line and exits non-zero.
"""

from __future__ import annotations


class QwellError(Exception):
    """Base of every error that a user can cause or must act on."""


class CheckpointError(QwellError):
    """A checkpoint file is missing, damaged or inconsistent with its siblings."""


class ConfigKeyError(CheckpointError):
    """config.json lacks a key that the model needs."""


class ConfigTypeError(CheckpointError):
    """config.json holds a value of the wrong JSON type."""


class UnsupportedModelError(QwellError):
    """A sound checkpoint that asks for something qwell does not compute."""


class DownloadError(QwellError):
    """Files could not be fetched: no network, unknown repository, wrong hash."""


class EngineStartError(QwellError):
    """The device, dtype, kernel or memory that was asked for cannot be had."""


class RequestError(QwellError):
    """A request that cannot be served as it is.

    `param` is the request field at fault, `code` a stable identifier of OpenAI's error
    vocabulary such as "context_length_exceeded"; either may be None.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ModelError(QwellError):
    """The model computed what is no answer to a sound request."""


class EngineDeadError(QwellError):
    """The engine process ended while it held the request; a new one is starting."""
