"""How a request sets the thinking of a model: through variables of its chat template."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from qwell.runtime.chat_template import ChatTemplate
from qwell.runtime.errors import RequestError
from qwell.server.answer.reasoning import OPEN

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatTemplateOptions(msgspec.Struct, forbid_unknown_fields=True):
    """The variables of chat templates that may be set; a template has to read those given."""

    enable_thinking: bool | None = None
    preserve_thinking: bool | None = None
    reasoning_effort: Effort | None = None


def template_variables(
    options: ChatTemplateOptions | None, effort: Effort | None, template: ChatTemplate
) -> dict[str, Any]:
    """The variables that `chat_template_kwargs` and `reasoning_effort` set together.

    `reasoning_effort` goes to a template that reads it. Of others, "none" turns the thinking of
    those off that can be told so, and means nothing to those that have none.

    Raises:
        RequestError: the template does not read what is set, or both set the same differently.
    """
    given = {} if options is None else msgspec.structs.asdict(options)
    variables = {name: value for name, value in given.items() if value is not None}
    for name in variables:
        if name not in template.variables:
            param = f"chat_template_kwargs.{name}"
            raise RequestError(
                f"{param}: the chat template of this model does not read {name}", param=param
            )
    for name, value in _of_effort(effort, template).items():
        if variables.setdefault(name, value) != value:
            raise RequestError(
                f"reasoning_effort {effort!r} and chat_template_kwargs.{name} "
                f"{variables[name]!r} contradict each other",
                param="reasoning_effort",
            )
    return variables


def _of_effort(effort: Effort | None, template: ChatTemplate) -> dict[str, Any]:
    if effort is None:
        return {}
    if effort == "none" and "enable_thinking" in template.variables:
        return {"enable_thinking": False}
    if "reasoning_effort" in template.variables:
        return {"reasoning_effort": effort}
    if effort == "none" and OPEN not in template.source:
        return {}
    raise RequestError(
        f"reasoning_effort {effort!r} is not supported by this model: its chat template does not "
        "read reasoning_effort",
        param="reasoning_effort",
    )
