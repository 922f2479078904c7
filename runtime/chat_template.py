"""Messages -> prompt, by the chat template that a checkpoint ships.

A template is a program by strangers: it runs in Jinja's immutable sandbox and sees plain data
only. Names, filters and whitespace rules are those of transformers' apply_chat_template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, Protocol

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace

from qwell.runtime.chatml import FirstGenerationChat
from qwell.runtime.checkpoint.generation_config import is_first_generation_chat, read_optional_json
from qwell.runtime.errors import CheckpointError, RequestError
from qwell.runtime.template_limits import bounded_template, render_bounded
from qwell.runtime.tokenizer import Tokenizer

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"

_TOKEN_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_ARGUMENTS = frozenset({"messages", "tools", "add_generation_prompt"})
_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")

# What rendering may raise besides Jinja's own errors: templates apply operators, methods and
# filters to whatever a message holds, and recurse as deep as a macro or a value goes.
_RENDER_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class ChatTemplate(Protocol):
    """How a model wants a conversation to be spelt.

    Attributes:
        variables: names that the template reads, such as `messages` and `enable_thinking`.
        source: its text, "" where the format is built in.
    """

    variables: frozenset[str]
    source: str

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Prompt ids of a conversation in OpenAI's message form.

        Args:
            add_generation_prompt: end with the opening of the assistant's turn.
            tools: function schemas in OpenAI's form.
            variables: further names for the template, such as `enable_thinking`.

        Raises:
            RequestError: the conversation cannot be put in this form; `param` is "messages" or
                the argument at fault.
        """


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """The chat format of a checkpoint, None when it has none (a base model).

    chat_template.jinja wins over tokenizer_config.json; the first generation's is built in.

    Raises:
        CheckpointError: a file is damaged, or the template is not valid Jinja.
    """
    config_path = folder / TOKENIZER_CONFIG_FILE
    config = read_optional_json(config_path)
    template_path = folder / TEMPLATE_FILE
    if template_path.is_file():
        source: str | None = _read_text(template_path)
        origin = template_path
    else:
        source = _template_of_config(config.get("chat_template"), config_path)
        origin = config_path
    if source is not None:
        try:
            return JinjaChatTemplate(source, _special_tokens(config, config_path))
        except (jinja2.TemplateError, SyntaxError, RecursionError) as error:
            line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise CheckpointError(f"{origin}: the chat template{line}: {error}") from error
    return FirstGenerationChat() if is_first_generation_chat(folder) else None


class JinjaChatTemplate:
    """A template of the kind that `apply_chat_template` of transformers renders."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """Compile `source`; `special_tokens` (`eos_token`, ...) become variables of it.

        Raises:
            jinja2.TemplateError, SyntaxError, RecursionError: not a template, or nested too deep.
        """
        environment = _environment()
        tree = environment.parse(source)
        self.source = source
        self.variables = frozenset(meta.find_undeclared_variables(tree))
        self._template = bounded_template(environment, tree)
        self._special_tokens = dict(special_tokens or {})

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Prompt ids of a conversation; see `ChatTemplate.encode`."""
        text = self.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            variables=variables,
        )
        return tokenizer.encode(text)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt as text.

        Raises:
            RequestError: no message, a name in `variables` that is an argument here, an error in
                the template, `raise_exception` included, or more work or output than allowed.
        """
        if not messages:
            raise RequestError("messages must hold at least one message", param="messages")
        names = {**self._special_tokens, **(variables or {})}
        if taken := sorted(_ARGUMENTS & names.keys()):
            raise RequestError(
                f"{', '.join(taken)} cannot be set as a variable of the chat template",
                param="chat_template_kwargs",
            )
        try:
            return render_bounded(
                self._template,
                {
                    **names,
                    "messages": [_message(message) for message in messages],
                    "tools": tools,
                    "add_generation_prompt": add_generation_prompt,
                },
            )
        except jinja2.TemplateError as error:
            raise RequestError(f"the chat template: {error}", param="messages") from error
        except _RENDER_ERRORS as error:
            raise RequestError(
                f"the chat template cannot render these messages: {type(error).__name__}: {error}",
                param="messages",
            ) from error


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    # Clients send `"tool_calls": null` for "none", templates ask `is defined`.
    present = {key: value for key, value in message.items() if value is not None}
    reasoning = [present[name] for name in _REASONING_NAMES if name in present]
    if reasoning:
        present["reasoning_content"] = reasoning[0]
    # OpenAI's `"content": null` beside tool calls, on which Qwen3's template would fail.
    if present.get("role") == "assistant":
        present.setdefault("content", "")
    return present


def _template_of_config(value: Any, path: Path) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        for entry in value:
            if isinstance(entry, dict) and entry.get("name") == "default":
                return _template_of_config(entry.get("template"), path)
    raise CheckpointError(
        f"{path}: chat_template must be a string or a list of named templates, one of them named "
        '"default"'
    )


def _special_tokens(config: Mapping[str, Any], path: Path) -> dict[str, str]:
    tokens = {}
    for name in (f"{kind}_token" for kind in _TOKEN_NAMES):
        value = config.get(name)
        token = value.get("content") if isinstance(value, dict) else value
        if isinstance(token, str):
            tokens[name] = token
        elif value is not None:
            raise CheckpointError(
                f'{path}: {name} must be a string or an object with "content", got {value!r}'
            )
    return tokens


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as UTF-8 text: {error}") from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["namespace"] = _Namespace
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationTag(Extension):
    """`{% generation %}` ... `{% endgeneration %}` marks text for training; here it is text."""

    tags = {"generation"}  # noqa: RUF012 - the name and form that Jinja reads

    def parse(self, parser: Parser) -> nodes.Node:
        """The enclosed statements in a scope of their own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """`namespace()` without names such as `__call__`, with which one could pose as a function."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # As in the base class: `self` must stay free as the name of an attribute.
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        Namespace.__setitem__(self, name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have the attribute {name!r}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML and sorts keys; models were trained on neither.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
