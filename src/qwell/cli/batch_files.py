"""OpenAI's batch files: requests in, results out, and which results are there already."""

from __future__ import annotations

import fcntl
import os
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

import msgspec

from qwell.runtime.errors import QwellError

_ID = "batch_req_"
# What every line of results begins with.
_BEGINNING = b'{"id":"' + _ID.encode()


class BatchError(QwellError):
    """Files that do not belong together, or are in use."""


class BatchRequest(msgspec.Struct):
    """A line of the input."""

    custom_id: str
    method: Literal["POST"]
    url: str
    body: msgspec.Raw


class BatchResponse(msgspec.Struct):
    """What the API answered, errors included."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class BatchLineError(msgspec.Struct):
    """Why a line never reached the API."""

    code: str
    message: str


class BatchResult(msgspec.Struct):
    """A line of the output: either `response` or `error` is there.

    `id` holds the number of the input's line; `custom_id` is None where that line has none that
    can be read.
    """

    id: str
    custom_id: str | None
    response: BatchResponse | None = None
    error: BatchLineError | None = None

    @property
    def line(self) -> int:
        """Of the input, from 1."""
        return int(self.id.removeprefix(_ID))

    @property
    def succeeded(self) -> bool:
        return self.response is not None and self.response.status_code == 200


class BatchInput:
    """The requests of a file, by line number.

    Attributes:
        custom_ids: of every line, by line number; None where it cannot be read.
        errors: of the lines that are no requests.
    """

    def __init__(self, path: Path) -> None:
        """Look through the file. Raises OSError."""
        self._file = path.open("rb")
        self._offsets: dict[int, int] = {}
        self.custom_ids: dict[int, str | None] = {}
        self.errors: dict[int, BatchLineError] = {}
        first_lines: dict[str, int] = {}
        # Editors on Windows put a mark in front of the first line.
        offset = len(BOM_UTF8) if self._file.read(len(BOM_UTF8)) == BOM_UTF8 else 0
        self._file.seek(offset)
        for number, line in enumerate(self._file, start=1):
            if line.strip():
                self._offsets[number] = offset
                self._look_at(number, line, first_lines)
            offset += len(line)

    def __len__(self) -> int:
        return len(self._offsets)

    def request(self, number: int) -> BatchRequest:
        """Of a line that has no error."""
        self._file.seek(self._offsets[number])
        return _request_decoder.decode(self._file.readline())

    def close(self) -> None:
        self._file.close()

    def _look_at(self, number: int, line: bytes, first_lines: dict[str, int]) -> None:
        self.custom_ids[number] = None
        try:
            request = _request_decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            message = f"line {number} is not a request of a batch: {error}"
            self.errors[number] = BatchLineError("invalid_json_line", message)
            return
        self.custom_ids[number] = request.custom_id
        first = first_lines.setdefault(request.custom_id, number)
        if first != number:
            message = f"custom_id {request.custom_id!r} is that of line {first} already"
            self.errors[number] = BatchLineError("duplicate_custom_id", message)


class BatchOutput:
    """The results so far, locked against another run; `append` adds to them.

    Attributes:
        done: custom_id of each line that has its result, by line number.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file, and cut off a line that was not written to its end.

        Raises:
            OSError: it cannot be opened.
            BatchError: another run writes to it, or it holds what is no result.
        """
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed by the with block)
        try:
            self._lock(path)
            self.done = dict(self._results(path))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> BatchOutput:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, results: Sequence[BatchResult]) -> None:
        """Write results; they are on disk when this returns."""
        data = b"".join(msgspec.json.encode(result) + b"\n" for result in results)
        while data:
            data = data[self._file.write(data) :]
        os.fsync(self._file.fileno())

    def _lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BatchError(f"{path}: another run is writing to it") from None

    def _results(self, path: Path) -> Iterator[tuple[int, str | None]]:
        self._file.seek(0)
        end = 0
        with open(self._file.fileno(), "rb", closefd=False) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n") and _is_beginning(line):
                    break
                yield _result_key(path, number, line)
                end += len(line)
        self._file.truncate(end)


def belong_together(requests: BatchInput, output: BatchOutput, path: Path) -> None:
    """Raises BatchError if the results at `path` are those of other requests."""
    for number, custom_id in output.done.items():
        if number not in requests.custom_ids:
            raise BatchError(f"{path} holds a result of line {number}, which the input lacks")
        expected = requests.custom_ids[number]
        if custom_id != expected:
            raise BatchError(
                f"{path} holds the result of another input: line {number} there is {custom_id!r}, "
                f"and {expected!r} here"
            )


def result_of(
    number: int,
    custom_id: str | None,
    response: BatchResponse | None = None,
    error: BatchLineError | None = None,
) -> BatchResult:
    """The result of the input's line `number`."""
    return BatchResult(f"{_ID}{number}", custom_id, response, error)


def _is_beginning(line: bytes) -> bool:
    """Whether a line could be the first part of a result."""
    return line[: len(_BEGINNING)] == _BEGINNING[: len(line)]


def _result_key(path: Path, number: int, line: bytes) -> tuple[int, str | None]:
    try:
        result = _result_decoder.decode(line)
        return result.line, result.custom_id
    except ValueError as error:
        raise BatchError(f"{path}, line {number}, is no result of a batch: {error}") from error


_request_decoder = msgspec.json.Decoder(BatchRequest)
_result_decoder = msgspec.json.Decoder(BatchResult)
