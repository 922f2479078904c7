"""The asyncio side of the engine: requests out, tokens back, and a new process after a crash."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Literal

from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.errors import EngineDeadError
from qwell.runtime.messages import (
    Abort,
    Accepted,
    Add,
    EngineInfo,
    FromEngine,
    Rejected,
    StartFailed,
    StepOutputs,
    StepStats,
    TokenOutput,
)
from qwell.server.engine_process import WORKER_COMMAND, EngineProcess
from qwell.server.errors import EngineLoadingError, StartError
from qwell.server.metrics import EndReason, EngineFigures, Metrics, Watch

EngineEvent = Accepted | Rejected | TokenOutput | EngineDeadError
Sink = Callable[[EngineEvent], None]
EngineStatus = Literal["loading", "ok", "restarting"]

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0

logger = logging.getLogger(__name__)


class EngineClient:
    """The engine as the server's handlers see it, whichever process is behind it at the time.

    Each request has a sink, a plain function that gets its events in order: Accepted or
    Rejected, then TokenOutputs; or an EngineDeadError in place of whatever was to follow.

    Attributes:
        stats: what the engine said of itself after its last step.
        metrics: where requests are counted, and whoever asks finds the engine's own figures.
    """

    def __init__(
        self, options: EngineOptions, metrics: Metrics, command: Sequence[str] = WORKER_COMMAND
    ) -> None:
        self._options = options
        self._command = command
        self._process: EngineProcess | None = None
        self._info: EngineInfo | None = None
        self._sinks: dict[str, Watch] = {}
        self._status: EngineStatus = "loading"
        self._starts = 0
        self._failed_starts = 0
        # What the process of now has said or done wrong, if anything.
        self._failure = ""
        self.stats = StepStats()
        self._has_been_ready = asyncio.Event()
        self.metrics = metrics
        metrics.registry.register(EngineFigures(metrics.model_name, self._figures))

    @property
    def status(self) -> EngineStatus:
        """Whether requests can run now."""
        return self._status

    def ready_info(self) -> EngineInfo:
        """What the running engine said about itself.

        Raises:
            EngineLoadingError, EngineDeadError: no engine is running yet, or at the moment.
        """
        if self._status == "ok" and self._info is not None:
            return self._info
        if self._status == "loading":
            raise EngineLoadingError("Loading model")
        raise EngineDeadError("The engine has died; a new one is starting")

    async def wait_until_ready(self) -> None:
        """Return once the first engine process has loaded the model."""
        await self._has_been_ready.wait()

    def add(self, request: Add, sink: Sink) -> None:
        """Hand a request to the engine. Raises what `ready_info` raises."""
        self.ready_info()
        self._sinks[request.request_id] = Watch(self.metrics, len(request.prompt_ids), sink)
        self._send(request)

    def abort(self, request_id: str, reason: EndReason = "abort") -> None:
        """Have the engine forget a request; its sink hears nothing more.

        `reason` is for the metrics: a request that has come to a stop string was not in vain.
        """
        watch = self._sinks.pop(request_id, None)
        if watch is not None:
            watch.dropped(reason)
            self._send(Abort(request_id))

    async def run(self) -> None:
        """Keep an engine process running, until cancelled.

        Raises:
            StartError: the first process did not come up.
        """
        while True:
            ended = await self._run_process()
            if self._status == "loading":
                raise StartError(ended)
            delay = min(_FIRST_DELAY_S * 2**self._failed_starts, _LONGEST_DELAY_S)
            self._failed_starts += 1
            logger.error("%s; starting a new engine in %.1f s", ended, delay)
            await asyncio.sleep(delay)

    async def _run_process(self) -> str:
        """Run one process to its end; what is to be said about that end."""
        process = await EngineProcess.spawn(self._command, self._options)
        self._process = process
        self._failure = ""
        reason = "The engine died while it held the request; a new one is starting"
        try:
            await process.listen(self._dispatch)
        except ValueError as error:
            self._failure = f"the engine process sent what is no message: {error}"
        except asyncio.CancelledError:
            reason = "The server is shutting down"
            raise
        finally:
            self._lose_process(reason)
            how = await process.stop()
        return self._failure or f"the engine process ended ({how})"

    def _lose_process(self, reason: str) -> None:
        self._process = None
        self.stats = StepStats()
        if self._status == "ok":
            self._status = "restarting"
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            sink(EngineDeadError(reason))

    def _dispatch(self, message: FromEngine) -> None:
        if isinstance(message, StepOutputs):
            self.stats = message.stats
            for output in message.outputs:
                last = output.finish_reason is not None or output.error is not None
                self._deliver(output.request_id, output, last=last)
        elif isinstance(message, Accepted):
            self._deliver(message.request_id, message, last=False)
        elif isinstance(message, Rejected):
            self._deliver(message.request_id, message, last=True)
        elif isinstance(message, StartFailed):
            self._failure = message.message
        else:
            self._info = message
            self._status = "ok"
            self._starts += 1
            self._failed_starts = 0
            self._has_been_ready.set()
            logger.info(
                "engine ready on %s in %s: context %d tokens, KV cache %d tokens",
                message.device,
                message.dtype,
                message.max_model_len,
                message.kv_cache_tokens,
            )

    def _figures(self) -> tuple[int, EngineInfo | None, StepStats]:
        return self._starts, self._info if self._status == "ok" else None, self.stats

    def _deliver(
        self, request_id: str, event: Accepted | Rejected | TokenOutput, *, last: bool
    ) -> None:
        sink = self._sinks.pop(request_id, None) if last else self._sinks.get(request_id)
        if sink is not None:
            sink(event)

    def _send(self, message: Add | Abort) -> None:
        if self._process is not None:
            self._process.send(message)
