"""Tools on the wire: their declarations, the choice among them, and calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from qwell.runtime.errors import RequestError

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 1 << 20

# Not `$` alone, which Python lets match before a line break at the end.
FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$(?!\n)", max_length=64)]


class FunctionSpec(msgspec.Struct, forbid_unknown_fields=True):
    """A function that the model may call; `parameters` is the JSON schema of an object."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True):
    """The name of a declared function."""

    name: FunctionName


class NamedTool(msgspec.Struct, tag_field="type", tag="function", forbid_unknown_fields=True):
    """`tool_choice` of one function."""

    function: NamedFunction


class AllowedSet(msgspec.Struct, forbid_unknown_fields=True):
    """Some of the declared functions, of which one may be called, or has to be."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Meta(min_length=1, max_length=MAX_TOOLS)]


class AllowedTools(
    msgspec.Struct, tag_field="type", tag="allowed_tools", forbid_unknown_fields=True
):
    """`tool_choice` of some functions. The model is told of all, so that prompts stay the same."""

    allowed_tools: AllowedSet


class CalledFunction(msgspec.Struct, forbid_unknown_fields=True):
    """A call; `arguments` are JSON text."""

    name: str
    arguments: str


class CalledTool(msgspec.Struct, forbid_unknown_fields=True):
    """A call of a tool; the message with its result names `id`."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class FunctionDelta(msgspec.Struct):
    """A piece of a call: the name first, then more and more of the arguments."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolDelta(msgspec.Struct):
    """A piece of the call `index`; `id` and `type` come with the name."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


_TYPES = ("string", "number", "integer", "boolean", "null", "object", "array")
_MAPS_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "not")

ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedTools
FunctionChoice = Literal["none", "auto"] | NamedFunction


@dataclass(frozen=True)
class ToolUse:
    """The functions that an answer may call.

    Attributes:
        functions: none where none is declared, or none may be called.
        must_call: the answer has to be a call.
        one_call: it has one call at most.
        legacy: they came as `functions`, and a call is answered as `function_call`.
        declared: what the model is told of, where that is more than it may call.
    """

    functions: Sequence[FunctionSpec] = ()
    must_call: bool = False
    one_call: bool = False
    legacy: bool = False
    declared: Sequence[FunctionSpec] = ()

    @property
    def param(self) -> str:
        """The request field that the functions came in."""
        return "functions" if self.legacy else "tools"

    @property
    def choice_param(self) -> str:
        """The request field that says whether they have to be called."""
        return "function_call" if self.legacy else "tool_choice"

    @property
    def for_template(self) -> list[dict[str, Any]] | None:
        """The declarations in the form that the models were trained on."""
        told = self.declared or self.functions
        return [_for_template(function) for function in told] or None


def used_tools(
    tools: Sequence[Tool] | None, choice: ToolChoice | None, parallel: bool | None
) -> ToolUse:
    """What `tools`, `tool_choice` and `parallel_tool_calls` say together.

    Raises:
        RequestError: too many or too long declarations, a name twice, parameters that are no
            schema of an object, or a choice that is not declared.
    """
    functions = [tool.function for tool in tools or ()]
    _check_functions(functions, "tools", "tools[{}].function")
    names, must_call = _wanted(choice)
    chosen = _chosen(functions, names, "tool_choice", "tools")
    if must_call and not functions:
        raise RequestError(
            "tool_choice asks for a call, but no tools are given", param="tool_choice"
        )
    is_part = isinstance(choice, AllowedTools) and len(chosen) < len(functions)
    return ToolUse(
        () if choice == "none" else chosen,
        must_call=must_call,
        one_call=parallel is False or isinstance(choice, NamedTool),
        declared=functions if is_part else (),
    )


def used_functions(
    functions: Sequence[FunctionSpec] | None, choice: FunctionChoice | None
) -> ToolUse:
    """What the older `functions` and `function_call` say together; raises as `used_tools` does."""
    functions = functions or ()
    _check_functions(functions, "functions", "functions[{}]")
    name = choice.name if isinstance(choice, NamedFunction) else None
    chosen = _chosen(functions, None if name is None else [name], "function_call", "functions")
    return ToolUse(
        () if choice == "none" else chosen,
        must_call=name is not None,
        one_call=True,
        legacy=True,
    )


def _wanted(choice: ToolChoice | None) -> tuple[Sequence[str] | None, bool]:
    """Which functions may be called, None for all of them, and whether one has to be."""
    if isinstance(choice, NamedTool):
        return [choice.function.name], True
    if isinstance(choice, AllowedTools):
        allowed = choice.allowed_tools
        return [tool.function.name for tool in allowed.tools], allowed.mode == "required"
    return None, choice == "required"


def _chosen(
    functions: Sequence[FunctionSpec], names: Sequence[str] | None, param: str, declared_in: str
) -> Sequence[FunctionSpec]:
    if names is None:
        return functions
    declared = {function.name for function in functions}
    for name in names:
        if name not in declared:
            raise RequestError(f"{param}: no {name!r} is declared in {declared_in}", param=param)
    return [function for function in functions if function.name in names]


def _check_functions(functions: Sequence[FunctionSpec], param: str, path: str) -> None:
    if len(functions) > MAX_TOOLS:
        raise RequestError(
            f"{len(functions)} {param} are given; at most {MAX_TOOLS} are allowed", param=param
        )
    size = len(msgspec.json.encode(functions))
    if size > MAX_TOOLS_BYTES:
        raise RequestError(
            f"{param} take {size} bytes; at most {MAX_TOOLS_BYTES} are allowed", param=param
        )
    names = set()
    for index, function in enumerate(functions):
        place = path.format(index)
        if function.name in names:
            raise RequestError(
                f"{place}.name: {function.name!r} is declared twice", param=f"{place}.name"
            )
        names.add(function.name)
        _check_parameters(function.parameters or {}, f"{place}.parameters")


def _check_parameters(schema: dict[str, Any], path: str) -> None:
    if schema.get("type", "object") != "object":
        raise _wrong(f"{path}.type", 'must be "object"', schema["type"])
    _check_schema(schema, path)


def _check_schema(schema: object, path: str) -> None:
    """See that it has the build of a JSON schema; what it says is its own business."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise _wrong(path, "must be a schema, an object or a boolean", schema)
    for key, value in schema.items():
        place = f"{path}.{key}"
        if key == "type" and not _are_types(value if isinstance(value, list) else [value]):
            raise _wrong(place, f"must be one of {', '.join(_TYPES)}", value)
        if key == "required" and not (isinstance(value, list) and _are_texts(value)):
            raise _wrong(place, "must be a list of names", value)
        if key == "enum" and not isinstance(value, list):
            raise _wrong(place, "must be a list of values", value)
        if key in _MAPS_OF_SCHEMAS:
            if not isinstance(value, dict):
                raise _wrong(place, "must map names to schemas", value)
            for name, part in value.items():
                _check_schema(part, f"{place}.{name}")
        elif key in _LISTS_OF_SCHEMAS or (key == "items" and isinstance(value, list)):
            if not isinstance(value, list):
                raise _wrong(place, "must be a list of schemas", value)
            for index, part in enumerate(value):
                _check_schema(part, f"{place}[{index}]")
        elif key in _SCHEMAS:
            _check_schema(value, place)


def _are_texts(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _are_types(values: Sequence[object]) -> bool:
    return all(value in _TYPES for value in values)


def _wrong(param: str, problem: str, value: object) -> RequestError:
    return RequestError(f"{param} {problem}, got {value!r:.100}", param=param)


def _for_template(function: FunctionSpec) -> dict[str, Any]:
    described: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        described["description"] = function.description
    if function.parameters is not None:
        described["parameters"] = function.parameters
    return {"type": "function", "function": described}
