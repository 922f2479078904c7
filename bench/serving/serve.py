"""A qwell server in a process of its own: `python -m qwell.bench.serving.serve PORT OPTIONS`."""

from __future__ import annotations

import sys

import msgspec

from qwell.server.main import serve
from qwell.server.options import ServeOptions


def main() -> int:
    """Serve the options (ServeOptions as JSON) at the port; the exit status."""
    port, options = sys.argv[1:]
    decoded = msgspec.json.decode(options, type=ServeOptions)
    return serve(msgspec.structs.replace(decoded, port=int(port)))


if __name__ == "__main__":
    sys.exit(main())
