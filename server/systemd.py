"""sd_notify: tell systemd how far the server is, where systemd wants to know."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Send `state` ("READY=1", "STOPPING=1") to NOTIFY_SOCKET; nothing where that is not set.

    A socket that nobody listens on is ignored: the server runs as well without a supervisor.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # a name in Linux's abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto(state.encode(), address)
        except OSError:
            return
