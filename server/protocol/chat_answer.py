"""Answers of /v1/chat/completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal
from uuid import uuid4

import msgspec
from msgspec import UNSET, UnsetType

from qwell.runtime.messages import FinishReason
from qwell.server.answer.parser import AnswerForm, AnswerParser
from qwell.server.answer.reading import CallArguments, CallBegin, CallEnd, Content, Piece, Reasoning
from qwell.server.protocol.common import Usage
from qwell.server.protocol.logprobs import ChatLogprobs
from qwell.server.protocol.tools import CalledFunction, CalledTool, FunctionDelta, ToolDelta

ChatFinishReason = FinishReason | Literal["tool_calls", "function_call"]


class AnswerMessage(msgspec.Struct, kw_only=True):
    """The assistant's message. `content` is null where it only calls tools."""

    role: str = "assistant"
    content: str | None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[CalledTool] | UnsetType = UNSET
    function_call: CalledFunction | UnsetType = UNSET
    refusal: None = None


class ChatChoice(msgspec.Struct):
    """One choice.

    `stop_reason` is the stop string, or the one of `stop_token_ids`, that has ended the text;
    `token_ids` are there where they are asked for.
    """

    index: int
    message: AnswerMessage
    finish_reason: ChatFinishReason
    logprobs: ChatLogprobs | None = None
    stop_reason: str | int | UnsetType = UNSET
    token_ids: Sequence[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, kw_only=True):
    """A whole answer. `prompt_token_ids` are there where they are asked for."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: Sequence[int] | UnsetType = UNSET


class ChatDelta(msgspec.Struct):
    """What a chunk adds: the role first, then one of the others, nothing at the end."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolDelta] | UnsetType = UNSET
    function_call: FunctionDelta | UnsetType = UNSET


class ChunkChoice(msgspec.Struct):
    """A piece of one choice, with what `ChatChoice` has of it."""

    index: int
    delta: ChatDelta
    finish_reason: ChatFinishReason | None = None
    logprobs: ChatLogprobs | None = None
    stop_reason: str | int | UnsetType = UNSET
    token_ids: Sequence[int] | UnsetType = UNSET


class ChatChunk(msgspec.Struct, kw_only=True):
    """One event of a stream; the first has `prompt_token_ids` where they are asked for."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: Sequence[int] | UnsetType = UNSET


class ChoiceParts:
    """Takes the text of one choice and gives the parts of an answer.

    `legacy` answers a call as `function_call`.
    """

    def __init__(self, form: AnswerForm, *, legacy: bool) -> None:
        self._parser = AnswerParser(form)
        self._legacy = legacy
        self._begun = 0
        self._whole = 0

    @property
    def thought_chars(self) -> int:
        """See `AnswerParser`."""
        return self._parser.thought_chars

    def push(self, text: str) -> list[ChatDelta]:
        """What this text adds."""
        return [*self._deltas(self._parser.push(text))]

    def finish(self) -> list[ChatDelta]:
        """What is left to add at the end."""
        return [*self._deltas(self._parser.finish())]

    def finish_reason(self, reason: FinishReason) -> ChatFinishReason:
        """Of an answer that has ended for `reason`: calls count where all are whole."""
        if reason != "stop" or not self._begun or self._whole < self._begun:
            return reason
        return "function_call" if self._legacy else "tool_calls"

    def _deltas(self, pieces: Iterable[Piece]) -> Iterable[ChatDelta]:
        for piece in pieces:
            if isinstance(piece, Content):
                yield ChatDelta(content=piece.text)
            elif isinstance(piece, Reasoning):
                yield ChatDelta(reasoning_content=piece.text)
            elif isinstance(piece, CallBegin):
                self._begun += 1
                yield self._call(FunctionDelta("", piece.name))
            elif isinstance(piece, CallArguments):
                yield self._call(FunctionDelta(piece.text))
            else:
                self._whole += isinstance(piece, CallEnd)

    def _call(self, part: FunctionDelta) -> ChatDelta:
        if self._legacy:
            return ChatDelta(function_call=part)
        delta = ToolDelta(self._begun - 1, part)
        if part.name is not UNSET:
            delta.id, delta.type = f"call_{uuid4().hex}", "function"
        return ChatDelta(tool_calls=[delta])


def whole_message(deltas: Iterable[ChatDelta]) -> AnswerMessage:
    """The message that the deltas of a choice amount to."""
    content, reasoning = "", ""
    calls: list[CalledTool] = []
    function_call: CalledFunction | UnsetType = UNSET
    for delta in deltas:
        content += delta.content or ""
        reasoning += delta.reasoning_content or ""
        for part in delta.tool_calls or ():
            if part.id:
                calls.append(CalledTool(part.id, CalledFunction(part.function.name or "", "")))
            calls[part.index].function.arguments += part.function.arguments
        if called := delta.function_call:
            function_call = function_call or CalledFunction(called.name or "", "")
            function_call.arguments += called.arguments
    return AnswerMessage(
        content=None if (calls or function_call) and not content else content,
        reasoning_content=reasoning or UNSET,
        tool_calls=calls or UNSET,
        function_call=function_call,
    )
