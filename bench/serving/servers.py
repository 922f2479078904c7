"""Servers to measure: those that run already, and those that are started for it."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import IO, Protocol

import msgspec

from qwell.bench.serving.http_client import Address, ServingError, request
from qwell.runtime.module_command import module_command
from qwell.server.options import ServeOptions

PORT = "{port}"
"""Where a command takes the port to listen on."""

_START_S = 300.0
_STOP_S = 15.0
_POLL_S = 0.1


@dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
        pid: its process; None of a server that this program did not start.
    """

    address: Address
    pid: int | None


class Server(Protocol):
    """Something to measure."""

    @property
    def name(self) -> str:
        """In the report."""

    @property
    def what(self) -> str:
        """Its address, or the command that starts it."""

    def run(self) -> AbstractAsyncContextManager[Running]:
        """It, for as long as the block lasts."""


@dataclass(frozen=True)
class ReachableServer:
    """One that runs already, and goes on."""

    name: str
    address: Address

    @property
    def what(self) -> str:
        return str(self.address)

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[Running]:
        yield Running(self.address, None)


@dataclass(frozen=True)
class StartedServer:
    """A command that serves on the port that takes the place of {port} in it."""

    name: str
    command: tuple[str, ...]

    @property
    def what(self) -> str:
        return shlex.join(self.command)

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[Running]:
        """Start it, and stop it at the end of the block. Raises ServingError if it does not."""
        port = _free_port()
        command = [part.replace(PORT, str(port)) for part in self.command]
        with tempfile.TemporaryFile() as log:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for this process, which then ends that one
                )
            except OSError as error:
                raise ServingError(f"{command[0]} cannot be run: {error.strerror}") from error
            try:
                address = Address("127.0.0.1", port)
                await _wait_until_healthy(process, address, log)
                yield Running(address, process.pid)
            finally:
                _stop(process)


def qwell_server(options: ServeOptions) -> StartedServer:
    """qwell itself; host and port of the options do not count."""
    options = msgspec.structs.replace(options, host="127.0.0.1")
    program = module_command("qwell.bench.serving.serve")
    return StartedServer("qwell", (*program, PORT, msgspec.json.encode(options).decode()))


def named_server(name: str, given: str) -> ReachableServer | StartedServer:
    """What a user named: an address, or a command with {port} in it. Raises ServingError."""
    if given.startswith(("http://", "https://")):
        return ReachableServer(name, Address.parse(given))
    command = tuple(shlex.split(given))
    if not any(PORT in part for part in command):
        raise ServingError(
            f"a server is named by its address (http://...) or by a command with {PORT} where the "
            f"port is to be, got {given!r}"
        )
    return StartedServer(name, command)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def _wait_until_healthy(
    process: subprocess.Popen[bytes], address: Address, log: IO[bytes]
) -> None:
    deadline = time.monotonic() + _START_S
    while not await _is_healthy(address):
        if process.poll() is not None:
            raise ServingError(
                f"the server ended with status {process.returncode}: {_last_line(log)}"
            )
        if time.monotonic() > deadline:
            raise ServingError(
                f"the server was not ready after {_START_S:.0f} s: {_last_line(log)}"
            )
        await asyncio.sleep(_POLL_S)


async def _is_healthy(address: Address) -> bool:
    try:
        async with request(address, "GET", "/health") as answer:
            return answer.status == 200
    except (OSError, EOFError):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
