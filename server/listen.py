"""The sockets that the server listens on."""

from __future__ import annotations

import ipaddress
import socket
import sys

from qwell.server.errors import StartError

# A connection is cut off when for so long nothing that waits for its client has been taken.
STALL_S = 120
_SEND_BUFFER_BYTES = 128 << 10


def listen(
    host: str, port: int, *, loopback_only: bool, stall_s: float = STALL_S
) -> list[socket.socket]:
    """Listening sockets for every address of `host`, all on one port.

    Their connections hold a bounded part of an answer that is not read, and end when none of it
    is for `stall_s`.

    Raises:
        StartError: an address cannot be had, or `loopback_only` and others could reach it.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        addresses = list(dict.fromkeys((family, str(place[0])) for family, *_, place in found))
        if loopback_only:
            _check_loopback(host, [address for _, address in addresses])
        listeners = []
        for family, address in addresses:
            listener = socket.create_server((address, port), family=family)
            # Connections have their options from here. Without the first, a second small packet
            # waits until the client has acknowledged the one before, which may take it 40 ms.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            if sys.platform == "linux":
                timeout_ms = round(stall_s * 1000)
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
            port = listener.getsockname()[1]
            listeners.append(listener)
    except OSError as error:
        raise StartError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return listeners


def _check_loopback(host: str, addresses: list[str]) -> None:
    if all(ipaddress.ip_address(address).is_loopback for address in addresses):
        return
    raise StartError(
        f"refusing to listen on {host}, where others can reach the server and nobody needs a key: "
        "set one (--api-key-file, QWELL_API_KEY, --api-key or --api-auth), or say --insecure to "
        "let everybody in"
    )
