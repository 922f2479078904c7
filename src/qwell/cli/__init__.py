"""The command line: `qwell serve | generate | chat | batch | pack | ...`."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Sequence

from qwell.cli.parser import parse_arguments
from qwell.runtime.cpu import require_numpy_that_runs
from qwell.runtime.errors import QwellError
from qwell.runtime.threads import restrain_thread_pools


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status.

    0 is success, 1 an error (one line on stderr), 2 a usage error, 128 + n the end by signal n,
    3 that `qwell serve` had to cut off requests at its end.
    """
    arguments = parse_arguments(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a model writes goes beyond what many a locale can spell.
        sys.stdout.reconfigure(errors="backslashreplace")
    restrain_thread_pools()
    # The level is set for qwell alone: libraries would log every request they make.
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("qwell").setLevel(logging.INFO)
    try:
        require_numpy_that_runs()
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read our output is gone; what is still buffered must not fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (QwellError, OSError) as error:
        print(f"qwell: error: {error}", file=sys.stderr)
        return 1
    return status
