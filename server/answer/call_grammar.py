"""Answers that are held to a format: calls that have to be, and calls that have to be right."""

from __future__ import annotations

from typing import Any

import msgspec

from qwell.runtime.errors import RequestError
from qwell.runtime.grammar import Grammar, lark_text
from qwell.server.answer.lark import lark_json
from qwell.server.answer.tool_calls import CLOSE, OPEN, CallFormat
from qwell.server.protocol.structured_outputs import RequestedGrammar
from qwell.server.protocol.tools import ToolUse


def call_grammar(
    calls: CallFormat, tools: ToolUse, content: RequestedGrammar | None
) -> RequestedGrammar | None:
    """What an answer has to be; None where it may be anything.

    An answer that has to call consists of calls. One that may is free but for the calls
    themselves, if any function is strict or not all may be called; with a form of `content` it
    has that, or is calls.

    Raises:
        RequestError: a function has parameters that the format cannot be held to, or `content`
            a form that cannot stand beside calls.
    """
    is_held = tools.must_call or tools.declared or any(f.strict for f in tools.functions)
    if content is None and not is_held:
        return None
    if content is not None and tools.must_call:
        raise RequestError(
            f"{tools.choice_param} asks for a call, so that there is no text for {content.param} "
            "to be about; leave one out",
            param=content.param,
        )
    if content is not None and content.grammar.kind != "json_schema":
        raise RequestError(
            f"beside {tools.param} that may be called a text can be held to a JSON schema alone, "
            f"which {content.param} is not; give one, or {tools.choice_param} none",
            param=content.param,
        )
    try:
        rules = calls.grammar()
    except ValueError as error:
        raise RequestError(f"{tools.param}: {error}", param=tools.param) from error
    close = lark_text(CLOSE)
    block = f"block: {lark_text(OPEN)} call {close}"
    blocks = "block" if tools.one_call else 'block ("\\n" block)*'
    if tools.must_call:
        lines = [f"start: {blocks}", block]
    elif content is not None:
        schema = msgspec.json.decode(content.grammar.text, type=dict[str, Any])
        lines = [f"start: {blocks} | content", block, f"content: {lark_json(schema, strict=True)}"]
    else:
        lines = [
            f"start: (opening call {close}){'?' if tools.one_call else '*'} rest",
            *_free_text(calls),
        ]
    return RequestedGrammar(Grammar("lark", "\n".join([*lines, rules, ""])), tools.param)


def _free_text(calls: CallFormat) -> tuple[str, ...]:
    """Rules for text up to a call, and after the last one; neither has a call of its own."""
    starts = "".join(f" & ~/(?s:.*){start}(?s:.*)/" for start in calls.starts)
    return (
        "opening[lazy]: OPENING",
        f"OPENING: /(?s:.*){OPEN}/{starts}",
        "rest: REST",
        f"REST: /(?s:.*)/ & ~/(?s:.*){OPEN}(?s:.*)/{starts}",
    )
