"""Which types a schema of parameters allows."""

from __future__ import annotations

from qwell.server.answer.json_types import parameter_types


def test_schemas_that_go_in_circles() -> None:
    schema = {
        "properties": {"a": {"$ref": "#/$defs/a"}, "b": {"$ref": "#/$defs/none"}},
        "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/properties/a"}]}},
    }
    types = parameter_types(schema)
    assert types.of("a") == types.of("b") == parameter_types({"properties": {"x": {}}}).of("x")
