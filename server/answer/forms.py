"""What a model's answer to a prompt looks like, by what its chat template says."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from qwell.runtime.chat_template import ChatTemplate
from qwell.runtime.errors import RequestError
from qwell.server.answer.json_types import parameter_types
from qwell.server.answer.parser import AnswerForm
from qwell.server.answer.reasoning import CLOSE, OPEN
from qwell.server.answer.tool_calls import OPEN as CALL_OPEN
from qwell.server.answer.tool_calls import ReadCall
from qwell.server.answer.tool_calls_json import read_json_call
from qwell.server.answer.tool_calls_xml import read_xml_call

_XML_CALL = "<function="


def call_reader(
    template: ChatTemplate, functions: Mapping[str, Mapping[str, Any]], param: str
) -> ReadCall:
    """What reads calls of `functions`, which map names to schemas of parameters.

    Raises:
        RequestError: naming `param`; the template takes no tools, or says nothing of a format
            that is known.
    """
    if "tools" in template.variables and CALL_OPEN in template.source:
        if _XML_CALL in template.source:
            types = {name: parameter_types(schema) for name, schema in functions.items()}
            return partial(read_xml_call, functions=types)
        return partial(read_json_call, names=frozenset(functions))
    raise RequestError(
        f"{param}: the chat template of this model has no tools, or in a form unknown here",
        param=param,
    )


def answer_form(
    template: ChatTemplate, prompt: str, read_call: ReadCall | None, *, one_call: bool
) -> AnswerForm:
    """The form of an answer to `prompt`, of which the last few tokens will do."""
    prompt = prompt.rstrip()
    # A prompt that closes the thinking itself leaves none to the answer.
    return AnswerForm(
        thinks=OPEN in template.source and not prompt.endswith(CLOSE),
        thinking_opened=prompt.endswith(OPEN),
        read_call=read_call,
        one_call=one_call,
    )
