"""The engine process: `python -m qwell.runtime.worker --fd N OPTIONS`.

It serves one server process over an inherited socket and ends when that socket closes.
"""

from __future__ import annotations

import argparse
import ctypes
import signal
import socket
import sys
from collections.abc import Sequence

import msgspec

from qwell.runtime.engine_loop import run
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.errors import QwellError
from qwell.runtime.messages import StartFailed, encode_frame
from qwell.runtime.threads import restrain_thread_pools

_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Load the model, report it, and serve; the exit status."""
    parser = argparse.ArgumentParser(prog="qwell.runtime.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="connected socket to the server")
    parser.add_argument("options", help="EngineOptions as JSON")
    arguments = parser.parse_args(argv)

    _live_and_die_with_parent()
    restrain_thread_pools()
    # Takes seconds; a signal must not find the process unprepared for that long.
    import torch

    from qwell.runtime.engine import Engine

    connection = socket.socket(fileno=arguments.fd)
    options = msgspec.json.decode(arguments.options, type=EngineOptions)
    try:
        engine = Engine.start(options)
    except QwellError as error:
        connection.sendall(encode_frame(StartFailed(str(error))))
        return 1
    with torch.inference_mode():
        run(engine, connection)
    engine.close()
    return 0


def _live_and_die_with_parent() -> None:
    """Leave it to the server when this process ends.

    Ctrl-C and service managers signal the whole group, but requests in flight are to finish; on
    the other hand Linux is to kill this process with its parent, also in the middle of a step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
