"""What a model's answer to a prompt looks like, by what its chat template says."""

from __future__ import annotations

from qwell.runtime.chat_template import ChatTemplate
from qwell.runtime.errors import RequestError
from qwell.server.answer.parser import AnswerForm
from qwell.server.answer.reasoning import CLOSE, OPEN
from qwell.server.answer.tool_calls import OPEN as CALL_OPEN
from qwell.server.answer.tool_calls import CallFormat
from qwell.server.answer.tool_calls_json import JsonCalls
from qwell.server.answer.tool_calls_xml import XmlCalls
from qwell.server.protocol.tools import ToolUse

_XML_CALL = "<function="


def call_format(template: ChatTemplate, tools: ToolUse) -> CallFormat | None:
    """How calls of the functions are written; None where there is no function.

    Raises:
        RequestError: the template takes no tools, or says nothing of a format that is known.
    """
    if not tools.functions:
        return None
    if "tools" not in template.variables or CALL_OPEN not in template.source:
        raise RequestError(
            f"{tools.param}: the chat template of this model has no tools, or in a form unknown "
            "here",
            param=tools.param,
        )
    return (XmlCalls if _XML_CALL in template.source else JsonCalls)(tools.functions)


def answer_form(
    prompt: str, *, thinks: bool, calls: CallFormat | None, one_call: bool
) -> AnswerForm:
    """The form of an answer to `prompt`, of which the last few tokens will do."""
    prompt = prompt.rstrip()
    return AnswerForm(
        # A prompt that closes the thinking itself leaves none to the answer.
        thinks=thinks and not prompt.endswith(CLOSE),
        thinking_opened=prompt.endswith(OPEN),
        calls=calls,
        one_call=one_call,
    )
