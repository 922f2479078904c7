"""The worker's other end: starts it, times its first token, has it run cases."""

from __future__ import annotations

import subprocess
import time
from types import TracebackType

import msgspec

from qwell.bench.model.cases import Case
from qwell.bench.model.messages import Answer, Failed, Lap, Started
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.errors import EngineDeadError, EngineStartError
from qwell.runtime.module_command import module_command


class WorkerProcess:
    """An engine in a new process, as a user's own would be; ends with the `with` block.

    Attributes:
        started: what it said of itself.
        first_token_seconds: from the start of the process to its first token.
    """

    def __init__(self, options: EngineOptions) -> None:
        """Wait for the first token.

        Raises:
            EngineStartError: what the engine says is wrong.
            EngineDeadError: the process ended without a word.
        """
        command = module_command("qwell.bench.model.worker")
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [*command, msgspec.json.encode(options).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process, which then ends that one
        )
        try:
            answer = self._answer()
        except BaseException:
            self._kill()
            raise
        self.first_token_seconds = time.perf_counter() - start
        if isinstance(answer, Failed):
            self._kill()
            raise EngineStartError(answer.reason)
        assert isinstance(answer, Started), "a worker starts by saying so"
        self.started = answer

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._kill()

    def run(self, case: Case) -> Lap:
        """Run a case once. Raises EngineDeadError if the process ends meanwhile."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(case).decode() + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        lap = self._answer()
        assert isinstance(lap, Lap), "a case is answered by a lap"
        return lap

    def _answer(self) -> Answer:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        answer: Answer = msgspec.json.decode(line, type=Answer)
        return answer

    def _death(self) -> EngineDeadError:
        return EngineDeadError(f"the measured process ended with status {self._process.wait()}")

    def _kill(self) -> None:
        # It holds nothing that must be written: no reason to wait for a step to end.
        with self._process:
            self._process.kill()
