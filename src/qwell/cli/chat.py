"""`qwell chat`: a conversation in the terminal. Answers go to stdout, all else to stderr."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from qwell.cli.model_options import engine_options
from qwell.cli.sampling import given_sampling
from qwell.runtime.chat_template import ChatTemplate
from qwell.runtime.checkpoint.resolve import resolve_model
from qwell.runtime.demo_model import DEMO_MODEL_NAME
from qwell.runtime.errors import CheckpointError, RequestError
from qwell.runtime.llm import LLM

with contextlib.suppress(ImportError):
    import readline  # noqa: F401 (gives input() line editing; Windows has none)

DEFAULT_MAX_TOKENS = 2048
COMMANDS = "/reset starts over, /exit leaves, Ctrl-C stops an answer"


def run(arguments: argparse.Namespace) -> int:
    llm = LLM.from_options(engine_options(arguments, str(resolve_model(arguments.model))))
    name = arguments.model or DEMO_MODEL_NAME
    if llm.chat_template is None:
        raise CheckpointError(f"{name} has no chat template; use `qwell generate`")
    chat = _Chat(llm, llm.chat_template, arguments.system, given_sampling(arguments))
    _note(f"Chat with {name}: {COMMANDS}.")
    for line in _lines():
        if line == "/exit":
            break
        if line == "/reset":
            chat.reset()
            _note("The conversation starts over.")
        elif line.startswith("/") and line[1:].isalpha():
            _note(f"There is no command {line}: {COMMANDS}.")
        elif line:
            chat.answer(line)
    return 0


class _Chat:
    """A conversation; only turns that were answered stay in it."""

    def __init__(
        self, llm: LLM, template: ChatTemplate, system: str | None, sampling: dict[str, Any]
    ) -> None:
        self._llm = llm
        self._template = template
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._sampling = {"max_tokens": DEFAULT_MAX_TOKENS, **sampling}
        self.reset()

    def reset(self) -> None:
        self._messages = list(self._system)

    def answer(self, question: str) -> None:
        """Print the answer as it comes; a problem with this turn is a note, not the end."""
        messages = [*self._messages, {"role": "user", "content": question}]
        try:
            prompt = self._template.encode(messages, self._llm.tokenizer)
        except RequestError as error:
            _note(f"{error}")
            return
        room = self._llm.info.max_model_len - len(prompt)
        if room < 1:
            _note(f"{self._full()}; this message was not sent.")
            return
        limit = min(self._sampling["max_tokens"], room)
        sampling = {**self._sampling, "max_tokens": limit}
        text, reason = self._stream(prompt, sampling)
        self._messages = [*messages, {"role": "assistant", "content": text}]
        if reason == "length":
            _note(f"{self._full()}." if limit == room else f"Cut off after {limit} tokens.")
        elif reason == "interrupt":
            _note("Stopped.")

    def _stream(self, prompt: list[int], sampling: dict[str, Any]) -> tuple[str, str]:
        """Text and finish reason of one answer; "interrupt" if Ctrl-C stopped it."""
        pieces: list[str] = []
        with _interrupts() as interrupted:

            def show(_: int, text: str) -> None:
                print(text, end="", flush=True)
                pieces.append(text)
                if interrupted:
                    raise _StopAnswer

            try:
                params = replace(self._llm.default_params(), **sampling)
                (completion,) = self._llm.generate([prompt], params, on_text=show)
                reason: str = completion.finish_reason
            except _StopAnswer:
                reason = "interrupt"
        print(flush=True)
        return "".join(pieces), reason

    def _full(self) -> str:
        size = self._llm.info.max_model_len
        return f"The model's context of {size} tokens is full: /reset starts over"


class _StopAnswer(Exception):  # noqa: N818 (no error: the user's wish, and it never leaves here)
    pass


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect SIGINT instead of raising in the middle of a step; a second one does raise."""
    received: list[int] = []

    def receive(signal_number: int, _: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signal_number)

    before = signal.signal(signal.SIGINT, receive)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)


def _lines() -> Iterator[str]:
    """What the user types, stripped, until the end of input."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt)
        except EOFError:
            return
        yield line.strip()


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
