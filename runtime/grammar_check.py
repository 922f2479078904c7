"""Checks one grammar in a process of its own: `python -m qwell.runtime.grammar_check`.

Reads a Grammar as JSON, and writes what is wrong with it; nothing if it can be used. An exit status
other than 0 says that it cannot. Compilers of grammars can be made to run for minutes, to fill the
memory, or to run out of stack, which ends a process. This one may take little of each, and nobody
else is hurt.
"""

from __future__ import annotations

import resource
import sys
import threading

import msgspec

from qwell.runtime.grammar import Grammar, problem_of

MAX_CPU_S = 2
# Of address space; what is in use in the end is a fraction.
_MAX_BYTES = 256 << 20
# The engine compiles in a thread with the usual 8 MiB.
_STACK_BYTES = 4 << 20


def main() -> None:
    """Check what is on stdin."""
    grammar = msgspec.json.decode(sys.stdin.buffer.read(), type=Grammar)
    # What every grammar needs is there before the memory is counted.
    problem_of(Grammar("regex", "a"))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(_STACK_BYTES)
    problems: list[str] = []
    checking = threading.Thread(target=lambda: problems.append(problem_of(grammar)))
    if sys.platform == "linux":
        most = _address_space() + _STACK_BYTES + _MAX_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    checking.start()
    checking.join()
    # There is none where the thread has failed.
    [problem] = problems
    sys.stdout.buffer.write(problem.encode())


def _address_space() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
