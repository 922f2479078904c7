"""Which JSON types the schema of a function's parameters allows, as far as it says so itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ALL_TYPES = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})
TEXT_ONLY = frozenset({"string"})
_PYTHON_TYPES: Mapping[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
    dict: "object",
    list: "array",
}
_DEEPEST = 32


@dataclass(frozen=True)
class ParameterTypes:
    """The types of named parameters, and of those that have no schema of their own."""

    named: Mapping[str, frozenset[str]]
    others: frozenset[str] = TEXT_ONLY

    def of(self, name: str) -> frozenset[str]:
        """The types that the parameter `name` may have."""
        return self.named.get(name, self.others)


def json_type(value: object) -> str:
    """The narrowest JSON type of a decoded value: 2.0 is an integer."""
    if isinstance(value, float) and value.is_integer():
        return "integer"
    return _PYTHON_TYPES[type(value)]


def parameter_types(schema: Mapping[str, Any]) -> ParameterTypes:
    """The types that a schema of parameters declares, whatever else is in it."""
    types = _Types(schema)
    properties = schema.get("properties")
    named = properties if isinstance(properties, Mapping) else {}
    others = schema.get("additionalProperties")
    return ParameterTypes(
        {name: types.allowed(part) for name, part in named.items()},
        types.allowed(others) if isinstance(others, Mapping) else TEXT_ONLY,
    )


class _Types:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._known: dict[str, frozenset[str]] = {}

    def allowed(self, schema: object, depth: int = 0) -> frozenset[str]:
        """All types where the schema does not say; "number" brings "integer" along."""
        if not isinstance(schema, Mapping) or depth == _DEEPEST:
            return ALL_TYPES
        types = ALL_TYPES
        if "type" in schema:
            names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
            types = frozenset(name for name in names if isinstance(name, str)) & ALL_TYPES
            if "number" in types:
                types |= {"integer"}
        if isinstance(schema.get("enum"), list):
            types &= {json_type(value) for value in schema["enum"]}
        if "const" in schema:
            types &= {json_type(schema["const"])}
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list):
                types &= {name for part in schema[key] for name in self.allowed(part, depth + 1)}
        reference = schema.get("$ref")
        if isinstance(reference, str):
            if reference not in self._known:
                self._known[reference] = ALL_TYPES  # where references go round in a circle
                self._known[reference] = self.allowed(_referred(reference, self._root), depth + 1)
            types &= self._known[reference]
        return types


def resolved(schema: object, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `schema`, a part of `root`, refers to if it does; empty where that is no object."""
    for _ in range(_DEEPEST):
        if not isinstance(schema, Mapping):
            break
        if not isinstance(schema.get("$ref"), str):
            return schema
        schema = _referred(schema["$ref"], root)
    return {}


def _referred(reference: str, root: Mapping[str, Any]) -> object:
    start, *names = reference.split("/")
    place: object = root if start == "#" else None
    for name in names:
        if not isinstance(place, Mapping):
            return None
        place = place.get(name.replace("~1", "/").replace("~0", "~"))
    return place
