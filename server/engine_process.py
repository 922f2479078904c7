"""One engine process, seen from the server: spawn it, talk to it, end it."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence

import msgspec

from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.messages import FrameReader, FromEngine, ToEngine, encode_frame

WORKER_COMMAND = (sys.executable, "-m", "qwell.runtime.worker")

_READ_BYTES = 1 << 16
_STOP_S = 2.0
# With a prefix cache to be written to a disk that may be slow.
_KEEP_S = 60.0


class EngineProcess:
    """A running engine process and the socket that leads to it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        stop_s: float,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
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
            reader, writer = await asyncio.open_unix_connection(sock=ours)
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        stop_s = _STOP_S if options.prefix_cache_file is None else _KEEP_S
        return cls(process, reader, writer, stop_s)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, message: ToEngine) -> None:
        """Queue a message; one that no longer arrives is dropped, `messages` will have ended."""
        if not self._writer.is_closing():
            self._writer.write(encode_frame(message))

    async def messages(self) -> AsyncIterator[FromEngine]:
        """What the process says, until it ends.

        Raises:
            msgspec.ValidationError, ValueError: it does not speak the protocol.
        """
        frames = FrameReader(FromEngine)
        try:
            while data := await self._reader.read(_READ_BYTES):
                for message in frames.feed(data):
                    yield message
        except ConnectionError:  # it ended while a message was on its way, either way
            return

    async def stop(self) -> str:
        """Close the socket, which ends the process, by force if need be; how it ended."""
        self._writer.close()
        try:
            status = await asyncio.wait_for(self._process.wait(), self._stop_s)
        except asyncio.TimeoutError:
            self._process.kill()
            status = await self._process.wait()
        return f"exit status {status}" if status >= 0 else f"killed by {_signal_name(-status)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
