"""Grammars of requests are checked before the engine sees them, each in a process of its own."""

from __future__ import annotations

import asyncio
import signal
from collections import OrderedDict

import msgspec

from qwell.runtime.grammar import MAX_GRAMMAR_BYTES, Grammar, unusable
from qwell.runtime.grammar_check import MAX_CPU_S
from qwell.runtime.module_command import module_command

CHECK_COMMAND = module_command("qwell.runtime.grammar_check")
_KEPT_ANSWERS = 256
_MOST_AT_ONCE = 2


class GrammarChecker:
    """Remembers its last answers: most requests come with a grammar that others have had."""

    def __init__(self) -> None:
        self._problems: OrderedDict[Grammar, str] = OrderedDict()
        self._places = asyncio.Semaphore(_MOST_AT_ONCE)

    async def check(self, grammar: Grammar, param: str) -> None:
        """See that a grammar can be used.

        Raises:
            RequestError: it cannot, or it would take too much; names `param`.
        """
        problem = self._problems.get(grammar)
        if problem is None:
            async with self._places:
                problem = self._problems.get(grammar)
                if problem is None:
                    problem = await _problem_of(grammar)
        self._problems[grammar] = problem
        self._problems.move_to_end(grammar)
        if len(self._problems) > _KEPT_ANSWERS:
            self._problems.popitem(last=False)
        if problem:
            raise unusable(problem, param)


async def _problem_of(grammar: Grammar) -> str:
    size = len(grammar.text.encode())
    if size > MAX_GRAMMAR_BYTES:
        return f"it has {size} bytes; at most {MAX_GRAMMAR_BYTES} are allowed"
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *CHECK_COMMAND, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        problem, _ = await process.communicate(msgspec.json.encode(grammar))
    finally:
        # The client may have gone before it had its answer.
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 0:
        return problem.decode()
    if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"it takes more than {MAX_CPU_S} s to compile"
    if process.returncode == -signal.SIGSEGV:
        return "its rules are nested too deep"
    return "it takes too much memory to compile"
