"""The loop of the engine process: requests in, steps, tokens out. Torch-free."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Protocol

from qwell.runtime.errors import RequestError
from qwell.runtime.messages import (
    Abort,
    Accepted,
    Add,
    EngineInfo,
    FrameReader,
    Rejected,
    StepOutputs,
    StepStats,
    ToEngine,
    TokenOutput,
    encode_frame,
)
from qwell.runtime.sampling_params import SamplingParams

_RECEIVE_BYTES = 1 << 20


class StepEngine(Protocol):
    """What the loop needs of an engine."""

    @property
    def info(self) -> EngineInfo:
        """What the server is to know of the engine."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""

    @property
    def stats(self) -> StepStats:
        """How the engine is."""

    def add(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int,
        cache_salt: str,
    ) -> None:
        """Queue a request. Raises RequestError when it cannot be served."""

    def abort(self, request_id: str) -> None:
        """Forget a request; unknown ids are ignored."""

    def step(self) -> list[TokenOutput]:
        """Go on by one batch; the tokens that are ready."""


def run(engine: StepEngine, connection: socket.socket) -> None:
    """Tell the peer of `connection` that the engine is ready, and serve it until it is gone.

    Waits on the socket while the engine has nothing to do, and looks at it between steps
    otherwise: an abort takes effect before the next step.

    Raises:
        msgspec.ValidationError, ValueError: the peer does not speak the protocol.
    """
    reader = FrameReader(ToEngine)
    try:
        connection.sendall(encode_frame(engine.info))
        while _receive(engine, connection, reader):
            # Also without work: what was aborted shows in the stats.
            outputs = engine.step() if engine.has_work else []
            connection.sendall(encode_frame(StepOutputs(outputs, engine.stats)))
    except (BrokenPipeError, ConnectionResetError):
        return


def _receive(engine: StepEngine, connection: socket.socket, reader: FrameReader) -> bool:
    """Apply what the peer sent; False when it has gone."""
    flags = socket.MSG_DONTWAIT if engine.has_work else 0
    while True:
        try:
            data = connection.recv(_RECEIVE_BYTES, flags)
        except BlockingIOError:
            return True
        if not data:
            return False
        for message in reader.feed(data):
            _apply(engine, connection, message)
        flags = socket.MSG_DONTWAIT


def _apply(engine: StepEngine, connection: socket.socket, message: ToEngine) -> None:
    if isinstance(message, Abort):
        engine.abort(message.request_id)
        return
    connection.sendall(encode_frame(_add(engine, message)))


def _add(engine: StepEngine, message: Add) -> Accepted | Rejected:
    try:
        engine.add(
            message.request_id,
            message.prompt_ids,
            message.params,
            priority=message.priority,
            cache_salt=message.cache_salt,
        )
    except RequestError as error:
        return Rejected(message.request_id, str(error), error.param, error.code)
    return Accepted(message.request_id)
