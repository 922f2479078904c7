"""A peer to alternate with: llama-bench, of llama.cpp or of ik_llama.cpp."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from qwell.bench.model.cases import Case
from qwell.runtime.errors import QwellError

BATCHED = "llama-batched-bench"
"""Program beside llama-bench that decodes several sequences at once."""


class PeerError(QwellError):
    """The peer cannot be run, or says nothing that can be understood."""


class _Single(msgspec.Struct):
    """An element of llama-bench's list of results."""

    avg_ts: float


class _Batched(msgspec.Struct):
    """A line of llama-batched-bench."""

    speed_tg: float


T = TypeVar("T")


class Peer:
    """llama-bench with a model, and llama-batched-bench where it lies in the same folder.

    llama.cpp's measures at a depth of the cache with --n-depth; ik_llama.cpp's measures decodes
    after a prompt with -gp. Every case runs in a process of its own.
    """

    def __init__(
        self, program: Path, gguf: Path, threads: int, arguments: Sequence[str] = ()
    ) -> None:
        """Ask the program what it can do; `arguments` are added to each call.

        Raises PeerError if it cannot be run or there is no such model.
        """
        if not gguf.is_file():
            raise PeerError(f"{gguf} is not a file; name the peer's model in GGUF")
        options = _output([str(program), "--help"], check=False)
        if "--n-prompt" not in options:
            raise PeerError(f"{program} does not seem to be llama-bench: its --help lacks -p")
        self._takes_depth = "--n-depth" in options
        self._takes_gp = "-gp " in options
        batched = program.with_name(BATCHED)
        self._batched = batched if batched.is_file() else None
        self._common = ["-m", str(gguf), "-t", str(threads), *arguments]
        self._single = [str(program), "-r", "1", "-o", "json", *self._common]

    @property
    def command(self) -> list[str]:
        """What calls of llama-bench begin with."""
        return self._single

    def refusal(self, case: Case) -> str | None:
        """Why it cannot run a case; None if it can."""
        if case.batch > 1:
            return None if self._batched is not None else "peer has no batch"
        if case.depth and not (self._takes_depth or (self._takes_gp and case.phase == "decode")):
            return "peer has no depth"
        return None

    def tokens_per_second(self, case: Case) -> float:
        """Run a case that is not refused once; of all its sequences together.

        Raises PeerError if that fails.
        """
        if case.batch > 1:
            command = [str(self._batched), *self._common, *_batched_arguments(case)]
            return _parse(_output(command, check=True), command, _Batched).speed_tg
        command = [*self._single, *self._case_arguments(case)]
        (result,) = _parse(_output(command, check=True), command, tuple[_Single])
        return result.avg_ts

    def _case_arguments(self, case: Case) -> list[str]:
        if case.phase == "prefill":
            lengths = ["-p", str(case.tokens), "-n", "0"]
        elif case.depth and not self._takes_depth:
            return ["-p", "0", "-n", "0", "-gp", f"{case.depth},{case.tokens}"]
        else:
            lengths = ["-p", "0", "-n", str(case.tokens)]
        return [*lengths, "-d", str(case.depth)] if case.depth else lengths


def _batched_arguments(case: Case) -> list[str]:
    # A sequence without a prompt has nothing to decode from.
    depth = max(case.depth, 1)
    # Its warm-up is 16 tokens, and takes the process down where they do not fit.
    cells = max(256, case.batch * (depth + case.tokens))
    lengths = ["-npp", str(depth), "-ntg", str(case.tokens), "-npl", str(case.batch)]
    return ["-c", str(cells), *lengths, "--output-format", "jsonl"]


def _output(command: Sequence[str], *, check: bool) -> str:
    program, *_ = command
    try:
        ran = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise PeerError(f"{program} cannot be run: {error.strerror}") from error
    if check and ran.returncode != 0:
        last = (ran.stderr.strip() or ran.stdout.strip() or "it said nothing").splitlines()[-1]
        raise PeerError(f"{program} ended with status {ran.returncode}: {last}")
    return ran.stdout


def _parse(output: str, command: Sequence[str], kind: type[T]) -> T:
    try:
        return msgspec.json.decode(output, type=kind)
    except ValueError as error:
        raise PeerError(
            f"{command[0]} did not print the JSON of one result ({error}): {output[:200]!r}"
        ) from error
