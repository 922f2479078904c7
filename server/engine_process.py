"""One engine process, seen from the server: spawn it, talk to it, end it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Sequence
from typing import cast

import msgspec

from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.messages import FrameReader, FromEngine, ToEngine, encode_frame
from qwell.runtime.module_command import module_command

WORKER_COMMAND = module_command("qwell.runtime.worker")

_STOP_S = 2.0
# With a prefix cache to be written to a disk that may be slow.
_KEEP_S = 60.0


class _Pipe(asyncio.Protocol):
    """Our end of the socket: messages are handed on as they arrive, with no task between."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self._frames = FrameReader(FromEngine)
        self._receive: Callable[[FromEngine], None]
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def listen(self, receive: Callable[[FromEngine], None]) -> None:
        """As EngineProcess."""
        self._receive = receive
        self.transport.resume_reading()
        await self._ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        try:
            messages = self._frames.feed(data)
        except ValueError as error:
            if not self._ended.done():
                self._ended.set_exception(error)
            self.transport.close()
            return
        for message in messages:
            self._receive(message)

    def connection_lost(self, _error: Exception | None) -> None:
        # An error only says that the process ended while a message was on its way, either way.
        if not self._ended.done():
            self._ended.set_result(None)


class EngineProcess:
    """A running engine process and the socket that leads to it."""

    def __init__(self, process: asyncio.subprocess.Process, pipe: _Pipe, stop_s: float) -> None:
        self._process = process
        self._pipe = pipe
        self._stop_s = stop_s

    @classmethod
    async def spawn(cls, command: Sequence[str], options: EngineOptions) -> EngineProcess:
        """Start `command` with its end of a socket pair and the options as JSON."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *command,
                *("--fd", str(theirs.fileno())),
                msgspec.json.encode(options).decode(),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
            )
        try:
            _, pipe = await asyncio.get_running_loop().create_unix_connection(_Pipe, sock=ours)
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        stop_s = _STOP_S if options.prefix_cache_file is None else _KEEP_S
        return cls(process, pipe, stop_s)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """Queue a message; one that no longer arrives is dropped, `listen` will have ended."""
        if not self._pipe.transport.is_closing():
            self._pipe.transport.write(encode_frame(message))

    async def listen(self, receive: Callable[[FromEngine], None]) -> None:
        """Hand on what the process says, in order, until it ends.

        Raises:
            msgspec.ValidationError, ValueError: it does not speak the protocol.
        """
        await self._pipe.listen(receive)

    async def stop(self) -> str:
        """Close the socket, which ends the process, by force if need be; how it ended."""
        self._pipe.transport.close()
        try:
            status = await asyncio.wait_for(self._process.wait(), self._stop_s)
        except asyncio.TimeoutError:
            self._process.kill()
            status = await self._process.wait()
        return f"exit status {status}" if status >= 0 else f"killed by {_signal_name(-status)}"


def _signal_name(number: int) -> str:
    if number == signal.SIGKILL:
        return "SIGKILL, as by a system that is out of memory"
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
