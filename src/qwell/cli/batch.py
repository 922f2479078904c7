"""`qwell batch`: requests of a file, answered into another."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from qwell.cli.batch_files import (
    BatchInput,
    BatchLineError,
    BatchOutput,
    BatchRequest,
    BatchResponse,
    BatchResult,
    belong_together,
    result_of,
)
from qwell.cli.model_options import engine_options
from qwell.runtime.checkpoint.resolve import resolve_model
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.progress import Progress
from qwell.server.engine_process import WORKER_COMMAND
from qwell.server.offline import OfflineApi, offline_api

_FULL, _UNAVAILABLE = 429, 503
_RETRY_S = 1.0
_TRIES_ALONE = 2


def run(arguments: argparse.Namespace) -> int:
    """Answer what is not answered yet; how many lines failed is said at the end."""
    options = engine_options(arguments, str(resolve_model(arguments.model)))
    failed = run_batch(options, Path(arguments.input), Path(arguments.output))
    if failed:
        print(
            f"{failed} of the lines answered now failed; {arguments.output} says why",
            file=sys.stderr,
        )
    return 0


def run_batch(
    options: EngineOptions, source: Path, target: Path, worker: Sequence[str] = WORKER_COMMAND
) -> int:
    """Answer the requests of `source` that have no result in `target` yet, into it.

    `worker` is the command of the engine process. Returns how many of them failed.

    Raises:
        OSError, BatchError: files that cannot be read or written, or do not belong together.
        CheckpointError, StartError: the model does not start.
    """
    requests = BatchInput(source)
    with BatchOutput(target) as output:
        belong_together(requests, output, target)
        with Progress(len(requests), done=len(output.done)) as progress:
            batch = _Batch(requests, output, progress)
            asyncio.run(batch.run(options, worker))
    return batch.failed


class _Batch:
    """A run of a batch.

    Lines that an engine held when it died are put once more at the end, one by one: the one that
    ends engines is answered with an error, and takes no other with it.
    """

    def __init__(self, requests: BatchInput, output: BatchOutput, progress: Progress) -> None:
        self._requests = requests
        self._output = output
        self._progress = progress
        self._unsaved: list[BatchResult] = []
        self._saving = asyncio.Lock()
        self._again: list[int] = []
        self.failed = 0

    async def run(self, options: EngineOptions, worker: Sequence[str]) -> None:
        """Answer everything that is left."""
        errors = self._requests.errors
        todo = [number for number in self._requests.custom_ids if number not in self._output.done]
        for number in todo:
            if number in errors:
                await self._save(number, error=errors[number])
        sound = [number for number in todo if number not in errors]
        if not sound:
            return
        async with offline_api(options, worker) as api:
            lines = iter(sound)
            # As many again as run at once: the next are always there.
            tasks = (self._answer_lines(api, lines) for _ in range(2 * options.max_num_seqs))
            await asyncio.gather(*tasks)
            for number in self._again:
                await self._answer_alone(api, number)

    async def _answer_lines(self, api: OfflineApi, lines: Iterator[int]) -> None:
        for number in lines:
            request = self._requests.request(number)
            refusal = _refusal(request)
            if refusal is not None:
                await self._save(number, error=refusal)
                continue
            answer = await _post(api, request)
            if answer.status_code == _UNAVAILABLE:
                self._again.append(number)
            else:
                await self._save(number, answer)

    async def _answer_alone(self, api: OfflineApi, number: int) -> None:
        for _ in range(_TRIES_ALONE):
            answer = await _post(api, self._requests.request(number))
            if answer.status_code != _UNAVAILABLE:
                break
        await self._save(number, answer)

    async def _save(
        self,
        number: int,
        response: BatchResponse | None = None,
        error: BatchLineError | None = None,
    ) -> None:
        """Returns once the result is on disk; those that come meanwhile are written together."""
        custom_id = self._requests.custom_ids[number]
        self._unsaved.append(result_of(number, custom_id, response, error))
        async with self._saving:
            results, self._unsaved = self._unsaved, []
            if not results:
                return
            await asyncio.to_thread(self._output.append, results)
            self.failed += sum(not result.succeeded for result in results)
            self._progress.advance(requests=len(results), tokens=sum(map(_tokens, results)))


class _Streams(msgspec.Struct):
    stream: bool | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Counted(msgspec.Struct):
    usage: _Usage | None = None


async def _post(api: OfflineApi, request: BatchRequest) -> BatchResponse:
    while True:
        await api.ready()
        answer = await api.post(request.url, bytes(request.body))
        if answer.status != _FULL:
            return BatchResponse(answer.status, answer.request_id, msgspec.Raw(answer.body))
        await asyncio.sleep(_RETRY_S)


def _refusal(request: BatchRequest) -> BatchLineError | None:
    """What the API would take, and a file of results cannot hold."""
    if not request.url.startswith("/v1/"):
        message = f"url must be a path like /v1/chat/completions, got {request.url!r}"
        return BatchLineError("invalid_url", message)
    try:
        streams = msgspec.json.decode(request.body, type=_Streams).stream
    except msgspec.ValidationError:
        return None  # the API says better what is wrong with it
    if streams:
        return BatchLineError("stream_not_allowed", "a batch has no streams; leave out stream")
    return None


def _tokens(result: BatchResult) -> int:
    if not result.succeeded or result.response is None:
        return 0
    usage = msgspec.json.decode(result.response.body, type=_Counted).usage
    return 0 if usage is None else usage.completion_tokens
