"""The options of `qwell serve` beside those of the model."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

from qwell.cli.model_options import add_once, positive
from qwell.server.options import DEFAULT_DRAIN_S

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000

_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/\s,]+")


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Address, who may use the server, and how."""
    add_once(
        parser, "--host", "--server-name", help=f"address to listen on (default: {DEFAULT_HOST})"
    )
    add_once(
        parser,
        "--port",
        "--server-port",
        type=_port,
        help=f"TCP port, 0 for any free one (default: {DEFAULT_PORT})",
    )
    parser.add_argument(
        "--max-queue",
        metavar="N",
        type=positive,
        default=128,
        help="most requests that wait for others to end; more are refused (default: 128)",
    )
    parser.add_argument(
        "--target-itl-ms",
        metavar="MS",
        type=positive,
        help="longest time between two tokens of a request that new prompts may cause (default: "
        "twice what it is without them, but at least 100)",
    )
    parser.add_argument(
        "--prefix-cache-file",
        metavar="FILE",
        help="keep the prefixes used last in this file, from a stop to the next start",
    )
    parser.add_argument(
        "--served-model-name",
        metavar="NAME",
        type=_name,
        action="append",
        default=[],
        help="model id that clients may ask for; may be repeated (default: any id)",
    )
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        action="append",
        default=[],
        help="key that clients must send as a bearer token; may be repeated",
    )
    parser.add_argument(
        "--api-key-file", metavar="FILE", type=Path, help="file of such keys, one a line"
    )
    parser.add_argument(
        "--api-auth",
        metavar="USER:PASSWORD",
        type=_user_and_password,
        help="user and password that clients must send (HTTP Basic)",
    )
    parser.add_argument(
        "--insecure", action="store_true", help="listen beyond this machine without a key, too"
    )
    parser.add_argument(
        "--cors-origin",
        metavar="ORIGIN",
        action="append",
        type=_origin,
        default=[],
        help="let web pages of this origin use the server; may be repeated, * is any",
    )
    parser.add_argument("--ssl-certfile", metavar="FILE", help="certificate (PEM); turns TLS on")
    parser.add_argument("--ssl-keyfile", metavar="FILE", help="private key of the certificate")
    parser.add_argument(
        "--log-prompts", action="store_true", help="log the bodies of requests, prompts and all"
    )
    parser.add_argument(
        "--no-ui", dest="ui", action="store_false", help="do not serve the chat page at /"
    )
    parser.add_argument(
        "--drain-seconds",
        metavar="S",
        type=_seconds,
        default=DEFAULT_DRAIN_S,
        help=f"time for running requests at the end (default: {DEFAULT_DRAIN_S:g})",
    )


def _port(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"must be a port number of 0 to 65535, got {text!r}")
    return value


def _name(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _user_and_password(text: str) -> tuple[str, str]:
    user, colon, password = text.partition(":")
    if not (user and colon):
        # Without the text: it may be a password.
        raise argparse.ArgumentTypeError("must be USER:PASSWORD")
    return user, password


def _origin(text: str) -> str:
    if not _ORIGIN.fullmatch(text):
        raise argparse.ArgumentTypeError(f"must be like https://example.org or *, not {text!r}")
    return text


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, not {text!r}")
    return value
